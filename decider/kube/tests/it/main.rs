//! Against a real API server, where `INFER_TEST_KUBECONFIG` names one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and one that is skipped says so"
)]

mod bindings;
mod bindings_cluster;
mod bindings_trust;
mod chart;
mod targets;
mod targets_cluster;
mod targets_outage;
