//! The agent's monotonic clock: milliseconds since its boot, the only time that travels in samples.

use std::time::Duration;

use tokio::time::Instant;

/// Counts from the moment it is made. Follows tokio's virtual time in tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    boot: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { boot: Instant::now() }
    }

    /// Milliseconds since boot.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.boot.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The instant `ms` after boot.
    pub(crate) fn at(&self, ms: u64) -> Instant {
        self.boot + Duration::from_millis(ms)
    }
}
