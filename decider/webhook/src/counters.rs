//! What the webhooks have done, for the decider's `/metrics`.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the latency buckets, in milliseconds; one more bucket has none.
pub const LATENCY_BOUNDS_MS: [f64; 10] = [0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 50.0, 250.0, 1_000.0];

/// Why a Pod was left as it was, without anything having failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// The object is no Pod, or the request does not create it.
    NotANewPod,
    /// It is labelled `inject: disabled`.
    Disabled,
    /// It has its agent already.
    AlreadyInjected,
    /// No container of it looks like an engine, and none is named.
    NoEngine,
}

impl Skip {
    /// All reasons, in the order of [`Skip::name`]s in metrics.
    pub const ALL: [Skip; 4] = [Skip::NotANewPod, Skip::Disabled, Skip::AlreadyInjected, Skip::NoEngine];

    /// The value of a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Skip::NotANewPod => "not_a_new_pod",
            Skip::Disabled => "disabled",
            Skip::AlreadyInjected => "already_injected",
            Skip::NoEngine => "no_engine",
        }
    }
}

/// What the webhooks have done since the start. Requests with `dryRun` count in `dry_run` and latency only.
#[derive(Debug, Default)]
pub struct Counters {
    /// Pods that got an agent.
    pub injected: AtomicU64,
    skipped: [AtomicU64; Skip::ALL.len()],
    /// Pods that should have got an agent and did not: the one to alert on.
    pub failed: AtomicU64,
    /// Policies and bindings looked at.
    pub validated: AtomicU64,
    /// Of those, refused.
    pub refused: AtomicU64,
    /// Reviews with `dryRun`.
    pub dry_run: AtomicU64,
    /// Requests that were no reviews: too large, too slow, unreadable, elsewhere.
    pub bad_requests: AtomicU64,
    /// Time from the last byte of a mutating review to its answer.
    pub mutate_latency: Latency,
    /// Time from the last byte of a validating review to its answer.
    pub validate_latency: Latency,
}

impl Counters {
    /// Pods left as they were for this reason.
    pub fn skipped(&self, reason: Skip) -> u64 {
        self.skipped[reason as usize].load(Relaxed)
    }

    pub(crate) fn skip(&self, reason: Skip) {
        self.skipped[reason as usize].fetch_add(1, Relaxed);
    }
}

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; LATENCY_BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Latency {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let ms = duration.as_secs_f64() * 1e3;
        let bucket = LATENCY_BOUNDS_MS.partition_point(|bound| *bound < ms);
        self.buckets[bucket].fetch_add(1, Relaxed);
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// Counts per bucket of [`LATENCY_BOUNDS_MS`] and of the last, unbounded one; not cumulative.
    pub fn buckets(&self) -> [u64; LATENCY_BOUNDS_MS.len() + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed))
    }

    /// Sum of all durations, in seconds.
    pub fn sum_s(&self) -> f64 {
        self.sum_us.load(Relaxed) as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_upper_bound() {
        let latency = Latency::default();
        for us in [0, 250, 251, 20_000, 20_001, 1_000_000, 1_000_001] {
            latency.observe(Duration::from_micros(us));
        }
        assert_eq!(latency.buckets(), [2, 1, 0, 0, 0, 0, 1, 1, 0, 1, 1]);
        assert_eq!(latency.sum_s(), 2.040_503);
    }

    #[test]
    fn reasons_are_where_they_are_said_to_be() {
        for (index, reason) in Skip::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.name());
        }
    }
}
