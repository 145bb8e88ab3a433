//! Windows over time: what one tick can look back on.
//!
//! See `README.md` beside this file for the problem, the properties and the costs.

mod buckets;
mod max;
mod rings;

pub use buckets::{Averaging, TimedBuckets, round_to_digits, smoothing_coefficient, weighted_average};
pub use max::{MaxTimeWindow, MaxWindow};
pub use rings::{CounterRing, HistogramRing, SlidingHistogram};
