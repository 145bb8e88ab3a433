//! Latency distributions whose error is known.
//!
//! An engine counts an observation into a bucket `(l, u]` and forgets the rest. So each observation is kept twice: at
//! `l` in one HdrHistogram, at `u` in another. Both add up over replicas, seconds and unlike bucket layouts, and since
//! order statistics are monotonic, the k-th smallest true value lies between the k-th smallest `l` and the k-th
//! smallest `u`. Whatever was merged, the quantile's interval stays true.
//!
//! The histograms are sparse (sorted runs of HdrHistogram's own index): a second of one replica has a dozen distinct
//! values, where a dense HdrHistogram of this range has 31 thousand cells. On the wire it is HdrHistogram V2.

use thiserror::Error;

/// The highest trackable value in µs, about 12.7 days: what lies in an engine's `+Inf` bucket is counted here.
pub const HIGHEST_US: u64 = (1 << 40) - 1;

/// 3 significant decimal digits need 2,000 cells, rounded up to a power of two.
const SUB_BUCKET_BITS: u32 = 11;
const SUB_BUCKETS: u64 = 1 << SUB_BUCKET_BITS;
const HALF: u64 = SUB_BUCKETS / 2;
/// Index of [`HIGHEST_US`]; there are no greater ones.
const HIGHEST_INDEX: u32 = index_of(HIGHEST_US);

/// V2 encoding: cookie, payload length, normalising offset, digits, lowest, highest, ratio.
const V2_HEADER_BYTES: usize = 40;
/// The low byte says V2 (0x..03) with word size 1 (0x1.): as HdrHistogram's own encoders write it.
const V2_COOKIE: u32 = 0x1c84_9313;

const fn index_of(value_us: u64) -> u32 {
    let bucket = 64 - SUB_BUCKET_BITS - (value_us | (SUB_BUCKETS - 1)).leading_zeros();
    let sub_bucket = value_us >> bucket;
    ((bucket as u64 + 1) * HALF + sub_bucket - HALF) as u32
}

const fn bucket_and_sub(index: u32) -> (u32, u64) {
    let index = index as u64;
    if index < HALF {
        (0, index)
    } else {
        ((index / HALF - 1) as u32, index % HALF + HALF)
    }
}

const fn lowest_of(index: u32) -> u64 {
    let (bucket, sub_bucket) = bucket_and_sub(index);
    sub_bucket << bucket
}

const fn highest_of(index: u32) -> u64 {
    let (bucket, sub_bucket) = bucket_and_sub(index);
    ((sub_bucket + 1) << bucket) - 1
}

/// Why a histogram could not be read from the wire.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Shorter than its header says.
    #[error("histogram of {have} bytes is cut off, {want} expected")]
    Truncated {
        /// Bytes there.
        have: usize,
        /// Bytes wanted.
        want: usize,
    },
    /// Not HdrHistogram V2.
    #[error("histogram cookie {0:#010x} is not HdrHistogram V2's (0x1c849303, uncompressed)")]
    Cookie(u32),
    /// Other than this wire's range or precision.
    #[error("histogram has {digits} significant digits and lowest value {lowest}: 3 and 1 are agreed")]
    Layout {
        /// Significant decimal digits.
        digits: u32,
        /// Lowest discernible value.
        lowest: u64,
    },
    /// A number that runs out of its range.
    #[error("histogram payload is malformed at byte {0}")]
    Payload(usize),
    /// `lower` and `upper` must hold the same observations.
    #[error("histogram pair has {lower} observations at lower bounds and {upper} at upper bounds")]
    Unpaired {
        /// Observations in `lower`.
        lower: u64,
        /// Observations in `upper`.
        upper: u64,
    },
}

/// A sparse HdrHistogram of values in µs, 3 significant digits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseHistogram {
    /// (index, count), indexes ascending, counts positive.
    cells: Vec<(u32, u64)>,
    count: u64,
}

impl SparseHistogram {
    /// Adds `count` observations of `value_us`, saturating at [`HIGHEST_US`].
    pub fn record(&mut self, value_us: u64, count: u64) {
        if count > 0 {
            self.add(index_of(value_us.min(HIGHEST_US)), count);
        }
    }

    /// Observations.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn add(&mut self, index: u32, count: u64) {
        match self.cells.binary_search_by_key(&index, |cell| cell.0) {
            Ok(at) => self.cells[at].1 = self.cells[at].1.saturating_add(count),
            Err(at) => self.cells.insert(at, (index, count)),
        }
        self.count = self.count.saturating_add(count);
    }

    fn merge(&mut self, other: &SparseHistogram) {
        if self.cells.is_empty() {
            self.clone_from(other);
            return;
        }
        for &(index, count) in &other.cells {
            self.add(index, count);
        }
    }

    /// Takes out what was merged before.
    fn remove(&mut self, other: &SparseHistogram) {
        for &(index, count) in &other.cells {
            if let Ok(at) = self.cells.binary_search_by_key(&index, |cell| cell.0) {
                let left = self.cells[at].1.saturating_sub(count);
                if left == 0 {
                    self.cells.remove(at);
                } else {
                    self.cells[at].1 = left;
                }
            }
        }
        self.count = self.count.saturating_sub(other.count);
    }

    /// The cell of the `rank`-th smallest observation (1-based), and how many observations lie in cells before it.
    fn cell_at(&self, rank: u64) -> Option<(u32, u64, u64)> {
        let mut before = 0u64;
        for &(index, count) in &self.cells {
            if before.saturating_add(count) >= rank {
                return Some((index, count, before));
            }
            before = before.saturating_add(count);
        }
        None
    }

    /// Reads HdrHistogram's V2 encoding (uncompressed): a header, then ZigZag LEB128 numbers, a positive one the count
    /// of the next cell, a negative one that many empty cells.
    ///
    /// # Errors
    /// When the bytes are not such a histogram with 3 significant digits from 1 µs.
    pub fn decode_v2(bytes: &[u8]) -> Result<Self, DecodeError> {
        let word = |at: usize| -> u32 { u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) };
        if bytes.len() < V2_HEADER_BYTES {
            return Err(DecodeError::Truncated {
                have: bytes.len(),
                want: V2_HEADER_BYTES,
            });
        }
        let cookie = word(0);
        if cookie | 0x10 != V2_COOKIE {
            return Err(DecodeError::Cookie(cookie));
        }
        let end = V2_HEADER_BYTES + word(4) as usize;
        let lowest = (u64::from(word(16)) << 32) | u64::from(word(20));
        if word(12) != 3 || lowest != 1 {
            return Err(DecodeError::Layout {
                digits: word(12),
                lowest,
            });
        }
        if bytes.len() < end {
            return Err(DecodeError::Truncated {
                have: bytes.len(),
                want: end,
            });
        }
        let mut histogram = SparseHistogram::default();
        let mut at = V2_HEADER_BYTES;
        let mut index = 0u32;
        while at < end {
            let start = at;
            let number = zigzag_leb128(&bytes[..end], &mut at).ok_or(DecodeError::Payload(start))?;
            if number > 0 {
                if index > HIGHEST_INDEX {
                    return Err(DecodeError::Payload(start));
                }
                histogram.cells.push((index, number as u64));
                histogram.count = histogram
                    .count
                    .checked_add(number as u64)
                    .ok_or(DecodeError::Payload(start))?;
                index += 1;
            } else {
                // A lone 0 is one empty cell.
                let skip = u32::try_from(number.unsigned_abs().max(1)).map_err(|_| DecodeError::Payload(start))?;
                index = index.checked_add(skip).ok_or(DecodeError::Payload(start))?;
            }
        }
        Ok(histogram)
    }
}

/// HdrHistogram's LEB128 variant: up to nine bytes, the ninth with all its eight bits.
fn zigzag_leb128(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let mut value = 0u64;
    for position in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if position == 8 {
            value |= u64::from(byte) << 56;
            break;
        }
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}

/// Where a quantile lies, in ms.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct QuantileBounds {
    /// Not below this.
    pub low_ms: f64,
    /// Not above this; `None` when the engine's last bucket has no bound.
    pub high_ms: Option<f64>,
    /// Linear within the bucket; `low_ms` when that is unbounded.
    pub estimate_ms: f64,
}

/// Observations known to their bucket: see the module's text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BoundedHistogram {
    lower: SparseHistogram,
    upper: SparseHistogram,
    /// Sum of true values in ms over the observations that came with one, and how many those are.
    sum_ms: f64,
    summed: u64,
}

impl BoundedHistogram {
    /// From the two histograms of the wire and, where known, the sum of the true values in ms.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not hold the same number of observations.
    pub fn decode(lower: &[u8], upper: &[u8], sum_ms: Option<f64>) -> Result<Self, DecodeError> {
        let lower = SparseHistogram::decode_v2(lower)?;
        let upper = SparseHistogram::decode_v2(upper)?;
        if lower.count != upper.count {
            return Err(DecodeError::Unpaired {
                lower: lower.count,
                upper: upper.count,
            });
        }
        let mut histogram = BoundedHistogram {
            lower,
            upper,
            sum_ms: 0.0,
            summed: 0,
        };
        histogram.set_sum(sum_ms);
        Ok(histogram)
    }

    /// Adds `count` observations known to lie in `(low_ms, high_ms]`; `None` is no upper bound.
    pub fn record(&mut self, low_ms: f64, high_ms: Option<f64>, count: u64) {
        self.lower.record((low_ms * 1000.0).floor() as u64, count);
        self.upper
            .record(high_ms.map_or(HIGHEST_US, |high| (high * 1000.0).ceil() as u64), count);
    }

    /// Says that the true values of all observations so far sum up to `sum_ms`; ignored when it is not a number.
    pub fn set_sum(&mut self, sum_ms: Option<f64>) {
        if let Some(sum_ms) = sum_ms.filter(|sum| sum.is_finite() && *sum >= 0.0) {
            self.sum_ms = sum_ms;
            self.summed = self.count();
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &BoundedHistogram) {
        self.lower.merge(&other.lower);
        self.upper.merge(&other.upper);
        self.sum_ms += other.sum_ms;
        self.summed = self.summed.saturating_add(other.summed);
    }

    /// Takes out what was merged before. The mean may keep a trace of it in its last digits.
    pub fn remove(&mut self, other: &BoundedHistogram) {
        self.lower.remove(&other.lower);
        self.upper.remove(&other.upper);
        self.sum_ms = (self.sum_ms - other.sum_ms).max(0.0);
        self.summed = self.summed.saturating_sub(other.summed);
    }

    /// Observations.
    pub fn count(&self) -> u64 {
        self.lower.count
    }

    /// Mean of the true values in ms, where engines gave sums.
    pub fn mean_ms(&self) -> Option<f64> {
        (self.summed > 0).then(|| self.sum_ms / self.summed as f64)
    }

    /// Where the `q`-quantile lies; `None` without observations.
    ///
    /// Covers both order statistics next to `q`, so that every usual definition of a quantile (nearest rank, linear
    /// interpolation) lies inside.
    pub fn quantile(&self, q: f64) -> Option<QuantileBounds> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let position = q.clamp(0.0, 1.0) * (count - 1) as f64;
        let rank = |position: f64| (position as u64).saturating_add(1).min(count);
        let (below, above) = (rank(position.floor()), rank(position.ceil()));
        let (low_index, ..) = self.lower.cell_at(below)?;
        let (high_index, in_cell, before) = self.upper.cell_at(above)?;
        let low_ms = lowest_of(low_index) as f64 / 1000.0;
        if high_index == HIGHEST_INDEX {
            return Some(QuantileBounds {
                low_ms,
                high_ms: None,
                estimate_ms: low_ms,
            });
        }
        let high_ms = highest_of(high_index) as f64 / 1000.0;
        let within = (position + 1.0 - before as f64) / in_cell as f64;
        // The bucket of the upper statistic starts where its own lower bound is.
        let bucket_low = self
            .lower
            .cell_at(above)
            .map_or(low_ms, |(index, ..)| lowest_of(index) as f64 / 1000.0);
        let estimate_ms = (bucket_low + (high_ms - bucket_low) * within).clamp(low_ms, high_ms);
        Some(QuantileBounds {
            low_ms,
            high_ms: Some(high_ms),
            estimate_ms,
        })
    }
}
