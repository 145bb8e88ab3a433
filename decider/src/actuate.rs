//! What changes replica counts. A backend knows how; the tick knows what.

use std::{future::Future, pin::Pin};

use infer_core::{decision::Plan, target::FleetView};
use thiserror::Error;

/// A future that borrows nothing.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why a plan could not be applied.
#[derive(Debug, Error)]
pub enum Error {
    /// The backend has another count than the plan was made for.
    #[error("the plan was made for {from} replicas, the backend has {spec}")]
    Stale {
        /// What the plan was made for.
        from: u32,
        /// What there is.
        spec: u32,
    },
    /// The backend does not know the target.
    #[error("the backend has no target {0:?}")]
    UnknownTarget(String),
    /// The backend refused or failed.
    #[error("{0}")]
    Backend(String),
}

/// Where a replica is reached and how it has fared: for people, not for deciding.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodDetail {
    /// The replica.
    pub name: String,
    /// Where its API is served.
    pub endpoint: Option<String>,
    /// Start of its process to serving, in ms.
    pub startup_ms: Option<u64>,
    /// What went wrong last.
    pub problem: Option<String>,
}

/// What there is of one target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fleet {
    /// For deciding.
    pub view: FleetView,
    /// For people.
    pub details: Vec<PodDetail>,
    /// Requests held before any replica, where the backend has a front door.
    pub gateway_waiting: Option<f64>,
}

/// A backend.
pub trait Actuator: Send + Sync + 'static {
    /// What there is of a target; `None` when that is not known (yet). Cheap, and does not wait.
    fn fleet(&self, target: &str) -> Option<Fleet>;

    /// Applies a plan, unless it is stale. Applying the same plan twice changes nothing. Of one target at most one plan is
    /// under way at any time; of several targets many are, and one that hangs delays no other.
    fn apply(&self, plan: Plan, plan_id: String) -> BoxFuture<Result<(), Error>>;

    /// Completes when fleets or their held requests have changed since the last call, with the targets' names. A future that is
    /// dropped before it completes takes nothing with it.
    fn changed(&self) -> BoxFuture<Vec<String>>;
}
