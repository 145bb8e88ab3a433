//! End-to-end tests: the real programs, each test with a directory and ports of its own.
//!
//! They wait on conditions and not for times, and fail when a condition does not come.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails and says so"
)]

mod boots;
mod demo;
mod drains;
mod ending;
mod faults;
mod flavors;
mod journal;
mod refusals;
mod restart;
mod support;
mod zero;
