//! What a replica reports, dated on the decider's clock.

use serde::{Deserialize, Serialize};

use crate::{TimeMs, histogram::BoundedHistogram, signal::Signal};

/// One report of one replica. Absent is not zero.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// 1, 2, 3… within one boot of the reporter.
    pub sequence: u64,
    /// End of the interval it covers.
    pub end: TimeMs,
    /// Length of that interval.
    pub interval_ms: u32,
    /// `None` when reading the engine failed.
    pub gauges: Option<Gauges>,
    /// What happened in the interval.
    pub counters: Counters,
    /// Latencies observed in the interval.
    pub histograms: Vec<(Signal, BoundedHistogram)>,
}

/// Levels at the end of the interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Gauges {
    /// Requests in execution batches.
    pub running: Option<f64>,
    /// Requests in the engine's queue.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Whether the engine sleeps and serves nothing.
    pub asleep: bool,
}

impl Gauges {
    /// Requests in the engine, as far as it says.
    pub fn concurrency(&self) -> Option<f64> {
        match (self.running, self.waiting) {
            (None, None) => None,
            (running, waiting) => Some(running.unwrap_or(0.0) + waiting.unwrap_or(0.0)),
        }
    }
}

/// Counts over the interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Prompt tokens processed, cached ones included.
    pub prompt_tokens: u64,
    /// The part of them that came from a cache.
    pub prompt_tokens_cached: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Requests that ended.
    pub requests: u64,
    /// The part of them that failed.
    pub requests_failed: u64,
    /// Requests refused at admission.
    pub requests_rejected: u64,
    /// Requests preempted.
    pub preemptions: u64,
    /// Which of the counts are not known at all, and therefore 0 above: bit n for the n-th of [`Counters::NAMES`].
    pub unknown: u8,
}

impl Counters {
    /// Names in the order of [`Counters::values`].
    pub const NAMES: [&'static str; 7] = [
        "prompt_tokens",
        "prompt_tokens_cached",
        "generation_tokens",
        "requests",
        "requests_failed",
        "requests_rejected",
        "preemptions",
    ];

    /// Whether the count at this position in [`Counters::NAMES`] is known.
    pub fn is_known(&self, counter: usize) -> bool {
        self.unknown & (1 << counter) == 0
    }

    /// All counts, in the order of [`Counters::NAMES`].
    pub fn values(&self) -> [u64; 7] {
        [
            self.prompt_tokens,
            self.prompt_tokens_cached,
            self.generation_tokens,
            self.requests,
            self.requests_failed,
            self.requests_rejected,
            self.preemptions,
        ]
    }
}
