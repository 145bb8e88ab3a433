//! Parts of a total: gauges over replicas, counts over seconds.

use crate::{
    TimeMs,
    policy::Metric,
    sample::{Gauges, Sample},
    window::CounterRing,
};

/// What a fleet of none does, and an engine that sleeps.
pub(super) const NOTHING: Gauges = Gauges {
    running: Some(0.0),
    waiting: Some(0.0),
    kv_usage: Some(0.0),
    asleep: false,
};

/// A gauge's sum over the replicas that tell it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    pub(super) sum: f64,
    told: u32,
}

impl Share {
    pub(super) fn add(&mut self, value: Option<f64>) {
        self.sum += value.unwrap_or(0.0);
        self.told += u32::from(value.is_some());
    }

    /// The sum over `replicas` if the others are like those who told; `None` when nobody did.
    pub(super) fn filled(&self, replicas: u32) -> Option<f64> {
        match self.told {
            0 => None,
            told if told == replicas => Some(self.sum),
            told => Some(self.sum * f64::from(replicas) / f64::from(told)),
        }
    }
}

/// Position in [`Counters::NAMES`] of what a rate is made of.
pub(super) fn counter_of(metric: &Metric) -> Option<usize> {
    match metric {
        Metric::PromptTokensPerSecond => Some(0),
        Metric::GenerationTokensPerSecond => Some(2),
        Metric::RequestsPerSecond => Some(3),
        Metric::Waiting | Metric::Running | Metric::Concurrency | Metric::KvUsage | Metric::Latency { .. } => None,
    }
}

/// Adds a count evenly to the seconds of its sample's interval: all at its end would be a burst that never was.
pub(super) fn spread(ring: &mut CounterRing, sample: &Sample, count: u64, horizon_s: usize) {
    if count == 0 {
        return;
    }
    let end = sample.end.0;
    let whole_ms = i64::from(sample.interval_ms).max(1);
    let start = end.saturating_sub(whole_ms);
    // What is told by `at`, rounded down: the parts add up to the whole.
    let told_by =
        |at: i64| (u128::from(count) * (at - start).unsigned_abs() as u128 / whole_ms.unsigned_abs() as u128) as u64;
    let oldest = end.saturating_sub(horizon_s as i64 * 1000).max(start);
    let mut from = oldest;
    while from < end {
        let to = ((from.div_euclid(1000) + 1) * 1000).min(end);
        ring.record(TimeMs(from), told_by(to) - told_by(from));
        from = to;
    }
}
