//! The service's clock: Unix milliseconds that never go back while the process lives.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use infer_core::TimeMs;

/// Wall time at the start, monotonic from there on: an adjusted system clock moves neither windows nor deadlines.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    started_unix_ms: i64,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock {
            started: Instant::now(),
            started_unix_ms: since_epoch.as_millis() as i64,
        }
    }

    /// Now.
    pub fn now(&self) -> TimeMs {
        TimeMs(self.started_unix_ms + self.started.elapsed().as_millis() as i64)
    }

    /// When it was started.
    pub fn started(&self) -> TimeMs {
        TimeMs(self.started_unix_ms)
    }
}
