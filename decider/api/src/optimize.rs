//! `optimize`: one load, several targets of different cost.

use std::collections::BTreeSet;

use infer_core::policy::Bounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::binding::{TargetRef, one_replica};
use crate::pattern;
use crate::policy::count;

/// Several targets that serve the same requests at different cost; they share one count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Optimize {
    /// How the count is spread over the targets.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// The targets, at least one. Their order counts only between equal costs.
    #[schemars(length(min = 1, max = 64))]
    pub targets: Vec<OptimizeTarget>,
    /// Never fewer replicas in all; 0 allows scaling to zero, for which `demand` is needed. The targets' own
    /// `minReplicas` hold as well.
    #[serde(default = "one_replica")]
    #[schemars(range(min = 0, max = 6400000))]
    pub min_replicas: i32,
    /// Never more replicas in all. Without it, as many as the targets may have together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 6400000))]
    pub max_replicas: Option<i32>,
}

/// How a count is spread over targets of different cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// Every target's minimum first, then the cheapest targets, in batches that double.
    #[default]
    GreedyDoubling,
}

/// One of several targets that serve the same requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OptimizeTarget {
    /// Name of the target in status and explanations, unique in the binding. Without it, the name in `targetRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), extend("pattern" = pattern::NAME))]
    pub name: Option<String>,
    /// What is scaled.
    pub target_ref: TargetRef,
    /// Never fewer replicas of this target.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100000))]
    pub min_replicas: i32,
    /// Never more replicas of this target.
    #[schemars(range(min = 1, max = 100000))]
    pub max_replicas: i32,
    /// Cost of one replica, in any unit that all targets of the binding share, such as GPUs or money per hour.
    #[schemars(range(max = 1000000000), extend("exclusiveMinimum" = 0))]
    pub cost: f64,
    /// Reserved: how much one replica bears, in any unit that all targets of the binding share. Accepted and shown, not
    /// acted on: so far every replica counts the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000000000), extend("exclusiveMinimum" = 0))]
    pub capacity: Option<f64>,
    /// Reserved: how long a replica takes from its creation until it is ready, in seconds. Accepted and shown, not acted
    /// on: start-up times are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub startup_seconds: Option<i32>,
}

impl OptimizeTarget {
    /// The limits of this target in the core's terms.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            min: count(self.min_replicas),
            max: count(self.max_replicas),
        }
    }

    /// Name of the target within its binding.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.target_ref.name)
    }
}

impl Optimize {
    /// Sum of the targets' own minima.
    pub fn sum_of_min(&self) -> u32 {
        self.sum(|target| target.min_replicas)
    }

    /// Sum of the targets' own maxima.
    pub fn sum_of_max(&self) -> u32 {
        self.sum(|target| target.max_replicas)
    }

    fn sum(&self, of: impl Fn(&OptimizeTarget) -> i32) -> u32 {
        let counts = self.targets.iter().map(|target| count(of(target)));
        counts.fold(0, u32::saturating_add)
    }

    /// The limits of the whole in the core's terms: those written for the whole, within those of the targets.
    pub fn bounds(&self) -> Bounds {
        let (least, most) = (self.sum_of_min(), self.sum_of_max());
        let max = self.max_replicas.map_or(most, |max| count(max).min(most));
        Bounds {
            min: count(self.min_replicas).max(least).min(max),
            max,
        }
    }

    /// Names that stand for more than one target.
    pub(crate) fn repeated_names(&self) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let names = self.targets.iter().map(OptimizeTarget::name);
        names.filter(|name| !seen.insert(*name)).collect()
    }
}
