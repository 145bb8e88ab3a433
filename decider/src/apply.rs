//! Plans on their way to the backend, several at a time; and what is made of the answer.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use infer_core::decision::{Plan, Record};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    actuate::Actuator,
    hooks::Turned,
    journal::{Decision, Entry},
    state::{Shared, Told, count},
};

/// Plans that are with the backend at a time. Each is a request or two; an API server that takes 20 ms over one is asked for
/// 1,600 a second, which is more than 1,000 targets that all jump at once. Further ones wait, at most one per target, and become
/// void after 5 s.
const AT_A_TIME: usize = 32;
/// A backend that has not answered by then has not taken the plan: a plan is void after 5 s, and one last request may have
/// begun just before.
const TIMEOUT: Duration = Duration::from_secs(7);

/// A plan that has passed the checker.
pub(crate) struct Order {
    pub(crate) plan: Plan,
    /// The number its decision will have.
    pub(crate) id: u64,
    pub(crate) record: Arc<Record>,
    pub(crate) mode_changed: bool,
}

/// What came of a turn's plan: the plan, its decision's number where one was reserved, and whether the backend took it.
pub(crate) type Applied = (Plan, Option<u64>, Result<(), String>);

/// The plans under way.
pub(crate) struct Applies {
    shared: Arc<Shared>,
    actuator: Arc<dyn Actuator>,
    places: Arc<Semaphore>,
    /// At most one task per target: a target with a plan under way is not decided on.
    tasks: JoinSet<()>,
}

/// Lets the target be decided on again, whatever becomes of the task.
struct InFlight {
    shared: Arc<Shared>,
    target: String,
    id: u64,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.counters.plans_in_flight.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.shared.state();
        let entity = state.targets.get_mut(&self.target);
        // A target that was given up and taken on again meanwhile has nothing to do with this plan.
        let Some(entity) = entity.filter(|entity| entity.in_flight == Some(self.id)) else {
            return;
        };
        entity.in_flight = None;
        if entity.dirty {
            drop(state);
            self.shared.wake.notify_one();
        }
    }
}

impl Applies {
    pub(crate) fn new(shared: Arc<Shared>, actuator: Arc<dyn Actuator>) -> Self {
        Applies {
            shared,
            actuator,
            places: Arc::new(Semaphore::new(AT_A_TIME)),
            tasks: JoinSet::new(),
        }
    }

    pub(crate) fn start(&mut self, order: Order) {
        // Those that have ended are let go of.
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(panic) = ended {
                tracing::error!(%panic, "applying a plan failed in an unforeseen way");
            }
        }
        let Order {
            plan,
            id,
            record,
            mode_changed,
        } = order;
        let (shared, actuator, places) = (
            Arc::clone(&self.shared),
            Arc::clone(&self.actuator),
            Arc::clone(&self.places),
        );
        count(&shared.counters.plans_in_flight);
        let in_flight = InFlight {
            shared: Arc::clone(&shared),
            target: plan.target.clone(),
            id,
        };
        self.tasks.spawn(async move {
            let _in_flight = in_flight;
            let _place = places.acquire().await;
            let result = apply(&shared, actuator.as_ref(), plan.clone(), id).await;
            settle(&shared, record, mode_changed, Some((plan, Some(id), result)));
            shared.publish();
        });
    }

    /// Waits for the backend's answers; each comes in bounded time.
    pub(crate) async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn apply(shared: &Shared, actuator: &dyn Actuator, plan: Plan, id: u64) -> Result<(), String> {
    let now = shared.clock.now();
    if now > plan.expires {
        count(&shared.counters.plans_failed);
        return Err("the plan waited for others until it was void".to_owned());
    }
    match tokio::time::timeout(TIMEOUT, actuator.apply(plan, id.to_string())).await {
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
            Err(format!("the backend did not answer within {} s", TIMEOUT.as_secs()))
        }
    }
}

/// Remembers and tells what came of a turn.
pub(crate) fn settle(shared: &Shared, record: Arc<Record>, mode_changed: bool, applied: Option<Applied>) {
    let observe = &shared.hooks().observe;
    if applied.is_none() && !mode_changed && observe.is_none() {
        return;
    }
    let not_applied = applied.as_ref().and_then(|(_, _, result)| result.clone().err());
    let (spec, decision) = {
        let mut state = shared.state();
        let id = number(&mut state, &record, mode_changed, applied.as_ref());
        let decision = id.map(|id| {
            let at = record.inputs.now.0;
            state.add_decision(id, at, (*record).clone(), not_applied.clone())
        });
        let entity = state.targets.get_mut(&record.target);
        if let (Some(entity), Some(decision)) = (entity, &decision) {
            entity.checkpointed = record.inputs.now;
            if applied.is_some() && not_applied.is_none() {
                entity.last_change = (decision.id, decision.unix_ms);
            }
        }
        let entity = state.targets.get(&record.target).filter(|_| observe.is_some());
        (entity.map(|entity| entity.spec.clone()), decision)
    };
    if let (Some(observe), Some(spec)) = (observe, &spec) {
        observe.turned(&Turned {
            spec,
            record: &record,
            decision: decision.as_deref(),
            not_applied: not_applied.as_deref(),
        });
    }
    let Some(decision) = decision else { return };
    log(&decision);
    shared.journal.append(Entry::Decision(Box::new((*decision).clone())));
    // Without a watcher there is nobody to tell.
    let _ = shared.decisions.send(decision);
}

/// The number under which a turn is told; `None` when it is nothing to be told of.
fn number(
    state: &mut crate::state::State,
    record: &Record,
    mode_changed: bool,
    applied: Option<&Applied>,
) -> Option<u64> {
    if applied.is_none() && !mode_changed {
        return None;
    }
    let reserved = applied.and_then(|(_, id, _)| *id);
    let Some(entity) = state.targets.get_mut(&record.target) else {
        // Given up meanwhile; what was done was done all the same.
        return reserved;
    };
    let told = applied.map(|(plan, _, result)| {
        if result.is_err() {
            entity.target.refused(plan);
        }
        Told {
            from: plan.from,
            to: plan.to,
            applied: result.is_ok(),
            at: record.inputs.now,
        }
    });
    // Advisory, or refused by the checker: worth telling once in a while, not every second.
    let repeats = |told: &Told| told.repeats(entity.told.as_ref());
    if !mode_changed && told.as_ref().is_some_and(repeats) {
        return None;
    }
    entity.told = told;
    reserved.or_else(|| Some(state.reserve_decision()))
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
