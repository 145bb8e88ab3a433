//! Prints how fast a captured body is read: `cargo run --release -p infer-reader --example parse_speed -- A.prom`.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::{error::Error, hint::black_box, time::Instant};

use infer_reader::{Reader, ReaderOptions, exposition};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: parse_speed BODY.prom")?;
    let body = std::fs::read(path)?;
    let samples = exposition::for_each_sample(&body, |_| {}).samples;
    println!("{} bytes, {samples} samples", body.len());

    report("every sample: name, raw labels, value", &body, || {
        let mut sum = 0.0;
        let summary = exposition::for_each_sample(black_box(&body), |sample| {
            sum += sample.value + (sample.name.len() + sample.labels.raw().len()) as f64;
        });
        black_box((sum, summary));
    });
    report("every sample and every label", &body, || {
        let mut sum = 0;
        exposition::for_each_sample(black_box(&body), |sample| {
            sum += sample
                .labels
                .iter()
                .map(|(name, value)| name.len() + value.raw().len())
                .sum::<usize>();
        });
        black_box(sum);
    });
    let mut reader = Reader::new(ReaderOptions::default());
    reader.advance(&body)?;
    report("Reader::advance: the signals, their deltas, encoded", &body, || {
        let _ = black_box(reader.advance(black_box(&body)));
    });
    Ok(())
}

/// Best of 20 batches: the least disturbed one.
fn report(what: &str, body: &[u8], mut run: impl FnMut()) {
    const BATCH: u32 = 100;
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..BATCH {
            run();
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(BATCH));
    }
    println!(
        "{:8.1} MB/s {:8.1} µs  {what}",
        body.len() as f64 / best / 1e6,
        best * 1e6
    );
}
