//! Infersim: a simulated inference fleet, for demonstrations, tests and experiments without accelerators.

pub mod conformance;
pub mod engine;
pub mod policy;
