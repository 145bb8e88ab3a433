//! What agents may say, and what they may not.

use infer_core::decision::Mode;
use infer_proto::v1::{self, agent_message::Body, decider_message::Body as Answer};
use tonic::Code;

use crate::support::{Agent, Decider, hello, sample, ttft};

#[tokio::test]
async fn samples_are_acknowledged_once_counted_once_and_asked_for_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let (mut agent, welcome) = Agent::greet(&decider, "chat", "chat-0", "boot", 1).await;
    assert_eq!(welcome.resume_after, 0);
    for sequence in 1..=3 {
        agent
            .report(sample(&agent, sequence, 3500 - 1000 * sequence, 4.0, 0.0))
            .await
            .unwrap();
    }
    // Acknowledged, for the agent to stop sending it; applied only once.
    agent.report(sample(&agent, 2, 1500, 4.0, 0.0)).await.unwrap();
    let mut people = decider.ask().await;
    let windows = v1::GetWindowsRequest {
        target: "chat".to_owned(),
        ..Default::default()
    };
    let got = people.get_windows(windows.clone()).await.unwrap().into_inner();
    let requests = got.counters.iter().find(|counter| counter.name == "requests").unwrap();
    assert_eq!(requests.count, 9);
    let ttft = got
        .histograms
        .iter()
        .find(|window| window.signal() == v1::Signal::Ttft)
        .unwrap();
    assert_eq!((ttft.count, ttft.mean_ms), (12, Some(200.0)));
    let p95 = ttft.quantiles.iter().find(|quantile| quantile.q == 0.95).unwrap();
    assert!(
        p95.low_ms <= 100.0 && p95.high_ms.unwrap() >= 250.0 && p95.high_ms.unwrap() < 251.0,
        "{p95:?}"
    );
    let status = people.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (status.samples_applied, status.samples_duplicate, status.samples_missing),
        (3, 1, 0)
    );

    // The same boot comes back: it goes on where it was. A gap is counted.
    drop(agent);
    let (mut agent, welcome) = Agent::greet(&decider, "chat", "chat-0", "boot", 1).await;
    assert_eq!(welcome.resume_after, 3);
    agent.report(sample(&agent, 6, 0, 4.0, 0.0)).await.unwrap();
    let status = people.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.samples_missing, 2);

    // A new decider knows nothing and asks for everything.
    decider.stop();
    let decider = Decider::start(directory.path()).await;
    let (mut agent, welcome) = Agent::greet(&decider, "chat", "chat-0", "boot", 1).await;
    assert_eq!(welcome.resume_after, 0);
    for (sequence, age_ms) in [(1, 5500), (2, 4500), (3, 3500), (6, 1500)] {
        agent.report(sample(&agent, sequence, age_ms, 4.0, 0.0)).await.unwrap();
    }
    let got = decider.ask().await.get_windows(windows).await.unwrap().into_inner();
    assert_eq!(
        got.counters
            .iter()
            .find(|counter| counter.name == "requests")
            .unwrap()
            .count,
        12
    );
}

/// Every malformed message closes its own stream with a reason that names what is wrong, and harms no other.
#[tokio::test]
async fn malformed_messages() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let (mut good, _) = Agent::greet(&decider, "draft", "draft-0", "good", 1).await;
    let bad = |change: fn(&mut v1::Sample)| {
        move |agent: &Agent| {
            let mut bad = sample(agent, 1, 0, 1.0, 1.0);
            change(&mut bad);
            Body::Sample(bad)
        }
    };
    type Case = (&'static str, Box<dyn Fn(&Agent) -> Body>);
    let cases: Vec<Case> = vec![
        (
            "sequence must be at least 1",
            Box::new(bad(|sample| sample.sequence = 0)),
        ),
        ("is after it was sent", Box::new(bad(|sample| sample.end_ms += 60_000))),
        (
            "interval_ms 4000000",
            Box::new(bad(|sample| sample.interval_ms = 4_000_000)),
        ),
        (
            "gauges.waiting is -1",
            Box::new(bad(|sample| sample.gauges.as_mut().unwrap().waiting = Some(-1.0))),
        ),
        (
            "gauges.running is NaN",
            Box::new(bad(|sample| sample.gauges.as_mut().unwrap().running = Some(f64::NAN))),
        ),
        (
            "gauges.kv_usage is inf",
            Box::new(bad(|sample| {
                sample.gauges.as_mut().unwrap().kv_usage = Some(f64::INFINITY)
            })),
        ),
        (
            "count says 9, the cells hold 4",
            Box::new(bad(|sample| sample.histograms[0].count = 9)),
        ),
        (
            "histogram ttft: histogram of 10 bytes",
            Box::new(bad(|sample| sample.histograms[0].lower.truncate(10))),
        ),
        (
            "at lower bounds and 2 at upper",
            Box::new(bad(|sample| sample.histograms[0].upper = ttft(1, 1, 2).upper)),
        ),
        (
            "unknown signal 77",
            Box::new(bad(|sample| sample.histograms[0].signal = 77)),
        ),
        ("a second hello", Box::new(|_| hello("chat", "chat-0", "b", 1))),
    ];
    for (index, (reason, body)) in cases.into_iter().enumerate() {
        let (mut agent, _) = Agent::greet(&decider, "chat", "chat-0", &format!("boot-{index}"), index as i64).await;
        let body = body(&agent);
        agent.send(body).await;
        let status = agent.receive().await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{reason}: {status:?}");
        assert!(
            status.message().contains(reason),
            "{:?} does not say {reason:?}",
            status.message()
        );
    }
    let first_words = [
        (
            Body::Goodbye(v1::Goodbye::default()),
            "the first message must be a hello",
        ),
        (Body::Hello(v1::Hello::default()), "hello.pod is missing"),
        (hello("chat", "", "b", 1), "hello.pod.name must have"),
        (hello("chat", &"x".repeat(300), "b", 1), "hello.pod.name must have"),
    ];
    for (body, reason) in first_words {
        let mut agent = Agent::connect(&decider).await;
        agent.send(body).await;
        let status = agent.receive().await.unwrap_err();
        assert_eq!(
            (status.code(), status.message().contains(reason)),
            (Code::InvalidArgument, true),
            "{status:?}"
        );
    }
    for (target, pod, code) in [
        ("nobody", "chat-0", Code::NotFound),
        ("chat", "chat-7", Code::Unavailable),
    ] {
        let mut agent = Agent::connect(&decider).await;
        agent.send(hello(target, pod, "b", 1)).await;
        assert_eq!(agent.receive().await.unwrap_err().code(), code);
    }
    good.report(sample(&good, 1, 0, 1.0, 0.0)).await.unwrap();
    let status = decider
        .ask()
        .await
        .get_status(v1::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((status.samples_applied, status.agents_connected), (1, 1));
}

#[tokio::test]
async fn of_two_agents_for_one_replica_the_later_boot_wins() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let (mut early, _) = Agent::greet(&decider, "chat", "chat-0", "early", 100).await;
    early.report(sample(&early, 1, 0, 1.0, 0.0)).await.unwrap();
    let (mut late, _) = Agent::greet(&decider, "chat", "chat-0", "late", 200).await;
    early.send(Body::Sample(sample(&early, 2, 0, 1.0, 0.0))).await;
    assert_eq!(early.receive().await.unwrap_err().code(), Code::AlreadyExists);
    late.report(sample(&late, 1, 0, 1.0, 0.0)).await.unwrap();
    let mut again = Agent::connect(&decider).await;
    again.send(hello("chat", "chat-0", "early", 100)).await;
    let status = again.receive().await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("late"), "{status:?}");
    late.report(sample(&late, 2, 0, 1.0, 0.0)).await.unwrap();
}

/// A queue that jumps is decided on at once, and an engine that cannot be read is held and told of.
#[tokio::test]
async fn a_jump_wakes_the_tick_and_silence_holds() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let (mut agent, welcome) = Agent::greet(&decider, "chat", "chat-0", "boot", 1).await;
    assert!(welcome.wanted.unwrap().replay_horizon_ms >= 60_000);
    // A history that fills the windows, then the jump.
    for sequence in 1..=60 {
        agent
            .report(sample(&agent, sequence, (61 - sequence) * 1000, 2.0, 0.0))
            .await
            .unwrap();
    }
    decider
        .until("a decision with data", |shared| {
            shared.state().targets["chat"]
                .latest
                .as_ref()
                .is_some_and(|record| record.outcome.mode == Mode::Stable)
        })
        .await;
    let early =
        |shared: &infer_decider::state::Shared| shared.counters.early_ticks.load(std::sync::atomic::Ordering::Relaxed);
    let before = early(&decider.shared);
    let mut jump = sample(&agent, 61, 0, 2.0, 500.0);
    jump.urgent = true;
    agent.report(jump).await.unwrap();
    decider
        .until("the plan", |_| !decider.table.applied.lock().unwrap().is_empty())
        .await;
    assert!(early(&decider.shared) > before);
    let (plan, _) = decider.table.applied.lock().unwrap()[0].clone();
    assert_eq!((plan.from, plan.mode), (1, Mode::Panic));
    assert!(plan.to >= 2, "{plan:?}");

    let failed = v1::Sample {
        scrape: Some(v1::Scrape {
            outcome: v1::scrape::Outcome::Unreachable.into(),
            detail: "connection refused".to_owned(),
            ..Default::default()
        }),
        gauges: None,
        counters: None,
        histograms: vec![],
        ..sample(&agent, 62, 0, 0.0, 0.0)
    };
    agent.report(failed).await.unwrap();
    decider
        .until("unknown", |shared| {
            shared.state().targets["chat"]
                .latest
                .as_ref()
                .is_some_and(|record| record.outcome.mode == Mode::Unknown)
        })
        .await;
    let targets = decider
        .ask()
        .await
        .list_targets(v1::ListTargetsRequest {})
        .await
        .unwrap()
        .into_inner()
        .targets;
    let chat = targets.iter().find(|target| target.name == "chat").unwrap();
    assert_eq!(
        (chat.mode.as_str(), chat.pods[0].problem.as_str()),
        ("unknown", "connection refused")
    );
    assert_eq!(chat.replicas.unwrap().desired, chat.replicas.unwrap().spec);
}

#[tokio::test]
async fn a_goodbye_is_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let (mut agent, _) = Agent::greet(&decider, "chat", "chat-0", "boot", 1).await;
    agent.report(sample(&agent, 1, 0, 1.0, 0.0)).await.unwrap();
    agent
        .send(Body::Goodbye(v1::Goodbye {
            reason: "stopping".to_owned(),
            newest_sequence: 1,
        }))
        .await;
    assert_eq!(agent.receive().await.unwrap(), Answer::Ack(v1::Ack { sequence: 1 }));
    assert_eq!(agent.receive().await.unwrap_err().code(), Code::Ok);
}
