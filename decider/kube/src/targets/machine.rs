//! Changing a target's replica counts, as a machine without I/O: plans, counts, Pods and time go in, actions come out.
//!
//! More replicas are asked for at once. Fewer: the victims are marked and their agents told to drain; when they are
//! empty (or their time is over) the count is lowered once. A later plan upwards lets them go again. Whatever carries
//! our mark and is no victim is set free: so is what a predecessor of this process has left behind.

use std::collections::BTreeMap;

use infer_core::{TimeMs, decision::Plan};

use super::{
    DrainSpec,
    pod::{Mark, PodId, Stage},
    replica::Replica,
    victims::{Order, ranked},
};

/// A victim that is still there this long after the count was lowered was not taken, and is set free.
const LEAVE_S: f64 = 30.0;
/// Nothing is known of the fleet for this long: drains are cancelled.
const STALE_CANCELS_S: f64 = 10.0;
/// A count that could not be lowered for this long after the drain is not lowered any more.
const GIVE_UP_S: f64 = 60.0;
/// Marking victims takes no longer: whoever was doing it is gone.
const BEGIN_S_MAX: f64 = 30.0;
/// Taking a mark back is tried again after this time, and after twice the time…
const UNMARK_RETRY_S: f64 = 5.0;
/// … up to this.
const UNMARK_RETRY_S_MAX: f64 = 120.0;
/// After a refusal nothing is drained for this time, and for twice the time after the next…
const REFUSAL_S: f64 = 15.0;
/// … up to this: agents must not be told to drain and to serve in turns.
const REFUSAL_S_MAX: f64 = 300.0;
/// Deletion cost of the first victim; the next ones cost one more each. Far below what anybody would set by hand.
const COST_FIRST: i32 = -1_000_000_000;

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

#[derive(Debug, Clone, Default)]
struct PartMachine {
    spec: Option<u32>,
    /// Being asked for now.
    in_flight: Option<u32>,
    down: Option<Down>,
    leaving: Vec<Leaving>,
}

#[derive(Debug, Clone)]
struct Down {
    to: u32,
    /// Marks are set, agents are told.
    begun: bool,
    victims: Vec<Victim>,
    retry: Retry,
    /// When victims were chosen last.
    chosen: TimeMs,
    give_up: TimeMs,
}

#[derive(Debug, Clone)]
struct Victim {
    name: String,
    uid: String,
    /// Its Pods as they are once they have been marked.
    marked: Vec<PodId>,
    /// Whether it had requests to finish when it was chosen, as far as anyone can know.
    serving: bool,
    deadline: TimeMs,
    work: Work,
}

/// What a victim still has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Requests, or nobody knows.
    Left,
    /// None since then; some may still be on their way.
    NoneSince(TimeMs),
    /// None.
    Over,
}

#[derive(Debug, Clone)]
struct Leaving {
    name: String,
    uid: String,
    since: TimeMs,
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

/// What a part is to be brought down to, and for whom.
struct Aim<'a> {
    index: usize,
    to: u32,
    id: &'a str,
    order: Order,
    now: TimeMs,
    drain: DrainSpec,
}

enum Progress {
    Wait,
    Scale { from: u32, to: u32 },
    Cancel(Option<String>),
}

fn tell(name: &str, draining: bool) -> Action {
    Action::Tell {
        replica: name.to_owned(),
        draining,
    }
}

impl PartMachine {
    fn desired(&self) -> Option<u32> {
        self.down.as_ref().map(|down| down.to).or(self.spec)
    }

    fn is_victim(&self, uid: &str) -> bool {
        let mut victims = self.down.iter().flat_map(|down| &down.victims);
        victims.any(|victim| victim.uid == uid) || self.leaving.iter().any(|leaving| leaving.uid == uid)
    }

    fn cancel(&mut self) -> Vec<Action> {
        let victims = self.down.take().map(|down| down.victims).unwrap_or_default();
        victims.iter().map(|victim| tell(&victim.name, false)).collect()
    }

    /// The count is `to` now: victims that are done leave.
    fn lowered(&mut self, to: u32, now: TimeMs) {
        let before = self.spec.replace(to);
        let Some(down) = &mut self.down else { return };
        if before.is_none_or(|before| before <= to) {
            return;
        }
        down.retry = Retry { at: now, times: 0 };
        // Its controller takes them in the order in which they were chosen.
        let count = if down.to == to {
            down.victims.len()
        } else {
            down.victims.len().min(before.unwrap_or(to).saturating_sub(to) as usize)
        };
        self.leaving.extend(down.victims.drain(..count).map(|victim| Leaving {
            name: victim.name,
            uid: victim.uid,
            since: now,
        }));
        if down.to == to {
            self.down = None;
        }
    }

    /// Chooses (or gives back) victims, so that there are as many as have to go.
    fn aim(&mut self, aim: &Aim<'_>, replicas: &[Replica], load: &dyn Fn(&str) -> Option<f64>, begun: &mut Begun) {
        let Some(spec) = self.spec else { return };
        let deadline = aim.now.plus_s(aim.drain.timeout_s);
        let mut down = self.down.take().unwrap_or_else(|| Down {
            to: aim.to,
            begun: false,
            victims: Vec::new(),
            retry: Retry { at: aim.now, times: 0 },
            chosen: aim.now,
            give_up: deadline,
        });
        down.to = aim.to;
        down.begun = false;
        down.chosen = aim.now;
        down.give_up = deadline.plus_s(GIVE_UP_S);
        let is_there = |uid: &str| replicas.iter().any(|replica| replica.uid == uid && replica.is_active());
        down.victims.retain(|victim| is_there(&victim.uid));
        // Those that have left the count already but are still there do not count twice.
        let leaving = self.leaving.iter().filter(|leaving| is_there(&leaving.uid)).count();
        let active = replicas
            .iter()
            .filter(|replica| replica.is_active())
            .count()
            .saturating_sub(leaving);
        let need = active
            .saturating_sub(aim.to as usize)
            .min(spec.saturating_sub(aim.to) as usize);
        let order = ranked(replicas, aim.order, load);
        let rank = |uid: &str| order.iter().position(|index| replicas[*index].uid == uid);
        if down.victims.len() > need {
            // Those that would go last now come back.
            let mut ranks: Vec<Option<usize>> = down.victims.iter().map(|victim| rank(&victim.uid)).collect();
            ranks.sort_unstable();
            let kept: Vec<Option<usize>> = ranks.into_iter().take(need).collect();
            down.victims.retain(|victim| {
                let is_kept = kept.contains(&rank(&victim.uid));
                if !is_kept {
                    begun.tells.push(tell(&victim.name, false));
                }
                is_kept
            });
        }
        for index in &order {
            let replica = &replicas[*index];
            let taken = |victims: &[Victim]| victims.iter().any(|victim| victim.uid == replica.uid);
            if down.victims.len() >= need {
                break;
            }
            if taken(&down.victims) || self.leaving.iter().any(|leaving| leaving.uid == replica.uid) {
                continue;
            }
            let cost = (aim.order == Order::Cost).then(|| COST_FIRST + down.victims.len() as i32);
            let mut marked = Vec::new();
            for pod in &replica.members {
                let mark = Mark::new(aim.id, aim.now, pod).to_text();
                marked.push(PodId {
                    mark: Some(mark.clone()),
                    deletion_cost: cost.map(|cost| cost.to_string()).or_else(|| pod.deletion_cost.clone()),
                    ..pod.clone()
                });
                begun.marks.push(Action::Mark {
                    part: aim.index,
                    pod: pod.clone(),
                    mark,
                    cost,
                });
            }
            begun.tells.push(tell(&replica.name, true));
            down.victims.push(Victim {
                name: replica.name.clone(),
                uid: replica.uid.clone(),
                marked,
                serving: replica.stage == Stage::Ready || load(&replica.name).is_some_and(|load| load > 0.0),
                deadline,
                work: Work::Left,
            });
        }
        self.down = Some(down);
    }

    /// Forgets those that have left; sets those free that its controller has kept.
    fn settle(&mut self, replicas: &[Replica], now: TimeMs, actions: &mut Vec<Action>) {
        self.leaving.retain(|leaving| {
            let is_here = replicas
                .iter()
                .any(|replica| replica.uid == leaving.uid && replica.is_active());
            let is_kept = is_here && now.since_s(leaving.since) >= LEAVE_S;
            if is_kept {
                actions.push(tell(&leaving.name, false));
            }
            is_here && !is_kept
        });
    }

    fn progress(
        &mut self,
        replicas: &[Replica],
        load: &dyn Fn(&str) -> Option<f64>,
        drain: DrainSpec,
        stale_s: Option<f64>,
        now: TimeMs,
    ) -> Progress {
        let (Some(down), Some(spec)) = (&mut self.down, self.spec) else {
            return Progress::Wait;
        };
        if let Some(stale_s) = stale_s {
            let cancels = down.begun && self.in_flight.is_none() && stale_s >= STALE_CANCELS_S;
            return if cancels {
                Progress::Cancel(None)
            } else {
                Progress::Wait
            };
        }
        for victim in &mut down.victims {
            let replica = replicas.iter().find(|replica| replica.uid == victim.uid);
            victim.look(replica, load(&victim.name), drain, now);
        }
        if !down.begun && now.since_s(down.chosen) >= BEGIN_S_MAX {
            return Progress::Cancel(None);
        }
        if !down.begun || self.in_flight.is_some() {
            return Progress::Wait;
        }
        if now >= down.give_up {
            return Progress::Cancel(Some(
                "the API server has not taken a lower count for too long".to_owned(),
            ));
        }
        if now < down.retry.at {
            return Progress::Wait;
        }
        // Only from the front: those are the ones that its controller would take.
        let over = down.victims.iter().take_while(|victim| victim.is_over(now)).count();
        if over == down.victims.len() {
            return Progress::Scale {
                from: spec,
                to: down.to,
            };
        }
        // Somebody's time is over while others, chosen by a later plan, still have some.
        let late = down.victims.iter().any(|victim| now >= victim.deadline);
        let to = spec.saturating_sub(over as u32).max(down.to);
        if late && to < spec {
            return Progress::Scale { from: spec, to };
        }
        Progress::Wait
    }
}

impl Victim {
    fn look(&mut self, replica: Option<&Replica>, load: Option<f64>, drain: DrainSpec, now: TimeMs) {
        let is_gone = replica.is_none_or(|replica| !replica.is_active() || replica.stage == Stage::Crashing);
        let is_idle = load.is_some_and(|load| load <= 0.0);
        if is_gone || (!self.serving && (is_idle || load.is_none())) {
            self.work = Work::Over;
            return;
        }
        self.serving = true;
        self.work = match self.work {
            _ if !is_idle => Work::Left,
            Work::Left if drain.quiet_s > 0.0 => Work::NoneSince(now),
            Work::NoneSince(since) if now.since_s(since) < drain.quiet_s => Work::NoneSince(since),
            _ => Work::Over,
        };
    }

    /// Whether it is empty, or its time is over.
    fn is_over(&self, now: TimeMs) -> bool {
        self.work == Work::Over || now >= self.deadline
    }
}

#[cfg(test)]
mod tests;
