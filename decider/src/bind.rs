//! Targets come and go while the service runs, and change their policy; replicas are told to drain.

use std::{collections::BTreeMap, sync::Arc};

use infer_core::{TimeMs, decision::Memory, target::Target};
use infer_proto::v1;

use crate::{
    hooks::Owner,
    link::Leave,
    state::{Entity, Shared, State, TargetSpec, count},
};

/// A memory of one's own that is not older than this has missed nothing: targets write theirs every 10 s.
const MEMORY_FRESH_S: f64 = 30.0;

/// What a new target starts with.
#[derive(Debug, Clone, PartialEq)]
pub enum Inherited {
    /// What this decider's own journal has.
    Journal,
    /// Likewise, or what another decider left, whichever is newer. However new it is: others may have decided since.
    Predecessor(Option<Box<Memory>>),
}

impl Shared {
    /// Takes on a target, or gives one that is there another policy, other limits, another mode. Windows and memory stay as far
    /// as they fit; `inherited` counts for a new target only.
    pub fn bind(&self, spec: TargetSpec, inherited: Inherited) {
        let now = self.clock.now();
        {
            let mut state = self.state();
            if state.targets.contains_key(&spec.name) {
                state.rebind(spec, now);
            } else {
                tracing::info!(target_name = spec.name, policy = spec.policy_name, "target bound");
                state.bind(spec, inherited, now);
            }
        }
        self.wake.notify_one();
        self.publish();
    }

    /// Gives up a target. Its agents are sent to its new owner, or told to ask again where nobody knows who that is. What people
    /// have said of it is kept for its return. Whether it was there.
    pub fn unbind(&self, name: &str) -> bool {
        // Asked outside the lock.
        let owner = self.hooks().ownership.of_target(name);
        let mut state = self.state();
        let Some(entity) = state.targets.remove(name) else {
            return false;
        };
        tracing::info!(target_name = name, ?owner, "target given up");
        let leave = match owner {
            Owner::Other { endpoint } => Leave::Redirect {
                endpoint,
                reason: format!("another decider owns target {name:?} now"),
            },
            Owner::Mine | Owner::Unknown => Leave::Retry {
                reason: format!("target {name:?} is gone"),
            },
        };
        for link in entity.links.values() {
            link.order(|orders| orders.leave = Some(leave.clone()));
        }
        if let Some(word) = entity.word {
            state.words.insert(name.to_owned(), word);
        }
        drop(state);
        self.publish();
        true
    }

    /// Tells the agent of a replica to drain, or to stop draining: at once, and again after each welcome while it holds. Nothing
    /// happens where there is no such target; of a replica that the backend does not list it is forgotten at the next tick.
    pub fn drain(&self, target: &str, pod: &str, draining: bool) {
        const REASON: &str = "chosen to go in a scale-down";
        let mut state = self.state();
        let Some(entity) = state.targets.get_mut(target) else {
            return;
        };
        let changed = if draining {
            entity.drains.insert(pod.to_owned(), REASON.to_owned()).is_none()
        } else {
            entity.drains.remove(pod).is_some()
        };
        if changed {
            count(&self.counters.drain_orders);
        }
        if let Some(link) = entity.links.get(pod) {
            link.order(|orders| orders.drain = draining.then(|| REASON.to_owned()));
        }
    }

    /// Somebody else has changed a target's replicas. What he has set counts as a wish, or it does not (then the next decisions
    /// are as if it had not been set).
    pub fn foreign_change(&self, target: &str, adopt: bool) {
        let mut state = self.state();
        let Some(entity) = state.targets.get_mut(target) else {
            return;
        };
        if adopt {
            entity.target.adopt();
        }
        entity.dirty = true;
        drop(state);
        self.wake.notify_one();
    }

    /// Requests have come to wait for a binding's targets: they are looked at early.
    pub fn waits(&self, binding: &str) {
        let mut state = self.state();
        let is_of = |name: &str| {
            name.strip_prefix(binding)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let names = state.targets.iter_mut().filter(|(name, _)| is_of(name));
        names.for_each(|(_, entity)| entity.dirty = true);
        drop(state);
        self.wake.notify_one();
    }

    /// Gives up every target: this decider ends.
    pub fn give_up_all(&self) {
        let names: Vec<String> = self.state().targets.keys().cloned().collect();
        for name in names {
            self.unbind(&name);
        }
    }

    /// Requests running and waiting in a replica, as its agent last said; `None` without fresh data.
    pub fn load(&self, target: &str, pod: &str) -> Option<f64> {
        let now = self.clock.now();
        let state = self.state();
        let pod = state.targets.get(target)?.target.pod(pod)?;
        let latest = pod.latest.as_ref().filter(|_| pod.is_fresh(now))?;
        latest.gauges.concurrency()
    }
}

impl State {
    pub(crate) fn bind(&mut self, spec: TargetSpec, inherited: Inherited, now: TimeMs) {
        let own = self.memories.remove(&spec.name);
        let (memory, may_be_old) = match inherited {
            Inherited::Journal => {
                let old = own
                    .as_ref()
                    .is_some_and(|(written, _)| now.since_s(*written) > MEMORY_FRESH_S);
                (own.map(|(_, memory)| memory), old)
            }
            Inherited::Predecessor(left) => {
                let known = own.map(|(_, memory)| memory).into_iter();
                (known.chain(left.map(|left| *left)).max_by_key(latest_wish), true)
            }
        };
        let word = self
            .words
            .remove(&spec.name)
            .filter(|word| word.expires.is_none_or(|end| end > now));
        let mut target = Target::new(&spec.name, Arc::clone(&spec.policy), spec.bounds, memory, now);
        if may_be_old {
            target.take_over();
        }
        let last_change = self
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
            in_flight: None,
            drains: BTreeMap::new(),
            links: BTreeMap::new(),
            spec,
        };
        self.targets.insert(entity.spec.name.clone(), entity);
    }

    fn rebind(&mut self, spec: TargetSpec, now: TimeMs) {
        let Some(entity) = self.targets.get_mut(&spec.name).filter(|entity| entity.spec != spec) else {
            return;
        };
        tracing::info!(target_name = spec.name, policy = spec.policy_name, "target changed");
        entity.target.reconfigure(Arc::clone(&spec.policy), spec.bounds, now);
        if entity.spec.coupling != spec.coupling {
            entity.target.set_fewest(0);
        }
        entity.spec = spec;
        entity.target.set_control(entity.control());
        entity.dirty = true;
        let wanted = entity.wanted();
        for link in entity.links.values() {
            link.order(|orders| orders.wanted = wanted);
        }
    }

    /// The target whose fleet lists the replica.
    pub(crate) fn target_of(&self, namespace: &str, pod: &str) -> Option<String> {
        // Names begin with the namespace, so that the walk is over its targets only.
        let from = if namespace.is_empty() {
            String::new()
        } else {
            format!("{namespace}/")
        };
        let candidates = self
            .targets
            .range(from.clone()..)
            .take_while(|(name, _)| name.starts_with(&from));
        candidates
            .filter(|(_, entity)| entity.spec.namespace == namespace)
            .find(|(_, entity)| entity.target.pod(pod).is_some())
            .map(|(name, _)| name.clone())
    }
}

/// How young a memory is: every tick leaves its wish in it.
fn latest_wish(memory: &Memory) -> Option<TimeMs> {
    memory.recommendations.iter().map(|wish| wish.at).max()
}

impl Entity {
    /// What its agents are asked for.
    pub(crate) fn wanted(&self) -> v1::Wanted {
        let wishes = self.spec.wishes;
        v1::Wanted {
            interval_ms: wishes.interval_ms,
            fast_interval_ms: wishes.fast_interval_ms,
            replay_horizon_ms: u32::try_from(self.target.horizon_s() * 1000).unwrap_or(u32::MAX),
            wake_on_waiting_rise: wishes.wake_on_waiting_rise,
        }
    }
}
