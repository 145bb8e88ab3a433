//! Fixed-granularity buckets with the averages that Knative's autoscaler computes over them
//! (knative/serving `pkg/autoscaler/aggregation/bucketing.go`, whose unit tests are among the conformance vectors).

use crate::time::TimeMs;

/// Digits a linear average is rounded to, so that a sum of floats that should be 0 is 0.
const AVERAGE_DIGITS: i32 = 6;

/// Weight that all buckets together should have in the exponentially weighted average.
const WEIGHT_COVERED: f64 = 0.9999;
/// Smallest smoothing coefficient: long windows would else forget nothing.
const SMOOTHING_MIN: f64 = 0.2;

/// How [`TimedBuckets::window_average`] weighs buckets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Averaging {
    /// All alike.
    Linear,
    /// Newest most, by the [`smoothing_coefficient`] of the window's length.
    WeightedExponential,
}

/// A ring of buckets of `granularity` each, covering `window`. Values recorded in one bucket add up.
#[derive(Debug, Clone)]
pub struct TimedBuckets {
    averaging: Averaging,
    granularity_ms: i64,
    window_ms: i64,
    buckets: Vec<f64>,
    /// Start times of the first and last bucket written to.
    written: Option<(TimeMs, TimeMs)>,
}

impl TimedBuckets {
    /// An empty window. `granularity_ms` must be positive; the window has at least one bucket.
    pub fn new(averaging: Averaging, window_s: f64, granularity_ms: i64) -> Self {
        let granularity_ms = granularity_ms.max(1);
        let window_ms = ((window_s * 1000.0).round() as i64).max(granularity_ms);
        TimedBuckets {
            averaging,
            granularity_ms,
            window_ms,
            buckets: vec![0.0; bucket_count(window_ms, granularity_ms)],
            written: None,
        }
    }

    /// Adds `value` to the bucket of `at`. Out-of-order values within the window count; older ones are ignored and
    /// answered with `false`. A gap of a whole window before `at` clears all that was there.
    pub fn record(&mut self, at: TimeMs, value: f64) -> bool {
        self.bucket(at).map(|bucket| *bucket += value).is_some()
    }

    /// Like [`TimedBuckets::record`], but the bucket then holds the larger of before and `value`, not their sum.
    pub fn raise(&mut self, at: TimeMs, value: f64) -> bool {
        self.bucket(at).map(|bucket| *bucket = bucket.max(value)).is_some()
    }

    /// The bucket of `at`, with the window moved on to it; `None` when it lies before the window.
    fn bucket(&mut self, at: TimeMs) -> Option<&mut f64> {
        let start = self.start_of(at);
        match self.written {
            None => {
                self.written = Some((start, start));
            }
            Some((first, last)) if start > last => {
                if start.0 - last.0 >= self.window_ms {
                    self.buckets.fill(0.0);
                    self.written = Some((start, start));
                } else {
                    let mut between = last.0 + self.granularity_ms;
                    while between <= start.0 {
                        let index = self.index_of(TimeMs(between));
                        self.buckets[index] = 0.0;
                        between += self.granularity_ms;
                    }
                    self.written = Some((first, start));
                }
            }
            Some((first, last)) if start < last => {
                if start.0 + self.window_ms <= last.0 {
                    return None;
                }
                self.written = Some((first.min(start), last));
            }
            Some(_) => {}
        }
        let index = self.index_of(start);
        Some(&mut self.buckets[index])
    }

    /// The average per bucket over the window that ends at `now`; 0 when nothing was written within it. Time before
    /// the first write does not count, nor do buckets after the last one.
    pub fn window_average(&self, now: TimeMs) -> f64 {
        let Some((first, last)) = self.written else { return 0.0 };
        let silent = (self.start_of(now).0 - last.0).max(0);
        match self.averaging {
            Averaging::Linear => {
                if silent >= self.window_ms {
                    return 0.0;
                }
                let silent_buckets = (silent / self.granularity_ms) as usize;
                let spanned = ((last.0 - first.0) / self.granularity_ms) as usize + 1;
                let counted = spanned.min(self.buckets.len() - silent_buckets);
                let total: f64 = self.newest_first(now).map(|(_, value)| value).sum();
                round_to_digits(AVERAGE_DIGITS, total / counted as f64)
            }
            Averaging::WeightedExponential => {
                if silent > self.window_ms {
                    return 0.0;
                }
                weighted_average(
                    self.newest_first(now).map(|(_, value)| value),
                    smoothing_coefficient(self.buckets.len()),
                )
            }
        }
    }

    /// Buckets still inside the window that ends at `now`, as (start, value), the newest first.
    pub fn newest_first(&self, now: TimeMs) -> impl Iterator<Item = (TimeMs, f64)> + '_ {
        let last = self.written.map_or(TimeMs(0), |(_, last)| last);
        let silent = ((self.start_of(now).0 - last.0).max(0) / self.granularity_ms) as usize;
        let count = if self.written.is_some() {
            self.buckets.len().saturating_sub(silent)
        } else {
            0
        };
        // One division for the whole walk: a thousand targets do this at every tick.
        let (after, before) = self.buckets.split_at(self.index_of(last) + 1);
        let values = after.iter().rev().chain(before.iter().rev());
        let starts = (0..).map(move |back: i64| TimeMs(last.0 - back * self.granularity_ms));
        starts.zip(values.copied()).take(count)
    }

    /// The bucket of `at`; `None` where the window no longer reaches back to it, and outside of what was written.
    pub fn value(&self, at: TimeMs) -> Option<f64> {
        let (first, last) = self.written?;
        let start = self.start_of(at);
        let reach = TimeMs(last.0 - (self.buckets.len() as i64 - 1) * self.granularity_ms);
        (first.max(reach)..=last)
            .contains(&start)
            .then(|| self.buckets[self.index_of(start)])
    }

    /// Sum over the window that ends at `now`.
    pub fn sum(&self, now: TimeMs) -> f64 {
        self.newest_first(now).map(|(_, value)| value).sum()
    }

    /// Whether nothing was written for longer than the window.
    pub fn is_empty(&self, now: TimeMs) -> bool {
        match self.written {
            None => true,
            Some((_, last)) => self.start_of(now).0 - last.0 > self.window_ms,
        }
    }

    /// Start of the first bucket written to that the window still reaches back to; `None` before the first write.
    pub fn first_write(&self) -> Option<TimeMs> {
        self.written.map(|(first, _)| first)
    }

    /// Start of the last bucket written to.
    pub fn last_write(&self) -> Option<TimeMs> {
        self.written.map(|(_, last)| last)
    }

    /// Number of buckets.
    pub fn bucket_count(&self) -> usize {
        self.buckets.len()
    }

    /// Changes the window's length and keeps what still fits. History older than a window at `now` is forgotten.
    pub fn resize(&mut self, window_s: f64, now: TimeMs) {
        let old_len = self.buckets.len();
        let kept: Vec<(TimeMs, f64)> = match self.written {
            Some((_, last)) => self.newest_first(last).collect(),
            None => Vec::new(),
        };
        let stale = self.is_empty(now);
        self.window_ms = ((window_s * 1000.0).round() as i64).max(self.granularity_ms);
        self.buckets = vec![0.0; bucket_count(self.window_ms, self.granularity_ms)];
        let Some((first, last)) = self.written.take() else {
            return;
        };
        if stale {
            return;
        }
        for (start, value) in kept.into_iter().take(self.buckets.len()) {
            let index = self.index_of(start);
            self.buckets[index] = value;
        }
        let reach = TimeMs(last.0 - (old_len as i64 - 1) * self.granularity_ms);
        self.written = Some((first.max(reach), last));
    }

    fn start_of(&self, at: TimeMs) -> TimeMs {
        TimeMs(at.0.div_euclid(self.granularity_ms) * self.granularity_ms)
    }

    fn index_of(&self, at: TimeMs) -> usize {
        at.0.div_euclid(self.granularity_ms)
            .rem_euclid(self.buckets.len() as i64) as usize
    }
}

fn bucket_count(window_ms: i64, granularity_ms: i64) -> usize {
    (window_ms as u64).div_ceil(granularity_ms as u64).max(1) as usize
}

/// `value` rounded half up to `digits` decimal places.
pub fn round_to_digits(digits: i32, value: f64) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale + 0.5).floor() / scale
}

/// The share of weight the newest of `buckets` gets, so that all of them together get 99.99 %; at least 0.2.
pub fn smoothing_coefficient(buckets: usize) -> f64 {
    (1.0 - (1.0 - WEIGHT_COVERED).powf(1.0 / buckets as f64)).max(SMOOTHING_MIN)
}

/// Exponentially weighted average of values given newest first.
pub fn weighted_average(newest_first: impl IntoIterator<Item = f64>, coefficient: f64) -> f64 {
    let mut weight = coefficient;
    let mut total = 0.0;
    for value in newest_first {
        total += value * weight;
        weight *= 1.0 - coefficient;
    }
    total
}
