//! The commands, one function each: ask, then print.

pub(crate) mod completion;
pub(crate) mod control;
pub(crate) mod explain;
pub(crate) mod inject;
pub(crate) mod policy;
pub(crate) mod read;
pub(crate) mod watch;
