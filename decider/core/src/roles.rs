//! Roles that need each other, such as prefill and decode: how many replicas of one there may be per replica of the other.

use serde::{Deserialize, Serialize};

/// Counts are whole numbers; a quotient that misses a limit by less than this does not.
const ROUNDING: f64 = 1e-9;

/// Limits of `numerator ÷ denominator`, both counts of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Smallest quotient; greater than 0.
    pub min: f64,
    /// Largest quotient; at least `min`.
    pub max: f64,
}

impl Ratio {
    /// The smallest counts, not below those wanted and not above `most`, whose quotient is allowed. Nothing shrinks for the
    /// ratio's sake. Where no counts are possible: those at which one role would have to exceed its most.
    ///
    /// `wanted`, `most` and the answer are (numerator, denominator). Two times 0 is allowed; one without the other is not.
    pub fn fewest(&self, wanted: (u32, u32), most: (u32, u32)) -> (u32, u32) {
        let (mut above, mut below) = wanted;
        // Each side needs at least so many of the other: the smallest counts that satisfy both are reached from below. Each
        // turn adds at least one replica, so there are no more turns than replicas.
        loop {
            let needed = ceil(f64::from(above) / self.max).max(below).min(most.1.max(wanted.1));
            let needing = ceil(f64::from(needed) * self.min).max(above).min(most.0.max(wanted.0));
            if (needing, needed) == (above, below) {
                return (above, below);
            }
            (above, below) = (needing, needed);
        }
    }
}

fn ceil(count: f64) -> u32 {
    (count - ROUNDING).ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}
