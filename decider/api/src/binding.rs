//! `AutoscalingPolicyBinding`: which policy scales which targets, and within which limits.

use infer_core::decision::Control;
use infer_core::policy::Bounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::demand::Demand;
use crate::metadata::{ApiVersion, Metadata};
use crate::optimize::Optimize;
use crate::pattern;
use crate::policy::{PolicySpec, count};
use crate::roles::{Ratio, Role};

/// Which policy scales which targets, and within which limits. A target has one binding.
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
    /// The AutoscalingPolicy to scale by, of the same namespace. Exactly one of `policyRef` and `policy` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_ref: Option<PolicyRef>,
    /// The policy written here, for this binding only. Exactly one of `policyRef` and `policy` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicySpec>,
    /// What is done with decisions.
    #[serde(default)]
    pub mode: BindingMode,
    /// One target and its limits. Exactly one of `scaling`, `optimize` and `roles` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// Several targets that serve the same requests at different cost; they share one count. Exactly one of `scaling`,
    /// `optimize` and `roles` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimize: Option<Optimize>,
    /// Targets that serve different parts of every request, such as prefill and decode; each is counted by itself.
    /// Exactly one of `scaling`, `optimize` and `roles` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 8))]
    pub roles: Option<Vec<Role>>,
    /// How many replicas of one role there may be for each replica of another. Only with `roles`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
    /// Where requests are counted that wait while no replica runs. Needed to scale to zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<Demand>,
    /// What a replica that has to go is given to finish its requests.
    #[serde(default)]
    pub drain: BindingDrain,
    /// What is done when somebody else has changed the replicas of a target.
    #[serde(default)]
    pub foreign_changes: ForeignChanges,
}

impl BindingSpec {
    /// A binding of one target by a policy of its own, with every other setting at its default.
    pub fn scaling(policy: PolicySpec, scaling: Scaling) -> Self {
        BindingSpec {
            policy_ref: None,
            policy: Some(policy),
            mode: BindingMode::default(),
            scaling: Some(scaling),
            optimize: None,
            roles: None,
            ratio: None,
            demand: None,
            drain: BindingDrain::default(),
            foreign_changes: ForeignChanges::default(),
        }
    }

    /// Path and value of every target of the binding, in the order of the document.
    pub fn target_refs(&self) -> Vec<(String, &TargetRef)> {
        let scaling = self.scaling.iter();
        let optimize = self
            .optimize
            .iter()
            .flat_map(|optimize| optimize.targets.iter().enumerate());
        let roles = self.roles.iter().flatten().enumerate();
        scaling
            .map(|scaling| ("spec.scaling.targetRef".to_owned(), &scaling.target_ref))
            .chain(optimize.map(|(i, target)| (format!("spec.optimize.targets[{i}].targetRef"), &target.target_ref)))
            .chain(roles.map(|(i, role)| (format!("spec.roles[{i}].targetRef"), &role.target_ref)))
            .collect()
    }

    /// What one policy decides about: the whole binding, or each role.
    pub(crate) fn bounds(&self) -> Vec<Bound<'_>> {
        let whole = |name, bounds| Bound {
            name,
            at: "spec".to_owned(),
            policy_ref: self.policy_ref.as_ref().map(|reference| reference.name.as_str()),
            policy: self.policy.as_ref(),
            bounds,
        };
        let scaling = self
            .scaling
            .iter()
            .map(|scaling| whole(Some(scaling.target_ref.name.as_str()), scaling.bounds()));
        let optimize = self.optimize.iter().map(|optimize| whole(None, optimize.bounds()));
        let roles = self.roles.iter().flatten().enumerate().map(|(index, role)| {
            let name = Some(role.name.as_str());
            if role.policy.is_none() && role.policy_ref.is_none() {
                return whole(name, role.bounds());
            }
            Bound {
                name,
                at: format!("spec.roles[{index}]"),
                policy_ref: role.policy_ref.as_ref().map(|reference| reference.name.as_str()),
                policy: role.policy.as_ref(),
                bounds: role.bounds(),
            }
        });
        scaling.chain(optimize).chain(roles).collect()
    }

    /// What is scaled, in a few words for a table: `Deployment/chat`, `3 targets`, or the names of the roles.
    pub fn target_summary(&self) -> String {
        if let Some(roles) = &self.roles {
            let names: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
            return names.join(",");
        }
        match self.target_refs().as_slice() {
            [(_, only)] => only.to_string(),
            targets => format!("{} targets", targets.len()),
        }
    }
}

/// What one policy decides about.
pub(crate) struct Bound<'a> {
    /// Name of the target or of the role; `None` where there are several targets.
    pub(crate) name: Option<&'a str>,
    /// Path of what gives the policy.
    pub(crate) at: String,
    /// Name of the policy.
    pub(crate) policy_ref: Option<&'a str>,
    /// The policy where it is written in the binding.
    pub(crate) policy: Option<&'a PolicySpec>,
    /// The limits of the whole.
    pub(crate) bounds: Bounds,
}

/// Refers to an AutoscalingPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRef {
    /// Name of the AutoscalingPolicy.
    #[schemars(length(min = 1, max = 63), extend("pattern" = pattern::NAME))]
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

impl BindingMode {
    /// The word in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            BindingMode::Auto => "auto",
            BindingMode::Advisory => "advisory",
            BindingMode::Paused => "paused",
        }
    }

    /// The mode in the core's terms.
    pub fn control(self) -> Control {
        match self {
            BindingMode::Auto => Control::Auto,
            BindingMode::Advisory => Control::Advisory,
            BindingMode::Paused => Control::Paused,
        }
    }
}

/// What is done when somebody else has changed the replicas of a target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ForeignChanges {
    /// The count found is where the next decision starts.
    #[default]
    Adopt,
    /// The count decided before is restored at once.
    Correct,
}

/// What a replica that has to go is given to finish its requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BindingDrain {
    /// How long the replica count is kept while replicas that got no new requests finish their own, in seconds.
    #[schemars(range(min = 0, max = 86400))]
    pub timeout_seconds: i32,
}

impl Default for BindingDrain {
    fn default() -> Self {
        BindingDrain { timeout_seconds: 60 }
    }
}

/// One target and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scaling {
    /// What is scaled.
    pub target_ref: TargetRef,
    /// Never fewer replicas; 0 allows scaling to zero, for which something must count the requests that wait: `demand`
    /// here, or the front door of a LocalFleet.
    #[serde(default = "one_replica")]
    #[schemars(range(min = 0, max = 100000))]
    pub min_replicas: i32,
    /// Never more replicas.
    #[schemars(range(min = 1, max = 100000))]
    pub max_replicas: i32,
}

pub(crate) fn one_replica() -> i32 {
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
    /// Group and version of the target, such as `apps/v1`. Required in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("pattern" = pattern::GROUP_VERSION))]
    pub api_version: Option<String>,
    /// Kind of the target. In a cluster, any kind with the scale subresource, such as `Deployment`, or one with a
    /// `replicasPath`. On one machine it is `LocalFleet`.
    #[schemars(length(min = 1, max = 63), extend("pattern" = pattern::KIND))]
    pub kind: String,
    /// Name of the target, in the namespace of the binding.
    #[schemars(length(min = 1, max = 253), extend("pattern" = pattern::OBJECT_NAME))]
    pub name: String,
    /// Where in the object the replica count stands, for kinds whose scale subresource does not tell it, such as one of
    /// several roles in one object: `.spec.roles[?(@.name=="prefill")].replicas`, or shorter
    /// `.spec.roles[name=prefill].replicas`. Without it the scale subresource is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), extend("pattern" = pattern::REPLICAS_PATH))]
    pub replicas_path: Option<String>,
}

impl TargetRef {
    /// Group of the target; empty for the core group and where no version is given.
    pub fn group(&self) -> &str {
        let version = self.api_version.as_deref().unwrap_or_default();
        version.split_once('/').map_or("", |(group, _)| group)
    }

    /// True when both mean the same count, whatever the versions. `.spec.replicas` is taken for what the scale
    /// subresource shows, as it is in almost every kind.
    pub fn is_same(&self, other: &TargetRef) -> bool {
        let key = |target: &TargetRef| {
            let path = target.replicas_path.as_deref().map(crate::path::parse_replicas_path);
            let path = path.filter(|path| *path != crate::path::parse_replicas_path(".spec.replicas"));
            (
                target.group().to_owned(),
                target.kind.clone(),
                target.name.clone(),
                path,
            )
        };
        key(self) == key(other)
    }
}

impl std::fmt::Display for TargetRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}
