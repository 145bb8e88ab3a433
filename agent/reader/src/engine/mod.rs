//! What engines call things: rules from metric families to signals, and one pass over a body that applies them.
//!
//! vLLM and SGLang are rule tables ([`vllm`], [`sglang`]) plus the few things a table cannot say; a mapping file gives
//! the same rules for any other engine.

mod catalogue;
mod conclusion;
mod reading;
pub mod sglang;
pub mod vllm;

use infer_proto::v1;
use serde::{Deserialize, Serialize};

pub use catalogue::Catalogue;
pub(crate) use reading::MAX_INSTANCES;
pub use reading::{FrontEnd, Instance, Lora, Reading, Sourced, read};

/// A number that holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gauge {
    /// Requests in execution batches.
    Running,
    /// Requests queued inside the engine.
    Waiting,
    /// Share of the KV cache in use, 0 to 1.
    KvUsage,
    /// Size of the KV cache in tokens.
    KvCapacityTokens,
    /// Requests the HTTP server holds.
    InFlight,
    /// Batch limit in requests.
    MaxRunning,
    /// 1 while the engine serves, 0 while it sleeps.
    Awake,
}

/// Number of [`Gauge`]s.
pub const GAUGES: usize = 7;

/// A number that only grows. The order is that of the fields of the protocol's `Counters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counter {
    /// Prompt tokens processed, cached ones included.
    PromptTokens,
    /// The part of them that came from a cache.
    PromptTokensCached,
    /// Tokens generated.
    GenerationTokens,
    /// Requests that ended, whatever the end.
    Requests,
    /// The part of them that ended in an error or was aborted.
    RequestsFailed,
    /// Requests refused because of a queue limit.
    RequestsRejected,
    /// Running requests thrown back into the queue.
    Preemptions,
}

/// Number of [`Counter`]s.
pub const COUNTERS: usize = 7;

/// The latencies an engine counts into buckets. The order is that of the protocol's `Signal`, less its zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Latency {
    /// Time to first token, per request.
    Ttft,
    /// Inter-token latency, per gap.
    Itl,
    /// Time per output token, per request.
    Tpot,
    /// End to end, per request.
    E2e,
    /// Time in the engine's queue, per request.
    Queue,
}

/// Number of [`Latency`]s.
pub const LATENCIES: usize = 5;

impl Latency {
    /// All, in order.
    pub const ALL: [Self; LATENCIES] = [Self::Ttft, Self::Itl, Self::Tpot, Self::E2e, Self::Queue];

    /// The protocol's name for it.
    pub fn signal(self) -> v1::Signal {
        match self {
            Self::Ttft => v1::Signal::Ttft,
            Self::Itl => v1::Signal::Itl,
            Self::Tpot => v1::Signal::Tpot,
            Self::E2e => v1::Signal::E2e,
            Self::Queue => v1::Signal::Queue,
        }
    }
}

/// What a family is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A gauge.
    Gauge(Gauge),
    /// A counter.
    Counter(Counter),
    /// A histogram.
    Latency(Latency),
}

/// How several series of a family, and several families of a signal, become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Added up.
    Sum,
    /// The greatest one.
    Max,
}

/// One family and what it means.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Name of the family, for counters without `_total`; `:` also stands for `_`.
    pub family: String,
    /// What it is read as.
    pub target: Target,
    /// Only series of which each of these labels has one of the values; a label that is absent counts as empty.
    pub filters: Vec<(String, Vec<String>)>,
    /// Factor on values (gauges, counters), or microseconds per unit (histograms: bounds and sum).
    pub scale: f64,
    /// Over series and data-parallel engines.
    pub aggregate: Aggregate,
    /// Of the families of one target that are present, those with the lowest rank are used (and added up).
    pub rank: u8,
}

impl Rule {
    /// A rule without filters, scale 1 (histograms: seconds), of rank 0.
    pub fn new(family: &str, target: Target) -> Self {
        let scale = if matches!(target, Target::Latency(_)) { 1e6 } else { 1.0 };
        let aggregate = match target {
            Target::Gauge(Gauge::KvUsage | Gauge::Awake) => Aggregate::Max,
            _ => Aggregate::Sum,
        };
        Self {
            family: family.to_owned(),
            target,
            filters: Vec::new(),
            scale,
            aggregate,
            rank: 0,
        }
    }

    /// The same rule for series whose `label` has one of `values` only.
    pub fn with(mut self, label: &str, values: &[&str]) -> Self {
        self.filters
            .push((label.to_owned(), values.iter().map(|&v| v.to_owned()).collect()));
        self
    }

    /// The same rule, used only where no family of a lower rank is there.
    pub fn rank(mut self, rank: u8) -> Self {
        self.rank = rank;
        self
    }
}

/// "This family is there since that version."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// Name of the family.
    pub family: &'static str,
    /// First version that exposes it.
    pub since: &'static str,
}
