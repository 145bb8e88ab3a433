//! What others see of targets: plain values.

use infer_core::{TimeMs, target::FleetView};
use thiserror::Error;

/// Where a replica count is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetRef {
    /// The object's namespace.
    pub namespace: String,
    /// `apps/v1`, or `v1` for the core group.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Where the count stands inside the object, such as `.spec.roles[name=prefill].replicas`; `None`: the scale
    /// subresource.
    pub replicas_path: Option<String>,
    /// Which Pods belong to it, as a label selector; `None`: those that the scale subresource names (for a role of a
    /// ModelServing: those with the role's labels).
    pub pod_selector: Option<String>,
}

impl TargetRef {
    /// A target with the scale subresource.
    pub fn scale(namespace: &str, api_version: &str, kind: &str, name: &str) -> Self {
        TargetRef {
            namespace: namespace.to_owned(),
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            replicas_path: None,
            pod_selector: None,
        }
    }
}

impl std::fmt::Display for TargetRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        match &self.replicas_path {
            Some(path) => write!(f, " {path}"),
            None => Ok(()),
        }
    }
}

/// One replica count of a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Unique within the target; what status and messages call it.
    pub name: String,
    /// Where the count is.
    pub target: TargetRef,
    /// Not fewer replicas.
    pub min: u32,
    /// Not more replicas.
    pub max: u32,
    /// Cost of a replica, in units of the binding's choice.
    pub cost: f64,
}

/// How replicas are emptied before they go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrainSpec {
    /// A replica that still has requests goes after this time, in seconds; 0: no draining.
    pub timeout_s: f64,
    /// A replica is empty when it has had no request for this long, in seconds: those that a router has already
    /// sent must have arrived.
    pub quiet_s: f64,
}

impl Default for DrainSpec {
    fn default() -> Self {
        DrainSpec {
            timeout_s: 120.0,
            quiet_s: 2.0,
        }
    }
}

/// What there is of one target.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fleet {
    /// For deciding: all parts together. `spec` is what will be once drains have ended.
    pub view: FleetView,
    /// For people: one per replica of `view`, in its order.
    pub details: Vec<Detail>,
    /// For status: one per part.
    pub parts: Vec<PartState>,
    /// The view has not been confirmed by the API server since then: nothing may shrink on it, and [`super::Targets::apply`]
    /// refuses to. `None`: it is as fresh as a watch can be.
    pub stale_since: Option<TimeMs>,
}

/// A replica, for people.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Detail {
    /// The replica: its (leading) Pod's name.
    pub name: String,
    /// Its part.
    pub part: String,
    /// Where its Pod runs.
    pub node: Option<String>,
    /// Its Pod's address.
    pub pod_ip: Option<String>,
    /// Pods it consists of.
    pub pods: u32,
    /// Creation of the Pod to its first Ready, in ms (the API server tells whole seconds).
    pub startup_ms: Option<u64>,
    /// Why it does not serve.
    pub problem: Option<String>,
}

/// One part's replicas by phase.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartState {
    /// Its name.
    pub name: String,
    /// Asked of the API server.
    pub spec: u32,
    /// What will be asked once the drain has ended; else `spec`.
    pub desired: u32,
    /// Serving.
    pub ready: u32,
    /// Created and not yet serving.
    pub starting: u32,
    /// Finishing their last requests.
    pub draining: u32,
    /// Crashed.
    pub failed: u32,
}

/// What is wrong with a part.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// The API server does not know the kind (yet).
    #[error("part {part}: the cluster has no {kind} in {api_version} (is its CustomResourceDefinition installed?)")]
    UnknownKind {
        /// Which part.
        part: String,
        /// Of the target.
        api_version: String,
        /// Of the target.
        kind: String,
    },
    /// There is no such object (yet).
    #[error("part {part}: {target} does not exist")]
    NotFound {
        /// Which part.
        part: String,
        /// What was looked for.
        target: String,
    },
    /// The kind has no scale subresource.
    #[error("part {part}: {kind} has no scale subresource; name the field with replicasPath")]
    NoScale {
        /// Which part.
        part: String,
        /// Of the target.
        kind: String,
    },
    /// Nothing says which Pods belong to the target.
    #[error("part {part}: {target} has no Pod selector: {why}")]
    NoSelector {
        /// Which part.
        part: String,
        /// Of the target.
        target: String,
        /// What is missing.
        why: String,
    },
    /// The path does not lead to a count.
    #[error("part {part}: replicasPath {path} of {target}: {why}")]
    BadPath {
        /// Which part.
        part: String,
        /// As given.
        path: String,
        /// Of the target.
        target: String,
        /// Where it ends.
        why: String,
    },
    /// A rule is missing.
    #[error(
        "part {part}: not allowed to {verb} {resource} in group {group:?}, {scope}: the decider's role needs that rule"
    )]
    Forbidden {
        /// Which part.
        part: String,
        /// `patch`.
        verb: String,
        /// `deployments/scale`.
        resource: String,
        /// `apps`; empty for the core group.
        group: String,
        /// `namespace x` or `in all namespaces`.
        scope: String,
    },
    /// Anything else; retried.
    #[error("part {part}: {message}")]
    Failed {
        /// Which part.
        part: String,
        /// What happened.
        message: String,
    },
}

impl Problem {
    /// The part it is about.
    pub fn part(&self) -> &str {
        match self {
            Problem::UnknownKind { part, .. }
            | Problem::NotFound { part, .. }
            | Problem::NoScale { part, .. }
            | Problem::NoSelector { part, .. }
            | Problem::BadPath { part, .. }
            | Problem::Forbidden { part, .. }
            | Problem::Failed { part, .. } => part,
        }
    }

    /// A reason for a condition: one word in CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Problem::UnknownKind { .. } => "UnknownKind",
            Problem::NotFound { .. } => "TargetNotFound",
            Problem::NoScale { .. } => "NoScaleSubresource",
            Problem::NoSelector { .. } => "NoPodSelector",
            Problem::BadPath { .. } => "BadReplicasPath",
            Problem::Forbidden { .. } => "Forbidden",
            Problem::Failed { .. } => "Failed",
        }
    }
}

/// Somebody else has changed a replica count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignChange {
    /// Whose.
    pub key: String,
    /// Which part.
    pub part: String,
    /// The object.
    pub target: TargetRef,
    /// Replicas that we last knew of.
    pub from: u32,
    /// Replicas now.
    pub to: u32,
    /// Who, as `managedFields` tells; empty when it does not.
    pub manager: String,
    /// When it was seen.
    pub at: TimeMs,
}

/// Why a plan could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ApplyError {
    /// There is another count than the plan was made for, or its time is over.
    #[error("the plan was made for {from} replicas, there are {spec}")]
    Stale {
        /// What the plan was made for.
        from: u32,
        /// What there is.
        spec: u32,
    },
    /// Its time was over before it could be applied.
    #[error("the plan has expired: {0}")]
    Expired(String),
    /// The target is not tracked, or not known yet.
    #[error("there is no target {0:?}")]
    UnknownTarget(String),
    /// The API server refused, failed or did not answer.
    #[error("{0}")]
    Backend(String),
}

/// What [`super::Targets`] is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespaces to look at; empty: all.
    pub namespaces: Vec<String>,
    /// Name in `managedFields`.
    pub field_manager: String,
    /// A request that has not been answered by then has failed.
    pub request_timeout: std::time::Duration,
    /// Trying to apply a plan ends then, if the plan has not expired before.
    pub apply_timeout: std::time::Duration,
    /// Silence of the API server is questioned after this time, and again after it.
    pub probe_interval: std::time::Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            namespaces: Vec::new(),
            field_manager: crate::FIELD_MANAGER.to_owned(),
            request_timeout: std::time::Duration::from_secs(2),
            apply_timeout: std::time::Duration::from_secs(4),
            probe_interval: std::time::Duration::from_secs(5),
        }
    }
}
