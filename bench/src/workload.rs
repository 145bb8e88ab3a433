//! A fleet worth deciding on: its policy, its replicas and what they say.

use std::sync::Arc;

use infer_core::{
    TimeMs,
    histogram::BoundedHistogram,
    policy::{Bounds, KpaPolicy, Metric, MetricTarget, Policy, ScalingRules},
    sample::{Counters, Gauges, Sample},
    signal::Signal,
    target::{FleetView, Phase, PodView},
};

/// Three metrics, a latency percentile among them, with every default of the policy document.
pub(crate) fn policy() -> Arc<Policy> {
    let metric = |metric, target| MetricTarget { metric, target };
    Arc::new(Policy {
        metrics: vec![
            metric(
                Metric::Latency {
                    signal: Signal::Ttft,
                    quantile: 0.95,
                },
                2000.0,
            ),
            metric(Metric::Concurrency, 32.0),
            metric(Metric::KvUsage, 0.8),
        ],
        tolerance: 0.1,
        kpa: KpaPolicy::default(),
        scale_up: ScalingRules::default_up(),
        scale_down: ScalingRules::default_down(),
        scale_to_zero_grace_s: 30.0,
    })
}

/// Room to move in both directions.
pub(crate) const BOUNDS: Bounds = Bounds { min: 1, max: 100 };

/// A replica's name.
pub(crate) fn pod_name(index: usize) -> String {
    format!("replica-{index}")
}

/// `pods` replicas, all of them ready since `since`.
pub(crate) fn fleet(pods: usize, since: TimeMs) -> FleetView {
    let pod = |index| PodView {
        name: pod_name(index),
        uid: format!("uid-{index}"),
        phase: Phase::Ready,
        ready_since: Some(since),
    };
    FleetView {
        spec: pods as u32,
        pods: (0..pods).map(pod).collect(),
    }
}

/// vLLM's bucket bounds of the time to first token, ms.
const TTFT_MS: [f64; 22] = [
    1.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 250.0, 500.0, 750.0, 1e3, 2.5e3, 5e3, 7.5e3, 1e4, 2e4, 4e4, 8e4,
    1.6e5, 6.4e5, 2.56e6,
];
/// vLLM's bucket bounds of the inter-token latency, ms.
const ITL_MS: [f64; 17] = [
    10.0, 25.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 400.0, 500.0, 750.0, 1e3, 2.5e3, 5e3, 7.5e3, 1e4, 2e4,
];
/// vLLM's bucket bounds of whole requests, ms.
const REQUEST_MS: [f64; 20] = [
    300.0, 500.0, 800.0, 1e3, 1.5e3, 2e3, 2.5e3, 5e3, 1e4, 1.5e4, 2e4, 3e4, 4e4, 5e4, 6e4, 1.2e5, 2.4e5, 4.8e5, 9.6e5,
    1.92e6,
];

/// `count` observations about `around` of the buckets.
fn observed(random: &mut fastrand::Rng, bounds_ms: &[f64], around: usize, count: u64) -> BoundedHistogram {
    let mut histogram = BoundedHistogram::default();
    for _ in 0..count {
        let bucket = around
            .saturating_add_signed(random.isize(-2..=2))
            .min(bounds_ms.len() - 1);
        let low_ms = bucket.checked_sub(1).map_or(0.0, |below| bounds_ms[below]);
        histogram.record(low_ms, Some(bounds_ms[bucket]), 1);
    }
    histogram
}

/// One second of a busy replica: about 20 requests in flight, four a second, all five latencies.
pub(crate) fn sample(random: &mut fastrand::Rng, sequence: u64, end: TimeMs, latencies: bool) -> Sample {
    let mut histograms = Vec::new();
    if latencies {
        let (requests, tokens) = (random.u64(2..=6), random.u64(80..=120));
        histograms = vec![
            (Signal::Ttft, observed(random, &TTFT_MS, 8, requests)),
            (Signal::Itl, observed(random, &ITL_MS, 2, tokens)),
            (Signal::Tpot, observed(random, &ITL_MS, 2, requests)),
            (Signal::E2e, observed(random, &REQUEST_MS, 8, requests)),
            (Signal::Queue, observed(random, &REQUEST_MS, 1, requests)),
        ];
    }
    Sample {
        sequence,
        end,
        interval_ms: 1000,
        gauges: Some(Gauges {
            running: Some(random.u32(12..28).into()),
            waiting: Some(random.u32(0..4).into()),
            kv_usage: Some(0.3 + 0.3 * random.f64()),
            asleep: false,
        }),
        counters: Counters {
            prompt_tokens: 2000,
            prompt_tokens_cached: 500,
            generation_tokens: 100,
            requests: 4,
            ..Counters::default()
        },
        histograms,
    }
}
