//! Plans on their way to a backend that takes its time.

use infer_core::decision::Control;
use infer_proto::v1;

use crate::support::{Decider, Table, spec};

fn order(target: &str, replicas: u32) -> v1::OverrideRequest {
    v1::OverrideRequest {
        target: target.to_owned(),
        replicas,
        for_s: 600,
        reason: String::new(),
    }
}

async fn start(directory: &std::path::Path) -> Decider {
    let table = std::sync::Arc::new(Table::default());
    let names = ["a", "b", "c"];
    names.iter().for_each(|name| table.set(name, 1));
    let specs = names.iter().map(|name| spec(name, Control::Auto)).collect();
    Decider::start_among(directory, table, specs, Default::default()).await
}

#[tokio::test]
async fn one_target_that_hangs_delays_no_other_and_is_not_decided_on_twice() {
    let directory = tempfile::tempdir().unwrap();
    let decider = start(directory.path()).await;
    let table = &decider.table;
    table.hanging.send_modify(|hanging| _ = hanging.insert("a".to_owned()));
    let mut people = decider.ask().await;
    people.r#override(order("a", 5)).await.unwrap();
    decider
        .until("the plan for a", |_| {
            table.applied.lock().unwrap().iter().any(|(plan, _)| plan.target == "a")
        })
        .await;
    let records = |shared: &infer_decider::state::Shared| {
        let latest = |name: &str| shared.state().targets[name].latest.as_ref().unwrap().inputs.now;
        (latest("a"), latest("b"))
    };
    let before = records(&decider.shared);
    // Another word on the target that hangs waits; other targets go on.
    people.r#override(order("a", 7)).await.unwrap();
    people.r#override(order("b", 3)).await.unwrap();
    decider
        .until("b at 3, decided on twice more", |shared| {
            let far = records(shared).1.since_s(before.1) >= 2.0;
            far && table.fleets.lock().unwrap()["b"].view.spec == 3
        })
        .await;
    assert_eq!(records(&decider.shared).0, before.0);
    let of_a = |(plan, id): &(infer_core::decision::Plan, String)| (plan.target == "a").then(|| (plan.to, id.clone()));
    let plans = || {
        table
            .applied
            .lock()
            .unwrap()
            .iter()
            .filter_map(of_a)
            .collect::<Vec<_>>()
    };
    assert_eq!(plans().len(), 1);
    assert_eq!(
        decider
            .shared
            .counters
            .plans_in_flight
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );

    table.hanging.send_modify(|hanging| hanging.clear());
    decider
        .until("a at 7", |_| table.fleets.lock().unwrap()["a"].view.spec == 7)
        .await;
    decider
        .until("both told", |shared| {
            let state = shared.state();
            state
                .decisions
                .iter()
                .filter(|decision| decision.record.target == "a" && decision.record.outcome.desired > 1)
                .count()
                == 2
        })
        .await;
    let plans = plans();
    assert_eq!(plans.iter().map(|plan| plan.0).collect::<Vec<_>>(), [5, 7]);
    // The backend knows a plan under its decision's number, and numbers ascend although b's was settled before a's.
    let state = decider.shared.state();
    let ids: Vec<u64> = state.decisions.iter().map(|decision| decision.id).collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    for (to, id) in plans {
        let decision = state
            .decisions
            .iter()
            .find(|decision| decision.id.to_string() == id)
            .unwrap();
        assert_eq!((decision.record.outcome.desired, decision.applied), (to, true));
    }
}

#[tokio::test]
async fn only_fleets_that_have_changed_are_looked_at_early() {
    let directory = tempfile::tempdir().unwrap();
    let decider = start(directory.path()).await;
    let table = &decider.table;
    let early = || {
        decider
            .shared
            .counters
            .early_ticks
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    // A change between two regular ticks; as many tries as it takes for no regular tick to come in between.
    for attempt in 0.. {
        assert!(attempt < 20, "no early tick alone in 20 tries");
        let ticks = decider.shared.counters.ticks.load(std::sync::atomic::Ordering::Relaxed);
        let before = early();
        table.looks.lock().unwrap().clear();
        table.changes.lock().unwrap().push("b".to_owned());
        table.change.notify_one();
        decider
            .until("a look", |_| {
                early() > before && !table.looks.lock().unwrap().is_empty()
            })
            .await;
        let looks = table.looks.lock().unwrap().clone();
        if decider.shared.counters.ticks.load(std::sync::atomic::Ordering::Relaxed) == ticks {
            assert_eq!(looks, ["b"]);
            break;
        }
    }
}

/// A plan that hangs when the decider is asked to stop is waited for: its decision is told.
#[tokio::test]
async fn a_stop_waits_for_what_is_under_way() {
    let directory = tempfile::tempdir().unwrap();
    let decider = start(directory.path()).await;
    let table = std::sync::Arc::clone(&decider.table);
    table.hanging.send_modify(|hanging| _ = hanging.insert("a".to_owned()));
    decider.ask().await.r#override(order("a", 5)).await.unwrap();
    decider
        .until("the plan", |_| !table.applied.lock().unwrap().is_empty())
        .await;
    let shared = std::sync::Arc::clone(&decider.shared);
    let ticks = decider.stop_and_wait();
    table.hanging.send_modify(|hanging| hanging.clear());
    ticks.await.unwrap();
    assert!(
        shared
            .state()
            .decisions
            .iter()
            .any(|decision| decision.applied && decision.record.outcome.desired == 5)
    );
}
