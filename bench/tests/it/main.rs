//! The benches' results parse and say how to get them again; every bench runs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and says what it skips"
)]

mod results;
mod runs;
