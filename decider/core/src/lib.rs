//! The brain of Matrix Infer Autoscaler: time windows, signals, stable/panic, behaviours, plans and their records.
//!
//! Synchronous and deterministic. Nothing here can do I/O, read a clock or draw a random number; time comes in as an
//! argument. The same code runs in the service, in simulations, in replay and in `what if`.

pub mod behavior;
pub mod check;
pub mod decision;
pub mod evaluate;
pub mod histogram;
pub mod kpa;
pub mod packing;
pub mod policy;
pub mod roles;
pub mod sample;
pub mod signal;
pub mod target;
pub mod time;
pub mod window;

pub use time::TimeMs;
