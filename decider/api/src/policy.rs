//! `AutoscalingPolicy`: what a replica should bear and how fast the replica count may move.

use infer_core::policy as core;
use infer_core::signal::Signal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::metadata::{ApiVersion, Metadata};
use crate::slo::Slo;

/// How a target is to be scaled; takes effect where an AutoscalingPolicyBinding refers to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AutoscalingPolicy {
    /// Group and version of the document.
    pub api_version: ApiVersion,
    /// Kind of the document.
    pub kind: AutoscalingPolicyKind,
    /// Name and notes.
    pub metadata: Metadata,
    /// The policy itself.
    pub spec: PolicySpec,
}

/// The constant in `kind`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AutoscalingPolicyKind {
    #[doc(hidden)]
    #[default]
    AutoscalingPolicy,
}

impl AutoscalingPolicy {
    /// A document of this kind.
    pub fn new(name: impl Into<String>, spec: PolicySpec) -> Self {
        AutoscalingPolicy {
            api_version: ApiVersion::default(),
            kind: Default::default(),
            metadata: Metadata::named(name),
            spec,
        }
    }
}

/// The policy itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicySpec {
    /// What to scale on, at least one. Each metric proposes a replica count; the largest wins.
    #[schemars(length(min = 1, max = 16))]
    pub metrics: Vec<MetricSpec>,
    /// Relative distance from the target, in percent, within which the present replica count is kept.
    #[serde(default = "default_tolerance_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub tolerance_percent: f64,
    /// Length of the window over which load is averaged in stable mode, in seconds.
    #[serde(default = "default_stable_window_seconds")]
    #[schemars(range(min = 6, max = 3600))]
    pub stable_window_seconds: i32,
    /// When and on how short a window to react at once to a jump in load.
    #[serde(default)]
    pub panic: PanicSpec,
    /// At most this many times the ready replicas in one step up.
    #[serde(default = "default_max_scale_up_rate")]
    #[schemars(extend("exclusiveMinimum" = 1))]
    pub max_scale_up_rate: f64,
    /// At most down to the ready replicas divided by this in one step down.
    #[serde(default = "default_max_scale_down_rate")]
    #[schemars(extend("exclusiveMinimum" = 1))]
    pub max_scale_down_rate: f64,
    /// How long a decrease must have been wanted before it happens, in seconds.
    #[serde(default)]
    #[schemars(range(min = 0, max = 3600))]
    pub scale_down_delay_seconds: i32,
    /// When woken from zero, at least this many replicas.
    #[serde(default = "default_activation_scale")]
    #[schemars(range(min = 1, max = 100000))]
    pub activation_scale: i32,
    /// How long a target must have been without any load before its last replica goes, in seconds, counted after the
    /// stable window itself is empty. Only of use with `minReplicas: 0`.
    #[serde(default = "default_scale_to_zero_grace_seconds")]
    #[schemars(range(min = 0, max = 86400))]
    pub scale_to_zero_grace_seconds: i32,
    /// Rate limits and stabilisation, per direction.
    #[serde(default)]
    pub behavior: Behavior,
    /// What users are promised. Reserved: accepted and shown, not acted on. What holds a promise today is a latency
    /// among `metrics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<Slo>,
}

fn default_tolerance_percent() -> f64 {
    10.0
}
fn default_stable_window_seconds() -> i32 {
    60
}
fn default_max_scale_up_rate() -> f64 {
    1000.0
}
fn default_max_scale_down_rate() -> f64 {
    2.0
}
fn default_activation_scale() -> i32 {
    1
}
fn default_scale_to_zero_grace_seconds() -> i32 {
    30
}

/// A metric and what one replica should bear of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricSpec {
    /// What is measured.
    #[serde(rename = "type")]
    pub metric: MetricType,
    /// Wanted per replica, in the metric's unit: requests, a share from 0 to 1 (kvUsage), tokens/s, requests/s, or
    /// milliseconds (latencies).
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub target: f64,
    /// Which quantile of a latency is held to the target, between 0 and 1. Required for latencies (ttft, itl, tpot,
    /// e2e, queueTime), meaningless for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub quantile: Option<f64>,
}

/// What can be scaled on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MetricType {
    /// Requests queued inside engines and at the front door.
    Waiting,
    /// Requests in execution batches.
    Running,
    /// Running plus waiting requests, those held at the front door included.
    Concurrency,
    /// KV cache in use, as a share of one replica's cache.
    KvUsage,
    /// Prompt tokens processed per second.
    PromptTokensPerSecond,
    /// Tokens generated per second.
    GenerationTokensPerSecond,
    /// Requests finished per second.
    RequestsPerSecond,
    /// Time to first token, ms.
    Ttft,
    /// Inter-token latency, ms.
    Itl,
    /// Time per output token, ms.
    Tpot,
    /// End-to-end latency, ms.
    E2e,
    /// Time in the engine's queue, ms.
    QueueTime,
}

impl MetricType {
    /// The latency signal behind it, for those that are latencies.
    pub fn signal(self) -> Option<Signal> {
        match self {
            MetricType::Ttft => Some(Signal::Ttft),
            MetricType::Itl => Some(Signal::Itl),
            MetricType::Tpot => Some(Signal::Tpot),
            MetricType::E2e => Some(Signal::E2e),
            MetricType::QueueTime => Some(Signal::Queue),
            MetricType::Waiting
            | MetricType::Running
            | MetricType::Concurrency
            | MetricType::KvUsage
            | MetricType::PromptTokensPerSecond
            | MetricType::GenerationTokensPerSecond
            | MetricType::RequestsPerSecond => None,
        }
    }

    /// The name in documents.
    pub fn name(self) -> &'static str {
        match self {
            MetricType::Waiting => "waiting",
            MetricType::Running => "running",
            MetricType::Concurrency => "concurrency",
            MetricType::KvUsage => "kvUsage",
            MetricType::PromptTokensPerSecond => "promptTokensPerSecond",
            MetricType::GenerationTokensPerSecond => "generationTokensPerSecond",
            MetricType::RequestsPerSecond => "requestsPerSecond",
            MetricType::Ttft => "ttft",
            MetricType::Itl => "itl",
            MetricType::Tpot => "tpot",
            MetricType::E2e => "e2e",
            MetricType::QueueTime => "queueTime",
        }
    }

    /// The core's metric; `quantile` counts only for latencies.
    fn to_core(self, quantile: f64) -> core::Metric {
        match self {
            MetricType::Waiting => core::Metric::Waiting,
            MetricType::Running => core::Metric::Running,
            MetricType::Concurrency => core::Metric::Concurrency,
            MetricType::KvUsage => core::Metric::KvUsage,
            MetricType::PromptTokensPerSecond => core::Metric::PromptTokensPerSecond,
            MetricType::GenerationTokensPerSecond => core::Metric::GenerationTokensPerSecond,
            MetricType::RequestsPerSecond => core::Metric::RequestsPerSecond,
            MetricType::Ttft => core::Metric::Latency {
                signal: Signal::Ttft,
                quantile,
            },
            MetricType::Itl => core::Metric::Latency {
                signal: Signal::Itl,
                quantile,
            },
            MetricType::Tpot => core::Metric::Latency {
                signal: Signal::Tpot,
                quantile,
            },
            MetricType::E2e => core::Metric::Latency {
                signal: Signal::E2e,
                quantile,
            },
            MetricType::QueueTime => core::Metric::Latency {
                signal: Signal::Queue,
                quantile,
            },
        }
    }
}

/// When and on how short a window to react at once to a jump in load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PanicSpec {
    /// Panic window as a share of the stable window, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub window_percent: f64,
    /// Panic starts when the panic window wants at least this share of the ready replicas, in percent.
    #[schemars(range(max = 1000), extend("exclusiveMinimum" = 100))]
    pub threshold_percent: f64,
}

impl Default for PanicSpec {
    fn default() -> Self {
        PanicSpec {
            window_percent: 10.0,
            threshold_percent: 200.0,
        }
    }
}

/// Rate limits and stabilisation, per direction, as in the Kubernetes HorizontalPodAutoscaler.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Behavior {
    /// Upwards.
    pub scale_up: ScaleUpRules,
    /// Downwards.
    pub scale_down: ScaleDownRules,
}

/// Rate limits and stabilisation upwards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScaleUpRules {
    /// The smallest recommendation of this many last seconds is taken; 0 takes the latest.
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: i32,
    /// Which of several rate policies applies.
    pub select_policy: SelectPolicy,
    /// Rate limits, at least one.
    #[schemars(length(min = 1, max = 16))]
    pub policies: Vec<RatePolicy>,
}

impl Default for ScaleUpRules {
    fn default() -> Self {
        ScaleUpRules {
            stabilization_window_seconds: 0,
            select_policy: SelectPolicy::Max,
            policies: vec![
                RatePolicy {
                    kind: RateKind::Pods,
                    value: 4,
                    period_seconds: 15,
                },
                RatePolicy {
                    kind: RateKind::Percent,
                    value: 100,
                    period_seconds: 15,
                },
            ],
        }
    }
}

/// Rate limits and stabilisation downwards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScaleDownRules {
    /// The largest recommendation of this many last seconds is taken; 0 takes the latest.
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: i32,
    /// Which of several rate policies applies.
    pub select_policy: SelectPolicy,
    /// Rate limits, at least one.
    #[schemars(length(min = 1, max = 16))]
    pub policies: Vec<RatePolicy>,
}

impl Default for ScaleDownRules {
    fn default() -> Self {
        ScaleDownRules {
            stabilization_window_seconds: 300,
            select_policy: SelectPolicy::Max,
            policies: vec![RatePolicy {
                kind: RateKind::Percent,
                value: 100,
                period_seconds: 15,
            }],
        }
    }
}

/// Which of several rate policies applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    Max,
    /// The one that allows the smallest change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// At most so much change per period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RatePolicy {
    /// Unit of `value`.
    #[serde(rename = "type")]
    pub kind: RateKind,
    /// Replicas, or percent of the replicas at the start of the period.
    #[schemars(range(min = 1, max = 100000))]
    pub value: i32,
    /// Length of the period, in seconds.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: i32,
}

/// Unit of a rate policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateKind {
    /// Replicas.
    Pods,
    /// Percent of the replicas at the start of the period.
    Percent,
}

impl PolicySpec {
    /// A policy with these metrics and every other setting at its default.
    pub fn with_metrics(metrics: Vec<MetricSpec>) -> Self {
        PolicySpec {
            metrics,
            tolerance_percent: default_tolerance_percent(),
            stable_window_seconds: default_stable_window_seconds(),
            panic: PanicSpec::default(),
            max_scale_up_rate: default_max_scale_up_rate(),
            max_scale_down_rate: default_max_scale_down_rate(),
            scale_down_delay_seconds: 0,
            activation_scale: default_activation_scale(),
            scale_to_zero_grace_seconds: default_scale_to_zero_grace_seconds(),
            behavior: Behavior::default(),
            slo: None,
        }
    }

    /// The metrics in a few words for a table: `concurrency 24, ttft p95 1000 ms`.
    pub fn summary(&self) -> String {
        let metrics = self.metrics.iter().map(|metric| {
            let (name, target) = (metric.metric.name(), metric.target);
            match metric.quantile {
                // Rounded, because 0.29 is not a multiple of 0.01 for a computer.
                Some(quantile) => format!("{name} p{} {target} ms", (quantile * 1e5).round() / 1e3),
                None => format!("{name} {target}"),
            }
        });
        metrics.collect::<Vec<_>>().join(", ")
    }

    /// The policy in the core's terms. Total: what makes no sense was refused when the document was read.
    pub fn to_core(&self) -> core::Policy {
        let up = &self.behavior.scale_up;
        let down = &self.behavior.scale_down;
        core::Policy {
            metrics: self
                .metrics
                .iter()
                .map(|m| core::MetricTarget {
                    metric: m.metric.to_core(m.quantile.unwrap_or_default()),
                    target: m.target,
                })
                .collect(),
            tolerance: self.tolerance_percent / 100.0,
            kpa: core::KpaPolicy {
                stable_window_s: self.stable_window_seconds.into(),
                panic_window_percent: self.panic.window_percent,
                panic_threshold_percent: self.panic.threshold_percent,
                max_scale_up_rate: self.max_scale_up_rate,
                max_scale_down_rate: self.max_scale_down_rate,
                scale_down_delay_s: self.scale_down_delay_seconds.into(),
                activation_scale: count(self.activation_scale),
            },
            scale_up: rules(up.stabilization_window_seconds, up.select_policy, &up.policies),
            scale_down: rules(down.stabilization_window_seconds, down.select_policy, &down.policies),
            scale_to_zero_grace_s: self.scale_to_zero_grace_seconds.into(),
        }
    }
}

fn rules(stabilization_window_seconds: i32, select: SelectPolicy, policies: &[RatePolicy]) -> core::ScalingRules {
    core::ScalingRules {
        stabilization_window_s: stabilization_window_seconds.into(),
        select: match select {
            SelectPolicy::Max => core::SelectPolicy::Max,
            SelectPolicy::Min => core::SelectPolicy::Min,
            SelectPolicy::Disabled => core::SelectPolicy::Disabled,
        },
        policies: policies
            .iter()
            .map(|policy| core::RatePolicy {
                kind: match policy.kind {
                    RateKind::Pods => core::RateKind::Pods,
                    RateKind::Percent => core::RateKind::Percent,
                },
                value: count(policy.value),
                period_s: policy.period_seconds.into(),
            })
            .collect(),
    }
}

/// A count from a document, where Kubernetes wants signed integers; negative ones were refused when it was read.
pub(crate) fn count(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_defaults_are_the_cores() {
        let metric = MetricSpec {
            metric: MetricType::Waiting,
            target: 4.0,
            quantile: None,
        };
        let policy = PolicySpec::with_metrics(vec![metric]).to_core();
        assert_eq!(policy.kpa, core::KpaPolicy::default());
        assert_eq!(policy.scale_up, core::ScalingRules::default_up());
        assert_eq!(policy.scale_down, core::ScalingRules::default_down());
        assert_eq!(policy.tolerance, 0.1);
        assert_eq!(policy.scale_to_zero_grace_s, 30.0);
    }

    #[test]
    fn every_latency_keeps_its_signal_and_quantile() {
        for metric in [
            MetricType::Ttft,
            MetricType::Itl,
            MetricType::Tpot,
            MetricType::E2e,
            MetricType::QueueTime,
        ] {
            let spec = MetricSpec {
                metric,
                target: 500.0,
                quantile: Some(0.95),
            };
            let core = PolicySpec::with_metrics(vec![spec]).to_core();
            let expected = core::Metric::Latency {
                signal: metric.signal().expect("a latency"),
                quantile: 0.95,
            };
            assert_eq!(core.metrics[0].metric, expected);
        }
    }
}
