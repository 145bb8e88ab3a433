//! How fast an exposition is read, on one core.

use std::{hint::black_box, time::Instant};

use anyhow::Context as _;
use infer_reader::{Reader, ReaderOptions, exposition};

use crate::{
    Setting,
    body::Captures,
    report::{Figure, Report, Target},
};

/// Bytes that one timed batch reads, so that a clock's nanoseconds do not matter.
const BATCH_BYTES: usize = 5_000_000;
/// Steps of a moving body that are read one after the other.
const STEPS: u32 = 64;

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stand_in = runtime.block_on(Captures::of_stand_in(setting))?;
    // The promise is judged on the real body where there is one, and on our stand-in's in any case.
    let real = Captures::of_real_engine();
    if real.is_none() {
        report.note("the capture of real vLLM is not there (../shared): the stand-in's body only");
    }
    let batches = setting.either(200, 5);
    for captures in [Some(stand_in), real].into_iter().flatten() {
        measure(&captures, batches, report)?;
    }
    report.note(
        "full visit: the visitor is handed name, raw labels and value of every sample, # lines and values included",
    );
    report.note("one thread; each sample is a batch of 5 MB, median over batches; the body is in the cache, as it is after a read");
    Ok(())
}

fn measure(captures: &Captures, batches: usize, report: &mut Report) -> anyhow::Result<()> {
    let body = captures.after.as_bytes();
    let of = &captures.of;
    let samples = exposition::for_each_sample(body, |_| {}).samples;
    report.note(format!("{of}: {} bytes, {samples} samples", body.len()));
    let speeds = visit_mb_per_s(body, batches);
    report.figure(Figure::median(format!("every sample, {of}"), "MB/s", &speeds).promised(Target::AtLeast(800.0)));
    let speeds = rate(body.len(), batches, || {
        let mut sum = 0;
        exposition::for_each_sample(black_box(body), |sample| {
            sum += sample
                .labels
                .iter()
                .map(|(name, value)| name.len() + value.raw().len())
                .sum::<usize>();
        });
        black_box(sum);
    });
    report.figure(Figure::median(format!("every sample and label, {of}"), "MB/s", &speeds));
    for times in [1, 10, 100] {
        let speeds = visit_mb_per_s(&body.repeat(times), batches);
        report.figure(Figure::median(format!("every sample, {of} x{times}"), "MB/s", &speeds));
    }

    let moving = captures.moving();
    let bodies: Vec<String> = (1..=STEPS).map(|step| moving.at(step)).collect();
    let mut times_us = Vec::new();
    for _ in 0..batches {
        let mut reader = Reader::new(ReaderOptions::default());
        reader.advance(moving.at(0).as_bytes()).context("the stand-in's body")?;
        let began = Instant::now();
        for body in &bodies {
            let advance = reader.advance(black_box(body.as_bytes())).context("a moved body")?;
            black_box(advance);
        }
        times_us.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(STEPS));
    }
    report.figure(
        Figure::median(format!("Reader::advance, {of}"), "µs", &times_us)
            .note("signals found, deltas, histograms encoded as HdrHistogram V2; each body one step after the last"),
    );
    let speeds: Vec<f64> = times_us.iter().map(|us| body.len() as f64 / us).collect();
    report.figure(Figure::median(format!("Reader::advance, {of}"), "MB/s", &speeds));
    Ok(())
}

fn visit_mb_per_s(body: &[u8], batches: usize) -> Vec<f64> {
    rate(body.len(), batches, || {
        let mut sum = 0.0;
        let summary = exposition::for_each_sample(black_box(body), |sample| {
            sum += sample.value + (sample.name.len() + sample.labels.raw().len()) as f64;
        });
        black_box((sum, summary));
    })
}

/// MB/s of each batch.
fn rate(body_bytes: usize, batches: usize, mut read: impl FnMut()) -> Vec<f64> {
    let times = (BATCH_BYTES / body_bytes).max(1);
    let batch = |_| {
        let began = Instant::now();
        for _ in 0..times {
            read();
        }
        (body_bytes * times) as f64 / began.elapsed().as_secs_f64() / 1e6
    };
    (0..batches).map(batch).collect()
}
