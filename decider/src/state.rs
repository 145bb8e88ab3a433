//! Everything the service knows, behind one lock that is held for microseconds and never across an await.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use infer_core::{
    TimeMs,
    decision::{Control, Memory, Record},
    policy::{Bounds, Policy},
    target::Target,
};
use infer_proto::v1;
use tokio::sync::{Notify, broadcast, watch};

use crate::{
    actuate::PodDetail,
    bind::Inherited,
    clock::Clock,
    hooks::Hooks,
    journal::{Decision, Journal, Recovered},
    link::Link,
    roles::Coupling,
};

pub use crate::past::Word;

/// Decisions a slow watcher may fall behind before it misses some (and is told so).
const WATCH_BACKLOG: usize = 256;

/// A target as its binding asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetSpec {
    /// The fleet's name; in Kubernetes `namespace/binding`, with `/role` where the binding has roles.
    pub name: String,
    /// Where its Pods are; empty outside Kubernetes. If it is not, the name begins with it.
    pub namespace: String,
    /// The binding's name.
    pub binding: String,
    /// The policy's name.
    pub policy_name: String,
    /// The policy.
    pub policy: Arc<Policy>,
    /// The limits.
    pub bounds: Bounds,
    /// What the binding's mode asks for.
    pub control: Control,
    /// What its agents are asked for.
    pub wishes: Wishes,
    /// The ratio to another role of the same binding.
    pub coupling: Option<Coupling>,
}

/// What agents are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// Time between full samples, ms.
    pub interval_ms: u32,
    /// Time between looks at the queue, ms; 0 for none.
    pub fast_interval_ms: u32,
    /// A rise of the queue by this many requests is told at once.
    pub wake_on_waiting_rise: u32,
}

impl Default for Wishes {
    fn default() -> Self {
        Wishes {
            interval_ms: 1000,
            fast_interval_ms: 250,
            wake_on_waiting_rise: 2,
        }
    }
}

/// What an agent has said about its engine, for people.
#[derive(Debug, Clone, Default)]
pub struct AgentNote {
    /// The engine it found.
    pub engine: Option<v1::Engine>,
    /// Why its last look at the engine failed; empty when it did not.
    pub problem: String,
    /// Gauges of its last good look, as they came.
    pub gauges: Option<v1::Gauges>,
}

/// A target with what surrounds it.
pub struct Entity {
    /// What the binding says.
    pub spec: TargetSpec,
    /// The brain's part.
    pub target: Target,
    /// A person's word, if any.
    pub word: Option<Word>,
    /// The last tick's record.
    pub latest: Option<Arc<Record>>,
    /// The last decision that changed something: id and time.
    pub last_change: (u64, i64),
    /// For people, by replica.
    pub details: BTreeMap<String, PodDetail>,
    /// For people, by replica.
    pub notes: BTreeMap<String, AgentNote>,
    /// Something happened that the next tick should not wait for.
    pub dirty: bool,
    /// When memory was last journalled.
    pub checkpointed: TimeMs,
    /// The last plan that people were told of.
    pub told: Option<Told>,
    /// The number of the decision whose plan the backend has not answered yet. Until then the target is not decided on again:
    /// no two plans are made for one state.
    pub in_flight: Option<u64>,
    /// Replicas that have been told to drain, and why; known here for as long as the backend lists them.
    pub drains: BTreeMap<String, String>,
    /// The stream of each replica's agent.
    pub(crate) links: BTreeMap<String, Link>,
}

/// A plan as it was told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Told {
    /// Replicas before.
    pub from: u32,
    /// Replicas after.
    pub to: u32,
    /// Whether the backend took it.
    pub applied: bool,
    /// When.
    pub at: TimeMs,
}

impl Told {
    /// The same plan that was not applied is told again only after this time.
    const AGAIN_S: f64 = 60.0;

    /// Whether `before` said the same not long ago.
    pub fn repeats(&self, before: Option<&Told>) -> bool {
        // A change that was made is always told.
        !self.applied
            && before.is_some_and(|before| {
                (before.from, before.to, before.applied) == (self.from, self.to, self.applied)
                    && self.at.since_s(before.at) < Told::AGAIN_S
            })
    }
}

impl Entity {
    /// What holds now: a person's word, else the binding's mode.
    pub fn control(&self) -> Control {
        self.word.as_ref().map_or(self.spec.control, |word| word.control)
    }
}

/// Counters of the service; read by status and metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Streams open now.
    pub agents_connected: AtomicU64,
    /// Samples taken into windows.
    pub samples_applied: AtomicU64,
    /// Samples seen before.
    pub samples_duplicate: AtomicU64,
    /// Samples too old for any window.
    pub samples_late: AtomicU64,
    /// Sequence numbers that never came.
    pub samples_missing: AtomicU64,
    /// Streams closed because of what they sent.
    pub streams_refused: AtomicU64,
    /// Streams and questions refused because of who sent them.
    pub unauthenticated: AtomicU64,
    /// Agents that were sent to another decider.
    pub redirects: AtomicU64,
    /// Orders to drain, or to stop draining.
    pub drain_orders: AtomicU64,
    /// Plans that the backend has not answered yet.
    pub plans_in_flight: AtomicU64,
    /// Ticks done.
    pub ticks: AtomicU64,
    /// Ticks that were woken early.
    pub early_ticks: AtomicU64,
    /// Plans applied.
    pub plans_applied: AtomicU64,
    /// Plans the checker refused.
    pub plans_refused: AtomicU64,
    /// Plans the backend refused or failed.
    pub plans_failed: AtomicU64,
    /// Time of the last tick's deciding, µs.
    pub tick_us: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// All targets and past decisions.
#[derive(Default)]
pub struct State {
    /// By name.
    pub targets: BTreeMap<String, Entity>,
    /// In the order of their numbers, the newest at the back.
    pub decisions: VecDeque<Arc<Decision>>,
    pub(crate) next_decision_id: u64,
    /// Of targets that are not bound: what they remembered, and when that was written.
    pub(crate) memories: BTreeMap<String, (TimeMs, Memory)>,
    /// Of targets that are not bound: people's words. At most one per target that a person has ever spoken about.
    pub(crate) words: BTreeMap<String, Word>,
}

/// Shared by ingest, tick and queries.
pub struct Shared {
    /// Time.
    pub clock: Clock,
    /// Differs after every start.
    pub decider_id: String,
    /// "local" or "kubernetes".
    pub backend: &'static str,
    /// Counters.
    pub counters: Counters,
    /// The journal.
    pub journal: Journal,
    /// Wakes the tick early.
    pub wake: Notify,
    /// New decisions.
    pub decisions: broadcast::Sender<Arc<Decision>>,
    /// Bumped after each tick and each change by a person.
    pub changed: watch::Sender<u64>,
    hooks: OnceLock<Hooks>,
    state: Mutex<State>,
}

impl Shared {
    /// Starts from the documents' targets and what the journal has kept.
    pub fn new(
        clock: Clock,
        backend: &'static str,
        specs: Vec<TargetSpec>,
        journal: Journal,
        recovered: Recovered,
    ) -> Arc<Self> {
        let mut state = State::default();
        for entry in recovered.entries {
            state.take(entry);
        }
        state.next_decision_id = state.next_decision_id.max(1);
        let now = clock.now();
        for spec in specs {
            state.bind(spec, Inherited::Journal, now);
        }
        Arc::new(Shared {
            decider_id: format!("{:016x}", fastrand::u64(..)),
            clock,
            backend,
            counters: Counters::default(),
            journal,
            wake: Notify::new(),
            decisions: broadcast::channel(WATCH_BACKLOG).0,
            changed: watch::channel(0).0,
            hooks: OnceLock::new(),
            state: Mutex::new(state),
        })
    }

    /// Says what surrounds the service. Once, and before it is served; later calls change nothing.
    pub fn surround(&self, hooks: Hooks) {
        if self.hooks.set(hooks).is_err() {
            tracing::error!("the service's surroundings were said twice; the first holds");
        }
    }

    /// What surrounds the service.
    pub fn hooks(&self) -> &Hooks {
        self.hooks.get_or_init(Hooks::default)
    }

    /// The state. A panic elsewhere while it was held leaves it usable: every change is made in one step.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells watchers that something may have changed.
    pub fn publish(&self) {
        self.changed.send_modify(|version| *version += 1);
    }
}

impl State {
    /// The number of a decision that is about to be made. One that is never told leaves a gap.
    pub fn reserve_decision(&mut self) -> u64 {
        let id = self.next_decision_id;
        self.next_decision_id += 1;
        id
    }

    /// Decisions from now on have at least this number.
    pub fn number_from(&mut self, id: u64) {
        self.next_decision_id = self.next_decision_id.max(id);
    }

    /// Remembers a decision under its number.
    pub fn add_decision(
        &mut self,
        id: u64,
        unix_ms: i64,
        record: Record,
        not_applied: Option<String>,
    ) -> Arc<Decision> {
        let decision = Arc::new(Decision {
            id,
            unix_ms,
            applied: not_applied.is_none(),
            not_applied,
            record,
        });
        self.remember(Arc::clone(&decision));
        decision
    }

    /// The number the next decision will get.
    pub fn next_decision_id(&self) -> u64 {
        self.next_decision_id
    }

    /// Names of the targets, for messages; of many the first ones.
    pub fn names(&self) -> String {
        const SHOWN: usize = 20;
        let names: Vec<_> = self.targets.keys().take(SHOWN).map(String::as_str).collect();
        match self.targets.len().saturating_sub(SHOWN) {
            0 if names.is_empty() => "none".to_owned(),
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        }
    }
}
