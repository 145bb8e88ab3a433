//! Changing a target's replica counts, as a machine without I/O: plans, counts, Pods and time go in, actions come out.
//!
//! More replicas are asked for at once. Fewer: the victims are marked and their agents told to drain; when they are
//! empty (or their time is over) the count is lowered once. A later plan upwards lets them go again. Whatever carries
//! our mark and is no victim is set free: so is what a predecessor of this process has left behind.

mod part;

use std::collections::BTreeMap;

use infer_core::{TimeMs, decision::Plan};

use super::{
    DrainSpec,
    pod::{PodId, Stage},
    replica::Replica,
    victims::Order,
};
use part::{Aim, PartMachine, Progress};

/// Taking a mark back is tried again after this time, and after twice the time…
const UNMARK_RETRY_S: f64 = 5.0;
/// … up to this.
const UNMARK_RETRY_S_MAX: f64 = 120.0;
/// After a refusal nothing is drained for this time, and for twice the time after the next…
const REFUSAL_S: f64 = 15.0;
/// … up to this: agents must not be told to drain and to serve in turns.
const REFUSAL_S_MAX: f64 = 300.0;

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Annotate a Pod; `cost` where its controller looks at it.
    Mark {
        part: usize,
        pod: PodId,
        mark: String,
        cost: Option<i32>,
    },
    /// Take the annotations back, if the mark is still the one in `pod`.
    Unmark { part: usize, pod: PodId },
    /// Tell the agent of a replica.
    Tell { replica: String, draining: bool },
    /// Ask for another count.
    Scale { part: usize, from: u32, to: u32 },
}

/// How asking for a count has ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scaled {
    /// It is so.
    Done,
    /// Try again.
    Again,
    /// It will not be; why.
    Refused(String),
}

/// What a plan begins with.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Begun {
    /// [`Action::Scale`] upwards.
    pub(super) ups: Vec<Action>,
    /// [`Action::Mark`]; to be done before `tells`.
    pub(super) marks: Vec<Action>,
    /// [`Action::Tell`].
    pub(super) tells: Vec<Action>,
}

/// The state of one target's changes.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    drain: DrainSpec,
    parts: Vec<PartMachine>,
    /// The last plan that was applied.
    applied: Option<(String, Plan)>,
    /// Pods (by uid) whose mark is being taken back.
    unmarking: BTreeMap<String, Retry>,
    refusal: Option<Refusal>,
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    at: TimeMs,
    times: u32,
}

#[derive(Debug, Clone)]
struct Refusal {
    until: TimeMs,
    times: u32,
    why: String,
}

impl Machine {
    pub(super) fn new(parts: usize, drain: DrainSpec) -> Self {
        Machine {
            drain,
            parts: vec![PartMachine::default(); parts],
            applied: None,
            unmarking: BTreeMap::new(),
            refusal: None,
        }
    }

    pub(super) fn set_drain(&mut self, drain: DrainSpec) {
        self.drain = drain;
    }

    /// Asked of the API server, as last seen or written.
    pub(super) fn spec(&self, part: usize) -> Option<u32> {
        self.parts.get(part)?.spec
    }

    /// What will be asked once the drain has ended.
    pub(super) fn desired(&self, part: usize) -> Option<u32> {
        self.parts.get(part)?.desired()
    }

    /// Whether a replica is on its way out because of us.
    pub(super) fn is_victim(&self, part: usize, uid: &str) -> bool {
        self.parts.get(part).is_some_and(|part| part.is_victim(uid))
    }

    /// Whether there is anything to poll for.
    pub(super) fn is_busy(&self) -> bool {
        !self.unmarking.is_empty()
            || self
                .parts
                .iter()
                .any(|part| part.down.is_some() || !part.leaving.is_empty())
    }

    /// Whether this very plan has been applied.
    pub(super) fn has_applied(&self, plan: &Plan, id: &str) -> bool {
        self.applied
            .as_ref()
            .is_some_and(|(of, applied)| of == id && applied == plan)
    }

    /// A plan has been applied.
    pub(super) fn set_applied(&mut self, plan: Plan, id: String) {
        self.applied = Some((id, plan));
    }

    /// Why nothing can be drained now.
    pub(super) fn refusal(&self, now: TimeMs) -> Option<String> {
        let refusal = self.refusal.as_ref().filter(|refusal| now < refusal.until)?;
        let wait_s = refusal.until.since_s(now).ceil();
        Some(format!("{} (shrinking is tried again in {wait_s} s)", refusal.why))
    }

    /// A part's object is gone: what was known of it is void, and victims are nobody's.
    pub(super) fn forget(&mut self, part: usize) {
        if let Some(part) = self.parts.get_mut(part) {
            *part = PartMachine::default();
        }
    }

    /// The count that the API server has. `Some(from)` when somebody else has changed it; a drain ends then.
    pub(super) fn observe_spec(&mut self, part: usize, spec: u32, now: TimeMs) -> (Option<u32>, Vec<Action>) {
        let Some(state) = self.parts.get_mut(part) else {
            return (None, Vec::new());
        };
        let before = state.spec.replace(spec);
        match before {
            None => (None, Vec::new()),
            Some(before) if before == spec => (None, Vec::new()),
            Some(before) if state.in_flight == Some(spec) => {
                state.spec = Some(before);
                state.lowered(spec, now);
                (None, Vec::new())
            }
            Some(before) => (Some(before), state.cancel()),
        }
    }

    /// Begins to bring every part to its count in `wanted`. The caller has made sure that the plan is not stale.
    pub(super) fn begin(
        &mut self,
        id: &str,
        wanted: &[u32],
        fleet: &[Vec<Replica>],
        orders: &[Order],
        load: &dyn Fn(&str) -> Option<f64>,
        now: TimeMs,
    ) -> Begun {
        let mut begun = Begun::default();
        for (index, part) in self.parts.iter_mut().enumerate() {
            let (Some(spec), Some(to)) = (part.spec, wanted.get(index).copied()) else {
                continue;
            };
            if part.desired() == Some(to) {
                continue;
            }
            if to >= spec {
                begun.tells.extend(part.cancel());
                if to > spec {
                    part.in_flight = Some(to);
                    begun.ups.push(Action::Scale {
                        part: index,
                        from: spec,
                        to,
                    });
                }
                continue;
            }
            let order = orders.get(index).copied().unwrap_or(Order::Cost);
            let replicas = fleet.get(index).map_or(&[][..], Vec::as_slice);
            let aim = Aim {
                index,
                to,
                id,
                order,
                now,
                drain: self.drain,
            };
            part.aim(&aim, replicas, load, &mut begun);
        }
        begun
    }

    /// Marks are set and agents told: drains of the last [`Machine::begin`] run.
    pub(super) fn begun(&mut self) {
        let downs = self.parts.iter_mut().filter_map(|part| part.down.as_mut());
        downs.for_each(|down| down.begun = true);
    }

    /// Lets every victim go again, for good: what carries our mark, as far as `fleet` tells or we have set it, is freed.
    pub(super) fn release(&mut self, fleet: &[Vec<Replica>]) -> Vec<Action> {
        let mut marked: BTreeMap<String, (usize, PodId)> = BTreeMap::new();
        for (part, replicas) in fleet.iter().enumerate() {
            let pods = replicas.iter().flat_map(|replica| &replica.members);
            marked.extend(
                pods.filter(|pod| pod.mark.is_some())
                    .map(|pod| (pod.uid.clone(), (part, pod.clone()))),
            );
        }
        for (part, state) in self.parts.iter().enumerate() {
            let victims = state.down.iter().flat_map(|down| &down.victims);
            let pods = victims.flat_map(|victim| &victim.marked);
            marked.extend(pods.map(|pod| (pod.uid.clone(), (part, pod.clone()))));
        }
        let mut actions = self.cancel();
        actions.extend(marked.into_values().map(|(part, pod)| Action::Unmark { part, pod }));
        actions
    }

    /// Lets every victim go again.
    pub(super) fn cancel(&mut self) -> Vec<Action> {
        self.parts.iter_mut().flat_map(PartMachine::cancel).collect()
    }

    /// How an [`Action::Scale`] has ended. `jitter`: 0 to 1.
    pub(super) fn scaled(&mut self, part: usize, to: u32, how: Scaled, jitter: f64, now: TimeMs) -> Vec<Action> {
        let Some(state) = self.parts.get_mut(part) else {
            return Vec::new();
        };
        state.in_flight = None;
        match how {
            Scaled::Done => {
                state.lowered(to, now);
                self.refusal = None;
                Vec::new()
            }
            Scaled::Again => {
                let Some(down) = &mut state.down else { return Vec::new() };
                let wait_s = 0.1 * f64::from(1 << down.retry.times.min(4)) * (1.0 + jitter);
                down.retry = Retry {
                    at: now.plus_s(wait_s),
                    times: down.retry.times + 1,
                };
                Vec::new()
            }
            Scaled::Refused(why) => {
                let was_down = state.down.is_some();
                let released = state.cancel();
                if was_down {
                    self.refuse(why, now);
                }
                released
            }
        }
    }

    /// Draining has failed and is not tried again for a while.
    pub(super) fn refuse(&mut self, why: String, now: TimeMs) {
        let times = self.refusal.as_ref().map_or(0, |refusal| refusal.times);
        let wait_s = (REFUSAL_S * f64::from(1 << times.min(5))).min(REFUSAL_S_MAX);
        self.refusal = Some(Refusal {
            until: now.plus_s(wait_s),
            times: times + 1,
            why,
        });
    }

    /// What is to be done now. `stale_s`: for how long the fleet has not been confirmed.
    pub(super) fn poll(
        &mut self,
        fleet: &[Vec<Replica>],
        load: &dyn Fn(&str) -> Option<f64>,
        stale_s: Option<f64>,
        now: TimeMs,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut refusals = Vec::new();
        for (index, part) in self.parts.iter_mut().enumerate() {
            let replicas = fleet.get(index).map_or(&[][..], Vec::as_slice);
            part.settle(replicas, now, &mut actions);
            match part.progress(replicas, load, self.drain, stale_s, now) {
                Progress::Wait => {}
                Progress::Scale { from, to } => {
                    part.in_flight = Some(to);
                    actions.push(Action::Scale { part: index, from, to });
                }
                Progress::Cancel(why) => {
                    actions.extend(part.cancel());
                    refusals.extend(why);
                }
            }
        }
        for why in refusals {
            self.refuse(why, now);
        }
        self.free_strays(fleet, now, &mut actions);
        actions
    }

    /// Marks on what is no victim.
    fn free_strays(&mut self, fleet: &[Vec<Replica>], now: TimeMs, actions: &mut Vec<Action>) {
        let mut strays = BTreeMap::new();
        for (index, replicas) in fleet.iter().enumerate() {
            let free = |replica: &&Replica| {
                replica.is_marked() && replica.stage != Stage::Deleting && !self.is_victim(index, &replica.uid)
            };
            for replica in replicas.iter().filter(free) {
                let mut is_due = false;
                for pod in replica.members.iter().filter(|pod| pod.mark.is_some()) {
                    let before = self.unmarking.get(&pod.uid).copied();
                    let retry = match before {
                        Some(retry) if now < retry.at => retry,
                        _ => {
                            is_due = true;
                            let times = before.map_or(0, |retry| retry.times + 1);
                            let wait_s = (UNMARK_RETRY_S * f64::from(1 << times.min(5))).min(UNMARK_RETRY_S_MAX);
                            actions.push(Action::Unmark {
                                part: index,
                                pod: pod.clone(),
                            });
                            Retry {
                                at: now.plus_s(wait_s),
                                times,
                            }
                        }
                    };
                    strays.insert(pod.uid.clone(), retry);
                }
                if is_due {
                    actions.push(Action::Tell {
                        replica: replica.name.clone(),
                        draining: false,
                    });
                }
            }
        }
        self.unmarking = strays;
    }
}

#[cfg(test)]
mod tests;
