//! Tests on a real node: real containers, a real kubelet, real Service addresses. They need root and programs for another
//! target, so `make e2e-node` runs them and `cargo test` does not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails and says so"
)]

mod chart;
mod pods;
mod support;
