//! What changes while a target lives: its policy, its limits, its owner.

use std::sync::Arc;

use crate::{
    TimeMs,
    policy::{Bounds, Metric, Policy},
    target::{Gap, Target, load::LoadWindow},
    window::SlidingHistogram,
};

impl Target {
    /// The memory that this target was made with may be old: another owner has decided since it was written. The present count
    /// is then taken for a wish of the first tick, so that nothing shrinks because of what was forgotten.
    pub fn take_over(&mut self) {
        self.gap = Gap::SinceWritten;
    }

    /// Somebody else has set the present count, and that is to count: the next tick takes it for a wish.
    pub fn adopt(&mut self) {
        self.gap = self.gap.max(Gap::Window);
    }

    /// Puts another policy and other limits in force. Windows keep what still fits, and so does the memory.
    ///
    /// Nothing shrinks because of the change itself: if the policy looks at what was not asked for so far, data counts as
    /// incomplete until a stable window of it is known; if it stabilises over a longer time than is remembered, the present
    /// count is taken for a wish.
    pub fn reconfigure(&mut self, policy: Arc<Policy>, bounds: Bounds, now: TimeMs) {
        self.bounds = bounds;
        if *policy == *self.policy {
            return;
        }
        self.horizon_s = self.horizon_s.max(horizon_s(&policy));
        self.history.reach_back(self.horizon_s, now);
        self.counters
            .iter_mut()
            .for_each(|counter| counter.reach_back(self.horizon_s));
        self.histograms.reach_back(2 * self.horizon_s);
        let windows = policy.metrics.iter().map(|metric| metric.metric).filter(is_level);
        self.loads = windows
            .map(|metric| LoadWindow::renewed(metric, &policy.kpa, &self.loads, &self.history))
            .collect();
        self.latencies = latency_windows(&policy);
        // Latencies are told by all who have any.
        let asked = |metric: &Metric| self.policy.metrics.iter().any(|before| before.metric == *metric);
        let new = |metric: &Metric| !matches!(metric, Metric::Latency { .. }) && !asked(metric);
        if policy.metrics.iter().any(|metric| new(&metric.metric)) {
            self.asked_since = now;
        }
        let delay_grew = self.memory.as_mut().is_some_and(|memory| memory.kpa.fit(&policy.kpa));
        if delay_grew || looks_back_s(&policy) > looks_back_s(&self.policy) {
            self.gap = self.gap.max(Gap::Window);
        }
        self.policy = policy;
    }
}

/// Whether a metric is a level; rates and latencies have rings of their own.
pub(super) fn is_level(metric: &Metric) -> bool {
    matches!(
        metric,
        Metric::Waiting | Metric::Running | Metric::Concurrency | Metric::KvUsage
    )
}

/// How far back wishes count, in seconds.
pub(super) fn looks_back_s(policy: &Policy) -> f64 {
    let rules = [&policy.scale_up, &policy.scale_down];
    rules
        .map(|rules| rules.stabilization_window_s)
        .into_iter()
        .fold(0.0, f64::max)
}

/// Windows for the metrics that are levels.
pub(super) fn load_windows(policy: &Policy) -> Vec<LoadWindow> {
    let metrics = policy.metrics.iter().map(|metric| metric.metric).filter(is_level);
    metrics.map(|metric| LoadWindow::new(metric, &policy.kpa)).collect()
}

/// A stable and a panic window for every latency that the policy looks at.
pub(super) fn latency_windows(policy: &Policy) -> Vec<SlidingHistogram> {
    let mut windows = Vec::new();
    for metric in &policy.metrics {
        if let Metric::Latency { signal, .. } = metric.metric {
            for window_s in [policy.kpa.stable_window_s, policy.kpa.panic_window_s()] {
                windows.push(SlidingHistogram::new(signal, window_s as usize));
            }
        }
    }
    windows
}

/// Long enough for every window of the policy, and for a person to look back ten minutes.
pub(super) fn horizon_s(policy: &Policy) -> usize {
    const LOOK_BACK_S: f64 = 600.0;
    policy.kpa.stable_window_s.max(LOOK_BACK_S).ceil() as usize
}
