//! Everything the service knows, behind one lock that is held for microseconds and never across an await.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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
    clock::Clock,
    journal::{ControlEntry, Decision, Entry, Journal, Recovered},
};

/// Decisions kept in memory for listing and explaining: 3 KB each, so 6 MB.
const DECISIONS_KEPT: usize = 2000;
/// Decisions a slow watcher may fall behind before it misses some (and is told so).
const WATCH_BACKLOG: usize = 256;

/// A target from the documents.
#[derive(Debug, Clone)]
pub struct TargetSpec {
    /// The fleet's name.
    pub name: String,
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
}

/// What agents are asked for.
#[derive(Debug, Clone, Copy)]
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

/// A person's word on a target, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// What holds.
    pub control: Control,
    /// Until when; `None`: until somebody says otherwise.
    pub expires: Option<TimeMs>,
    /// Why.
    pub reason: String,
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
    /// What the documents say.
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
    /// The newest at the back.
    pub decisions: VecDeque<Arc<Decision>>,
    next_decision_id: u64,
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
        let mut past = Past::default();
        for entry in recovered.entries {
            past.take(entry);
        }
        let now = clock.now();
        let mut targets = BTreeMap::new();
        for spec in specs {
            let memory = past.memories.remove(&spec.name).map(|memory| *memory);
            let word = past
                .words
                .remove(&spec.name)
                .filter(|word| word.expires.is_none_or(|end| end > now));
            let target = Target::new(&spec.name, Arc::clone(&spec.policy), spec.bounds, memory, now);
            let last_change = past
                .decisions
                .iter()
                .rev()
                .find(|decision| decision.record.target == spec.name);
            let entity = Entity {
                last_change: last_change.map_or((0, 0), |decision| (decision.id, decision.unix_ms)),
                target,
                word,
                latest: None,
                details: BTreeMap::new(),
                notes: BTreeMap::new(),
                dirty: true,
                checkpointed: now,
                told: None,
                spec,
            };
            targets.insert(entity.spec.name.clone(), entity);
        }
        let next_decision_id = past.next_decision_id.max(1);
        Arc::new(Shared {
            decider_id: format!("{:016x}", fastrand::u64(..)),
            clock,
            backend,
            counters: Counters::default(),
            journal,
            wake: Notify::new(),
            decisions: broadcast::channel(WATCH_BACKLOG).0,
            changed: watch::channel(0).0,
            state: Mutex::new(State {
                targets,
                decisions: past.decisions,
                next_decision_id,
            }),
        })
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

/// What the journal knew.
#[derive(Default)]
struct Past {
    decisions: VecDeque<Arc<Decision>>,
    next_decision_id: u64,
    memories: BTreeMap<String, Box<Memory>>,
    words: BTreeMap<String, Word>,
}

impl Past {
    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Decision(decision) => {
                let mut memory = decision.record.memory_after.clone();
                if !decision.applied {
                    memory.events.forget(decision.record.inputs.now);
                }
                self.memories.insert(decision.record.target.clone(), Box::new(memory));
                self.next_decision_id = self.next_decision_id.max(decision.id + 1);
                remember(&mut self.decisions, Arc::new(*decision));
            }
            Entry::Checkpoint {
                target,
                memory,
                next_decision_id,
                ..
            } => {
                self.next_decision_id = self.next_decision_id.max(next_decision_id);
                self.memories.insert(target, memory);
            }
            Entry::Control(entry) => match Word::from_entry(&entry) {
                Some(word) => {
                    self.words.insert(entry.target, word);
                }
                None => {
                    self.words.remove(&entry.target);
                }
            },
        }
    }
}

fn remember(decisions: &mut VecDeque<Arc<Decision>>, decision: Arc<Decision>) {
    if decisions.len() >= DECISIONS_KEPT {
        decisions.pop_front();
    }
    decisions.push_back(decision);
}

impl State {
    /// Numbers a decision and remembers it.
    pub fn add_decision(&mut self, unix_ms: i64, record: Record, not_applied: Option<String>) -> Arc<Decision> {
        let id = self.next_decision_id;
        self.next_decision_id += 1;
        let decision = Arc::new(Decision {
            id,
            unix_ms,
            applied: not_applied.is_none(),
            not_applied,
            record,
        });
        remember(&mut self.decisions, Arc::clone(&decision));
        decision
    }

    /// The number the next decision will get.
    pub fn next_decision_id(&self) -> u64 {
        self.next_decision_id
    }

    /// Names of all targets, for messages.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.targets.keys().map(String::as_str).collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    }
}

impl Word {
    fn from_entry(entry: &ControlEntry) -> Option<Word> {
        let control = match (entry.control.as_str(), entry.replicas) {
            ("paused", _) => Control::Paused,
            ("override", Some(replicas)) => Control::Override(replicas),
            _ => return None,
        };
        Some(Word {
            control,
            expires: entry.expires_unix_ms.map(TimeMs),
            reason: entry.reason.clone(),
        })
    }

    /// The journal's form; `None` for the end of a word.
    pub fn to_entry(target: &str, word: Option<&Word>) -> ControlEntry {
        let (control, replicas) = match word.map(|word| word.control) {
            Some(Control::Paused) => ("paused", None),
            Some(Control::Override(replicas)) => ("override", Some(replicas)),
            Some(Control::Auto | Control::Advisory) | None => ("auto", None),
        };
        ControlEntry {
            target: target.to_owned(),
            control: control.to_owned(),
            replicas,
            expires_unix_ms: word.and_then(|word| word.expires).map(|end| end.0),
            reason: word.map(|word| word.reason.clone()).unwrap_or_default(),
        }
    }
}
