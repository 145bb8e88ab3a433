//! The largest value of a sliding window, in amortised constant time (knative/serving `pkg/autoscaler/max`).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::time::TimeMs;

/// The largest of the values recorded at the last `size` indexes.
///
/// A monotonic queue: values decrease from front to back, so the front is the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaxWindow {
    size: i64,
    queue: VecDeque<(i64, u32)>,
}

impl MaxWindow {
    /// An empty window over `size` indexes; at least 1.
    pub fn new(size: i64) -> Self {
        MaxWindow {
            size: size.max(1),
            queue: VecDeque::new(),
        }
    }

    /// Records `value` at `index`, which does not decrease from call to call.
    pub fn record(&mut self, index: i64, value: u32) {
        while self.queue.front().is_some_and(|(front, _)| *front <= index - self.size) {
            self.queue.pop_front();
        }
        while self.queue.back().is_some_and(|(_, back)| *back <= value) {
            self.queue.pop_back();
        }
        self.queue.push_back((index, value));
    }

    /// Changes how many indexes are looked back on. What a shorter window has forgotten, a longer one does not know.
    pub fn resize(&mut self, size: i64) {
        self.size = size.max(1);
    }

    /// The largest value in the window of the last record; 0 before the first.
    pub fn current(&self) -> u32 {
        self.queue.front().map_or(0, |(_, value)| *value)
    }
}

/// [`MaxWindow`] over time in steps of `granularity`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaxTimeWindow {
    granularity_ms: i64,
    window: MaxWindow,
}

impl MaxTimeWindow {
    /// The largest value of the last `window_s` seconds, to a granularity of `granularity_ms`.
    pub fn new(window_s: f64, granularity_ms: i64) -> Self {
        let granularity_ms = granularity_ms.max(1);
        MaxTimeWindow {
            granularity_ms,
            window: MaxWindow::new(steps(window_s, granularity_ms)),
        }
    }

    /// Changes the window's length and keeps what still fits. Whether it has become longer: then part of it is not known.
    pub fn resize(&mut self, window_s: f64) -> bool {
        let before = self.window.size;
        self.window.resize(steps(window_s, self.granularity_ms));
        self.window.size > before
    }

    /// Records `value` at `now`.
    pub fn record(&mut self, now: TimeMs, value: u32) {
        self.window.record(now.0.div_euclid(self.granularity_ms), value);
    }

    /// Dates what was recorded after `now` at `now`, the largest of it: a clock that was set back must not hold it for
    /// as long as it was wrong.
    pub fn not_after(&mut self, now: TimeMs) {
        let present = now.0.div_euclid(self.granularity_ms);
        let queue = &mut self.window.queue;
        let largest = queue
            .iter()
            .filter(|(index, _)| *index > present)
            .map(|(_, value)| *value)
            .max();
        queue.retain(|(index, _)| *index <= present);
        if let Some(largest) = largest {
            self.window.record(present, largest);
        }
    }

    /// The largest value in the window of the last record; 0 before the first.
    pub fn current(&self) -> u32 {
        self.window.current()
    }
}

fn steps(window_s: f64, granularity_ms: i64) -> i64 {
    (window_s * 1000.0 / granularity_ms as f64).ceil() as i64
}
