//! Totals over all replicas, one value per second.

use crate::{
    TimeMs,
    decision::Measured,
    policy::{KpaPolicy, Metric},
    sample::Gauges,
    window::{Averaging, TimedBuckets},
};

const SECOND_MS: i64 = 1000;

/// The present second's value so far. Ticks may come more often than seconds; the largest counts.
#[derive(Debug, Clone, Copy)]
struct Peak {
    second: i64,
    value: f64,
}

impl Peak {
    /// What has to be added to the second's bucket for it to hold the larger of before and `value`.
    fn raise(peak: &mut Option<Peak>, now: TimeMs, value: f64) -> f64 {
        let second = now.0.div_euclid(SECOND_MS);
        match peak {
            Some(known) if known.second == second => {
                let more = (value - known.value).max(0.0);
                known.value += more;
                more
            }
            _ => {
                *peak = Some(Peak { second, value });
                value
            }
        }
    }
}

/// The stable and the panic window of one metric.
#[derive(Debug, Clone)]
pub(super) struct LoadWindow {
    metric: Metric,
    stable: TimedBuckets,
    panic: TimedBuckets,
    peak: Option<Peak>,
}

impl LoadWindow {
    pub(super) fn new(metric: Metric, kpa: &KpaPolicy) -> Self {
        let window = |length_s| TimedBuckets::new(Averaging::Linear, length_s, SECOND_MS);
        LoadWindow { metric, stable: window(kpa.stable_window_s), panic: window(kpa.panic_window_s()), peak: None }
    }

    fn value(&self, gauges: &Gauges, gateway: Option<f64>) -> Option<f64> {
        let held = |level: Option<f64>| match (level, gateway) {
            (None, None) => None,
            (level, held) => Some(level.unwrap_or(0.0) + held.unwrap_or(0.0)),
        };
        match self.metric {
            Metric::Waiting => held(gauges.waiting),
            Metric::Running => gauges.running,
            Metric::Concurrency => held(gauges.concurrency()),
            Metric::KvUsage => gauges.kv_usage,
            _ => None,
        }
    }

    pub(super) fn record_now(&mut self, now: TimeMs, total: &Gauges, gateway: Option<f64>) {
        // A fleet of none has no gauges; with a front door that is a load of 0, not an unknown one.
        let Some(value) = self.value(total, gateway).or(gateway.map(|_| 0.0)) else { return };
        let more = Peak::raise(&mut self.peak, now, value);
        self.stable.record(now, more);
        self.panic.record(now, more);
    }

    pub(super) fn record_past(&mut self, at: TimeMs, gauges: &Gauges) {
        if let Some(value) = self.value(gauges, None) {
            self.stable.record(at, value);
            self.panic.record(at, value);
        }
    }

    pub(super) fn measure(&self, now: TimeMs) -> Measured {
        if self.stable.is_empty(now) {
            return Measured::Absent;
        }
        Measured::Load { stable: self.stable.window_average(now), panic: self.panic.window_average(now) }
    }

    /// Takes over what the history knows.
    pub(super) fn refill(&mut self, history: &History) {
        for (at, gauges, gateway) in history.seconds() {
            if let Some(value) = self.value(&gauges, gateway) {
                self.stable.record(at, value);
                self.panic.record(at, value);
            }
        }
        self.peak = history.last_second().map(|second| {
            let value = self.stable.newest_first(TimeMs(second * SECOND_MS)).next().map_or(0.0, |(_, value)| value);
            Peak { second, value }
        });
    }
}

const RUNNING: usize = 0;
const WAITING: usize = 1;
const KV_USAGE: usize = 2;
const GATEWAY: usize = 3;
const NAMES: [&str; 4] = ["running", "waiting", "kv_usage", "gateway_waiting"];

/// Every gauge, second by second, as far back as anyone may ask.
#[derive(Debug, Clone)]
pub(super) struct History {
    horizon_s: usize,
    totals: [TimedBuckets; 4],
    peaks: [Option<Peak>; 4],
    /// (replica × seconds) with data.
    pod_seconds: TimedBuckets,
    pod_peak: Option<Peak>,
    /// The first second that a tick has written; replays fill what lies before.
    settled: Option<i64>,
}

impl History {
    pub(super) fn new(horizon_s: usize) -> Self {
        let window = || TimedBuckets::new(Averaging::Linear, horizon_s as f64, SECOND_MS);
        History {
            horizon_s,
            totals: [window(), window(), window(), window()],
            peaks: [None; 4],
            pod_seconds: window(),
            pod_peak: None,
            settled: None,
        }
    }

    pub(super) fn settled(&self) -> Option<i64> {
        self.settled
    }

    /// The second a tick has written last.
    pub(super) fn last_second(&self) -> Option<i64> {
        self.pod_peak.map(|peak| peak.second)
    }

    pub(super) fn record_now(&mut self, now: TimeMs, total: &Gauges, gateway: Option<f64>, fresh: u32) {
        self.settled.get_or_insert(now.0.div_euclid(SECOND_MS));
        let values = [total.running, total.waiting, total.kv_usage, gateway];
        for ((totals, peak), value) in self.totals.iter_mut().zip(&mut self.peaks).zip(values) {
            if let Some(value) = value {
                totals.record(now, Peak::raise(peak, now, value));
            }
        }
        let more = Peak::raise(&mut self.pod_peak, now, f64::from(fresh));
        self.pod_seconds.record(now, more);
    }

    pub(super) fn record_past(&mut self, at: TimeMs, gauges: &Gauges) {
        let values = [gauges.running, gauges.waiting, gauges.kv_usage];
        for (totals, value) in self.totals.iter_mut().zip(values) {
            if let Some(value) = value {
                totals.record(at, value);
            }
        }
        self.pod_seconds.record(at, 1.0);
    }

    pub(super) fn pod_seconds(&self, now: TimeMs, window_s: f64) -> f64 {
        let from = now.plus_s(-window_s);
        self.pod_seconds.newest_first(now).take_while(|(at, _)| *at > from).map(|(_, value)| value).sum()
    }

    /// Seconds of the last `window_s` since the first value.
    pub(super) fn span_s(&self, now: TimeMs, window_s: f64) -> f64 {
        let first = self.totals.iter().chain([&self.pod_seconds]).filter_map(TimedBuckets::first_write).min();
        first.map_or(0.0, |first| now.since_s(first).min(window_s))
    }

    pub(super) fn gauges(&self, now: TimeMs, window_s: f64) -> Vec<(&'static str, Option<f64>, Option<f64>)> {
        let from = now.plus_s(-window_s);
        let gauge = |index: usize| {
            let totals: &TimedBuckets = &self.totals[index];
            let values = || totals.newest_first(now).take_while(|(at, _)| *at > from);
            let seconds = values().count().min(self.span_s(now, window_s).ceil().max(1.0) as usize);
            let sum: f64 = values().map(|(_, value)| value).sum();
            let written = totals.last_write().is_some_and(|last| last > from);
            let average = (written && seconds > 0).then(|| sum / seconds as f64);
            (NAMES[index], average, values().next().filter(|_| written).map(|(_, value)| value))
        };
        [RUNNING, WAITING, KV_USAGE, GATEWAY].map(gauge).into()
    }

    /// Every second with data, the oldest first.
    fn seconds(&self) -> impl Iterator<Item = (TimeMs, Gauges, Option<f64>)> + '_ {
        let last = self.pod_seconds.last_write().unwrap_or_default();
        let first = self.pod_seconds.first_write().unwrap_or(last);
        let first = first.0.max(last.0 - (self.horizon_s as i64 - 1) * SECOND_MS);
        let at = |index: usize, time: TimeMs| {
            let totals = &self.totals[index];
            let (from, to) = (totals.first_write()?, totals.last_write()?);
            if time < from || time > to {
                return None;
            }
            totals.newest_first(to).nth(((to.0 - time.0) / SECOND_MS) as usize).map(|(_, value)| value)
        };
        let count = if self.pod_seconds.last_write().is_some() { (last.0 - first) / SECOND_MS + 1 } else { 0 };
        (0..count).map(move |step| {
            let time = TimeMs(first + step * SECOND_MS);
            let gauges = Gauges {
                running: at(RUNNING, time),
                waiting: at(WAITING, time),
                kv_usage: at(KV_USAGE, time),
                asleep: false,
            };
            (time, gauges, at(GATEWAY, time))
        })
    }
}
