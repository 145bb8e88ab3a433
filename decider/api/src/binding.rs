//! `AutoscalingPolicyBinding`: which policy scales which target, and within which limits.

use infer_core::policy::Bounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::metadata::{ApiVersion, Metadata};
use crate::policy::{PolicySpec, count};

/// Which policy scales which target, and within which limits. A target has one binding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AutoscalingPolicyBinding {
    /// Group and version of the document.
    pub api_version: ApiVersion,
    /// Kind of the document.
    pub kind: AutoscalingPolicyBindingKind,
    /// Name and notes.
    pub metadata: Metadata,
    /// The binding itself.
    pub spec: BindingSpec,
}

/// The constant in `kind`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AutoscalingPolicyBindingKind {
    #[doc(hidden)]
    #[default]
    AutoscalingPolicyBinding,
}

impl AutoscalingPolicyBinding {
    /// A document of this kind.
    pub fn new(name: impl Into<String>, spec: BindingSpec) -> Self {
        AutoscalingPolicyBinding {
            api_version: ApiVersion::default(),
            kind: Default::default(),
            metadata: Metadata::named(name),
            spec,
        }
    }
}

/// The binding itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BindingSpec {
    /// The AutoscalingPolicy document to scale by. Exactly one of `policyRef` and `policy` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_ref: Option<PolicyRef>,
    /// The policy written here, for one target only. Exactly one of `policyRef` and `policy` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicySpec>,
    /// What is done with decisions.
    #[serde(default)]
    pub mode: BindingMode,
    /// The target and its limits.
    pub scaling: Scaling,
}

/// Refers to an AutoscalingPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRef {
    /// Name of the AutoscalingPolicy.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// What is done with decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BindingMode {
    /// They are applied.
    #[default]
    Auto,
    /// They are made and shown, and never applied.
    Advisory,
    /// They are made and shown, and not applied until the mode is changed here.
    Paused,
}

/// The target and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scaling {
    /// What is scaled.
    pub target_ref: TargetRef,
    /// Never fewer replicas; 0 allows scaling to zero, for which the target needs a front door.
    #[serde(default = "default_min_replicas")]
    #[schemars(range(min = 0, max = 100000))]
    pub min_replicas: i32,
    /// Never more replicas.
    #[schemars(range(min = 1, max = 100000))]
    pub max_replicas: i32,
}

fn default_min_replicas() -> i32 {
    1
}

impl Scaling {
    /// The limits in the core's terms.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            min: count(self.min_replicas),
            max: count(self.max_replicas),
        }
    }
}

/// Refers to what is scaled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Group and version of the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub api_version: Option<String>,
    /// Kind of the target. On one machine it is `LocalFleet`.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Name of the target.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}
