//! `slo`: what users are promised. Reserved.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What users are promised. Reserved: accepted and shown, not acted on. What holds a promise today is a latency among
/// `metrics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Slo {
    /// Reserved: objectives for the time to first token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub ttft: Vec<Objective>,
    /// Reserved: objectives for the inter-token latency.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub itl: Vec<Objective>,
}

/// So large a share of the requests has at most this latency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Objective {
    /// Which quantile is promised, between 0 and 1.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub quantile: f64,
    /// The largest latency promised, in milliseconds.
    #[schemars(range(max = 86400000), extend("exclusiveMinimum" = 0))]
    pub milliseconds: f64,
}
