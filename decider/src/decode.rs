//! Samples from the wire's terms into the core's; what is malformed is said field by field.

use infer_core::{
    TimeMs,
    histogram::BoundedHistogram,
    sample::{Counters, Gauges, Sample},
    signal::Signal,
};
use infer_proto::v1;

/// No sample covers more than this; a longer one is a malformed message.
const INTERVAL_MS_MAX: u32 = 3_600_000;
/// Gauges above this are not counts of requests.
const GAUGE_MAX: f64 = 1e9;
/// Counts above this, in one sample, are no counts: sums over all replicas and seconds stay far from overflowing.
const COUNT_MAX: u64 = 1 << 44;

/// The wire's sample as the core's, dated on our clock; or which field is malformed.
pub(crate) fn decode(sample: v1::Sample, sent_ms: u64, offset_ms: i64, now: TimeMs) -> Result<Sample, String> {
    if sample.sequence == 0 {
        return Err("sequence must be at least 1".to_owned());
    }
    if sample.end_ms > sent_ms {
        return Err(format!("end_ms {} is after it was sent, {sent_ms}", sample.end_ms));
    }
    if sample.interval_ms > INTERVAL_MS_MAX {
        return Err(format!(
            "interval_ms {} is more than {INTERVAL_MS_MAX}",
            sample.interval_ms
        ));
    }
    let end = i64::try_from(sample.end_ms)
        .unwrap_or(i64::MAX)
        .saturating_add(offset_ms);
    let gauges = sample.gauges.map(|gauges| decode_gauges(&gauges)).transpose()?;
    let counters = decode_counters(&sample.counters.unwrap_or_default())?;
    let histograms = sample
        .histograms
        .iter()
        .map(decode_histogram)
        .collect::<Result<_, _>>()?;
    Ok(Sample {
        sequence: sample.sequence,
        end: TimeMs(end.min(now.0)),
        interval_ms: sample.interval_ms,
        gauges,
        counters,
        histograms,
    })
}

fn decode_counters(counters: &v1::Counters) -> Result<Counters, String> {
    let mut unknown = 0;
    let mut position = 0;
    let mut count = |value: Option<u64>| {
        if value.is_none() {
            unknown |= 1 << position;
        }
        position += 1;
        match value.unwrap_or(0) {
            count if count > COUNT_MAX => Err(format!("counters.{} is {count}", Counters::NAMES[position - 1])),
            count => Ok(count),
        }
    };
    // In the order of `Counters::NAMES`.
    let decoded = Counters {
        prompt_tokens: count(counters.prompt_tokens)?,
        prompt_tokens_cached: count(counters.prompt_tokens_cached)?,
        generation_tokens: count(counters.generation_tokens)?,
        requests: count(counters.requests)?,
        requests_failed: count(counters.requests_failed)?,
        requests_rejected: count(counters.requests_rejected)?,
        preemptions: count(counters.preemptions)?,
        unknown: 0,
    };
    Ok(Counters { unknown, ..decoded })
}

fn decode_gauges(gauges: &v1::Gauges) -> Result<Gauges, String> {
    let level = |name: &str, value: Option<f64>| match value {
        Some(value) if !(0.0..=GAUGE_MAX).contains(&value) => Err(format!("gauges.{name} is {value}")),
        value => Ok(value),
    };
    Ok(Gauges {
        running: level("running", gauges.running)?,
        waiting: level("waiting", gauges.waiting)?,
        kv_usage: level("kv_usage", gauges.kv_usage)?,
        asleep: gauges.asleep.unwrap_or(false),
    })
}

fn decode_histogram(delta: &v1::HistogramDelta) -> Result<(Signal, BoundedHistogram), String> {
    let signal = match delta.signal() {
        v1::Signal::Ttft => Signal::Ttft,
        v1::Signal::Itl => Signal::Itl,
        v1::Signal::Tpot => Signal::Tpot,
        v1::Signal::E2e => Signal::E2e,
        v1::Signal::Queue => Signal::Queue,
        v1::Signal::Unspecified => return Err(format!("histogram of unknown signal {}", delta.signal)),
    };
    let histogram = BoundedHistogram::decode(&delta.lower, &delta.upper, delta.sum_ms)
        .map_err(|error| format!("histogram {}: {error}", signal.name()))?;
    if histogram.count() != delta.count {
        let (said, have) = (delta.count, histogram.count());
        return Err(format!(
            "histogram {}: count says {said}, the cells hold {have}",
            signal.name()
        ));
    }
    if delta.count > COUNT_MAX {
        return Err(format!("histogram {}: count is {}", signal.name(), delta.count));
    }
    Ok((signal, histogram))
}
