//! What the Pod asks the agent: probes, and to wait until the engine has run dry.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use infer_agent::Options;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use crate::{
    PATIENCE, Running,
    decider::{Decider, Manners},
    engine::Engine,
    options,
};

/// One request on a connection of its own: status and body.
async fn request(address: SocketAddr, line: &str) -> (u16, String) {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let head = format!("{line} HTTP/1.1\r\nhost: agent\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("room");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await.expect("in time");
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.expect("HTTP"), body.expect("HTTP"))
}

fn pre_stop(address: SocketAddr, grace_s: u64) -> JoinHandle<(u16, String)> {
    tokio::spawn(async move { request(address, &format!("GET /drain?grace_seconds={grace_s}")).await })
}

/// Waits until the engine was asked some more, which is when the agent has seen what it says now.
async fn looks(engine: &Engine) {
    let asked = engine.state();
    let asked = asked.full_requests + asked.fast_requests;
    engine
        .until(|state| state.full_requests + state.fast_requests >= asked + 3)
        .await;
}

/// An agent, and an engine that is at work.
async fn at_work(decider: &Decider) -> (Engine, Running, SocketAddr) {
    let engine = Engine::start().await;
    engine.set(|state| state.running = 2);
    let (agent, address) = Running::start_with_http(Options {
        drain_settle_ms: 50,
        ..options(&engine, decider)
    });
    decider
        .until("a sample", |heard| heard.iter().any(|c| c.newest() >= 1))
        .await;
    (engine, agent, address)
}

#[tokio::test]
async fn a_drain_is_answered_when_the_engine_has_run_dry() {
    let decider = Decider::start(Manners::default());
    let (engine, agent, address) = at_work(&decider).await;
    assert_eq!(request(address, "GET /livez").await.0, 200);
    assert_eq!(request(address, "GET /readyz").await.0, 200);
    let draining = pre_stop(address, 600);
    looks(&engine).await;
    let (status, body) = request(address, "GET /readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("the Pod is being stopped"), "{body}");
    assert_eq!(request(address, "GET /livez").await.0, 200);
    assert!(
        request(address, "GET /metrics")
            .await
            .1
            .contains("infer_agent_draining 1\n")
    );
    engine.set(|state| (state.running, state.waiting) = (0, 1));
    looks(&engine).await;
    assert!(!draining.is_finished(), "one still waits");
    engine.set(|state| state.waiting = 0);
    let (status, body) = draining.await.expect("no panic");
    assert_eq!((status, body.as_str()), (200, "the engine has run dry\n"));

    let metrics = request(address, "GET /metrics").await.1;
    for line in [
        "infer_agent_connected 1\n",
        "infer_agent_connections_total 1\n",
        "infer_agent_samples_lost_total 0\n",
        "infer_agent_drains_total{answer=\"dry\"} 1\n",
        "infer_agent_drains_total{answer=\"gone\"} 0\n",
        "infer_agent_scrapes_total{outcome=\"timeout\"} 0\n",
        "# TYPE infer_agent_scrapes_total counter\n",
    ] {
        assert!(metrics.contains(line), "{line:?} is not in {metrics}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_drain_is_answered_before_the_grace_period_is_over() {
    let decider = Decider::start(Manners::default());
    let (_engine, agent, address) = at_work(&decider).await;
    let begun = Instant::now();
    let (status, body) = pre_stop(address, 2).await.expect("no panic");
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(status, 200);
    assert!(body.contains("nearly over"), "{body}");
    agent.stop().await;
}

#[tokio::test]
async fn without_an_engine_nobody_has_to_wait() {
    let decider = Decider::start(Manners::default());
    let (engine, agent, address) = at_work(&decider).await;
    let draining = pre_stop(address, 600);
    looks(&engine).await;
    engine.kill().await;
    let (status, body) = draining.await.expect("no panic");
    assert_eq!((status, body.as_str()), (200, "there is no engine\n"));
    // As a native sidecar: told to stop after the engine has ended, it goes without waiting for a preStop hook.
    let told = Instant::now();
    agent.stop().await;
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
}

#[tokio::test]
async fn told_to_stop_in_the_middle_of_a_drain_the_agent_stays_for_it() {
    let decider = Decider::start(Manners::default());
    let (engine, agent, address) = at_work(&decider).await;
    let draining = pre_stop(address, 600);
    looks(&engine).await;
    let stopping = tokio::spawn(agent.stop());
    looks(&engine).await;
    assert!(!draining.is_finished() && !stopping.is_finished());
    engine.set(|state| (state.running, state.prompt_tokens) = (0, 321));
    assert_eq!(draining.await.expect("no panic").1, "the engine has run dry\n");
    let summary = stopping.await.expect("no panic");
    assert!(summary.drained, "{summary:?}");
    let heard = decider.until("goodbye", |heard| heard[0].goodbye.is_some()).await;
    let tokens: u64 = heard[0]
        .samples
        .iter()
        .filter_map(|sample| sample.counters.as_ref()?.prompt_tokens)
        .sum();
    assert_eq!(tokens, 321, "sampling went on until the end");
}

#[tokio::test]
async fn told_to_stop_just_before_the_pre_stop_hook_the_agent_is_there_for_it() {
    let decider = Decider::start(Manners::default());
    let (engine, agent, address) = at_work(&decider).await;
    agent.stop.send(()).expect("it runs");
    let draining = pre_stop(address, 600);
    looks(&engine).await;
    looks(&engine).await;
    assert!(!draining.is_finished() && !agent.task.is_finished());
    engine.set(|state| state.running = 0);
    assert_eq!(draining.await.expect("no panic").1, "the engine has run dry\n");
    let summary = agent.task.await.expect("no panic").expect("good options");
    assert!(summary.drained, "{summary:?}");
}

#[tokio::test]
async fn a_hook_that_gives_up_holds_nobody() {
    let decider = Decider::start(Manners::default());
    let (engine, agent, address) = at_work(&decider).await;
    let draining = pre_stop(address, 600);
    looks(&engine).await;
    assert_eq!(request(address, "GET /readyz").await.0, 503);
    draining.abort();
    let _ = draining.await;
    // The engine is never idle, and the grace period long.
    agent.stop().await;
}

#[tokio::test]
async fn the_decider_drains_a_replica_and_takes_it_back() {
    let decider = Decider::start(Manners::default());
    let (engine, agent, address) = at_work(&decider).await;
    // Nobody tells when the agent has taken an order; but it is told in time.
    let until_ready_is = |expected: u16| async move {
        let asking = async {
            loop {
                let (status, body) = request(address, "GET /readyz").await;
                if status == expected {
                    return body;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("in time")
    };
    decider.drain(true);
    let body = until_ready_is(503).await;
    assert!(body.contains("3 replicas are enough"), "{body}");
    decider.drain(false);
    until_ready_is(200).await;

    // A decider that is gone is no reason to take a Pod back, nor one to keep it out when the next does not know of it.
    decider.drain(true);
    until_ready_is(503).await;
    let next = decider.kill();
    looks(&engine).await;
    assert_eq!(request(address, "GET /readyz").await.0, 503);
    let next = Decider::start_at(next, Manners::default());
    next.until("a sample", |heard| heard.iter().any(|c| c.newest() >= 1))
        .await;
    until_ready_is(200).await;
    agent.stop().await;
}

#[tokio::test]
async fn without_a_decider_a_pod_is_ready() {
    let engine = Engine::start().await;
    let (agent, address) = {
        let decider = Decider::start(Manners::default());
        let options = options(&engine, &decider);
        decider.kill();
        Running::start_with_http(Options {
            drain_ms: 100,
            ..options
        })
    };
    looks(&engine).await;
    assert_eq!(request(address, "GET /readyz").await, (200, "ok\n".into()));
    let metrics = request(address, "GET /metrics").await.1;
    assert!(metrics.contains("infer_agent_connected 0\n"), "{metrics}");
    engine.kill().await;
    agent.stop().await;
}

#[tokio::test]
async fn nonsense_is_refused_and_slow_clients_keep_nobody_out() {
    let decider = Decider::start(Manners::default());
    let (engine, agent, address) = at_work(&decider).await;
    for (line, status, part) in [
        ("POST /drain", 405, "only GET"),
        ("HEAD /drain", 405, ""),
        ("GET /drain?grace_seconds=soon", 400, "/drain?grace_seconds=30"),
        ("GET /", 404, "/readyz"),
        ("GET /readyz/", 404, "/readyz"),
    ] {
        let (found, body) = request(address, line).await;
        assert_eq!(found, status, "{line}");
        assert!(body.contains(part), "{line}: {body}");
    }
    assert_eq!(request(address, "GET /readyz").await.0, 200, "none of these drains");
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(address).await.expect("a place in the backlog"));
    }
    assert_eq!(request(address, "GET /livez").await.0, 200);
    // More hooks than anybody has: the rest is refused, and probes still have a place.
    let draining: Vec<_> = (0..8).map(|_| pre_stop(address, 600)).collect();
    looks(&engine).await;
    assert_eq!(request(address, "GET /drain").await.0, 503);
    assert_eq!(request(address, "GET /livez").await.0, 200);
    engine.set(|state| state.running = 0);
    for draining in draining {
        assert_eq!(draining.await.expect("no panic").0, 200);
    }
    drop(silent);
    agent.stop().await;
}
