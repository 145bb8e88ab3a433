//! `demand`: where requests are counted that wait while no replica runs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern;

/// Where requests are counted that wait while no replica runs. Exactly one of `prometheus` and `http` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Demand {
    /// Read from a gateway's metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusDemand>,
    /// Told to the decider by the gateway over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpDemand>,
}

/// Requests waiting at a gateway, read from its metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrometheusDemand {
    /// Where the metrics are, in the Prometheus text format, such as `http://gateway.infer:9090/metrics`.
    #[schemars(length(min = 1, max = 2048), extend("pattern" = pattern::HTTP_URL))]
    pub url: String,
    /// Name of the gauge that counts waiting requests, such as `inference_pool_average_queue_size`.
    #[schemars(length(min = 1, max = 255), extend("pattern" = pattern::METRIC_NAME))]
    pub metric: String,
    /// Only series with all of these labels count; they are added up.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels")]
    pub labels: BTreeMap<String, String>,
}

/// Requests waiting at a gateway, told to the decider over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpDemand {}

/// A map of limited size: a rule of the API server over all labels needs to know how many there can be.
fn labels(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 256},
    })
}
