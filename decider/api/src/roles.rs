//! `roles`: targets that serve different parts of every request, such as prefill and decode.

use infer_core::policy::Bounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::binding::{PolicyRef, TargetRef, one_replica};
use crate::pattern;
use crate::policy::{PolicySpec, count};

/// One part of the work of every request, and the target that does it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Role {
    /// Name of the role, unique in the binding, such as `prefill`.
    #[schemars(length(min = 1, max = 63), extend("pattern" = pattern::NAME))]
    pub name: String,
    /// What is scaled.
    pub target_ref: TargetRef,
    /// Never fewer replicas of this role; 0 allows scaling to zero, for which `demand` is needed.
    #[serde(default = "one_replica")]
    #[schemars(range(min = 0, max = 100000))]
    pub min_replicas: i32,
    /// Never more replicas of this role.
    #[schemars(range(min = 1, max = 100000))]
    pub max_replicas: i32,
    /// Another AutoscalingPolicy for this role. Without it and `policy`, the binding's own policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_ref: Option<PolicyRef>,
    /// Another policy for this role, written here. Without it and `policyRef`, the binding's own policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicySpec>,
}

impl Role {
    /// The limits in the core's terms.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            min: count(self.min_replicas),
            max: count(self.max_replicas),
        }
    }
}

/// How many replicas of one role there may be for each replica of another. When the counts that the policies want break
/// it, the lesser of the two roles gets more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ratio {
    /// Name of the role that is divided, such as `prefill`.
    #[schemars(length(min = 1, max = 63))]
    pub numerator: String,
    /// Name of the role that it is divided by, such as `decode`.
    #[schemars(length(min = 1, max = 63))]
    pub denominator: String,
    /// Smallest allowed quotient of the replica counts.
    #[schemars(range(max = 100000), extend("exclusiveMinimum" = 0))]
    pub min: f64,
    /// Largest allowed quotient of the replica counts.
    #[schemars(range(max = 100000), extend("exclusiveMinimum" = 0))]
    pub max: f64,
}

impl Ratio {
    /// True when some counts within the bounds of both roles have an allowed quotient.
    pub fn is_possible(&self, numerator: Bounds, denominator: Bounds) -> bool {
        (denominator.min.max(1)..=denominator.max).any(|below| {
            let below = f64::from(below);
            let least = (self.min * below - ROUNDING)
                .ceil()
                .max(f64::from(numerator.min.max(1)));
            let most = (self.max * below + ROUNDING).floor().min(f64::from(numerator.max));
            least <= most
        })
    }
}

/// A third of three is one, whatever the floating point says.
const ROUNDING: f64 = 1e-9;
