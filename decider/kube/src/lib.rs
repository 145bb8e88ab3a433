//! Kubernetes as a backend: what there is, what is asked for, and who owns it.

mod agents;
pub mod auth;
pub mod bindings;
pub mod ca;
pub mod demand;
mod failure;
pub mod lease;
mod lease_task;
mod rbac;
pub mod targets;

use std::time::Duration;

pub use agents::Agents;
pub use bindings::{Bindings, Bound, Change, Ownership, Report};
pub use rbac::{Rule, Scope, rbac};
pub use targets::Targets;

/// Our name in `managedFields`.
pub const FIELD_MANAGER: &str = "infer-decider";

/// Group of our custom resources, and prefix of our labels and annotations.
pub const GROUP: &str = "autoscaling.matrixinfer.ai";
/// Plural of AutoscalingPolicy.
pub const POLICIES: &str = "autoscalingpolicies";
/// Plural of AutoscalingPolicyBinding.
pub const BINDINGS: &str = "autoscalingpolicybindings";

/// Waits after a row of failures: 100 ms doubled each time up to `most`, of which half is left to chance so that those
/// who failed together do not come back together.
async fn backoff(failures: u32, most: Duration) {
    let pause = Duration::from_millis(100)
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(most);
    tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
}
