//! Tests against a real API server, with a real scheduler and real controllers; kwok stands in for nodes.
//!
//! One cluster for all of them, one namespace for each. Without a control plane (`tests/cluster/build.sh` builds one) they
//! are skipped, and say so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails and says so"
)]

mod deploy;
mod drains;
mod failures;
mod fleet;
mod harness;
mod injection;
mod manifests;
mod owners;
mod scaling;
mod support;
