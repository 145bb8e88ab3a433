//! What is known at a time: inputs of a decision, and windows for people.

use crate::{
    TimeMs,
    decision::{DataState, Inputs, Measured},
    histogram::{BoundedHistogram, QuantileBounds},
    policy::Metric,
    signal::Signal,
    target::{
        Target,
        pod::PodState,
        share::counter_of,
        survey::{Known, Survey},
    },
};

impl Target {
    /// Share of the last `window_s` seconds that is known: of their (ready replica × second) those with a sample, and no
    /// more than the share of seconds of which anything is known at all.
    pub fn completeness(&self, now: TimeMs, window_s: f64) -> f64 {
        let since: Vec<TimeMs> = self.ready().filter_map(|state| state.view.ready_since).collect();
        self.completeness_of(&since, now, window_s)
    }

    /// `since` says since when each ready replica serves.
    pub(super) fn completeness_of(&self, since: &[TimeMs], now: TimeMs, window_s: f64) -> f64 {
        let asked_s = now.since_s(self.asked_since).clamp(0.0, window_s);
        let expected: f64 = since.iter().map(|since| now.since_s(*since).clamp(0.0, asked_s)).sum();
        let newest = since.iter().max().copied().unwrap_or_default();
        let ready_at = |at: TimeMs| match at >= newest {
            true => since.len(),
            false => since.iter().filter(|since| **since <= at).count(),
        };
        // A target that has not lived through a window knows nothing of it, however few its replicas.
        let lived = (self.history.known_s(now, asked_s) / window_s).min(1.0);
        // A replica's first second is seldom whole.
        let told = if expected < 2.0 {
            1.0
        } else {
            (self.history.pod_seconds(now, asked_s, ready_at) / expected).min(1.0)
        };
        lived.min(told)
    }

    /// What is known at `now`.
    pub(super) fn inputs(&self, now: TimeMs, survey: &Survey) -> Inputs {
        let kpa = &self.policy.kpa;
        let Known {
            expected,
            fresh,
            informed,
        } = survey.known;
        // Replicas that all keep silent hide the load; only a fleet of none is known by its front door alone.
        let known = fresh > 0 || (expected == 0 && self.gateway.is_some());
        let mut loads = self.loads.iter();
        let metrics = self
            .policy
            .metrics
            .iter()
            .map(|metric| match metric.metric {
                Metric::Latency { signal, quantile } if known => Measured::Latency {
                    stable: self.latency(now, kpa.stable_window_s, signal, quantile),
                    panic: self.latency(now, kpa.panic_window_s(), signal, quantile),
                },
                Metric::Latency { .. } => Measured::Absent,
                Metric::PromptTokensPerSecond | Metric::GenerationTokensPerSecond | Metric::RequestsPerSecond => {
                    let counter = counter_of(&metric.metric).filter(|_| known);
                    counter.map_or(Measured::Absent, |counter| self.rate_of(now, counter))
                }
                Metric::Waiting | Metric::Running | Metric::Concurrency | Metric::KvUsage => loads
                    .next()
                    .filter(|_| known)
                    .map_or(Measured::Absent, |load| load.measure(now)),
            })
            .collect();
        Inputs {
            now,
            bounds: self.bounds,
            control: self.control,
            replicas: survey.replicas,
            data: DataState {
                expected,
                fresh: informed,
                completeness: self.completeness_of(&survey.since, now, kpa.stable_window_s),
            },
            metrics,
            gateway_waiting: self.gateway,
            fewest: self.fewest,
            busy: survey.busy || self.gateway.is_some_and(|waiting| waiting > 0.0),
        }
    }

    pub(super) fn latency(&self, now: TimeMs, window_s: f64, signal: Signal, quantile: f64) -> Option<QuantileBounds> {
        let window_s = window_s as usize;
        let mut sliding = self.latencies.iter();
        match sliding.find_map(|latency| latency.of(signal, window_s, now)) {
            Some(latency) => latency.quantile(quantile),
            None => self.histograms.merged(now, window_s, signal).quantile(quantile),
        }
    }

    pub(super) fn rate_of(&self, now: TimeMs, counter: usize) -> Measured {
        let tells = |state: &PodState| state.is_fresh(now) && state.counter_told(counter, now).is_some();
        if self.ready().any(|state| !state.is_new(now)) && !self.ready().any(tells) {
            return Measured::Absent;
        }
        let kpa = &self.policy.kpa;
        let rate = |window_s: f64| self.counter(now, window_s as usize, counter).1;
        Measured::Load {
            stable: rate(kpa.stable_window_s),
            panic: rate(kpa.panic_window_s()),
        }
    }

    /// A counter's sum and rate over the last `window_s` whole seconds, by its position in [`crate::sample::Counters::NAMES`]. They end
    /// where all replicas with fresh data have told it: what a slow reporter has yet to tell is not zero.
    pub fn counter(&self, now: TimeMs, window_s: usize, counter: usize) -> (u64, f64) {
        let told = self
            .ready()
            .filter(|state| state.is_fresh(now))
            .filter_map(|state| state.counter_told(counter, now));
        // A second that is not over yet is not whole.
        let end_s = told.min().map_or(now, |told| told.min(now)).0.div_euclid(1000);
        let window_s = window_s.clamp(1, self.horizon_s);
        let sum = self.counters[counter].sum(TimeMs((end_s - 1) * 1000), window_s);
        let lived_s = self.history.span_s(TimeMs(end_s * 1000), window_s as f64).max(1.0);
        (sum, sum as f64 / lived_s)
    }

    /// A counter's sum over the last `window_s` seconds, the present one included.
    pub fn count(&self, now: TimeMs, window_s: usize, counter: usize) -> u64 {
        self.counters[counter].sum(now, window_s)
    }

    /// Latencies of the last `window_s` seconds over all replicas.
    pub fn histogram(&self, now: TimeMs, window_s: usize, signal: Signal) -> BoundedHistogram {
        self.histograms.merged(now, window_s, signal)
    }

    /// Average and latest total of each gauge over the last `window_s` seconds: (name, average, latest).
    pub fn gauges(&self, now: TimeMs, window_s: f64) -> Vec<(&'static str, Option<f64>, Option<f64>)> {
        self.history.gauges(now, window_s)
    }
}
