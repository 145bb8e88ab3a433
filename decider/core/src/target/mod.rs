//! One target: its replicas, their windows, its memory; `observe` and `decide`.

mod change;
mod load;
mod measure;
mod pod;
mod share;
mod survey;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{
    TimeMs,
    decision::{Control, Memory, Plan, Record},
    evaluate::evaluate,
    policy::{Bounds, Metric, Policy},
    sample::{Counters, Gauges, Sample},
    window::{CounterRing, HistogramRing, SlidingHistogram},
};

use change::{horizon_s, latency_windows, load_windows};
use load::{History, LoadWindow};
use share::{NOTHING, counter_of, spread};
use survey::Survey;

pub use pod::{Boot, Claim, Phase, PodState, PodView};

/// A plan that was not applied within this time is void: the next tick makes a better one.
const PLAN_LIFETIME_S: f64 = 5.0;
/// After a (re)start, agents are given this long to come back before a tick without all of them fills the windows.
const SETTLE_S: f64 = 5.0;
/// Longer gaps between ticks stay holes: too much may have happened in them.
const HOLD_S_MAX: i64 = 60;

/// Replicas that a backend no longer lists and may list again (a watch that starts anew): more than go in a while of the
/// largest shrinking.
const GONE_MAX: usize = 256;

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

/// What a memory does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    None,
    /// A window of the policy looks back further than it is remembered.
    Window,
    /// What came after it was written.
    SinceWritten,
}

/// State of one target. All methods are synchronous and take the time as an argument.
#[derive(Debug, Clone)]
pub struct Target {
    name: String,
    policy: Arc<Policy>,
    bounds: Bounds,
    fewest: u32,
    control: Control,
    memory: Option<Memory>,
    spec: u32,
    pods: BTreeMap<String, PodState>,
    /// Those not listed any more, the latest at the back: should one come back, what it has counted stays counted.
    gone: VecDeque<PodState>,
    gateway: Option<f64>,
    loads: Vec<LoadWindow>,
    history: History,
    counters: Vec<CounterRing>,
    histograms: HistogramRing,
    /// The policy's latency windows.
    latencies: Vec<SlidingHistogram>,
    horizon_s: usize,
    since: TimeMs,
    /// Since when the replicas are asked for everything that the policy's metrics are made of. What they told before may have
    /// lacked some of it.
    asked_since: TimeMs,
    /// What `memory` does not know of the windows that the policy looks back on.
    gap: Gap,
    /// The newest second in which a request was anywhere, as far as samples tell, replayed ones included.
    last_busy: Option<TimeMs>,
}

impl Target {
    /// A target that nothing is known of yet. `memory` is what a predecessor remembered until just now; of an older one
    /// [`Target::take_over`] must be told.
    pub fn new(name: &str, policy: Arc<Policy>, bounds: Bounds, mut memory: Option<Memory>, now: TimeMs) -> Self {
        let horizon_s = horizon_s(&policy);
        let mut gap = Gap::None;
        if let Some(memory) = &mut memory {
            memory.not_after(now);
            // The policy may have changed in between.
            if memory.kpa.fit(&policy.kpa) {
                gap = Gap::Window;
            }
        }
        Target {
            name: name.to_owned(),
            loads: load_windows(&policy),
            bounds,
            fewest: 0,
            control: Control::Auto,
            memory,
            spec: 0,
            pods: BTreeMap::new(),
            gone: VecDeque::new(),
            gateway: None,
            history: History::new(horizon_s),
            counters: vec![CounterRing::new(horizon_s); Counters::NAMES.len()],
            // A sliding window looks back at what leaves it.
            histograms: HistogramRing::new(2 * horizon_s),
            latencies: latency_windows(&policy),
            horizon_s,
            since: now,
            // What is replayed was asked for by a predecessor.
            asked_since: TimeMs(i64::MIN),
            gap,
            last_busy: None,
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

    /// Sets the fewest replicas that the count of another role allows; 0: none is asked for. Whether that is new.
    pub fn set_fewest(&mut self, fewest: u32) -> bool {
        std::mem::replace(&mut self.fewest, fewest) != fewest
    }

    /// Replicas asked of the backend, as last seen.
    pub fn spec(&self) -> u32 {
        self.spec
    }

    /// Every replica.
    pub fn pods(&self) -> impl Iterator<Item = &PodState> {
        self.pods.values()
    }

    /// A replica; `None` for one that is not there.
    pub fn pod(&self, name: &str) -> Option<&PodState> {
        self.pods.get(name)
    }

    /// Where a replica is in its life; `None` for one that is not there.
    pub fn phase(&self, pod: &str) -> Option<Phase> {
        self.pods.get(pod).map(|state| state.view.phase)
    }

    /// Requests held at the front door, as last said.
    pub fn gateway_waiting(&self) -> Option<f64> {
        self.gateway
    }

    /// How far back windows reach, in seconds: what an agent should be able to replay.
    pub fn horizon_s(&self) -> usize {
        self.horizon_s
    }

    /// What the fleet looks like now. What replicas that are gone have counted stays.
    pub fn observe_fleet(&mut self, fleet: FleetView) {
        self.spec = fleet.spec;
        let mut before = std::mem::take(&mut self.pods);
        for view in fleet.pods {
            let same = |state: &PodState| state.view.name == view.name && state.view.uid == view.uid;
            let known = before
                .get(&view.name)
                .is_some_and(same)
                .then(|| before.remove(&view.name))
                .flatten();
            let back = || {
                self.gone
                    .iter()
                    .position(same)
                    .and_then(|index| self.gone.remove(index))
            };
            let state = match known.or_else(back) {
                Some(mut state) => {
                    state.view = view;
                    state
                }
                None => PodState::new(view),
            };
            self.pods.insert(state.view.name.clone(), state);
        }
        self.gone
            .extend(before.into_values().filter(|state| state.boot().is_some()));
        while self.gone.len() > GONE_MAX {
            self.gone.pop_front();
        }
    }

    /// Requests held before any replica.
    pub fn observe_gateway(&mut self, waiting: Option<f64>) {
        self.gateway = waiting;
    }

    /// An agent says that it speaks for a replica. Of two agents that both speak the later boot wins.
    pub fn claim(&mut self, pod: &str, uid: &str, boot: Boot, now: TimeMs) -> Claim {
        match self.pods.get_mut(pod) {
            Some(state) if uid.is_empty() || state.view.uid == uid => state.claim(boot, now),
            _ => Claim::UnknownPod,
        }
    }

    /// Takes a sample into the windows, once.
    pub fn observe(&mut self, pod: &str, boot_id: &str, sample: &Sample, now: TimeMs) -> Observed {
        let Some(state) = self.pods.get_mut(pod) else {
            return Observed::UnknownPod;
        };
        let (missing, queue_rose) = match state.admit(boot_id, sample) {
            Observed::Applied { missing, queue_rose } => (missing, queue_rose),
            other => return other,
        };
        if now.since_s(sample.end) >= self.horizon_s as f64 {
            return Observed::Late;
        }
        let phase = state.view.phase;
        let gauges = sample.gauges.and(state.latest.as_ref()).map(|latest| latest.gauges);
        let served = [
            &sample.counters.prompt_tokens,
            &sample.counters.generation_tokens,
            &sample.counters.requests,
        ];
        let load = gauges.and_then(|gauges| gauges.concurrency()).unwrap_or(0.0);
        if load > 0.0 || served.into_iter().any(|count| *count > 0) {
            self.last_busy = self.last_busy.max(Some(sample.end));
        }
        for (ring, count) in self.counters.iter_mut().zip(sample.counters.values()) {
            spread(ring, sample, count, self.horizon_s);
        }
        for (signal, observations) in &sample.histograms {
            for latency in &mut self.latencies {
                latency.record(&self.histograms, sample.end, *signal, observations);
            }
            self.histograms.record(sample.end, *signal, observations);
        }
        // A replica that a restarted backend has not looked at yet has served all the same.
        if let Some(gauges) = gauges.filter(|_| phase != Phase::Failed) {
            self.fill_past(sample, &gauges);
        }
        Observed::Applied { missing, queue_rose }
    }

    /// A replayed sample fills the seconds before this target's own ticks did: a gauge is taken to hold at every full
    /// second within the sample's interval, so that each replica counts once per second whatever its pace.
    fn fill_past(&mut self, sample: &Sample, gauges: &Gauges) {
        // An engine that sleeps counts as nothing.
        let gauges = if gauges.asleep { &NOTHING } else { gauges };
        let settled = self.history.settled().unwrap_or(i64::MAX);
        let first = sample
            .end
            .0
            .saturating_sub(i64::from(sample.interval_ms))
            .div_euclid(1000)
            + 1;
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
    /// anything with the mean of the others: growing needs a guess, and shrinking is not allowed on it. Draining ones
    /// count too: what they are finishing is part of the load that will come again.
    fn record_now(&mut self, now: TimeMs, survey: &Survey) {
        let known = survey.known;
        let total = if let Some(total) = survey.total() {
            total
        } else if survey.silent > 0 || self.gateway.is_none() {
            // Nobody has said anything, and that is not zero. What this second held, a later tick may know.
            return;
        } else {
            NOTHING
        };
        let complete = known.informed == known.expected;
        if !complete && self.history.settled().is_none() && now.since_s(self.since) < SETTLE_S {
            return;
        }
        // Seconds that no tick has seen (a slow pace, a stalled process) hold what this one sees, not zero. They are
        // known only as far as samples reach back.
        let second = now.0.div_euclid(1000);
        let last = self
            .history
            .last_second()
            .filter(|last| (1..=HOLD_S_MAX).contains(&(second - last)));
        for missed in last.map_or(second, |last| last + 1)..second {
            let at = TimeMs(missed * 1000);
            let covered = self.informed(now).filter(|state| state.covers(at)).count() as u32;
            self.write(at, &total, covered, covered > 0);
        }
        self.write(now, &total, known.informed, known.informed > 0 || known.expected == 0);
    }

    fn write(&mut self, at: TimeMs, total: &Gauges, fresh: u32, known: bool) {
        self.history.record_now(at, total, self.gateway, fresh, known);
        for load in &mut self.loads {
            load.record_now(at, total, self.gateway);
        }
    }

    fn ready(&self) -> impl Iterator<Item = &PodState> {
        self.pods.values().filter(|state| state.view.phase == Phase::Ready)
    }

    /// Ready replicas with fresh good data that tells everything the policy asks for.
    fn informed(&self, now: TimeMs) -> impl Iterator<Item = &PodState> {
        self.ready()
            .filter(move |state| state.is_fresh(now) && self.is_informed(state, now))
    }

    /// One look at every replica.
    fn survey(&self, now: TimeMs) -> Survey {
        let mut survey = Survey::new(self.spec, self.pods.len());
        for state in self.pods.values() {
            let fresh = state.is_fresh(now);
            survey.add(state, now, fresh, fresh && self.is_informed(state, now));
        }
        survey
    }

    /// Whether a replica tells what the policy's metrics are made of. One that sleeps has nothing to tell.
    fn is_informed(&self, state: &PodState, now: TimeMs) -> bool {
        let Some(gauges) = state.latest.as_ref().map(|latest| latest.gauges) else {
            return false;
        };
        gauges.asleep
            || self.policy.metrics.iter().all(|metric| match metric.metric {
                Metric::Waiting => gauges.waiting.is_some(),
                Metric::Running => gauges.running.is_some(),
                Metric::Concurrency => gauges.concurrency().is_some(),
                Metric::KvUsage => gauges.kv_usage.is_some(),
                Metric::Latency { .. } => true,
                Metric::PromptTokensPerSecond | Metric::GenerationTokensPerSecond | Metric::RequestsPerSecond => {
                    counter_of(&metric.metric).is_some_and(|counter| state.counter_told(counter, now).is_some())
                }
            })
    }

    /// Decides. Returns the record, and a plan when the outcome is not what the backend has.
    ///
    /// The plan counts as made until the caller says with [`Target::refused`] that it was not.
    pub fn decide(&mut self, now: TimeMs) -> (Record, Option<Plan>) {
        let survey = self.survey(now);
        self.record_now(now, &survey);
        for latency in &mut self.latencies {
            latency.advance(&self.histograms, now);
        }
        let inputs = self.inputs(now, &survey);
        let gap = std::mem::replace(&mut self.gap, Gap::None);
        let mut memory = match self.memory.take() {
            Some(memory) => memory,
            None => {
                let mut memory = Memory::start(&self.policy, inputs.replicas.ready, now);
                memory.stabilize_anew(inputs.replicas.spec, now);
                memory
            }
        };
        match gap {
            Gap::None => {}
            Gap::Window => memory.stabilize_anew(inputs.replicas.spec, now),
            Gap::SinceWritten => memory.take_over(inputs.replicas.spec, now),
        }
        // Requests shorter than a sample's interval show in no gauge.
        memory.last_busy = self
            .last_busy
            .map_or(memory.last_busy, |busy| busy.max(memory.last_busy));
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
        let record = Record {
            target: self.name.clone(),
            policy: Arc::clone(&self.policy),
            memory,
            inputs,
            outcome,
            memory_after,
        };
        (record, plan)
    }

    /// A plan of [`Target::decide`] was not made true: it uses up nothing of what rate policies allow.
    pub fn refused(&mut self, plan: &Plan) {
        if let Some(memory) = &mut self.memory {
            memory.events.forget(plan.at);
        }
    }
}
