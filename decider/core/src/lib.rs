//! The brain.
pub mod policy;
pub mod signal;
