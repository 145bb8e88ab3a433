//! How long deciding takes, over a thousand targets.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use infer_core::{
    TimeMs,
    decision::Record,
    target::{Boot, Target},
};

use crate::{
    Setting, machine,
    report::{Figure, Report, Target as Promise},
    workload,
};

const PODS: usize = 10;
/// Long enough for the stabilisation window (300 s) to be full of recommendations.
const LIVED_S: i64 = 310;
/// Latencies are observed for this long before: a little more than the stable window (60 s), which is all that a
/// decision reads.
const LATENCIES_S: i64 = 65;
/// Different targets; the others are copies of these, in memory of their own.
const KINDS: usize = 50;
/// The Unix epoch's 2026, roughly: times have as many digits as in service.
const BEGAN_MS: i64 = 1_770_000_000_000;

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let memory_before = machine::memory_kib("MemAvailable");
    let mut kinds = grow();
    for targets in setting.either(vec![10, 100, 1000, 10_000], vec![10, 100]) {
        // About 450 KiB a target with latencies of 65 s.
        if targets as u64 * 600 > memory_before {
            report.note(format!("{targets} targets: left out, not enough memory"));
            continue;
        }
        let budget = setting.either(Duration::from_secs(20), Duration::from_millis(500));
        let times_ms = measure(&mut kinds, targets, budget);
        let median = Figure::median(
            format!("{targets} targets x {PODS} replicas, one tick"),
            "ms",
            &times_ms,
        );
        let promised = if targets == 1000 {
            median.promised(Promise::AtMost(5.0))
        } else {
            median
        };
        report.figure(promised);
        report.figure(Figure::p99(
            format!("{targets} targets x {PODS} replicas, one tick"),
            "ms",
            &times_ms,
        ));
        let each_us: Vec<f64> = times_ms.iter().map(|ms| ms * 1000.0 / targets as f64).collect();
        report.figure(Figure::median(format!("per target of {targets}"), "µs", &each_us));
    }
    report.note("Target::decide on every target, its record kept as the service keeps the latest; one thread");
    report.note(
        "policy: p95 of ttft, concurrency, kvUsage, all defaults (60 s stable, 300 s stabilisation); \
         310 s of life, samples at 1 Hz with five latencies; between ticks (not timed) every replica reports once",
    );
    Ok(())
}

/// Targets that have lived.
fn grow() -> Vec<Target> {
    let grow = |seed: u64| {
        let mut random = fastrand::Rng::with_seed(seed);
        let began = TimeMs(BEGAN_MS);
        let mut target = Target::new(
            &format!("fleet-{seed}"),
            workload::policy(),
            workload::BOUNDS,
            None,
            began,
        );
        target.observe_fleet(workload::fleet(PODS, began));
        for pod in 0..PODS {
            let boot = Boot {
                id: format!("boot-{pod}"),
                started_unix_ms: BEGAN_MS,
            };
            target.claim(&workload::pod_name(pod), &format!("uid-{pod}"), boot, began);
        }
        for second in 1..=LIVED_S {
            observe(&mut target, &mut random, second, LIVED_S - second < LATENCIES_S);
            target.decide(at(second));
        }
        target
    };
    (1..=KINDS as u64).map(grow).collect()
}

/// A tick's time, off the second.
fn at(second: i64) -> TimeMs {
    TimeMs(BEGAN_MS + second * 1000 + 500)
}

/// One sample of every replica, spread over the second before the tick.
fn observe(target: &mut Target, random: &mut fastrand::Rng, second: i64, latencies: bool) {
    for pod in 0..PODS {
        let end = TimeMs(at(second).0 - random.i64(0..1000));
        let sample = workload::sample(random, second as u64, end, latencies);
        black_box(target.observe(&workload::pod_name(pod), &format!("boot-{pod}"), &sample, at(second)));
    }
}

/// Milliseconds of each tick over `count` targets.
fn measure(kinds: &mut [Target], count: usize, budget: Duration) -> Vec<f64> {
    let mut targets: Vec<Target> = kinds.iter().cycle().take(count).cloned().collect();
    let mut random = fastrand::Rng::with_seed(0);
    let mut latest: Vec<Option<Record>> = vec![None; count];
    let mut times_ms = Vec::new();
    let began = Instant::now();
    let mut second = LIVED_S;
    while times_ms.len() < 10 || began.elapsed() < budget {
        second += 1;
        for target in &mut targets {
            observe(target, &mut random, second, true);
        }
        let tick = Instant::now();
        for (target, latest) in targets.iter_mut().zip(&mut latest) {
            let (record, plan) = target.decide(at(second));
            black_box(plan);
            *latest = Some(record);
        }
        times_ms.push(tick.elapsed().as_secs_f64() * 1e3);
    }
    // The first has no records to let go of and a cold cache.
    times_ms.remove(0);
    times_ms
}
