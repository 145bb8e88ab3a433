//! The sampler in virtual time, with an engine in memory.

use std::sync::{Arc, Mutex};

use super::*;
use crate::{
    ReplayLimits,
    clock::Clock,
    drain::{Answer, run_dry},
};

/// An engine in memory that takes its time.
#[derive(Clone)]
struct Prepared {
    world: Arc<Mutex<World>>,
    body: Vec<u8>,
}

#[derive(Default)]
struct World {
    waiting: u64,
    /// Nothing runs.
    idle: bool,
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
        let (running, waiting) = (u32::from(!world.idle), world.waiting);
        let mut text =
            format!("vllm:num_requests_running{labels} {running}.0\nvllm:num_requests_waiting{labels} {waiting}.0\n");
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
    start_with(Settings::default())
}

fn start_with(settings: Settings) -> Bench {
    let shared = Arc::new(Shared::new(Clock::start(), settings, 1 << 20));
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

const SETTLE: Duration = Duration::from_secs(2);

/// Asks for a drain, and gives the answer and how long it took in milliseconds.
fn drain(bench: &Bench, grace_s: u64) -> tokio::task::JoinHandle<(Answer, u128)> {
    let shared = bench.shared.clone();
    tokio::spawn(async move {
        let begun = Instant::now();
        let answer = run_dry(&shared, Duration::from_secs(grace_s), SETTLE).await;
        (answer, begun.elapsed().as_millis())
    })
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_becomes_idle_is_dry_half_a_second_later() {
    let bench = start();
    bench.at(10_000).await;
    let draining = drain(&bench, 600);
    bench.at(17_100).await;
    assert!(!draining.is_finished());
    assert!(bench.shared.state().drain.reason(Instant::now()).is_some());
    // One look that shows nothing is not enough.
    bench.world.lock().unwrap().idle = true;
    bench.at(17_300).await;
    bench.world.lock().unwrap().idle = false;
    bench.at(20_100).await;
    assert!(!draining.is_finished());
    bench.world.lock().unwrap().idle = true;
    let (answer, waited_ms) = draining.await.expect("no panic");
    assert_eq!(answer, Answer::Dry);
    assert!((10_250..=10_750).contains(&waited_ms), "{waited_ms} ms");
    assert!(
        bench.shared.state().drain.reason(Instant::now()).is_some(),
        "the Pod is still being stopped"
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_engine_is_not_believed_before_the_endpoints_have_gone() {
    let bench = start();
    bench.world.lock().unwrap().idle = true;
    bench.at(10_000).await;
    let (answer, waited_ms) = drain(&bench, 30).await.expect("no panic");
    assert_eq!(answer, Answer::Dry);
    assert!((2_250..=2_750).contains(&waited_ms), "{waited_ms} ms");
}

#[tokio::test(start_paused = true)]
async fn a_drain_leaves_the_engine_time_for_its_own_end() {
    for (grace_s, expected_ms) in [(30, 25_000), (6, 3_000), (1, 500), (0, 0)] {
        let bench = start();
        bench.at(10_000).await;
        let (answer, waited_ms) = drain(&bench, grace_s).await.expect("no panic");
        assert_eq!((answer, waited_ms), (Answer::OutOfTime, expected_ms));
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_gone_is_dry_and_one_that_hangs_is_not() {
    let bench = start();
    bench.at(10_000).await;
    bench.world.lock().unwrap().refuses = true;
    let (answer, waited_ms) = drain(&bench, 30).await.expect("no panic");
    assert_eq!(answer, Answer::Gone);
    assert!((750..=1_250).contains(&waited_ms), "{waited_ms} ms");

    let bench = start();
    bench.world.lock().unwrap().idle = true;
    bench.at(10_000).await;
    bench.world.lock().unwrap().answer_ms = 1_000_000;
    let (answer, _) = drain(&bench, 30).await.expect("no panic");
    assert_eq!(answer, Answer::OutOfTime);
}

#[tokio::test(start_paused = true)]
async fn the_engine_is_looked_at_often_while_a_drain_lasts_and_not_longer() {
    for no_filter in [false, true] {
        let bench = start_with(Settings {
            interval_ms: 60_000,
            fast_interval_ms: 0,
            ..Settings::default()
        });
        bench.world.lock().unwrap().no_filter = no_filter;
        bench.at(40_000).await;
        assert_eq!(bench.ends_ms(), [0, 30_000]);
        let draining = drain(&bench, 600);
        bench.at(45_000).await;
        let looks = bench.world.lock().unwrap().fast_requests;
        let scrapes = bench.samples().len();
        match no_filter {
            false => assert!(
                (19..=21).contains(&looks) && scrapes == 2,
                "{looks} looks, {scrapes} scrapes"
            ),
            true => assert!(
                looks <= 1 && (20..=22).contains(&scrapes),
                "{looks} looks, {scrapes} scrapes"
            ),
        }
        draining.abort();
        bench.at(45_300).await;
        let looks = bench.world.lock().unwrap().fast_requests;
        let scrapes = bench.samples().len();
        bench.at(89_000).await;
        assert_eq!(bench.world.lock().unwrap().fast_requests, looks);
        assert_eq!(bench.samples().len(), scrapes, "nobody waits any more");
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_was_started_again_is_in_service_again() {
    let bench = start();
    bench.world.lock().unwrap().idle = true;
    bench.at(10_000).await;
    let (answer, _) = drain(&bench, 600).await.expect("no panic");
    assert_eq!(answer, Answer::Dry);
    let draining = |bench: &Bench| bench.shared.state().drain.reason(Instant::now()).is_some();
    bench.world.lock().unwrap().refuses = true;
    bench.at(20_000).await;
    assert!(draining(&bench));
    bench.world.lock().unwrap().refuses = false;
    bench.at(21_600).await;
    assert!(!draining(&bench), "the container was restarted, the Pod stays");
}
