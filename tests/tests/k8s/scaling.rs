//! From what engines say to what a Deployment is asked for, and back to what people see.

use std::time::{Duration, Instant};

use infer_tests::harness::{
    cluster::{Condition, Load},
    until,
};
use serde_json::{Value, json};

use crate::{
    fleet::{CHAT, Fleet, Options, PER_REPLICA, running, steps},
    support::SOON,
};

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Far more than it takes, so that a loaded machine passes; what is promised is measured by `make bench`.
const REACTION: Duration = Duration::from_secs(10);

fn deletion_cost(pod: &Value) -> i64 {
    let annotation = pod["metadata"]["annotations"][COST].as_str();
    annotation.map_or(0, |cost| cost.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_jump_is_answered_and_everybody_is_told() {
    let Some(fleet) = Fleet::open("jump", Options::default(), running(3)).await else {
        return;
    };
    fleet.holds(4, "load for one replica", |replicas| replicas == 1).await;
    assert!(fleet.scales().is_empty(), "{:?}", fleet.scales());

    let began = Instant::now();
    fleet.loads.set_total(Load {
        running: PER_REPLICA,
        waiting: 4 * PER_REPLICA,
    });
    // Five replicas' worth; from one, panic may go there in steps.
    fleet.wants("more replicas", |replicas| replicas > 1).await;
    let took = began.elapsed();
    assert!(took < REACTION, "{took:?}");
    fleet.wants("five replicas", |replicas| replicas == 5).await;
    fleet.scene.settled(CHAT, 5).await;

    // All of it by the decider, always upwards.
    let scales = fleet.scales();
    let steps = steps(&scales);
    assert!(steps.iter().all(|(user, _)| *user == fleet.user), "{steps:?}");
    assert!(steps.windows(2).all(|pair| pair[0].1 < pair[1].1), "{steps:?}");

    let told = fleet
        .binding(CHAT, "five replicas in status", |object| {
            let target = &object["status"]["targets"][0];
            target["desired"] == 5 && target["ready"] == 5
        })
        .await;
    assert_eq!(
        told["status"]["observedGeneration"], told["metadata"]["generation"],
        "{told}"
    );
    let decision = &told["status"]["targets"][0]["lastDecision"];
    assert!(
        decision["to"] == 5
            && decision["reason"]
                .as_str()
                .is_some_and(|reason| reason.starts_with("panic")),
        "{told}"
    );
    for (kind, status) in [
        ("Ready", "True"),
        ("TargetsResolved", "True"),
        ("MetricsAvailable", "True"),
        ("ScalingActive", "True"),
        ("Conflict", "False"),
    ] {
        assert_eq!(Condition::of(&told, kind).unwrap().status, status, "{kind}: {told}");
    }
    fleet.event("5").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scale_down_takes_the_idle_and_waits_for_the_busy() {
    let options = Options {
        initial: 3,
        ..Options::default()
    };
    let Some(fleet) = Fleet::open("drain", options, running(12)).await else {
        return;
    };
    let pods: Vec<_> = fleet.pods().await.into_keys().collect();
    let [most, some, few] = pods.as_slice() else {
        panic!("three Pods, not {pods:?}");
    };
    // Load for one replica; the two with the least of it shall go, and have something to finish.
    fleet.loads.set_total(Load::default());
    fleet.loads.set(most, running(2));
    fleet.loads.set(some, running(1));
    fleet.loads.set(few, running(1));
    let chosen = |pods: &std::collections::BTreeMap<String, Value>| {
        let chosen = pods.iter().filter(|(_, pod)| deletion_cost(pod) < 0);
        chosen.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let mut wanted = vec![some.clone(), few.clone()];
    wanted.sort();
    until(SOON, "two victims", || async {
        let victims = chosen(&fleet.pods().await);
        if victims == wanted {
            Ok(())
        } else {
            Err(format!("{victims:?}"))
        }
    })
    .await
    .unwrap();
    // Told to drain: they take no new requests. Their agents say so, and nothing is scaled while they work.
    for name in &wanted {
        let path = fleet.scene.path("/api/v1", &format!("pods/{name}"));
        let drained = |pod: &Value| Condition::of(pod, "Ready").is_some_and(|condition| condition.status == "False");
        fleet
            .scene
            .api
            .wait_for(&path, SOON, "a Pod that drains", drained)
            .await
            .unwrap();
    }
    fleet.holds(3, "two replicas have work", |replicas| replicas == 3).await;
    fleet.loads.set(some, Load::default());
    fleet.loads.set(few, Load::default());
    fleet.scene.settled(CHAT, 1).await;
    assert!(fleet.pods().await.into_keys().eq([most.clone()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_calls_a_drain_off() {
    let options = Options {
        initial: 2,
        max: 2,
        drain_s: 120,
        ..Options::default()
    };
    let Some(fleet) = Fleet::open("burst", options, running(8)).await else {
        return;
    };
    fleet.loads.set_total(running(2));
    until(SOON, "a victim", || async {
        let pods = fleet.pods().await;
        if pods.values().any(|pod| deletion_cost(pod) < 0) {
            Ok(())
        } else {
            Err("none".to_owned())
        }
    })
    .await
    .unwrap();
    fleet.loads.set_total(Load { running: 8, waiting: 4 });
    until(SOON, "no victim any more", || async {
        let pods = fleet.pods().await;
        let ready = pods
            .values()
            .all(|pod| Condition::of(pod, "Ready").is_some_and(|condition| condition.status == "True"));
        if ready && pods.values().all(|pod| deletion_cost(pod) >= 0) {
            Ok(())
        } else {
            Err("some".to_owned())
        }
    })
    .await
    .unwrap();
    fleet
        .holds(3, "both replicas have work", |replicas| replicas == 2)
        .await;
    assert!(fleet.scales().is_empty(), "{:?}", fleet.scales());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_change_is_noticed_and_adopted() {
    let options = Options {
        min: 2,
        initial: 2,
        // Nothing shrinks by itself in this test.
        stabilization_s: 300,
        ..Options::default()
    };
    let Some(fleet) = Fleet::open("foreign", options, running(5)).await else {
        return;
    };
    let scale = format!("{}/scale", fleet.scene.deployment(CHAT));
    fleet
        .scene
        .api
        .patch(&scale, &json!({"spec": {"replicas": 4}}))
        .await
        .unwrap();
    let event = fleet.event("from 2 to 4").await;
    assert_eq!(event["regarding"]["name"], CHAT, "{event}");
    fleet.scene.settled(CHAT, 4).await;
    fleet.holds(5, "what somebody wanted", |replicas| replicas == 4).await;
    assert_eq!(steps(&fleet.scales()), [("admin", 4)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn advice_is_written_down_and_not_taken() {
    let options = Options {
        mode: "advisory",
        ..Options::default()
    };
    let Some(fleet) = Fleet::open("advice", options, running(3)).await else {
        return;
    };
    fleet.loads.set_total(Load {
        running: PER_REPLICA,
        waiting: 4 * PER_REPLICA,
    });
    fleet
        .binding(CHAT, "advice", |object| {
            object["status"]["desiredReplicas"].as_u64() == Some(5)
        })
        .await;
    fleet.condition(CHAT, "ScalingActive", "False").await;
    fleet.holds(3, "only advice", |replicas| replicas == 1).await;
    assert!(fleet.scales().is_empty(), "{:?}", fleet.scales());
}
