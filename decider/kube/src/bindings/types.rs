//! What others see of bindings: plain values.

use std::{sync::Arc, time::Duration};

use infer_api::{Demand, ForeignChanges};
use infer_core::{
    decision::{Control, Memory},
    policy::{Bounds, Policy},
};

use crate::{
    lease::Timing,
    targets::{DrainSpec, Part},
};

pub use infer_api::ResolvedRatio as Ratio;

/// What changed about who decides on what.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// This decider decides on the target from now on, or goes on with other settings.
    Bound(Box<Bound>),
    /// It does not any more: the binding is gone, wrong or in conflict, or another decider has it.
    Gone(String),
}

/// One load domain and all that is settled about it. Its parts are tracked by the time it is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// `namespace/binding`, or `namespace/binding/role`.
    pub key: String,
    /// The binding's namespace.
    pub namespace: String,
    /// The binding's name.
    pub binding: String,
    /// The role, for a binding of roles.
    pub role: Option<String>,
    /// Name of the AutoscalingPolicy, or the binding's own where the policy is written in it.
    pub policy_name: String,
    /// The policy.
    pub policy: Arc<Policy>,
    /// The limits of the whole.
    pub bounds: Bounds,
    /// What is done with decisions, as the binding says.
    pub control: Control,
    /// What is scaled.
    pub parts: Vec<Part>,
    /// How replicas are emptied before they go.
    pub drain: DrainSpec,
    /// What is done when somebody else has changed the replicas.
    pub foreign_changes: ForeignChanges,
    /// Where requests are counted that wait while no replica runs.
    pub demand: Option<Demand>,
    /// What the decider before remembered, as status tells it. Only in the first `Bound` of a key, and only of use where
    /// the key was not known before.
    pub memory: Option<Memory>,
    /// The ratio in which this role takes part.
    pub ratio: Option<Ratio>,
}

/// What a tick came to, for status and Events. To be reported every tick or whenever something is new: what says
/// nothing new costs nothing. `changed` of several reports between two writes is not lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Whose.
    pub key: String,
    /// Replicas wanted.
    pub desired: u32,
    /// `stable`, `panic` or `unknown`.
    pub mode: &'static str,
    /// Who decides, a person's word included.
    pub control: Control,
    /// One sentence.
    pub reason: String,
    /// Number of the decision and when it was made (Unix ms); `None` for a tick that decided nothing.
    pub decision: Option<(u64, i64)>,
    /// What the decision changed: replicas before and after.
    pub changed: Option<(u32, u32)>,
    /// Whether the change was given to the backend.
    pub applied: bool,
    /// Why not.
    pub not_applied: Option<String>,
    /// What cut the wish, in a sentence that stays the same while it is so.
    pub limited: Option<String>,
    /// Whether there is fresh data.
    pub metrics_available: bool,
    /// What the next owner would have to know.
    pub memory: Memory,
}

/// Which decider decides on something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// This one.
    Mine,
    /// Another one, there.
    Other {
        /// As in [`Options::endpoint`].
        endpoint: String,
    },
    /// Not known now.
    Unknown,
}

/// What [`super::Bindings`] is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who this is, for people; made unique by what is appended to it.
    pub identity: String,
    /// Where agents and people reach this decider, such as `https://10.0.0.7:9400`.
    pub endpoint: String,
    /// Namespace of the Leases.
    pub lease_namespace: String,
    /// Into how many parts the bindings are divided, at least 1. All deciders must have the same; one that finds Leases
    /// of another number in use waits.
    pub shards: u32,
    /// Namespaces to look at; empty: all.
    pub namespaces: Vec<String>,
    /// Pace of the Leases.
    pub timing: Timing,
    /// Status writes per second in all, on average.
    pub status_writes_per_s: f64,
    /// Between two status writes of one binding.
    pub status_interval: Duration,
    /// A request that has not been answered by then has failed.
    pub request_timeout: Duration,
}

impl Options {
    /// All but who and where at its default.
    pub fn new(identity: &str, endpoint: &str, lease_namespace: &str) -> Self {
        Options {
            identity: identity.to_owned(),
            endpoint: endpoint.to_owned(),
            lease_namespace: lease_namespace.to_owned(),
            shards: 1,
            namespaces: Vec::new(),
            timing: Timing::default(),
            // 1,000 bindings are all written once within 20 s of a cold start; steady state writes nothing.
            status_writes_per_s: 50.0,
            status_interval: Duration::from_secs(1),
            request_timeout: Duration::from_secs(2),
        }
    }
}
