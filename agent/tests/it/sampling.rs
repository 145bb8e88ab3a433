//! What is sampled, and when.

use std::time::Instant;

use infer_agent::{Options, Settings};
use infer_proto::v1::{Sample, Signal, Wanted, engine::Kind};
use infer_reader::{Reader, ReaderOptions};
use prost::Message as _;

use crate::{
    Running,
    decider::{Decider, Manners},
    engine::Engine,
    options,
};

#[tokio::test]
async fn hello_and_samples_say_who_and_what() {
    let engine = Engine::start().await;
    let decider = Decider::start(Manners::default());
    let options = options(&engine, &decider);
    let agent = Running::start(options.clone());
    decider
        .until("three samples", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    engine.set(|state| {
        state.running = 5;
        state.waiting = 2;
        state.prompt_tokens += 700;
        state.first_tokens += 4;
    });
    let heard = decider
        .until("the tokens", |heard| {
            heard[0]
                .samples
                .iter()
                .any(|s| s.counters.as_ref().and_then(|c| c.prompt_tokens) == Some(700))
        })
        .await;
    let Some(boot) = &heard[0].hello.boot else {
        panic!("no boot")
    };
    assert_eq!(heard[0].hello.pod.as_ref(), Some(&options.pod));
    assert_eq!(heard[0].hello.agent_version, infer_agent::VERSION);
    assert!(
        boot.id.len() == 32 && boot.id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{}",
        boot.id
    );
    assert!(boot.started_unix_ms > 1_700_000_000_000);

    let samples = &heard[0].samples;
    let engine_of_first = samples[0].engine.as_ref().expect("in the first sample");
    assert_eq!((engine_of_first.kind(), engine_of_first.engines), (Kind::Vllm, 1));
    assert!(
        samples[1..].iter().all(|sample| sample.engine.is_none()),
        "only when it changes"
    );
    for pair in samples.windows(2) {
        assert_eq!(
            pair[1].end_ms - pair[0].end_ms,
            u64::from(pair[1].interval_ms),
            "no gap and no overlap"
        );
    }
    let last = samples
        .iter()
        .find(|s| s.counters.as_ref().and_then(|c| c.prompt_tokens) == Some(700))
        .expect("it");
    let gauges = last.gauges.as_ref().expect("OK");
    assert_eq!(
        (gauges.running, gauges.waiting, gauges.kv_usage),
        (Some(5.0), Some(2.0), Some(0.25))
    );
    assert!(!last.urgent);
    let [ttft] = &last.histograms[..] else {
        panic!("{:?}", last.histograms)
    };
    assert_eq!((ttft.signal(), ttft.count), (Signal::Ttft, 4));
    agent.stop().await;
}

#[tokio::test]
async fn the_decider_sets_the_pace() {
    let engine = Engine::start().await;
    let wanted = Wanted {
        interval_ms: 200,
        ..Wanted::default()
    };
    let decider = Decider::start(Manners {
        wanted: Some(wanted),
        ..Manners::default()
    });
    // By itself it would take its first sample some time in the next hour.
    let settings = Settings {
        interval_ms: 3_600_000,
        ..Settings::default()
    };
    let agent = Running::start(Options {
        settings,
        ..options(&engine, &decider)
    });
    decider
        .until("three samples", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_jump_of_the_queue_does_not_wait_for_the_next_scrape() {
    let engine = Engine::start().await;
    let wake = Wanted {
        interval_ms: 60_000,
        fast_interval_ms: 100,
        replay_horizon_ms: 0,
        wake_on_waiting_rise: 4,
    };
    // A first full scrape at once, everything after it at this pace.
    let decider = Decider::start(Manners {
        wanted_later: Some(wake),
        ..Manners::default()
    });
    let settings = Settings {
        interval_ms: 10,
        fast_interval_ms: 100,
        ..Settings::default()
    };
    let agent = Running::start(Options {
        settings,
        ..options(&engine, &decider)
    });
    decider
        .until("a sample", |heard| heard.iter().any(|c| !c.samples.is_empty()))
        .await;
    engine.until(|state| state.fast_requests >= 2).await;
    assert!(
        decider.heard()[0].samples.iter().all(|sample| !sample.urgent),
        "nothing has happened yet"
    );
    let full_before = engine.state().full_requests;

    let jump = Instant::now();
    engine.set(|state| state.waiting = 9);
    let heard = decider
        .until("an urgent sample", |heard| heard[0].samples.iter().any(|s| s.urgent))
        .await;
    assert!(jump.elapsed().as_secs() < 10, "{:?}", jump.elapsed());
    assert_eq!(engine.state().full_requests, full_before);
    let urgent = heard[0].samples.last().expect("it");
    assert_eq!(urgent.gauges.as_ref().and_then(|gauges| gauges.waiting), Some(9.0));
    assert!(urgent.counters.is_none() && urgent.histograms.is_empty());
    assert_eq!(heard[0].sequences(), (1..=heard[0].newest()).collect::<Vec<_>>());

    // The same queue again is no news; a rise below the threshold neither.
    engine.set(|state| state.waiting = 12);
    let looks = engine.state().fast_requests;
    engine.until(|state| state.fast_requests >= looks + 3).await;
    assert_eq!(decider.heard()[0].newest(), urgent.sequence);
    agent.stop().await;
}

/// The bound of the replay buffer in bytes rests on this.
#[test]
fn a_busy_engine_has_samples_below_a_kilobyte() {
    let captures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/engines");
    for engine in ["vllm-0.32.0", "sglang-0.5.23"] {
        let read = |state: &str| std::fs::read(format!("{captures}/{engine}-{state}.prom"));
        let (Ok(before), Ok(after)) = (read("idle"), read("after")) else {
            eprintln!("skipped: captures of {engine} not found");
            return;
        };
        let mut reader = Reader::new(ReaderOptions::default());
        reader.advance(&before).expect("a capture");
        // A whole run in one interval: more buckets are hit than in any single second.
        let busy = encoded_len(reader.advance(&after).expect("a capture"));
        let idle = encoded_len(reader.advance(&after).expect("a capture"));
        assert!(
            busy < 1_000 && idle < 100,
            "{engine}: {busy} bytes busy, {idle} bytes idle"
        );
        eprintln!("{engine}: {busy} bytes busy, {idle} bytes idle");
    }
}

fn encoded_len(advance: infer_reader::Advance) -> usize {
    let sample = Sample {
        sequence: 1_000_000,
        end_ms: 1_000_000_000,
        interval_ms: 1_000,
        scrape: Some(infer_proto::v1::Scrape {
            outcome: 1,
            duration_ms: 20,
            ..Default::default()
        }),
        gauges: Some(advance.gauges),
        counters: Some(advance.counters),
        histograms: advance.histograms,
        ..Sample::default()
    };
    sample.encoded_len()
}
