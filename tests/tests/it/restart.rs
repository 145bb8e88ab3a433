//! `kill -9` in the middle of a burst, and what the next decider makes of it.

use std::time::{SystemTime, UNIX_EPOCH};

use infer_proto::v1::{Decision, ListDecisionsRequest, Signal, Target};
use infer_tests::harness::{Client, for_target, until};

use crate::support::{
    Directory, Fleet, Load, Rooted, SOON, counted, engine_total, engines, explain, failed, observed, ready, status,
    turn, windows,
};

const REQUESTS: &str = "vllm:request_success_total";
const FIRST_TOKENS: &str = "vllm:time_to_first_token_seconds_count";
const FIRST_DECISION_MS: i64 = 5000;

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

async fn decisions(client: &Client) -> Vec<Decision> {
    let request = ListDecisionsRequest {
        limit: 1000,
        ..ListDecisionsRequest::default()
    };
    client
        .clone()
        .list_decisions(request)
        .await
        .unwrap()
        .into_inner()
        .decisions
}

/// When panic was last confirmed, and the most replicas it has asked for.
fn panic(memory: &serde_json::Value) -> (i64, u64) {
    let kpa = &memory["kpa"];
    (
        kpa["panic_since"].as_i64().unwrap_or(0),
        kpa["max_panic_replicas"].as_u64().unwrap_or(0),
    )
}

async fn all_answered(loads: &[Load], more: u64) {
    for load in loads {
        load.answered(more).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_a_burst_loses_nothing() {
    let _turn = turn().await;
    let directory = Directory::new();
    // Panic holds for a whole stable window; nothing shrinks in this test but by a mistake.
    let fleet = Fleet {
        per_replica: 3.0,
        max: 4,
        stable_s: 30,
        stabilization_s: 120,
        ..Fleet::new("chat")
    };
    let mut decider = Rooted::new(&directory, &fleet);
    let client = decider.launch().await;
    ready(&client, "chat", 1).await;

    // A burst of four replicas' worth.
    let burst = Load::start(&fleet.url(), &fleet.model(), 40.0, 50, 12);
    let risen = |target: &Target| target.mode == "panic" && target.replicas.is_some_and(|now| now.ready == 4);
    for_target(&client, "chat", SOON, "four replicas in panic", risen)
        .await
        .unwrap();
    let before = ready(&client, "chat", 4).await;
    // Its engines work on without it; not so hard that panic begins anew.
    let direct: Vec<_> = before
        .pods
        .iter()
        .map(|pod| Load::start(&pod.endpoint, &fleet.model(), 4.0, 30, 2))
        .collect();
    all_answered(&direct, 2).await;
    let pids = engines(&decider.processes());
    assert_eq!(pids.len(), 4);
    let last_id = decisions(&client).await.first().unwrap().id;

    decider.kill();
    let killed_ms = unix_ms();
    drop(client);
    all_answered(&direct, 8).await;
    let burst = burst.stop().await;
    assert!(burst.requests.ok > 0);

    let client = decider.launch().await;
    let knows = |target: &Target| target.mode != "unknown";
    let back = for_target(&client, "chat", SOON, "a decision on data", knows)
        .await
        .unwrap();
    assert_eq!(back.mode, "panic", "{}", back.reason);
    let started_ms = status(&client).await.started_unix_ms;
    let made = decisions(&client).await;
    let first = made
        .iter()
        .rev()
        .find(|decision| decision.id > last_id && decision.mode != "unknown")
        .unwrap();
    let after_ms = first.unix_ms - started_ms;
    assert!(
        (0..=FIRST_DECISION_MS).contains(&after_ms),
        "first decision on data after {after_ms} ms"
    );
    // It is the old panic that goes on, not the one that every fresh start begins with.
    let (_, record) = explain(&client, "chat").await;
    let (since, most) = panic(&record["memory"]);
    assert!(
        (1..killed_ms).contains(&since),
        "in panic since {since}, killed at {killed_ms}"
    );
    assert!(most >= 4, "{most}");

    // Nothing is lost and nothing shrinks, and the same engines serve.
    let now = ready(&client, "chat", 4).await;
    let names = |target: &Target| {
        target
            .pods
            .iter()
            .map(|pod| (pod.name.clone(), pod.endpoint.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&before), names(&now));
    assert_eq!(pids, engines(&decider.processes()));
    all_answered(&direct, 4).await;
    let door = Load::start(&fleet.url(), &fleet.model(), 8.0, 30, 8);
    door.answered(10).await;
    for load in direct {
        let report = load.stop().await;
        assert_eq!(failed(&report), 0, "{:?}", report.errors);
    }
    let report = door.stop().await;
    assert_eq!(failed(&report), 0, "{:?}", report.errors);
    assert_eq!(pids, engines(&decider.processes()));
    for decision in decisions(&client).await {
        assert!(decision.replicas_after >= decision.replicas_before, "{decision:?}");
    }

    // Every request that an engine has counted is in the windows, once.
    until(SOON, "the windows to hold what the engines have counted", || async {
        let sum = async |family: &str| {
            let mut sum = 0;
            for pod in &now.pods {
                sum += engine_total(&pod.endpoint, family).await;
            }
            sum
        };
        let engines = (sum(REQUESTS).await, sum(FIRST_TOKENS).await);
        let windows = windows(&client, "chat").await;
        let decider = (counted(&windows, "requests"), observed(&windows, Signal::Ttft));
        if engines == decider {
            Ok(())
        } else {
            Err(format!("engines {engines:?}, decider {decider:?}"))
        }
    })
    .await
    .unwrap();
    let status = status(&client).await;
    assert_eq!(
        (status.samples_duplicate, status.samples_missing, status.samples_late),
        (0, 0, 0),
        "{status:?}"
    );
    assert_eq!(status.agents_connected, 4);
}
