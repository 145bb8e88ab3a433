//! Time as the core knows it: an argument.

use serde::{Deserialize, Serialize};

/// Milliseconds since an epoch of the caller's choice: the Unix epoch in the service, the start of the run in a
/// simulation. May be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimeMs(pub i64);

impl TimeMs {
    /// From seconds, rounded to the nearest millisecond.
    pub fn from_s(seconds: f64) -> Self {
        TimeMs((seconds * 1000.0).round() as i64)
    }

    /// This time moved by `seconds`, which may be negative.
    pub fn plus_s(self, seconds: f64) -> Self {
        TimeMs(self.0.saturating_add((seconds * 1000.0).round() as i64))
    }

    /// Seconds from `earlier` to `self`; negative when `earlier` is later.
    pub fn since_s(self, earlier: TimeMs) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1000.0
    }
}
