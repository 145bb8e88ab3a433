//! One part's way to a lower count.

use infer_core::TimeMs;

use super::{Action, Begun, Retry};
use crate::targets::{
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
/// Deletion cost of the first victim; the next ones cost one more each. Far below what anybody would set by hand.
const COST_FIRST: i32 = -1_000_000_000;

#[derive(Debug, Clone, Default)]
pub(super) struct PartMachine {
    pub(super) spec: Option<u32>,
    /// Being asked for now.
    pub(super) in_flight: Option<u32>,
    pub(super) down: Option<Down>,
    pub(super) leaving: Vec<Leaving>,
}

#[derive(Debug, Clone)]
pub(super) struct Down {
    to: u32,
    /// Marks are set, agents are told.
    pub(super) begun: bool,
    pub(super) victims: Vec<Victim>,
    pub(super) retry: Retry,
    /// When victims were chosen last.
    chosen: TimeMs,
    give_up: TimeMs,
}

#[derive(Debug, Clone)]
pub(super) struct Victim {
    name: String,
    uid: String,
    /// Its Pods as they are once they have been marked.
    pub(super) marked: Vec<PodId>,
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
pub(super) struct Leaving {
    name: String,
    uid: String,
    since: TimeMs,
}

/// What a part is to be brought down to, and for whom.
pub(super) struct Aim<'a> {
    pub(super) index: usize,
    pub(super) to: u32,
    pub(super) id: &'a str,
    pub(super) order: Order,
    pub(super) now: TimeMs,
    pub(super) drain: DrainSpec,
}

/// What comes next.
pub(super) enum Progress {
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
    pub(super) fn desired(&self) -> Option<u32> {
        self.down.as_ref().map(|down| down.to).or(self.spec)
    }

    pub(super) fn is_victim(&self, uid: &str) -> bool {
        let mut victims = self.down.iter().flat_map(|down| &down.victims);
        victims.any(|victim| victim.uid == uid) || self.leaving.iter().any(|leaving| leaving.uid == uid)
    }

    pub(super) fn cancel(&mut self) -> Vec<Action> {
        let victims = self.down.take().map(|down| down.victims).unwrap_or_default();
        victims.iter().map(|victim| tell(&victim.name, false)).collect()
    }

    /// The count is `to` now: victims that are done leave.
    pub(super) fn lowered(&mut self, to: u32, now: TimeMs) {
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
    pub(super) fn aim(
        &mut self,
        aim: &Aim<'_>,
        replicas: &[Replica],
        load: &dyn Fn(&str) -> Option<f64>,
        begun: &mut Begun,
    ) {
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
    pub(super) fn settle(&mut self, replicas: &[Replica], now: TimeMs, actions: &mut Vec<Action>) {
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

    pub(super) fn progress(
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
