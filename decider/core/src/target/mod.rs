//! One target: its replicas, their windows, its memory; `observe` and `decide`.

mod load;
mod pod;

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    TimeMs,
    decision::{Control, DataState, Inputs, Measured, Memory, Plan, Record, Replicas},
    evaluate::evaluate,
    histogram::BoundedHistogram,
    policy::{Bounds, Metric, Policy},
    sample::{Counters, Gauges, Sample},
    signal::Signal,
    window::{CounterRing, HistogramRing},
};

use load::{History, LoadWindow};
pub use pod::{Boot, Claim, Phase, PodState, PodView};

/// A plan that was not applied within this time is void: the next tick makes a better one.
const PLAN_LIFETIME_S: f64 = 5.0;
/// After a (re)start, agents are given this long to come back before a tick without all of them fills the windows.
const SETTLE_S: f64 = 5.0;
/// Longer gaps between ticks stay holes: too much may have happened in them.
const HOLD_S_MAX: i64 = 60;

/// What happened to a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// It is in the windows. `missing` sequence numbers before it never came.
    Applied {
        /// Sequence numbers skipped since the last sample of this boot.
        missing: u64,
        /// Whether the replica's queue is longer than at its last sample.
        queue_rose: bool,
    },
    /// Its sequence number was there before.
    Duplicate,
    /// It came from a boot that is not the replica's latest.
    Superseded,
    /// It is older than every window.
    Late,
    /// No such replica.
    UnknownPod,
}

/// The fleet as its backend sees it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FleetView {
    /// Replicas asked for.
    pub spec: u32,
    /// The replicas there are, draining and failed ones included.
    pub pods: Vec<PodView>,
}

/// State of one target. All methods are synchronous and take the time as an argument.
#[derive(Debug, Clone)]
pub struct Target {
    name: String,
    policy: Arc<Policy>,
    bounds: Bounds,
    control: Control,
    memory: Option<Memory>,
    spec: u32,
    pods: BTreeMap<String, PodState>,
    gateway: Option<f64>,
    loads: Vec<LoadWindow>,
    history: History,
    counters: Vec<CounterRing>,
    histograms: HistogramRing,
    horizon_s: usize,
    since: TimeMs,
}

impl Target {
    /// A target that nothing is known of yet. `memory` is what a predecessor remembered.
    pub fn new(name: &str, policy: Arc<Policy>, bounds: Bounds, memory: Option<Memory>, now: TimeMs) -> Self {
        let horizon_s = horizon_s(&policy);
        Target {
            name: name.to_owned(),
            loads: load_windows(&policy),
            bounds,
            control: Control::Auto,
            memory,
            spec: 0,
            pods: BTreeMap::new(),
            gateway: None,
            history: History::new(horizon_s),
            counters: vec![CounterRing::new(horizon_s); Counters::NAMES.len()],
            histograms: HistogramRing::new(horizon_s),
            horizon_s,
            since: now,
            policy,
        }
    }

    /// The target's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Limits in force.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Who decides.
    pub fn control(&self) -> Control {
        self.control
    }

    /// Sets who decides.
    pub fn set_control(&mut self, control: Control) {
        self.control = control;
    }

    /// Replicas asked of the backend, as last seen.
    pub fn spec(&self) -> u32 {
        self.spec
    }

    /// Every replica.
    pub fn pods(&self) -> impl Iterator<Item = &PodState> {
        self.pods.values()
    }

    /// Requests held at the front door, as last said.
    pub fn gateway_waiting(&self) -> Option<f64> {
        self.gateway
    }

    /// How far back windows reach, in seconds: what an agent should be able to replay.
    pub fn horizon_s(&self) -> usize {
        self.horizon_s
    }

    /// What the fleet looks like now. Replicas that are gone are forgotten; what they have counted stays.
    pub fn observe_fleet(&mut self, fleet: FleetView) {
        self.spec = fleet.spec;
        let mut before = std::mem::take(&mut self.pods);
        for view in fleet.pods {
            let state = match before.remove(&view.name).filter(|state| state.view.uid == view.uid) {
                Some(mut state) => {
                    state.view = view;
                    state
                }
                None => PodState::new(view),
            };
            self.pods.insert(state.view.name.clone(), state);
        }
    }

    /// Requests held before any replica.
    pub fn observe_gateway(&mut self, waiting: Option<f64>) {
        self.gateway = waiting;
    }

    /// An agent says that it speaks for a replica. Of two agents the later boot wins.
    pub fn claim(&mut self, pod: &str, uid: &str, boot: Boot) -> Claim {
        match self.pods.get_mut(pod) {
            Some(state) if uid.is_empty() || state.view.uid == uid => state.claim(boot),
            _ => Claim::UnknownPod,
        }
    }

    /// Takes a sample into the windows, once.
    pub fn observe(&mut self, pod: &str, boot_id: &str, sample: &Sample, now: TimeMs) -> Observed {
        let Some(state) = self.pods.get_mut(pod) else { return Observed::UnknownPod };
        let (missing, queue_rose) = match state.admit(boot_id, sample) {
            Observed::Applied { missing, queue_rose } => (missing, queue_rose),
            other => return other,
        };
        if now.since_s(sample.end) >= self.horizon_s as f64 {
            return Observed::Late;
        }
        let serving = state.view.phase == Phase::Ready;
        for (ring, count) in self.counters.iter_mut().zip(sample.counters.values()) {
            if count > 0 {
                ring.record(sample.end, count);
            }
        }
        for (signal, observations) in &sample.histograms {
            self.histograms.record(sample.end, *signal, observations);
        }
        if let Some(gauges) = sample.gauges.filter(|_| serving) {
            self.fill_past(sample, &gauges);
        }
        Observed::Applied { missing, queue_rose }
    }

    /// A replayed sample fills the seconds before this target's own ticks did: a gauge is taken to hold at every full
    /// second within the sample's interval, so that each replica counts once per second whatever its pace.
    fn fill_past(&mut self, sample: &Sample, gauges: &Gauges) {
        let settled = self.history.settled().unwrap_or(i64::MAX);
        let first = (sample.end.0 - i64::from(sample.interval_ms)).div_euclid(1000) + 1;
        let last = sample.end.0.div_euclid(1000);
        for second in first.max(last - self.horizon_s as i64)..=last.min(settled - 1) {
            let at = TimeMs(second * 1000);
            self.history.record_past(at, gauges);
            for load in &mut self.loads {
                load.record_past(at, gauges);
            }
        }
    }

    /// Writes this second's totals. A replica without fresh data counts with what it last said, one that never said
    /// anything with the mean of the others: growing needs a guess, and shrinking is not allowed on it.
    fn record_now(&mut self, now: TimeMs) {
        let mut known = 0u32;
        let mut silent = 0u32;
        let mut total = Gauges::default();
        for state in self.pods.values().filter(|state| state.view.phase == Phase::Ready) {
            match &state.latest {
                Some(latest) if !latest.gauges.asleep => {
                    known += 1;
                    let gauges = latest.gauges;
                    add(&mut total.running, gauges.running);
                    add(&mut total.waiting, gauges.waiting);
                    add(&mut total.kv_usage, gauges.kv_usage);
                }
                Some(_) => {}
                None => silent += 1,
            }
        }
        if known > 0 && silent > 0 {
            let fill = f64::from(known + silent) / f64::from(known);
            for gauge in [&mut total.running, &mut total.waiting, &mut total.kv_usage] {
                *gauge = gauge.map(|value| value * fill);
            }
        }
        let data = self.fresh(now);
        let complete = data.0 == data.1;
        if known == 0 && self.gateway.is_none() {
            return;
        }
        if !complete && self.history.settled().is_none() && now.since_s(self.since) < SETTLE_S {
            return;
        }
        // Seconds that no tick has seen (a slow pace, a stalled process) hold what this one sees, not zero.
        let second = now.0.div_euclid(1000);
        let last = self.history.last_second().filter(|last| (1..=HOLD_S_MAX).contains(&(second - last)));
        for missed in last.map_or(second, |last| last + 1)..second {
            self.write(TimeMs(missed * 1000), &total, data.1);
        }
        self.write(now, &total, data.1);
    }

    fn write(&mut self, at: TimeMs, total: &Gauges, fresh: u32) {
        self.history.record_now(at, total, self.gateway, fresh);
        for load in &mut self.loads {
            load.record_now(at, total, self.gateway);
        }
    }

    /// Ready replicas that should have reported by now, and the part of them with fresh good data.
    fn fresh(&self, now: TimeMs) -> (u32, u32) {
        let ready = self.pods.values().filter(|state| state.view.phase == Phase::Ready && !state.is_new(now));
        ready.fold((0, 0), |(expected, fresh), state| (expected + 1, fresh + u32::from(state.is_fresh(now))))
    }

    fn replicas(&self) -> Replicas {
        let mut replicas = Replicas { spec: self.spec, ..Replicas::default() };
        for state in self.pods.values() {
            match state.view.phase {
                Phase::Starting => replicas.starting += 1,
                Phase::Ready => replicas.ready += 1,
                Phase::Draining => replicas.draining += 1,
                Phase::Failed => replicas.failed += 1,
            }
        }
        replicas
    }

    /// Share of the last `window_s` seconds that is known: of their (ready replica × second) those with a sample, and no
    /// more than the share of the window that the target has lived through.
    pub fn completeness(&self, now: TimeMs, window_s: f64) -> f64 {
        let ready = self.pods.values().filter(|state| state.view.phase == Phase::Ready);
        let expected: f64 = ready
            .map(|state| state.view.ready_since.map_or(0.0, |since| now.since_s(since).clamp(0.0, window_s)))
            .sum();
        // A target that has not lived through a window knows nothing of it, however few its replicas. The present
        // second is never whole.
        let lived = ((self.history.span_s(now, window_s) + 1.0) / window_s).min(1.0);
        // A replica's first second is seldom whole either.
        let told = if expected < 2.0 { 1.0 } else { (self.history.pod_seconds(now, window_s) / expected).min(1.0) };
        lived.min(told)
    }

    /// What is known at `now`, without deciding.
    pub fn inputs(&self, now: TimeMs) -> Inputs {
        let kpa = &self.policy.kpa;
        let (expected, fresh) = self.fresh(now);
        // Replicas that all keep silent hide the load; only a fleet of none is known by its front door alone.
        let known = fresh > 0 || (expected == 0 && self.gateway.is_some());
        let mut loads = self.loads.iter();
        let metrics = self
            .policy
            .metrics
            .iter()
            .map(|metric| match metric.metric {
                Metric::Latency { signal, quantile } if known => Measured::Latency {
                    stable: self.latency(now, kpa.stable_window_s, signal).quantile(quantile),
                    panic: self.latency(now, kpa.panic_window_s(), signal).quantile(quantile),
                },
                Metric::PromptTokensPerSecond if known => self.rate_of(now, 0),
                Metric::GenerationTokensPerSecond if known => self.rate_of(now, 2),
                Metric::RequestsPerSecond if known => self.rate_of(now, 3),
                Metric::Latency { .. }
                | Metric::PromptTokensPerSecond
                | Metric::GenerationTokensPerSecond
                | Metric::RequestsPerSecond => Measured::Absent,
                Metric::Waiting | Metric::Running | Metric::Concurrency | Metric::KvUsage => {
                    loads.next().filter(|_| known).map_or(Measured::Absent, |load| load.measure(now))
                }
            })
            .collect();
        Inputs {
            now,
            bounds: self.bounds,
            control: self.control,
            replicas: self.replicas(),
            data: DataState { expected, fresh, completeness: self.completeness(now, kpa.stable_window_s) },
            metrics,
            gateway_waiting: self.gateway,
            busy: self.is_busy(),
        }
    }

    /// Whether a request is known to be anywhere. A replica that has gone silent is taken at its last word.
    fn is_busy(&self) -> bool {
        self.gateway.is_some_and(|waiting| waiting > 0.0)
            || self.pods.values().any(|state| {
                state.latest.as_ref().is_some_and(|latest| latest.gauges.concurrency().is_some_and(|load| load > 0.0))
            })
    }

    fn latency(&self, now: TimeMs, window_s: f64, signal: Signal) -> BoundedHistogram {
        self.histograms.merged(now, window_s as usize, signal)
    }

    fn rate_of(&self, now: TimeMs, counter: usize) -> Measured {
        let kpa = &self.policy.kpa;
        let rate = |window_s: f64| self.counter(now, window_s as usize, counter).1;
        Measured::Load { stable: rate(kpa.stable_window_s), panic: rate(kpa.panic_window_s()) }
    }

    /// A counter's sum and rate over the last `window_s` whole seconds (the present one is not over yet), by its
    /// position in [`Counters::NAMES`].
    pub fn counter(&self, now: TimeMs, window_s: usize, counter: usize) -> (u64, f64) {
        let last_whole = TimeMs(now.0 - 1000);
        let window_s = window_s.clamp(1, self.horizon_s);
        let sum = self.counters[counter].sum(last_whole, window_s);
        let lived_s = self.history.span_s(now, window_s as f64).max(1.0);
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

    /// Decides. Returns the record, and a plan when the outcome is not what the backend has.
    ///
    /// The caller says with [`Target::settle`] whether the outcome counts.
    pub fn decide(&mut self, now: TimeMs) -> (Record, Option<Plan>) {
        self.record_now(now);
        let inputs = self.inputs(now);
        let memory = match self.memory.take() {
            Some(memory) => memory,
            None => Memory::start(&self.policy, inputs.replicas.ready, now),
        };
        let (memory_after, outcome) = evaluate(&self.policy, &memory, &inputs);
        self.memory = Some(memory_after.clone());
        let plan = (outcome.desired != inputs.replicas.spec).then(|| Plan {
            target: self.name.clone(),
            from: inputs.replicas.spec,
            to: outcome.desired,
            mode: outcome.mode,
            at: now,
            expires: now.plus_s(PLAN_LIFETIME_S),
        });
        let record =
            Record { target: self.name.clone(), policy: Arc::clone(&self.policy), memory, inputs, outcome, memory_after };
        (record, plan)
    }

    /// Another policy or other limits from now on. Windows are rebuilt from the history kept, where lengths differ.
    pub fn follow(&mut self, policy: Arc<Policy>, bounds: Bounds) {
        self.bounds = bounds;
        if *policy == *self.policy {
            return;
        }
        if let Some(memory) = &mut self.memory {
            memory.kpa.follow(&self.policy.kpa, &policy.kpa);
        }
        self.loads = load_windows(&policy);
        for load in &mut self.loads {
            load.refill(&self.history);
        }
        self.policy = policy;
    }
}

/// Windows for the metrics that are levels; rates and latencies have rings of their own.
fn load_windows(policy: &Policy) -> Vec<LoadWindow> {
    let level = |metric: &Metric| {
        matches!(metric, Metric::Waiting | Metric::Running | Metric::Concurrency | Metric::KvUsage)
    };
    let metrics = policy.metrics.iter().map(|metric| metric.metric).filter(level);
    metrics.map(|metric| LoadWindow::new(metric, &policy.kpa)).collect()
}

/// Long enough for every window of the policy, and for a person to look back ten minutes.
fn horizon_s(policy: &Policy) -> usize {
    const LOOK_BACK_S: f64 = 600.0;
    policy.kpa.stable_window_s.max(LOOK_BACK_S).ceil() as usize
}

fn add(total: &mut Option<f64>, value: Option<f64>) {
    if let Some(value) = value {
        *total = Some(total.unwrap_or(0.0) + value);
    }
}
