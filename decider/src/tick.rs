//! The tick: look at the fleets, decide, check, remember; plans go their own way (`apply.rs`). A fixed pace; events only wake it
//! early.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use infer_core::{
    TimeMs,
    check::check,
    decision::{Control, Plan, Record},
};
use tokio::{sync::watch, time::MissedTickBehavior};

use crate::{
    actuate::{Actuator, Fleet},
    apply::{Applies, Order, settle},
    journal::Entry,
    roles::couple,
    state::{Entity, Shared, State, Word, count},
    stopped,
};

/// The pace.
pub const TICK: Duration = Duration::from_secs(1);
/// Early ticks are not closer than this: a burst of wake-ups is one look.
const EARLY_GAP: Duration = Duration::from_millis(50);
/// Between decisions, what a target remembers goes to the journal this often.
const CHECKPOINT_S: f64 = 10.0;

/// What came of one target's turn.
struct Turn {
    record: Arc<Record>,
    mode_changed: bool,
    verdict: Verdict,
}

/// What becomes of its plan.
enum Verdict {
    /// There is none.
    NoPlan,
    /// Not to be applied, and why.
    Withheld(Plan, String),
    /// To be applied, under this decision's number.
    Apply(Plan, u64),
}

/// Runs until `shutdown` turns true, and then until the backend has answered to what is under way.
pub async fn run(shared: Arc<Shared>, actuator: Arc<dyn Actuator>, mut shutdown: watch::Receiver<bool>) {
    let mut pace = tokio::time::interval(TICK);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut applies = Applies::new(Arc::clone(&shared), Arc::clone(&actuator));
    let mut fleets_changed = actuator.changed();
    loop {
        let early = tokio::select! {
            _ = pace.tick() => false,
            () = shared.wake.notified() => true,
            names = &mut fleets_changed => {
                fleets_changed = actuator.changed();
                mark(&mut shared.state(), &names);
                true
            }
            () = stopped(&mut shutdown) => break,
        };
        count(if early {
            &shared.counters.early_ticks
        } else {
            &shared.counters.ticks
        });
        tick(&shared, actuator.as_ref(), &mut applies, early);
        if early {
            tokio::time::sleep(EARLY_GAP).await;
        }
    }
    applies.finish().await;
}

fn mark(state: &mut State, names: &[String]) {
    for name in names {
        if let Some(entity) = state.targets.get_mut(name) {
            entity.dirty = true;
        }
    }
}

/// One look at every target (or, early, at those something has happened to) that has no plan under way.
fn tick(shared: &Arc<Shared>, actuator: &dyn Actuator, applies: &mut Applies, early: bool) {
    let started = Instant::now();
    let names: Vec<String> = {
        let state = shared.state();
        let due = state
            .targets
            .values()
            .filter(|entity| (entity.dirty || !early) && entity.in_flight.is_none());
        due.map(|entity| entity.spec.name.clone()).collect()
    };
    for name in names {
        // Looking at the fleet is the backend's business and happens outside the lock.
        let fleet = actuator.fleet(&name);
        let now = shared.clock.now();
        let turn = take_turn(shared, &mut shared.state(), &name, fleet, now);
        let Some(turn) = turn else { continue };
        let Turn {
            record,
            mode_changed,
            verdict,
        } = turn;
        match verdict {
            Verdict::NoPlan => settle(shared, record, mode_changed, None),
            Verdict::Withheld(plan, why) => settle(shared, record, mode_changed, Some((plan, None, Err(why)))),
            Verdict::Apply(plan, id) => applies.start(Order {
                plan,
                id,
                record,
                mode_changed,
            }),
        }
    }
    if couple(&mut shared.state()) {
        shared.wake.notify_one();
    }
    shared
        .counters
        .tick_us
        .store(started.elapsed().as_micros() as u64, Ordering::Relaxed);
    shared.publish();
}

/// Observes and decides, under the lock. `None` while the backend does not know the target.
fn take_turn(shared: &Shared, state: &mut State, name: &str, fleet: Option<Fleet>, now: TimeMs) -> Option<Turn> {
    let next_decision_id = state.next_decision_id();
    let entity = state.targets.get_mut(name)?;
    if entity.in_flight.is_some() {
        return None;
    }
    entity.dirty = false;
    observe(shared, entity, fleet?, now);
    let (record, plan) = entity.target.decide(now);
    let record = Arc::new(record);
    let before = entity.latest.replace(Arc::clone(&record));
    let mode_changed = before.is_none_or(|before| before.outcome.mode != record.outcome.mode);
    let Some(plan) = plan else {
        if !mode_changed && now.since_s(entity.checkpointed) >= CHECKPOINT_S {
            entity.checkpointed = now;
            shared.journal.append(Entry::Checkpoint {
                target: name.to_owned(),
                unix_ms: now.0,
                memory: Box::new(record.memory_after.clone()),
                next_decision_id,
            });
        }
        return Some(Turn {
            record,
            mode_changed,
            verdict: Verdict::NoPlan,
        });
    };
    let verdict = match withheld(shared, &plan, &record, now) {
        Some(why) => Verdict::Withheld(plan, why),
        None => {
            let id = state.reserve_decision();
            if let Some(entity) = state.targets.get_mut(name) {
                entity.in_flight = Some(id);
            }
            Verdict::Apply(plan, id)
        }
    };
    Some(Turn {
        record,
        mode_changed,
        verdict,
    })
}

fn observe(shared: &Shared, entity: &mut Entity, fleet: Fleet, now: TimeMs) {
    entity.details = fleet
        .details
        .into_iter()
        .map(|detail| (detail.name.clone(), detail))
        .collect();
    entity.target.observe_fleet(fleet.view);
    entity.target.observe_gateway(fleet.gateway_waiting);
    let Entity {
        target,
        notes,
        drains,
        links,
        ..
    } = entity;
    let listed = |name: &String| target.pod(name).is_some();
    notes.retain(|name, _| listed(name));
    drains.retain(|name, _| listed(name));
    links.retain(|name, _| listed(name));
    let ended = |word: &Word| word.expires.is_some_and(|end| end <= now);
    if entity.word.as_ref().is_some_and(ended) {
        tracing::info!(target_name = entity.spec.name, "pause or override has ended");
        entity.word = None;
        shared
            .journal
            .append(Entry::Control(Word::to_entry(&entity.spec.name, None)));
    }
    entity.target.set_control(entity.control());
}

/// Why a plan is not to be applied.
fn withheld(shared: &Shared, plan: &Plan, record: &Record, now: TimeMs) -> Option<String> {
    match record.inputs.control {
        Control::Paused => return Some("paused".to_owned()),
        Control::Advisory => return Some("advisory mode".to_owned()),
        Control::Auto | Control::Override(_) => {}
    }
    let violation = check(plan, &record.inputs, now).err()?;
    count(&shared.counters.plans_refused);
    tracing::error!(target_name = plan.target, %violation, "the checker refused a plan");
    Some(format!("refused by the checker: {violation}"))
}
