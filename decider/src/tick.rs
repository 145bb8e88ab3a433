//! The tick: look at the fleets, decide, check, apply, remember. A fixed pace; events only wake it early.

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
    journal::{Decision, Entry},
    state::{Entity, Shared, Told, Word, count},
    stopped,
};

/// The pace.
pub const TICK: Duration = Duration::from_secs(1);
/// Early ticks are not closer than this: a burst of wake-ups is one look.
const EARLY_GAP: Duration = Duration::from_millis(50);
/// A backend that has not answered by then has not taken the plan.
const APPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// Between decisions, what a target remembers goes to the journal this often.
const CHECKPOINT_S: f64 = 10.0;

/// What came of one target's turn.
struct Turn {
    record: Record,
    plan: Option<Plan>,
    mode_changed: bool,
}

/// Runs until `shutdown` turns true.
pub async fn run(shared: Arc<Shared>, actuator: Arc<dyn Actuator>, mut shutdown: watch::Receiver<bool>) {
    let mut pace = tokio::time::interval(TICK);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut fleet_changed = actuator.changed();
    loop {
        let early = tokio::select! {
            _ = pace.tick() => false,
            () = shared.wake.notified() => true,
            () = &mut fleet_changed => {
                fleet_changed = actuator.changed();
                let mut state = shared.state();
                state.targets.values_mut().for_each(|entity| entity.dirty = true);
                true
            }
            () = stopped(&mut shutdown) => return,
        };
        count(if early {
            &shared.counters.early_ticks
        } else {
            &shared.counters.ticks
        });
        tick(&shared, &actuator, early).await;
        if early {
            tokio::time::sleep(EARLY_GAP).await;
        }
    }
}

/// One look at every target (or, early, at those something has happened to).
pub async fn tick(shared: &Arc<Shared>, actuator: &Arc<dyn Actuator>, early: bool) {
    let started = Instant::now();
    let names: Vec<String> = {
        let state = shared.state();
        let due = state.targets.values().filter(|entity| entity.dirty || !early);
        due.map(|entity| entity.spec.name.clone()).collect()
    };
    for name in names {
        // Looking at the fleet is the backend's business and happens outside the lock.
        let fleet = actuator.fleet(&name);
        let now = shared.clock.now();
        let turn = {
            let mut state = shared.state();
            let next_decision_id = state.next_decision_id();
            let Some(entity) = state.targets.get_mut(&name) else {
                continue;
            };
            take_turn(shared, entity, fleet, next_decision_id, now)
        };
        let Some(turn) = turn else { continue };
        finish_turn(shared, actuator, turn, now).await;
    }
    shared
        .counters
        .tick_us
        .store(started.elapsed().as_micros() as u64, Ordering::Relaxed);
    shared.publish();
}

/// Observes and decides, under the lock. `None` while the backend does not know the target.
fn take_turn(
    shared: &Shared,
    entity: &mut Entity,
    fleet: Option<Fleet>,
    next_decision_id: u64,
    now: TimeMs,
) -> Option<Turn> {
    entity.dirty = false;
    let fleet = fleet?;
    entity
        .notes
        .retain(|name, _| fleet.view.pods.iter().any(|pod| pod.name == *name));
    entity.details = fleet
        .details
        .into_iter()
        .map(|detail| (detail.name.clone(), detail))
        .collect();
    entity.target.observe_fleet(fleet.view);
    entity.target.observe_gateway(fleet.gateway_waiting);
    if entity
        .word
        .as_ref()
        .is_some_and(|word| word.expires.is_some_and(|end| end <= now))
    {
        tracing::info!(target_name = entity.spec.name, "pause or override has ended");
        entity.word = None;
        shared
            .journal
            .append(Entry::Control(Word::to_entry(&entity.spec.name, None)));
    }
    entity.target.set_control(entity.control());
    let (record, plan) = entity.target.decide(now);
    let before = entity.latest.as_ref();
    let mode_changed = before.is_none_or(|before| before.outcome.mode != record.outcome.mode);
    if plan.is_none() && !mode_changed && now.since_s(entity.checkpointed) >= CHECKPOINT_S {
        entity.checkpointed = now;
        shared.journal.append(Entry::Checkpoint {
            target: entity.spec.name.clone(),
            unix_ms: now.0,
            memory: Box::new(record.memory_after.clone()),
            next_decision_id,
        });
    }
    entity.latest = Some(Arc::new(record.clone()));
    Some(Turn {
        record,
        plan,
        mode_changed,
    })
}

async fn finish_turn(shared: &Arc<Shared>, actuator: &Arc<dyn Actuator>, turn: Turn, now: TimeMs) {
    let Turn {
        record,
        plan,
        mode_changed,
    } = turn;
    let told = plan.as_ref().map(|plan| (plan.from, plan.to));
    let not_applied = match &plan {
        Some(plan) => apply(shared, actuator, plan.clone(), &record).await.err(),
        None if mode_changed => None,
        None => return,
    };
    let decision = {
        let mut state = shared.state();
        let Some(entity) = state.targets.get_mut(&record.target) else {
            return;
        };
        if let Some(plan) = plan.filter(|_| not_applied.is_some()) {
            entity.target.refused(&plan);
        }
        // Advisory, or refused by the checker: worth telling once in a while, not every second.
        let telling = told.map(|(from, to)| Told {
            from,
            to,
            applied: not_applied.is_none(),
            at: now,
        });
        if !mode_changed
            && telling
                .as_ref()
                .is_some_and(|telling| telling.repeats(entity.told.as_ref()))
        {
            return;
        }
        entity.told = telling;
        entity.checkpointed = now;
        let changes = told.is_some() && not_applied.is_none();
        let name = record.target.clone();
        let decision = state.add_decision(now.0, record, not_applied);
        if let Some(entity) = state.targets.get_mut(&name).filter(|_| changes) {
            entity.last_change = (decision.id, decision.unix_ms);
        }
        decision
    };
    log(&decision);
    shared.journal.append(Entry::Decision(Box::new((*decision).clone())));
    // Without a watcher there is nobody to tell.
    let _ = shared.decisions.send(decision);
}

/// Checks a plan and hands it to the backend; or says why not.
async fn apply(shared: &Arc<Shared>, actuator: &Arc<dyn Actuator>, plan: Plan, record: &Record) -> Result<(), String> {
    match record.inputs.control {
        Control::Paused => return Err("paused".to_owned()),
        Control::Advisory => return Err("advisory mode".to_owned()),
        Control::Auto | Control::Override(_) => {}
    }
    if let Err(violation) = check(&plan, &record.inputs, shared.clock.now()) {
        count(&shared.counters.plans_refused);
        tracing::error!(target_name = plan.target, %violation, "the checker refused a plan");
        return Err(format!("refused by the checker: {violation}"));
    }
    let plan_id = shared.state().next_decision_id().to_string();
    let applied = tokio::time::timeout(APPLY_TIMEOUT, actuator.apply(plan, plan_id)).await;
    match applied {
        Ok(Ok(())) => {
            count(&shared.counters.plans_applied);
            Ok(())
        }
        Ok(Err(error)) => {
            count(&shared.counters.plans_failed);
            Err(error.to_string())
        }
        Err(_) => {
            count(&shared.counters.plans_failed);
            Err(format!(
                "the backend did not answer within {} s",
                APPLY_TIMEOUT.as_secs()
            ))
        }
    }
}

fn log(decision: &Decision) {
    let record = &decision.record;
    tracing::info!(
        id = decision.id,
        target_name = record.target,
        from = record.inputs.replicas.spec,
        to = record.outcome.desired,
        mode = record.outcome.mode.name(),
        bound_by = record.outcome.bound_by.name(),
        applied = decision.applied,
        not_applied = decision.not_applied.as_deref().unwrap_or(""),
        "{}",
        record.outcome.reason
    );
}
