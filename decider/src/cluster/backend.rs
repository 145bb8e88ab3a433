//! Kubernetes' replica counts as a backend.

use std::sync::Arc;

use infer_core::decision::Plan;
use infer_kube::{
    Bindings, Targets,
    demand::Demands,
    targets::{ApplyError, Changes},
};
use tokio::sync::Mutex;

use crate::actuate::{Actuator, BoxFuture, Error, Fleet, PodDetail};

/// The backend.
pub(crate) struct Backend {
    pub(crate) targets: Targets,
    pub(crate) bindings: Bindings,
    pub(crate) demands: Demands,
    /// Read by one future at a time; what it has not delivered when it is dropped is still in there.
    pub(crate) changes: Arc<Mutex<Changes>>,
}

impl Actuator for Backend {
    fn fleet(&self, target: &str) -> Option<Fleet> {
        let fleet = self.targets.fleet(target)?;
        let details = fleet.details.into_iter().map(|detail| PodDetail {
            name: detail.name,
            endpoint: None,
            startup_ms: detail.startup_ms,
            problem: detail.problem,
        });
        Some(Fleet {
            view: fleet.view,
            details: details.collect(),
            gateway_waiting: self.demands.waiting(target),
        })
    }

    fn apply(&self, plan: Plan, plan_id: String) -> BoxFuture<Result<(), Error>> {
        let targets = self.targets.clone();
        let bindings = self.bindings.clone();
        Box::pin(async move {
            // The lease may have run out since the plan was made.
            if !bindings.may_act(&plan.target) {
                return Err(Error::Backend(
                    "the lease could not be renewed in time: another decider may own the target by now".to_owned(),
                ));
            }
            targets.apply(plan, plan_id).await.map_err(|error| match error {
                ApplyError::Stale { from, spec } => Error::Stale { from, spec },
                ApplyError::UnknownTarget(target) => Error::UnknownTarget(target),
                other => Error::Backend(other.to_string()),
            })
        })
    }

    fn changed(&self) -> BoxFuture<Vec<String>> {
        let changes = Arc::clone(&self.changes);
        Box::pin(async move {
            match changes.lock().await.next().await {
                Some(names) => names.into_iter().collect(),
                // Nothing can change any more.
                None => std::future::pending().await,
            }
        })
    }
}
