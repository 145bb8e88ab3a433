//! The sampler in virtual time, with an engine in memory.

use std::sync::{Arc, Mutex};

use super::*;
use crate::{ReplayLimits, clock::Clock};

/// An engine in memory that takes its time.
#[derive(Clone)]
struct Prepared {
    world: Arc<Mutex<World>>,
    body: Vec<u8>,
}

#[derive(Default)]
struct World {
    waiting: u64,
    answer_ms: u64,
    refuses: bool,
    /// Answers a filtered request with nothing.
    no_filter: bool,
    fast_requests: u64,
}

impl Source for Prepared {
    async fn fetch(&mut self, path: Path) -> Result<&[u8], FetchError> {
        let answer_ms = self.world.lock().unwrap().answer_ms;
        tokio::time::sleep(Duration::from_millis(answer_ms)).await;
        let mut world = self.world.lock().unwrap();
        if world.refuses {
            let refused = FetchError::new(Outcome::Unreachable, "x".repeat(1_000));
            return Err(FetchError {
                process_gone: true,
                ..refused
            });
        }
        let labels = r#"{engine="0",model_name="tiny"}"#;
        let waiting = world.waiting;
        let mut text =
            format!("vllm:num_requests_running{labels} 1.0\nvllm:num_requests_waiting{labels} {waiting}.0\n");
        match path {
            Path::Full => text += "process_start_time_seconds 1.7e+09\n",
            Path::VllmFilter => {
                world.fast_requests += 1;
                if world.no_filter {
                    text.clear();
                }
            }
            Path::SglangLoads => panic!("this is vLLM"),
        }
        self.body = text.into_bytes();
        Ok(&self.body)
    }
}

struct Bench {
    shared: Arc<Shared>,
    world: Arc<Mutex<World>>,
    stop: watch::Sender<bool>,
    sampler: tokio::task::JoinHandle<()>,
}

/// A sampler at 1 Hz with looks at 4 Hz, its full scrapes at 0.5 s of each second.
fn start() -> Bench {
    let shared = Arc::new(Shared::new(Clock::start(), Settings::default(), 1 << 20));
    let world = Arc::new(Mutex::new(World::default()));
    let (stop, stopping) = watch::channel(false);
    let source = Prepared {
        world: world.clone(),
        body: Vec::new(),
    };
    let sampler = tokio::spawn({
        let shared = shared.clone();
        async move {
            let mut sampler = Sampler::new(source, &Options::default(), &shared, stopping);
            sampler.phase = 0.5;
            sampler.run().await;
        }
    });
    Bench {
        shared,
        world,
        stop,
        sampler,
    }
}

impl Bench {
    async fn at(&self, ms: u64) {
        sleep_until(self.shared.clock.at(ms)).await;
    }

    fn samples(&self) -> Vec<Sample> {
        let state = self.shared.state();
        (0..state.replay.newest())
            .filter_map(|cursor| Some(state.replay.next_after(cursor)?.1))
            .collect()
    }

    fn ends_ms(&self) -> Vec<u64> {
        self.samples().iter().map(|sample| sample.end_ms).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn scrapes_keep_to_the_grid_and_missed_ones_are_skipped() {
    let bench = start();
    bench.at(3_900).await;
    assert_eq!(
        bench.ends_ms(),
        [0, 500, 1_500, 2_500, 3_500],
        "at once, then on the grid"
    );
    assert_eq!(bench.samples()[1].interval_ms, 500);
    bench.world.lock().unwrap().answer_ms = 300;
    bench.at(4_900).await;
    assert_eq!(bench.ends_ms()[5..], [4_800], "late, and the grid stays where it was");
    bench.world.lock().unwrap().answer_ms = 0;
    bench.at(6_600).await;
    assert_eq!(bench.ends_ms()[6..], [5_500, 6_500]);
    assert_eq!(bench.samples()[6].interval_ms, 700);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_is_a_timeout_in_every_interval() {
    let bench = start();
    bench.world.lock().unwrap().answer_ms = 1_000_000;
    bench.at(3_400).await;
    assert_eq!(
        bench.ends_ms(),
        [800, 2_300, 3_300],
        "four fifths of a second after the start and after each tick not passed meanwhile"
    );
    for sample in bench.samples() {
        let scrape = sample.scrape.expect("always there");
        assert_eq!((scrape.outcome(), scrape.duration_ms), (Outcome::Timeout, 800));
        assert!(sample.gauges.is_none() && sample.counters.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_begins_to_hang_is_told_of_within_two_intervals() {
    let bench = start();
    bench.at(2_600).await;
    let before = bench.samples().len();
    bench.world.lock().unwrap().answer_ms = 1_000_000;
    bench.at(4_400).await;
    let since = bench.samples().split_off(before);
    assert_eq!(since.len(), 1, "the scrape of the next interval, by its timeout");
    bench.at(5_400).await;
    let since = bench.samples().split_off(before);
    assert_eq!(since.len(), 2, "one in every interval");
    for sample in since {
        assert_eq!(
            sample.scrape.as_ref().map(|scrape| scrape.outcome()),
            Some(Outcome::Timeout)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_jump_is_sent_within_two_looks_once() {
    let bench = start();
    bench.at(2_600).await;
    assert!(
        bench.world.lock().unwrap().fast_requests >= 6,
        "three looks in each second"
    );
    assert_eq!(bench.samples().len(), 4, "looks at a quiet queue are not sent");
    bench.world.lock().unwrap().waiting = 3;
    bench.at(2_800).await;
    assert_eq!(bench.samples().len(), 4, "a rise of 3 is below the threshold of 4");
    bench.world.lock().unwrap().waiting = 4;
    bench.at(3_400).await;
    let samples = bench.samples();
    assert_eq!(samples.len(), 5, "once");
    let urgent = &samples[4];
    assert!(urgent.urgent && urgent.counters.is_none());
    assert_eq!((urgent.end_ms, urgent.interval_ms), (3_000, 500));
    assert_eq!(urgent.gauges.as_ref().and_then(|gauges| gauges.waiting), Some(4.0));
    bench.at(3_600).await;
    let full = &bench.samples()[5];
    assert!(!full.urgent && full.counters.is_some());
    assert_eq!(
        (full.end_ms, full.interval_ms),
        (3_500, 500),
        "no overlap with the urgent one"
    );
}

#[tokio::test(start_paused = true)]
async fn an_engine_without_the_cheap_path_is_asked_for_it_once() {
    let bench = start();
    bench.world.lock().unwrap().no_filter = true;
    bench.at(5_600).await;
    assert_eq!(bench.world.lock().unwrap().fast_requests, 1);
    assert_eq!(bench.samples().len(), 7);
}

#[tokio::test(start_paused = true)]
async fn details_are_cut_and_a_stop_ends_with_one_more_sample() {
    let bench = start();
    bench.at(600).await;
    bench.world.lock().unwrap().refuses = true;
    bench.at(1_600).await;
    let detail = bench.samples()[2].scrape.clone().expect("always there").detail;
    assert_eq!(detail.len(), MAX_DETAIL_CHARS);
    bench.world.lock().unwrap().refuses = false;
    bench.at(1_700).await;
    bench.stop.send(true).expect("it runs");
    bench.sampler.await.expect("no panic");
    assert_eq!(bench.shared.state().replay.newest(), 4);
    assert!(bench.shared.state().finished);
}

#[tokio::test(start_paused = true)]
async fn samples_are_as_small_as_the_limits_assume() {
    let bench = start();
    bench.at(60_000).await;
    let limits = ReplayLimits::for_settings(&Settings::default(), 1 << 20);
    let state = bench.shared.state();
    let mean = state.replay.bytes() / state.replay.len();
    assert!(mean * limits.max_samples < limits.max_bytes, "{mean} bytes per sample");
}
