//! Connections come and go, samples stay.

use std::time::Duration;

use infer_agent::{Options, Settings};

use crate::{
    Running,
    decider::{Decider, Manners},
    engine::Engine,
    options,
};

#[tokio::test]
async fn a_restarted_decider_gets_everything_again() {
    let engine = Engine::start().await;
    let first = Decider::start(Manners::default());
    let agent = Running::start(options(&engine, &first));
    let before = first
        .until("ten samples", |heard| heard.iter().any(|c| c.newest() >= 10))
        .await;
    let address = first.kill();

    // Sampling goes on while nobody listens.
    let scrapes = engine.state().full_requests;
    engine.until(|state| state.full_requests >= scrapes + 5).await;

    let second = Decider::start_at(address, Manners::default());
    let newest_before = before[0].newest();
    let after = second
        .until("old and new samples", |heard| {
            heard.iter().any(|c| c.newest() >= newest_before + 10)
        })
        .await;
    let replayed = &after[0];
    let expected: Vec<u64> = (1..=replayed.newest()).collect();
    assert_eq!(replayed.sequences(), expected, "all of them, in order, once");
    assert_eq!(
        replayed.samples[..before[0].samples.len()],
        before[0].samples[..],
        "the same samples as before"
    );
    assert_eq!(replayed.hello.boot, before[0].hello.boot, "the same boot");
    assert_eq!(replayed.hello.oldest_sequence, 1);
    assert!(replayed.hello.newest_sequence >= newest_before + 4);
    assert_eq!(
        replayed.hello.engine.as_ref().map(|engine| engine.name.as_str()),
        Some("vllm")
    );
    assert!(
        replayed.sent_ms.is_sorted(),
        "messages are stamped when they leave, not when they were made"
    );
    assert!(
        replayed.sent_ms[1] > replayed.samples[0].end_ms,
        "a replayed sample leaves later than it was made"
    );

    let summary = agent.stop().await;
    assert!(summary.drained);
    assert_eq!(
        (summary.acked, summary.lost, summary.connections),
        (summary.samples, 0, 2)
    );
}

#[tokio::test]
async fn the_resume_point_is_honoured() {
    let engine = Engine::start().await;
    let first = Decider::start(Manners::default());
    let agent = Running::start(options(&engine, &first));
    first
        .until("ten samples", |heard| heard.iter().any(|c| c.newest() >= 10))
        .await;
    let second = Decider::start_at(
        first.kill(),
        Manners {
            resume_after: 7,
            ..Manners::default()
        },
    );
    let heard = second
        .until("fifteen samples", |heard| heard.iter().any(|c| c.newest() >= 15))
        .await;
    let expected: Vec<u64> = (8..=heard[0].newest()).collect();
    assert_eq!(heard[0].sequences(), expected);
    agent.stop().await;
}

#[tokio::test]
async fn acknowledged_samples_beyond_the_horizon_are_not_kept() {
    let engine = Engine::start().await;
    let first = Decider::start(Manners::default());
    let settings = Settings {
        interval_ms: 20,
        fast_interval_ms: 0,
        replay_horizon_ms: 200,
        ..Settings::default()
    };
    let agent = Running::start(Options {
        settings,
        ..options(&engine, &first)
    });
    first
        .until("forty samples", |heard| heard.iter().any(|c| c.newest() >= 40))
        .await;
    let second = Decider::start_at(first.kill(), Manners::default());
    let after = second
        .until("a replay", |heard| heard.iter().any(|c| c.newest() > 40))
        .await;
    let oldest = &after[0].samples[0];
    assert!(after[0].hello.oldest_sequence <= oldest.sequence);
    assert!(oldest.sequence > 1, "800 ms of samples are held, 200 ms were to be");
    let expected: Vec<u64> = (oldest.sequence..=after[0].newest()).collect();
    assert_eq!(after[0].sequences(), expected);
    agent.stop().await;
}

#[tokio::test]
async fn what_nobody_had_is_kept_up_to_the_bound_and_then_counted() {
    let engine = Engine::start().await;
    let deaf = Decider::start(Manners {
        acks: false,
        ..Manners::default()
    });
    let settings = Settings {
        interval_ms: 20,
        fast_interval_ms: 0,
        replay_horizon_ms: 200,
        ..Settings::default()
    };
    let drain_ms = 100;
    let agent = Running::start(Options {
        settings,
        drain_ms,
        ..options(&engine, &deaf)
    });
    // 200 ms at 50 Hz are 10 samples, 2 urgent ones and 16 for all cases.
    deaf.until("sixty samples", |heard| heard.iter().any(|c| c.newest() >= 60))
        .await;
    let second = Decider::start_at(deaf.kill(), Manners::default());
    let heard = second
        .until("a replay", |heard| heard.iter().any(|c| c.newest() > 60))
        .await;
    let hello = &heard[0].hello;
    assert_eq!(hello.newest_sequence - hello.oldest_sequence + 1, 28);
    let summary = agent.stop().await;
    assert!(summary.lost >= 60 - 28, "{summary:?}");
}

#[tokio::test]
async fn a_refused_agent_comes_back_late_and_a_lost_one_soon() {
    let engine = Engine::start().await;
    let refusing = Decider::start(Manners {
        refuses: true,
        ..Manners::default()
    });
    let agent = Running::start(options(&engine, &refusing));
    let heard = refusing.until("a second attempt", |heard| heard.len() >= 2).await;
    let pause = heard[1].at - heard[0].at;
    assert!(pause >= Duration::from_millis(2_400), "came back after {pause:?}");
    agent.task.abort();
}

#[tokio::test]
async fn a_redirect_is_followed_and_forgotten_when_nobody_is_there() {
    let engine = Engine::start().await;
    let owner = Decider::start(Manners::default());
    let other = Decider::start(Manners {
        redirects_to: Some(owner.url()),
        ..Manners::default()
    });
    let agent = Running::start(options(&engine, &other));
    owner
        .until("samples at the owner", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    assert_eq!(other.heard().len(), 1);
    assert!(other.heard()[0].samples.is_empty());
    owner.kill();
    other.until("the agent to ask again", |heard| heard.len() >= 2).await;
    agent.task.abort();
}

#[tokio::test]
async fn a_redirect_to_nonsense_is_not_followed() {
    let engine = Engine::start().await;
    let mad = Decider::start(Manners {
        redirects_to: Some("ftp://x".into()),
        ..Manners::default()
    });
    let agent = Running::start(options(&engine, &mad));
    mad.until("the agent to ask again", |heard| heard.len() >= 3).await;
    agent.task.abort();
}
