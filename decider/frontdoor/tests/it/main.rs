//! The front door over real sockets.
#![allow(
    clippy::unwrap_used,
    reason = "a failure is what a test is for; clippy knows only #[test] functions as tests"
)]

mod balancing;
mod faults;
mod holding;
mod lifecycle;
mod streaming;
mod support;
