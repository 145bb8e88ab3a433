//! What a run tells while it goes on.

use crate::plan::Arrival;
use serde::Serialize;
use std::fmt;

/// Something that happened. Given to the observer of [`crate::run`] in the order it happened.
#[derive(Debug)]
pub enum Event {
    /// A request is on its way.
    Started {
        /// Its place in the plan, from 0.
        index: u64,
        /// What was planned, in seconds of the run (after time scaling).
        arrival: Arrival,
    },
    /// A request is over, well or not, or was not sent because of the in-flight cap.
    Finished(Outcome),
    /// How it stands, once every progress interval.
    Progress(Progress),
    /// No more requests will be sent; those in flight go on.
    SendingEnded {
        /// Whether the run was told to stop before the end of the plan.
        interrupted: bool,
    },
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// Seconds since the start.
    pub t_s: f64,
    /// Requests sent so far.
    pub sent: u64,
    /// Requests without an end yet.
    pub in_flight: u64,
    /// Requests answered in full.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Median TTFT of the streams that began in the last interval, in milliseconds.
    pub ttft_p50_ms: Option<f64>,
    /// 95th percentile of the same.
    pub ttft_p95_ms: Option<f64>,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// No connection.
    Connect,
    /// The connection ended before an answer.
    Closed,
    /// An answer with a status other than 200.
    HttpStatus,
    /// An answer that is not what the API says.
    Protocol,
    /// An error inside a stream that had begun well: how engines refuse work after status 200.
    StreamError,
    /// A stream that ended before its end mark or with fewer tokens than asked for.
    Truncated,
    /// Not done within the request timeout.
    Timeout,
    /// Still in flight when the wait after an interruption was over.
    Abandoned,
    /// Not sent: as many requests as allowed were in flight.
    InFlightCap,
    /// A fault of the generator itself.
    Internal,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Closed => "closed",
            Self::HttpStatus => "http_status",
            Self::Protocol => "protocol",
            Self::StreamError => "stream_error",
            Self::Truncated => "truncated",
            Self::Timeout => "timeout",
            Self::Abandoned => "abandoned",
            Self::InFlightCap => "in_flight_cap",
            Self::Internal => "internal",
        })
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// Its kind.
    pub class: Class,
    /// What exactly, for people.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
        }
    }
}

/// All that was measured of one request. Serialises to one line of a record file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Its place in the plan, from 0.
    pub index: u64,
    /// When it was to start, in seconds after the start of the run.
    pub planned_s: f64,
    /// When it did start.
    pub start_s: f64,
    /// Prompt length asked for, in tokens.
    pub input_tokens: u32,
    /// Output length asked for, in tokens.
    pub output_tokens: u32,
    /// HTTP status, once there was one.
    pub status: Option<u16>,
    /// The replica that answered, from the `x-replica` header a proxy may set.
    pub replica: Option<String>,
    /// From start to the first token in milliseconds, connecting included.
    pub ttft_ms: Option<f64>,
    /// When each chunk with tokens arrived, in milliseconds after the start. An engine under load can put several tokens
    /// into one chunk.
    pub token_ms: Vec<f32>,
    /// From start to the end mark, or to the failure, in milliseconds.
    pub e2e_ms: f64,
    /// Prompt tokens by the server's count.
    pub prompt_tokens: Option<u32>,
    /// Tokens received: by the server's count if it gave one, else chunks with tokens.
    pub completion_tokens: u32,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

impl Outcome {
    /// Whether it was answered in full.
    pub fn is_ok(&self) -> bool {
        self.failure.is_none()
    }

    /// How late the generator was in starting it, in milliseconds.
    pub fn start_lag_ms(&self) -> f64 {
        (self.start_s - self.planned_s).max(0.0) * 1e3
    }

    /// Mean time per output token after the first, in milliseconds; none for fewer than two tokens. Unlike the gaps
    /// between chunks it does not depend on how many tokens the engine puts into a chunk.
    pub fn tpot_ms(&self) -> Option<f64> {
        let (first_ms, last_ms) = (self.token_ms.first()?, self.token_ms.last()?);
        (self.completion_tokens > 1).then(|| f64::from(last_ms - first_ms) / f64::from(self.completion_tokens - 1))
    }
}
