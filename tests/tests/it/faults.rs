//! Engines that crash, and engines that cannot be read.

use infer_proto::v1::Target;
use infer_tests::harness::{for_target, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{
    Directory, Fleet, Load, SOON, complete, engines, explain, fail, failed, health, holds_for, port_of, ready, start,
    turn,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_engine_is_replaced_in_its_slot() {
    let _turn = turn().await;
    let directory = Directory::new();
    // Load for two; a shrink to one would take a minute.
    let fleet = Fleet {
        initial: 2,
        stable_s: 10,
        stabilization_s: 60,
        ..Fleet::new("chat")
    };
    let (decider, client) = start(&directory, &fleet).await;
    let load = Load::start(&fleet.url(), &fleet.model(), 10.0, 60, 8);
    load.answered(10).await;
    let target = ready(&client, "chat", 2).await;
    let before = engines(&decider.processes());
    let (victim, other) = (before[&port_of(&target, "chat-0")], before[&port_of(&target, "chat-1")]);

    kill(Pid::from_raw(victim as i32), Signal::SIGKILL).unwrap();
    let gone = |target: &Target| target.replicas.is_some_and(|now| now.ready == 1);
    let without = for_target(&client, "chat", SOON, "the loss to be seen", gone)
        .await
        .unwrap();
    assert!(without.replicas.unwrap().desired >= 2, "{}", without.reason);
    let back = |target: &Target| {
        target
            .pods
            .iter()
            .any(|pod| pod.name == "chat-0" && pod.phase == "ready")
    };
    let replaced = for_target(&client, "chat", SOON, "chat-0 again", back).await.unwrap();
    assert!(replaced.replicas.unwrap().spec >= 2);
    load.answered(20).await;
    let now = engines(&decider.processes());
    assert_ne!(now[&port_of(&replaced, "chat-0")], victim);
    assert_eq!(now[&port_of(&replaced, "chat-1")], other);
    // What had begun on the dead engine is broken, and nothing else.
    let report = load.stop().await;
    assert!(
        failed(&report) <= report.requests.in_flight_max,
        "{:?} {:?}",
        report.failures,
        report.errors
    );
    let log = decider.log_tail(10_000);
    assert!(log.contains("signal 9") || log.contains("SIGKILL"), "{log}");
    let (answer, _) = complete(&fleet.url(), &fleet.model(), 4).await.unwrap();
    assert!(answer.is_success());
    health(&client, "ok", "").await;
}

/// One of two replicas cannot be read, then neither, then both again.
async fn unreadable(kind: &str, problem: &str) {
    let _turn = turn().await;
    let directory = Directory::new();
    let fleet = Fleet {
        max: 2,
        ..Fleet::new("chat")
    };
    let (decider, client) = start(&directory, &fleet).await;
    // Without load the policy wants one: only a person keeps two.
    decider
        .inferctl(&["override", "chat", "--replicas", "2", "--for", "10m"])
        .await
        .unwrap();
    let target = ready(&client, "chat", 2).await;
    let endpoint = |replica: &str| {
        target
            .pods
            .iter()
            .find(|pod| pod.name == replica)
            .unwrap()
            .endpoint
            .clone()
    };
    let (one, two) = (endpoint("chat-0"), endpoint("chat-1"));

    fail(&one, kind).await;
    health(&client, "degraded", "target chat: fresh data of 1 of 2 ready replicas").await;
    decider.inferctl(&["resume", "chat"]).await.unwrap();
    until(SOON, "partial data to be what holds it", || async {
        let (explanation, _) = explain(&client, "chat").await;
        let rules: Vec<_> = explanation.steps.iter().map(|step| step.rule.clone()).collect();
        if rules.iter().any(|rule| rule == "partialData") {
            Ok(())
        } else {
            Err(format!("{rules:?}"))
        }
    })
    .await
    .unwrap();
    holds_for(&client, "chat", 4, |_, mode, replicas| {
        mode != "unknown" && replicas == 2
    })
    .await;
    let seen = for_target(&client, "chat", SOON, "the problem", |target| {
        target
            .pods
            .iter()
            .any(|pod| pod.name == "chat-0" && pod.problem.contains(problem))
    });
    assert_eq!(seen.await.unwrap().replicas.unwrap().spec, 2);

    fail(&two, kind).await;
    let blind = for_target(&client, "chat", SOON, "mode unknown", |target| target.mode == "unknown")
        .await
        .unwrap();
    assert!(
        blind.reason.contains("0 of 2 ready replicas have fresh data: hold"),
        "{}",
        blind.reason
    );
    holds_for(&client, "chat", 4, |rule, mode, replicas| {
        (rule, mode, replicas) == ("noData", "unknown", 2)
    })
    .await;

    fail(&one, "none").await;
    fail(&two, "none").await;
    // It was the missing data alone that held it: known to be idle, it shrinks.
    let recovered = ready(&client, "chat", 1).await;
    assert!(recovered.pods.iter().all(|pod| pod.problem.is_empty()), "{recovered:?}");
    health(&client, "ok", "").await;
    // In status, and in the log once per change.
    let log = decider.log_tail(10_000);
    let told = log
        .lines()
        .filter(|line| line.contains("engine cannot be read") && line.contains(problem))
        .count();
    assert_eq!(told, 2, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_hang_hold_the_fleet() {
    unreadable("hang_metrics", "no answer within").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_answer_503_hold_the_fleet() {
    unreadable("unavailable", "503").await;
}
