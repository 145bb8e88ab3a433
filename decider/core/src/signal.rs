//! The latency signals an engine can tell.

use serde::{Deserialize, Serialize};

/// A latency, counted in a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Signal {
    /// Time to first token, per request.
    Ttft,
    /// Inter-token latency, per gap between two tokens.
    Itl,
    /// Time per output token, per request.
    Tpot,
    /// End to end, per request.
    E2e,
    /// Time in the engine's queue, per request.
    Queue,
}

impl Signal {
    /// Every signal, in display order; a signal's position here is its index in arrays.
    pub const ALL: [Signal; 5] = [Signal::Ttft, Signal::Itl, Signal::Tpot, Signal::E2e, Signal::Queue];

    /// The name people read: "ttft", "itl", "tpot", "e2e", "queue".
    pub fn name(self) -> &'static str {
        match self {
            Signal::Ttft => "ttft",
            Signal::Itl => "itl",
            Signal::Tpot => "tpot",
            Signal::E2e => "e2e",
            Signal::Queue => "queue",
        }
    }

    /// Position in [`Signal::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}
