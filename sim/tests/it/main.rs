//! Integration tests of the infersim crate.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod brain;
mod engine;
mod engine_exposition;
mod engine_fidelity;
mod engine_reader;
mod support;
