//! What a decision is made of, and the record it leaves: plain values, all of them serialisable.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    TimeMs,
    behavior::{Recommendation, ScaleEvents},
    histogram::QuantileBounds,
    kpa::KpaMemory,
    policy::{Bounds, Policy},
};

/// Everything a tick knew about a target. Together with policy and memory it determines the outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The tick's time.
    pub now: TimeMs,
    /// Limits of the binding.
    pub bounds: Bounds,
    /// What people have said.
    pub control: Control,
    /// What the backend says.
    pub replicas: Replicas,
    /// How much of the truth is known.
    pub data: DataState,
    /// One per metric of the policy, in its order.
    pub metrics: Vec<Measured>,
    /// Requests held before any replica; `None` where there is no front door.
    pub gateway_waiting: Option<f64>,
    /// Whether any request is known to be anywhere: running, waiting or held.
    pub busy: bool,
    /// Fewest replicas that the count of another role allows, see [`crate::roles`]; 0: none is asked for.
    #[serde(default)]
    pub fewest: u32,
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Control {
    /// The policy, and its outcome is applied.
    Auto,
    /// The policy, but its outcome is only told.
    Advisory,
    /// Nobody: a person has paused the target.
    Paused,
    /// A person: this many replicas.
    Override(u32),
}

/// A target's replicas by phase. `ready + starting ≤ spec`; draining ones are outside `spec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Replicas {
    /// Asked of the backend.
    pub spec: u32,
    /// Serving.
    pub ready: u32,
    /// Created and not yet serving: supply on its way.
    pub starting: u32,
    /// Finishing their last requests.
    pub draining: u32,
    /// Crashed and waiting to be started again.
    pub failed: u32,
}

/// How much of the truth is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DataState {
    /// Replicas that should be reporting: the ready ones.
    pub expected: u32,
    /// The part of them with a fresh good sample.
    pub fresh: u32,
    /// Share of the stable window that is known, 0 to 1: of its (ready replica × second) those with a sample, and no more
    /// than the share of it that the target has lived through.
    pub completeness: f64,
}

/// A metric as a tick sees it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Measured {
    /// Nothing is known.
    Absent,
    /// A load: averages of the total over all replicas.
    Load {
        /// Over the stable window.
        stable: f64,
        /// Over the panic window.
        panic: f64,
    },
    /// A latency percentile.
    Latency {
        /// Over the stable window; `None` without observations.
        stable: Option<QuantileBounds>,
        /// Over the panic window; `None` without observations.
        panic: Option<QuantileBounds>,
    },
}

/// What a target remembers from tick to tick. Journalled, so that a restart forgets nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The stable/panic machine.
    pub kpa: KpaMemory,
    /// Past wishes, for stabilisation.
    pub recommendations: Vec<Recommendation>,
    /// Past changes, for rate limits.
    pub events: ScaleEvents,
    /// When a request was last known to be anywhere; the start of the target at first.
    pub last_busy: TimeMs,
}

impl Memory {
    /// The memory of a target that was never decided on.
    pub fn start(policy: &Policy, ready: u32, now: TimeMs) -> Self {
        Memory {
            kpa: KpaMemory::start(&policy.kpa, ready, now),
            recommendations: Vec::new(),
            events: ScaleEvents::default(),
            last_busy: now,
        }
    }

    /// From `now` on, looks back on nothing but that there were `spec` replicas: that counts as a wish, so stabilisation and
    /// delay start anew from there. For whoever does not know all that was wished for in the windows that the policy looks
    /// back on: he never shrinks because of what he does not know.
    pub fn stabilize_anew(&mut self, spec: u32, now: TimeMs) {
        self.recommendations.push(Recommendation {
            at: now,
            replicas: spec,
        });
        if let Some(delay) = &mut self.kpa.delay {
            delay.record(now, spec);
        }
    }

    /// Makes what a predecessor remembered, perhaps a while ago, one's own: stabilisation starts anew, panic that held then is
    /// taken to hold now, and somebody may have been served up to now.
    pub fn take_over(&mut self, spec: u32, now: TimeMs) {
        self.stabilize_anew(spec, now);
        if self.kpa.in_panic() {
            self.kpa.panic_since = Some(now);
            // What was wanted in a panic of the past is not wanted now.
            self.kpa.max_panic_replicas = spec;
        }
        self.last_busy = now;
    }

    /// Nothing in it is dated after `now`. A system clock that was set back between two runs would else hold wishes,
    /// changes and panic for as long as it was wrong.
    pub fn not_after(&mut self, now: TimeMs) {
        self.kpa.not_after(now);
        let wishes = self.recommendations.iter_mut().map(|wish| &mut wish.at);
        let events = self
            .events
            .up
            .iter_mut()
            .chain(&mut self.events.down)
            .map(|event| &mut event.at);
        for at in wishes.chain(events).chain([&mut self.last_busy]) {
            *at = now.min(*at);
        }
    }
}

/// The state a decision leaves the target in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// The stable window decides.
    Stable,
    /// The panic window decides; nothing shrinks.
    Panic,
    /// No data; nothing shrinks, and nothing grows but to the minimum.
    Unknown,
}

impl Mode {
    /// "stable", "panic" or "unknown".
    pub fn name(self) -> &'static str {
        match self {
            Mode::Stable => "stable",
            Mode::Panic => "panic",
            Mode::Unknown => "unknown",
        }
    }
}

/// The rules, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rule {
    /// Load ÷ target per replica, the largest over the metrics.
    Demand,
    /// Nothing is known: hold.
    NoData,
    /// The stable/panic machine with its rates and delay.
    StablePanic,
    /// The demand is within the tolerance of what is there.
    Tolerance,
    /// Somebody waits and there is no replica.
    WakeFromZero,
    /// Not idle for long enough to give up the last replica.
    KeepLast,
    /// Panic never shrinks.
    PanicHold,
    /// Data of some replicas is missing: no shrinking.
    PartialData,
    /// The window does not reach back far enough: no shrinking.
    HalfFilledWindow,
    /// HPA's stabilisation windows.
    Stabilization,
    /// HPA's rate policies.
    Rate,
    /// The ratio to another role.
    Ratio,
    /// min and max.
    Bounds,
    /// A person's word.
    Override,
}

impl Rule {
    /// The name used in records and shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Demand => "demand",
            Rule::NoData => "noData",
            Rule::StablePanic => "stablePanic",
            Rule::Tolerance => "tolerance",
            Rule::WakeFromZero => "wakeFromZero",
            Rule::KeepLast => "keepLast",
            Rule::PanicHold => "panicHold",
            Rule::PartialData => "partialData",
            Rule::HalfFilledWindow => "halfFilledWindow",
            Rule::Stabilization => "stabilization",
            Rule::Rate => "rate",
            Rule::Ratio => "ratio",
            Rule::Bounds => "bounds",
            Rule::Override => "override",
        }
    }
}

/// One rule's turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Which rule.
    pub rule: Rule,
    /// Replicas before it.
    pub before: f64,
    /// Replicas after it.
    pub after: f64,
    /// What it saw and did, with the numbers.
    pub words: String,
}

/// A metric's part in a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricOutcome {
    /// The metric's name.
    pub name: Cow<'static, str>,
    /// Wanted per replica.
    pub target: f64,
    /// Total over the stable window; a latency's estimate in ms.
    pub stable: Option<f64>,
    /// Total over the panic window; a latency's estimate in ms.
    pub panic: Option<f64>,
    /// Replicas wanted by the stable window, not rounded.
    pub wants_stable: Option<f64>,
    /// Replicas wanted by the panic window, not rounded.
    pub wants_panic: Option<f64>,
}

/// What was decided and how it came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Replicas wanted.
    pub desired: u32,
    /// The state after this decision.
    pub mode: Mode,
    /// The last rule that changed the number.
    pub bound_by: Rule,
    /// One sentence for a person.
    pub reason: String,
    /// Every rule that had something to say.
    pub steps: Vec<Step>,
    /// Every metric's part.
    pub metrics: Vec<MetricOutcome>,
}

/// A decision in full. `evaluate(policy, memory, inputs)` gives `outcome` again, bit for bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Whom it is about.
    pub target: String,
    /// The policy in force.
    pub policy: Arc<Policy>,
    /// What was remembered before.
    pub memory: Memory,
    /// What was known.
    pub inputs: Inputs,
    /// What came out.
    pub outcome: Outcome,
    /// What is remembered after.
    pub memory_after: Memory,
}

impl Record {
    /// Whether deciding again from this record gives the same outcome and memory.
    pub fn recomputes(&self) -> bool {
        let (memory, outcome) = crate::evaluate::evaluate(&self.policy, &self.memory, &self.inputs);
        memory == self.memory_after && outcome == self.outcome
    }

    /// Replicas that would have been wanted without regard to another role.
    pub fn desired_alone(&self) -> u32 {
        if self.inputs.fewest == 0 {
            return self.outcome.desired;
        }
        let alone = Inputs {
            fewest: 0,
            ..self.inputs.clone()
        };
        crate::evaluate::evaluate(&self.policy, &self.memory, &alone).1.desired
    }
}

/// An order for the executor. Immutable; void when the backend no longer has `from` replicas or after `expires`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Whom it is about.
    pub target: String,
    /// Replicas asked of the backend when it was made.
    pub from: u32,
    /// Replicas to ask for.
    pub to: u32,
    /// The state it was made in.
    pub mode: Mode,
    /// Made at.
    pub at: TimeMs,
    /// Not to be applied after.
    pub expires: TimeMs,
}
