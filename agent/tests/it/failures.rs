//! Every way in which an engine cannot be read.

use infer_agent::Options;
use infer_proto::v1::{Sample, scrape::Outcome};

use crate::{
    Running,
    decider::{Decider, Manners},
    engine::{Behaviour, Engine},
    options,
};

/// The first sample after number `after` with this outcome.
async fn next_with(decider: &Decider, outcome: Outcome, after: u64) -> Sample {
    let is_it = |sample: &&Sample| {
        sample.sequence > after && sample.scrape.as_ref().is_some_and(|scrape| scrape.outcome() == outcome)
    };
    let heard = decider
        .until(outcome.as_str_name(), |heard| {
            heard.iter().flat_map(|c| &c.samples).any(|s| is_it(&s))
        })
        .await;
    heard
        .iter()
        .flat_map(|c| &c.samples)
        .find(is_it)
        .expect("waited for it")
        .clone()
}

#[tokio::test]
async fn each_failure_has_its_outcome_and_nothing_is_zero() {
    let engine = Engine::start().await;
    let decider = Decider::start(Manners::default());
    let agent = Running::start(Options {
        scrape_timeout_ms: Some(1_000),
        max_body_bytes: 1 << 20,
        ..options(&engine, &decider)
    });
    let mut newest = 0;
    for (behaviour, outcome, http_status) in [
        (Behaviour::Status(503), Outcome::HttpStatus, 503),
        (Behaviour::Status(404), Outcome::HttpStatus, 404),
        (Behaviour::Hang, Outcome::Timeout, 0),
        (Behaviour::Truncated, Outcome::Malformed, 0),
        (Behaviour::NotHttp, Outcome::Malformed, 0),
        (Behaviour::Huge, Outcome::TooLarge, 0),
        (Behaviour::Endless, Outcome::TooLarge, 0),
        (Behaviour::OtherProgram, Outcome::NoEngine, 0),
        (Behaviour::Empty, Outcome::NoEngine, 0),
    ] {
        engine.set(|state| state.behaviour = Behaviour::Serve);
        let good = next_with(&decider, Outcome::Ok, newest).await;
        assert!(good.gauges.is_some() && good.counters.is_some(), "{behaviour:?}");
        engine.set(|state| state.behaviour = behaviour);
        let bad = next_with(&decider, outcome, good.sequence).await;
        let scrape = bad.scrape.as_ref().expect("always there");
        assert_eq!(scrape.http_status, http_status, "{behaviour:?}");
        assert!(
            !scrape.detail.is_empty() && scrape.detail.len() <= 200,
            "{behaviour:?}: {:?}",
            scrape.detail
        );
        assert!(
            bad.gauges.is_none() && bad.counters.is_none() && bad.histograms.is_empty(),
            "{behaviour:?}: {bad:?}"
        );
        newest = bad.sequence;
    }
    let sent = engine.state().body_bytes_sent;
    // What the sockets hold comes on top of the bound; it is megabytes, not the hundred that were to come.
    let scrapes = engine.state().full_requests as usize;
    assert!(
        sent < scrapes * 20_000_000,
        "{sent} bytes were taken in {scrapes} scrapes"
    );

    let address = engine.kill().await;
    let gone = next_with(&decider, Outcome::Unreachable, newest).await;
    assert!(gone.gauges.is_none() && gone.counters.is_none());

    // Nobody listened: what the next process has counted is what happened since.
    let engine = Engine::start_at(address).await;
    engine.set(|state| {
        state.prompt_tokens = 77;
        state.first_tokens = 3;
    });
    let heard = decider
        .until("counters from 0", |heard| {
            heard
                .iter()
                .flat_map(|c| &c.samples)
                .any(|s| s.counters.as_ref().and_then(|c| c.prompt_tokens) == Some(77))
        })
        .await;
    let samples: Vec<&Sample> = heard.iter().flat_map(|c| &c.samples).collect();
    assert!(samples.iter().map(|s| s.sequence).eq(1..=samples.len() as u64));
    agent.stop().await;
}

#[tokio::test]
async fn a_restart_between_two_scrapes_counts_from_zero() {
    let engine = Engine::start().await;
    engine.set(|state| state.prompt_tokens = 1_000);
    let decider = Decider::start(Manners::default());
    let agent = Running::start(options(&engine, &decider));
    let first = next_with(&decider, Outcome::Ok, 1).await;
    engine.set(|state| state.prompt_tokens = 30);
    let heard = decider
        .until("a restart", |heard| {
            heard[0]
                .samples
                .iter()
                .any(|s| s.scrape.as_ref().is_some_and(|scrape| scrape.engine_restarted))
        })
        .await;
    let after: u64 = heard[0]
        .samples
        .iter()
        .filter(|sample| sample.sequence > first.sequence)
        .filter_map(|sample| sample.counters.as_ref()?.prompt_tokens)
        .sum();
    assert_eq!(after, 30);
    agent.stop().await;
}

#[tokio::test]
async fn connections_closed_by_the_engine_are_no_failures() {
    for behaviour in [Behaviour::CloseAfterAnswer, Behaviour::DropSecondRequest] {
        let engine = Engine::start().await;
        engine.set(|state| state.behaviour = behaviour);
        let decider = Decider::start(Manners::default());
        let agent = Running::start(options(&engine, &decider));
        let heard = decider
            .until("ten samples", |heard| heard.iter().any(|c| c.newest() >= 10))
            .await;
        for sample in &heard[0].samples {
            assert_eq!(
                sample.scrape.as_ref().map(|scrape| scrape.outcome()),
                Some(Outcome::Ok),
                "{behaviour:?}"
            );
        }
        assert!(engine.state().connections >= 10, "{behaviour:?}");
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_good_connection_is_kept() {
    let engine = Engine::start().await;
    let decider = Decider::start(Manners::default());
    let agent = Running::start(options(&engine, &decider));
    decider
        .until("ten samples", |heard| heard.iter().any(|c| c.newest() >= 10))
        .await;
    assert_eq!(engine.state().connections, 1);
    agent.stop().await;
}
