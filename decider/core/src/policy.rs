//! What an operator asks for, in the core's own terms. `infer-api` builds these from the YAML documents and has
//! already refused what makes no sense; the defaults here are the documents' defaults.

use serde::{Deserialize, Serialize};

use crate::signal::Signal;

/// How a target is to be scaled. Immutable while in use; a changed policy is a new value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Each metric proposes a replica count; the largest wins.
    pub metrics: Vec<MetricTarget>,
    /// Relative distance from the target within which the present count is kept, as in HPA (0.1 is 10 %).
    pub tolerance: f64,
    /// The stable/panic machine.
    pub kpa: KpaPolicy,
    /// Rate limits and stabilisation upwards.
    pub scale_up: ScalingRules,
    /// Rate limits and stabilisation downwards.
    pub scale_down: ScalingRules,
    /// How long a target must have been without any load before its last replica goes, in seconds (counted after the
    /// stable window itself is empty). Only of use with `min == 0`.
    pub scale_to_zero_grace_s: f64,
}

/// A metric and what one replica should bear of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricTarget {
    /// What is measured.
    pub metric: Metric,
    /// Wanted per replica, in the metric's unit; greater than 0.
    pub target: f64,
}

/// What can be scaled on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Metric {
    /// Requests queued inside engines and at the front door (requests).
    Waiting,
    /// Requests in execution batches (requests).
    Running,
    /// Running plus waiting plus held at the front door (requests).
    Concurrency,
    /// KV cache in use, summed over replicas: 1.4 is one full and one 40 % full (share of one replica's cache).
    KvUsage,
    /// Prompt tokens processed (tokens/s).
    PromptTokensPerSecond,
    /// Tokens generated (tokens/s).
    GenerationTokensPerSecond,
    /// Requests finished (requests/s).
    RequestsPerSecond,
    /// A latency percentile (ms). Not a load: see `evaluate.rs` for how it becomes a replica count without cascading.
    Latency {
        /// Which latency.
        signal: Signal,
        /// 0 < quantile < 1.
        quantile: f64,
    },
}

/// Knative's pod autoscaler, its settings and defaults (docs: knative.dev, "autoscaling concepts").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KpaPolicy {
    /// Length of the window that stable mode averages over, seconds, 6 to 3600.
    pub stable_window_s: f64,
    /// Panic window as a share of the stable window, percent, 1 to 100.
    pub panic_window_percent: f64,
    /// Panic starts when the panic window wants this share of the ready replicas, percent, above 100.
    pub panic_threshold_percent: f64,
    /// At most this many times the ready replicas in one step up, above 1.
    pub max_scale_up_rate: f64,
    /// At most down to ready ÷ this in one step, above 1.
    pub max_scale_down_rate: f64,
    /// A decrease must have been wanted this long, seconds, 0 to 3600.
    pub scale_down_delay_s: f64,
    /// When woken from zero, at least this many replicas.
    pub activation_scale: u32,
}

impl Default for KpaPolicy {
    fn default() -> Self {
        KpaPolicy {
            stable_window_s: 60.0,
            panic_window_percent: 10.0,
            panic_threshold_percent: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            scale_down_delay_s: 0.0,
            activation_scale: 1,
        }
    }
}

impl KpaPolicy {
    /// Length of the panic window in seconds, a whole number and at least 1.
    pub fn panic_window_s(&self) -> f64 {
        (self.stable_window_s * self.panic_window_percent / 100.0)
            .round()
            .max(1.0)
    }
}

/// HPA v2's `HPAScalingRules`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalingRules {
    /// The most cautious recommendation of this many last seconds is taken; 0 to 3600.
    pub stabilization_window_s: f64,
    /// Which of several rate policies applies.
    pub select: SelectPolicy,
    /// Rate limits; empty means no limit.
    pub policies: Vec<RatePolicy>,
}

impl ScalingRules {
    /// HPA's default upwards: the larger of 4 replicas and 100 % per 15 s, no stabilisation.
    pub fn default_up() -> Self {
        let rate = |kind, value| RatePolicy {
            kind,
            value,
            period_s: 15.0,
        };
        ScalingRules {
            stabilization_window_s: 0.0,
            select: SelectPolicy::Max,
            policies: vec![rate(RateKind::Pods, 4), rate(RateKind::Percent, 100)],
        }
    }

    /// HPA's default downwards: 100 % per 15 s after 300 s of stabilisation.
    pub fn default_down() -> Self {
        ScalingRules {
            stabilization_window_s: 300.0,
            select: SelectPolicy::Max,
            policies: vec![RatePolicy {
                kind: RateKind::Percent,
                value: 100,
                period_s: 15.0,
            }],
        }
    }
}

/// Which of several rate policies applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    Max,
    /// The one that allows the smallest change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// At most so much change per period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RatePolicy {
    /// Unit of `value`.
    pub kind: RateKind,
    /// Replicas, or percent of the replicas at the start of the period; greater than 0.
    pub value: u32,
    /// Seconds, 1 to 1800.
    pub period_s: f64,
}

/// Unit of a rate policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RateKind {
    /// Replicas.
    Pods,
    /// Percent of the replicas at the start of the period.
    Percent,
}

/// Limits of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// 0 allows scaling to zero.
    pub min: u32,
    /// At least 1 and at least `min`.
    pub max: u32,
}
