//! What a cluster is told about policies and bindings: their `status`.
//!
//! Every list is a map by its key, so that status can be written by server-side apply.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is true of a binding now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BindingStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, TargetsResolved, MetricsAvailable, ScalingActive, Limited and Conflict.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What is scaled, in a few words: `Deployment/chat`, `3 targets`, or the names of the roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What is done with decisions: `auto`, `advisory`, `paused` or `override`. A person's word stands above the spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Replicas wanted, in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// Replicas asked of the targets, in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Replicas that serve, in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// The least in force, in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<i32>,
    /// The most in force, in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<i32>,
    /// Label selector of the Pods, as text, where the binding has one target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Each target by itself: the one of `scaling`, those of `optimize`, or one per role.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub targets: Vec<TargetStatus>,
}

/// What is true of one target now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// Name of the role or of the target within the binding.
    pub name: String,
    /// Kind of the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name of the object that is scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_name: Option<String>,
    /// Replicas wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<i32>,
    /// Replicas asked of the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<i32>,
    /// Replicas that serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<i32>,
    /// Replicas created and not yet serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting: Option<i32>,
    /// Replicas that finish their last requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<i32>,
    /// Replicas that have crashed or cannot start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<i32>,
    /// The last decision that changed something. For the targets of `optimize` it stands at the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_decision: Option<LastDecision>,
    /// What the next owner has to know to go on from here. For machines; for the targets of `optimize` it stands at the
    /// first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 131072))]
    pub memory: Option<String>,
}

/// A decision that changed something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastDecision {
    /// Number of the decision; `inferctl explain` shows how it was reached.
    pub id: i64,
    /// When it was made (RFC 3339).
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    /// Why, in a sentence.
    pub reason: String,
    /// Replicas before.
    pub from: i32,
    /// Replicas after.
    pub to: i32,
}

/// What is true of a policy now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready: the policy makes sense.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The metrics in a few words, such as `concurrency 24, ttft p95 1000 ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// Number of bindings that refer to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_by: Option<i32>,
}

/// One thing that is so, is not so, or is not known, as everywhere in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about, such as `Ready`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub kind: String,
    /// Whether it is so.
    pub status: ConditionStatus,
    /// Why, in one word for programs.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Why, in words for people.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// When `status` last changed (RFC 3339).
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// Generation of the spec that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Whether something is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody knows.
    Unknown,
}
