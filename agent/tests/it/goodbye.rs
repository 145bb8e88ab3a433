//! Stopping.

use infer_agent::{Error, Options, Settings};
use infer_proto::v1::PodIdentity;

use crate::{
    Running,
    decider::{Decider, Manners},
    engine::Engine,
    options,
};

#[tokio::test]
async fn the_last_deltas_arrive_before_the_goodbye() {
    let engine = Engine::start().await;
    let decider = Decider::start(Manners::default());
    let agent = Running::start(options(&engine, &decider));
    decider
        .until("three samples", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    engine.set(|state| state.prompt_tokens = 1_234);
    let summary = agent.stop().await;

    let heard = decider.until("goodbye", |heard| heard[0].goodbye.is_some()).await;
    assert_eq!(heard.len(), 1);
    let connection = &heard[0];
    let goodbye = connection.goodbye.as_ref().expect("waited for it");
    assert_eq!(goodbye.newest_sequence, connection.newest());
    assert_eq!(connection.sequences(), (1..=connection.newest()).collect::<Vec<_>>());
    let prompt_tokens: u64 = connection
        .samples
        .iter()
        .filter_map(|sample| sample.counters.as_ref()?.prompt_tokens)
        .sum();
    assert_eq!(prompt_tokens, 1_234, "what happened before the stop is told");
    assert!(summary.drained);
    assert_eq!(
        (summary.samples, summary.acked),
        (connection.newest(), connection.newest())
    );
}

#[tokio::test]
async fn a_stop_between_two_far_scrapes_scrapes_once_more() {
    let engine = Engine::start().await;
    let decider = Decider::start(Manners::default());
    let settings = Settings {
        interval_ms: 3_600_000,
        fast_interval_ms: 0,
        ..Settings::default()
    };
    let agent = Running::start(Options {
        settings,
        ..options(&engine, &decider)
    });
    decider.until("hello", |heard| !heard.is_empty()).await;
    let summary = agent.stop().await;
    let heard = decider.heard();
    assert_eq!(heard[0].samples.len(), 2, "one at the start, one at the stop");
    assert!(heard[0].samples[1].gauges.is_some());
    assert!(summary.drained);
}

#[tokio::test]
async fn a_decider_that_never_answers_does_not_hold_the_agent() {
    let engine = Engine::start().await;
    let deaf = Decider::start(Manners {
        acks: false,
        ..Manners::default()
    });
    let agent = Running::start(Options {
        drain_ms: 200,
        ..options(&engine, &deaf)
    });
    deaf.until("three samples", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    let summary = agent.stop().await;
    assert!(!summary.drained);
    assert_eq!(summary.acked, 0);
    assert!(deaf.until("goodbye", |heard| heard[0].goodbye.is_some()).await[0].newest() >= 3);
}

#[tokio::test]
async fn a_decider_that_comes_back_in_time_still_gets_everything() {
    let engine = Engine::start().await;
    let first = Decider::start(Manners::default());
    let agent = Running::start(Options {
        drain_ms: 15_000,
        ..options(&engine, &first)
    });
    first
        .until("three samples", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    let address = first.kill();
    let scrapes = engine.state().full_requests;
    engine.until(|state| state.full_requests >= scrapes + 3).await;
    let stopping = tokio::spawn(agent.stop());
    let second = Decider::start_at(address, Manners::default());
    let summary = stopping.await.expect("no panic");
    assert!(summary.drained, "{summary:?}");
    let heard = second.heard();
    let last = heard.last().expect("a connection");
    assert_eq!(last.sequences(), (1..=summary.samples).collect::<Vec<_>>());
    assert!(last.goodbye.is_some());
}

#[tokio::test]
async fn options_that_cannot_work_are_said_at_once() {
    let check = |options: Options, part: &'static str| async move {
        let error = infer_agent::Agent::new(options)
            .run(std::future::pending())
            .await
            .expect_err(part);
        assert!(error.to_string().contains(part), "{error} does not say {part:?}");
        error
    };
    let pod = PodIdentity {
        name: "chat-0".into(),
        ..PodIdentity::default()
    };
    let good = Options {
        pod,
        ..Options::default()
    };
    let error = check(
        Options {
            engine_url: "https://x".into(),
            ..good.clone()
        },
        "TLS is not supported",
    )
    .await;
    assert!(matches!(error, Error::EngineUrl { .. }));
    let error = check(
        Options {
            decider: "x:1".into(),
            ..good.clone()
        },
        "http://HOST:PORT",
    )
    .await;
    assert!(matches!(error, Error::DeciderUrl { .. }));
    check(
        Options {
            metrics_path: Some("metrics".into()),
            ..good.clone()
        },
        "must start with /",
    )
    .await;
    check(
        Options {
            pod: PodIdentity::default(),
            ..good
        },
        "--pod-name",
    )
    .await;
}
