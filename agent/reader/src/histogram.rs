//! From bucket counts to quantiles and to the pair of HdrHistograms that travels, without pretending to know more
//! than a bucket says.
//!
//! Of an observation only its bucket `(l, u]` is known. [`Observations`] keeps exactly that: intervals with counts, of
//! several engines and unlike layouts if need be.
//!
//! **Invariant:** whatever is derived here contains the truth. Rounding to microseconds and to HdrHistogram's slots only
//! ever widens an interval.

use infer_proto::v1;

/// Highest value an encoded histogram can hold, in microseconds (about 12.7 days); stands for +Inf.
pub const HIGHEST_US: u64 = (1 << 40) - 1;

/// Cumulative bucket counts of one histogram since its engine started, made disjoint.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Buckets {
    /// Finite upper bounds in microseconds, ascending.
    pub bounds_us: Vec<f64>,
    /// Observations per bucket; one more than `bounds_us`, the last one for +Inf.
    pub counts: Vec<u64>,
    /// Sum of all observations in microseconds, where the engine gives it.
    pub sum_us: Option<f64>,
}

impl Buckets {
    /// From `(upper bound in µs, cumulative count)` in any order. Bounds that occur several times are taken once.
    /// `None` without a +Inf bucket, or when the counts do not ascend: then the text was not a histogram's.
    pub fn from_cumulative(mut cumulative: Vec<(f64, f64)>, sum_us: Option<f64>) -> Option<Self> {
        cumulative.sort_by(|a, b| a.0.total_cmp(&b.0));
        cumulative.dedup_by(|a, b| a.0 == b.0);
        let (last, _) = *cumulative.last()?;
        if last != f64::INFINITY {
            return None;
        }
        let mut counts = Vec::with_capacity(cumulative.len());
        let mut below = 0;
        for &(_, count) in &cumulative {
            let count = whole(count)?;
            counts.push(count.checked_sub(below)?);
            below = count;
        }
        cumulative.pop();
        Some(Self {
            bounds_us: cumulative.into_iter().map(|(bound, _)| bound).collect(),
            counts,
            sum_us,
        })
    }

    /// All observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether both have the same bounds.
    pub fn same_layout(&self, other: &Self) -> bool {
        self.bounds_us == other.bounds_us
    }

    /// Whether any bucket holds less than it did in `before` (of the same layout): its engine was restarted.
    pub fn fell_below(&self, before: &Self) -> bool {
        self.counts.iter().zip(&before.counts).any(|(now, then)| now < then)
    }

    fn interval(&self, index: usize) -> (f64, f64) {
        // Latencies are never negative, so the first bucket starts at 0 and one that ends at or below 0 is all 0.
        let low = if index == 0 {
            0.0
        } else {
            self.bounds_us[index - 1].max(0.0)
        };
        let high = self.bounds_us.get(index).map_or(f64::INFINITY, |b| b.max(0.0));
        (low, high)
    }
}

/// A count as an integer; `None` for NaN, negative, infinite and absurd ones.
pub fn whole(count: f64) -> Option<u64> {
    // 2^53: beyond it an f64 no longer counts by ones, and no engine gets there.
    (0.0..=9_007_199_254_740_992.0)
        .contains(&count)
        .then(|| count.round() as u64)
}

/// Microseconds of a bound given in units of `unit_us`; results next to a whole number are that number, so that
/// `0.0016200000000000001` s is 1620 µs.
pub fn micros(bound: f64, unit_us: f64) -> f64 {
    let us = bound * unit_us;
    let whole = us.round();
    if (us - whole).abs() <= whole.abs() * 1e-9 {
        whole
    } else {
        us
    }
}

/// Observations of one signal of which the interval is known.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observations {
    /// `(low, high, count)` in microseconds: `low < value <= high`, or `value = high` where both are equal. `high` may
    /// be infinite.
    pub intervals: Vec<(f64, f64, u64)>,
    /// All observations.
    pub count: u64,
    /// Their sum in microseconds; absent when any part of it is unknown.
    pub sum_us: Option<f64>,
}

/// Where a quantile lies, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantileMs {
    /// The quantile is not below this.
    pub low: f64,
    /// The quantile is not above this; absent when the last bucket has no upper bound.
    pub high: Option<f64>,
    /// Linear within the bucket; in the last bucket its lower bound.
    pub estimate: f64,
}

impl Observations {
    /// Nothing yet, sum 0.
    pub fn new() -> Self {
        Self {
            intervals: Vec::new(),
            count: 0,
            sum_us: Some(0.0),
        }
    }

    /// Adds what happened between `before` (of the same layout, nowhere above `after`) and `after`.
    pub fn add(&mut self, after: &Buckets, before: Option<&Buckets>) {
        let mut added = 0;
        for (index, &count) in after.counts.iter().enumerate() {
            let new = count.saturating_sub(before.and_then(|b| b.counts.get(index)).copied().unwrap_or(0));
            if new > 0 {
                let (low, high) = after.interval(index);
                self.intervals.push((low, high, new));
                added += new;
            }
        }
        self.count += added;
        let sum = after.sum_us.and_then(|now| match before {
            None => Some(now),
            Some(before) => before.sum_us.map(|then| now - then),
        });
        self.sum_us = match (self.sum_us, sum) {
            (Some(all), Some(new)) if new >= 0.0 => Some(all + new),
            _ => None,
        };
    }

    /// Bounds and estimate of the quantile `q` (0 to 1); `None` without observations.
    ///
    /// Definitions of "the" quantile of n ordered values differ (nearest rank, linear interpolation…), but all usual
    /// ones lie between the order statistics number `floor(q(n-1)) + 1` and `ceil(q(n-1)) + 1`, counted from 1. `low`
    /// is the lower end of the former's interval, `high` the upper end of the latter's: every definition is inside.
    pub fn quantile(&self, q: f64) -> Option<QuantileMs> {
        if self.count == 0 {
            return None;
        }
        let position = q.clamp(0.0, 1.0) * (self.count - 1) as f64;
        let low = order_statistic(
            self.intervals.iter().map(|&(low, _, n)| (low, n)),
            position.floor() as u64 + 1,
        );
        let high = order_statistic(
            self.intervals.iter().map(|&(_, high, n)| (high, n)),
            position.ceil() as u64 + 1,
        );
        let estimate = self
            .interpolated(q.clamp(0.0, 1.0) * self.count as f64)
            .clamp(low, high);
        Some(QuantileMs {
            low: low / 1e3,
            high: high.is_finite().then_some(high / 1e3),
            estimate: if estimate.is_finite() {
                estimate / 1e3
            } else {
                low / 1e3
            },
        })
    }

    /// Where the cumulative count reaches `rank` when every interval is filled evenly.
    fn interpolated(&self, rank: f64) -> f64 {
        let mut edges: Vec<f64> = self
            .intervals
            .iter()
            .flat_map(|&(low, high, _)| [low, if high.is_finite() { high } else { low }])
            .collect();
        edges.sort_by(f64::total_cmp);
        edges.dedup();
        // Observations that share one value (no width, or no upper bound) are a jump at `x`, counted only with `jump`.
        let below = |x: f64, jump: bool| -> f64 {
            let share = |&(low, high, n): &(f64, f64, u64)| {
                let part = if low == high || high.is_infinite() {
                    if x > low || (jump && x == low) { 1.0 } else { 0.0 }
                } else {
                    ((x - low) / (high - low)).clamp(0.0, 1.0)
                };
                part * n as f64
            };
            self.intervals.iter().map(share).sum()
        };
        let mut from = (edges.first().copied().unwrap_or(0.0), 0.0);
        for edge in edges {
            let reached = below(edge, false);
            if reached >= rank && reached > from.1 {
                return from.0 + (edge - from.0) * ((rank - from.1) / (reached - from.1)).max(0.0);
            }
            let reached = below(edge, true);
            if reached >= rank {
                return edge;
            }
            from = (edge, reached);
        }
        from.0
    }

    /// The message that travels; `None` when nothing was observed.
    pub fn to_proto(&self, signal: v1::Signal) -> Option<v1::HistogramDelta> {
        if self.count == 0 {
            return None;
        }
        let slots = |end: fn(&(f64, f64, u64)) -> u64| {
            let mut slots: Vec<(u32, u64)> = self.intervals.iter().map(|i| (slot(end(i)), i.2)).collect();
            slots.sort_unstable();
            encode(&slots)
        };
        Some(v1::HistogramDelta {
            signal: signal.into(),
            lower: slots(|&(low, _, _)| clamp_us(low.floor())),
            upper: slots(|&(_, high, _)| clamp_us(high.ceil())),
            count: self.count,
            sum_ms: self.sum_us.map(|us| us / 1e3),
        })
    }
}

fn clamp_us(us: f64) -> u64 {
    if us >= HIGHEST_US as f64 {
        HIGHEST_US
    } else {
        us.max(0.0) as u64
    }
}

/// The `rank`-th smallest value, counted from 1.
fn order_statistic(values: impl Iterator<Item = (f64, u64)>, rank: u64) -> f64 {
    let mut values: Vec<(f64, u64)> = values.collect();
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut seen = 0;
    for &(value, n) in &values {
        seen += n;
        if seen >= rank {
            return value;
        }
    }
    values.last().map_or(f64::INFINITY, |&(value, _)| value)
}

// The encoder below writes HdrHistogram's V2 format straight from the few filled slots. A `hdrhistogram::Histogram` of
// this range and precision is an array of 31 744 counters (250 KB), which would have to be kept, zeroed, filled and
// scanned for every signal and side; here an encoding costs what is in it, some 60 bytes and a microsecond. A test
// compares the bytes with those of the crate.

/// Sub-buckets per power of two at 3 significant digits: 2048, of which the upper half is used beyond the first.
const HALF_MAGNITUDE: u32 = 10;
const V2_COOKIE: u32 = 0x1c84_9303 | 0x10;
const SIGNIFICANT_DIGITS: u32 = 3;

/// Index of the counter that a value up to [`HIGHEST_US`] is counted in. The counter covers the values from its
/// lowest to its highest equivalent one: who reads `lower` takes the former, who reads `upper` the latter, and the
/// interval only widens.
fn slot(us: u64) -> u32 {
    let magnitude = (64 - (us | 0x7ff).leading_zeros()) - (HALF_MAGNITUDE + 1);
    let sub = (us >> magnitude) as u32;
    (magnitude << HALF_MAGNITUDE) + sub
}

/// HdrHistogram V2 of ascending `(slot, count)`; equal slots are added up.
fn encode(slots: &[(u32, u64)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(40 + slots.len() * 4);
    out.extend_from_slice(&V2_COOKIE.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&0u32.to_be_bytes());
    out.extend_from_slice(&SIGNIFICANT_DIGITS.to_be_bytes());
    out.extend_from_slice(&1u64.to_be_bytes());
    out.extend_from_slice(&HIGHEST_US.to_be_bytes());
    out.extend_from_slice(&1f64.to_be_bytes());
    let header = out.len();
    let mut next = 0;
    let mut at = 0;
    while at < slots.len() {
        let slot = slots[at].0;
        let mut count = 0u64;
        while at < slots.len() && slots[at].0 == slot {
            count = count.saturating_add(slots[at].1);
            at += 1;
        }
        match slot - next {
            0 => {}
            // The format could say -1; the reference encoders write a single empty counter as a count of 0.
            1 => varint(&mut out, 0),
            gap => varint(&mut out, -i64::from(gap)),
        }
        varint(&mut out, i64::try_from(count).unwrap_or(i64::MAX));
        next = slot + 1;
    }
    let payload = (out.len() - header) as u32;
    out[4..8].copy_from_slice(&payload.to_be_bytes());
    out
}

/// ZigZag, then LEB128 of at most 9 bytes, the ninth holding 8 bits.
fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    for _ in 0..8 {
        if rest < 0x80 {
            out.push(rest as u8);
            return;
        }
        out.push((rest as u8 & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
