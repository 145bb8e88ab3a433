//! What crosses rooms: starting the real programs, waiting on what they say, and finding what they leave behind.
//!
//! [`harness`] serves the demo and the end-to-end tests.

pub mod harness;
