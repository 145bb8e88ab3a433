//! Totals over all replicas, one value per second.

use crate::{
    TimeMs,
    decision::Measured,
    policy::{KpaPolicy, Metric},
    sample::Gauges,
    window::{Averaging, TimedBuckets},
};

const SECOND_MS: i64 = 1000;

/// The stable and the panic window of one metric.
#[derive(Debug, Clone)]
pub(super) struct LoadWindow {
    metric: Metric,
    stable: TimedBuckets,
    panic: TimedBuckets,
}

impl LoadWindow {
    pub(super) fn new(metric: Metric, kpa: &KpaPolicy) -> Self {
        let window = |length_s| TimedBuckets::new(Averaging::Linear, length_s, SECOND_MS);
        LoadWindow {
            metric,
            stable: window(kpa.stable_window_s),
            panic: window(kpa.panic_window_s()),
        }
    }

    /// The windows of a policy that has come into force while the target lives: those from `before` where they are the same,
    /// else filled with what the history holds.
    pub(super) fn renewed(metric: Metric, kpa: &KpaPolicy, before: &[LoadWindow], history: &History) -> Self {
        let mut window = LoadWindow::new(metric, kpa);
        let same = |before: &&LoadWindow| {
            let length = |window: &LoadWindow| [&window.stable, &window.panic].map(TimedBuckets::bucket_count);
            before.metric == metric && length(before) == length(&window)
        };
        if let Some(same) = before.iter().find(same) {
            return same.clone();
        }
        let Some(last) = history.newest_second() else {
            return window;
        };
        let length = window.stable.bucket_count().max(window.panic.bucket_count()) as i64;
        for second in last - length + 1..=last {
            let at = TimeMs(second * SECOND_MS);
            let (gauges, gateway) = history.at(at);
            if let Some(value) = window.value(&gauges, gateway) {
                window.stable.record(at, value);
                window.panic.record(at, value);
            }
        }
        window
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

    /// Ticks may come more often than seconds; of one second the largest value counts.
    pub(super) fn record_now(&mut self, at: TimeMs, total: &Gauges, gateway: Option<f64>) {
        if let Some(value) = self.value(total, gateway) {
            self.stable.raise(at, value);
            self.panic.raise(at, value);
        }
    }

    /// One replica's part of a past second.
    pub(super) fn record_past(&mut self, at: TimeMs, gauges: &Gauges) {
        if let Some(value) = self.value(gauges, None) {
            self.stable.record(at, value);
            self.panic.record(at, value);
        }
    }

    pub(super) fn measure(&self, now: TimeMs) -> Measured {
        // An average over nothing is no 0.
        let average = |window: &TimedBuckets| window.newest_first(now).next().map(|_| window.window_average(now));
        match average(&self.stable) {
            None => Measured::Absent,
            Some(stable) => Measured::Load {
                stable,
                panic: average(&self.panic).unwrap_or(stable),
            },
        }
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
    totals: [TimedBuckets; 4],
    /// (replica × seconds) with data.
    pod_seconds: TimedBuckets,
    /// 1 for every second of which anything is known.
    known: TimedBuckets,
    /// The first second that a tick has written; replays fill what lies before.
    settled: Option<i64>,
    /// The last one.
    last: Option<i64>,
}

impl History {
    pub(super) fn new(horizon_s: usize) -> Self {
        let window = || TimedBuckets::new(Averaging::Linear, horizon_s as f64, SECOND_MS);
        History {
            totals: [window(), window(), window(), window()],
            pod_seconds: window(),
            known: window(),
            settled: None,
            last: None,
        }
    }

    /// Reaches back at least `horizon_s` seconds from now on, and keeps what there is.
    pub(super) fn reach_back(&mut self, horizon_s: usize, now: TimeMs) {
        let windows = self.totals.iter_mut().chain([&mut self.pod_seconds, &mut self.known]);
        for window in windows.filter(|window| window.bucket_count() < horizon_s) {
            window.resize(horizon_s as f64, now);
        }
    }

    /// The totals of a second: replicas', and what was held before them.
    pub(super) fn at(&self, at: TimeMs) -> (Gauges, Option<f64>) {
        let total = |index: usize| -> Option<f64> { self.totals[index].value(at) };
        let gauges = Gauges {
            running: total(RUNNING),
            waiting: total(WAITING),
            kv_usage: total(KV_USAGE),
            asleep: false,
        };
        (gauges, total(GATEWAY))
    }

    pub(super) fn settled(&self) -> Option<i64> {
        self.settled
    }

    /// The second a tick has written last.
    pub(super) fn last_second(&self) -> Option<i64> {
        self.last
    }

    /// The last one that anything is known of, replayed ones included.
    fn newest_second(&self) -> Option<i64> {
        let written = self.totals.iter().filter_map(TimedBuckets::last_write).max();
        written.map(|at| at.0.div_euclid(SECOND_MS))
    }

    /// Writes a second's totals. `fresh` of the replicas have told them; `known` says whether that is anything.
    pub(super) fn record_now(&mut self, at: TimeMs, total: &Gauges, gateway: Option<f64>, fresh: u32, known: bool) {
        let second = at.0.div_euclid(SECOND_MS);
        self.settled.get_or_insert(second);
        self.last = self.last.max(Some(second));
        let values = [total.running, total.waiting, total.kv_usage, gateway];
        for (totals, value) in self.totals.iter_mut().zip(values) {
            if let Some(value) = value {
                totals.raise(at, value);
            }
        }
        self.pod_seconds.raise(at, f64::from(fresh));
        self.known.raise(at, if known { 1.0 } else { 0.0 });
    }

    /// Adds one replica's part of a past second.
    pub(super) fn record_past(&mut self, at: TimeMs, gauges: &Gauges) {
        let values = [gauges.running, gauges.waiting, gauges.kv_usage];
        for (totals, value) in self.totals.iter_mut().zip(values) {
            if let Some(value) = value {
                totals.record(at, value);
            }
        }
        self.pod_seconds.record(at, 1.0);
        self.known.raise(at, 1.0);
    }

    /// (replica × seconds) with data of the last `window_s`, of each second no more than `ready_at` its end: replicas
    /// that are gone do not make up for those that kept silent.
    pub(super) fn pod_seconds(&self, now: TimeMs, window_s: f64, ready_at: impl Fn(TimeMs) -> usize) -> f64 {
        let from = now.plus_s(-window_s);
        let seconds = self.pod_seconds.newest_first(now).take_while(|(at, _)| *at > from);
        seconds
            .map(|(at, value)| value.min(ready_at(TimeMs(at.0 + SECOND_MS - 1)) as f64))
            .sum()
    }

    /// Seconds of the last `window_s` of which anything is known.
    pub(super) fn known_s(&self, now: TimeMs, window_s: f64) -> f64 {
        let from = now.plus_s(-window_s);
        self.known
            .newest_first(now)
            .take_while(|(at, _)| *at > from)
            .map(|(_, known)| known)
            .sum()
    }

    /// Seconds of the last `window_s` since the first value.
    pub(super) fn span_s(&self, now: TimeMs, window_s: f64) -> f64 {
        let first = self
            .totals
            .iter()
            .chain([&self.pod_seconds])
            .filter_map(TimedBuckets::first_write)
            .min();
        first.map_or(0.0, |first| now.since_s(first).min(window_s))
    }

    pub(super) fn gauges(&self, now: TimeMs, window_s: f64) -> Vec<(&'static str, Option<f64>, Option<f64>)> {
        let from = now.plus_s(-window_s);
        let gauge = |index: usize| {
            let totals: &TimedBuckets = &self.totals[index];
            let values = || totals.newest_first(now).take_while(|(at, _)| *at > from);
            let seconds = values()
                .count()
                .min(self.span_s(now, window_s).ceil().max(1.0) as usize);
            let sum: f64 = values().map(|(_, value)| value).sum();
            let written = totals.last_write().is_some_and(|last| last > from);
            let average = (written && seconds > 0).then(|| sum / seconds as f64);
            (
                NAMES[index],
                average,
                values().next().filter(|_| written).map(|(_, value)| value),
            )
        };
        [RUNNING, WAITING, KV_USAGE, GATEWAY].map(gauge).into()
    }
}
