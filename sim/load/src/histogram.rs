//! Latency distributions.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency told apart, one hour; longer ones count as this.
const MICROSECONDS_MAX: u64 = 3_600_000_000;

/// Percentiles of a latency in milliseconds, each within 0.1 % of the exact value. Zeros when `count` is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many values.
    pub count: u64,
    /// Arithmetic mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Largest value.
    pub max_ms: f64,
}

/// A histogram of latencies from a microsecond to an hour.
pub(crate) struct Latency {
    /// None if the bounds were refused, which constant ones are not: recording then does nothing.
    histogram: Option<Histogram<u64>>,
}

impl Latency {
    pub(crate) fn new() -> Self {
        Self {
            histogram: Histogram::new_with_bounds(1, MICROSECONDS_MAX, 3).ok(),
        }
    }

    pub(crate) fn record_ms(&mut self, latency_ms: f64) {
        if let Some(histogram) = &mut self.histogram {
            histogram.saturating_record((latency_ms * 1e3).round() as u64);
        }
    }

    pub(crate) fn clear(&mut self) {
        if let Some(histogram) = &mut self.histogram {
            histogram.reset();
        }
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        let Some(histogram) = self.histogram.as_ref().filter(|histogram| !histogram.is_empty()) else {
            return Percentiles::default();
        };
        let at = |quantile| histogram.value_at_quantile(quantile).min(histogram.max()) as f64 / 1e3;
        Percentiles {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1e3,
            p50_ms: at(0.50),
            p90_ms: at(0.90),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_close_and_empty_is_zero() {
        let mut latency = Latency::new();
        assert_eq!(latency.percentiles(), Percentiles::default());
        for ms in 1..=1000 {
            latency.record_ms(f64::from(ms));
        }
        let p = latency.percentiles();
        assert_eq!(p.count, 1000);
        for (have, want) in [
            (p.mean_ms, 500.5),
            (p.p50_ms, 500.0),
            (p.p90_ms, 900.0),
            (p.p99_ms, 990.0),
            (p.max_ms, 1000.0),
        ] {
            assert!((have / want - 1.0).abs() < 0.002, "{have} is not {want}");
        }
        latency.clear();
        assert_eq!(latency.percentiles().count, 0);
    }
}
