//! Where bodies come from.

use std::future::Future;

use infer_proto::v1::scrape::Outcome;

/// What to read from the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The whole exposition.
    Full,
    /// vLLM's exposition filtered to the queue gauges; empty where the engine does not filter.
    VllmFilter,
    /// SGLang's load report, JSON.
    SglangLoads,
}

/// Gives the agent bodies to read. [`HttpSource`](crate::HttpSource) asks an engine; a benchmark may hand out prepared
/// ones.
pub trait Source: Send {
    /// Reads one body. It is lent until the next call, so that one buffer can serve all of them.
    ///
    /// The agent drops the future when its time is up; the next call must start cleanly after that.
    ///
    /// # Errors
    /// How the reading failed, as the sample will say it.
    fn fetch(&mut self, path: Path) -> impl Future<Output = Result<&[u8], FetchError>> + Send;
}

/// A failed reading.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct FetchError {
    /// The class of failure.
    pub outcome: Outcome,
    /// With [`Outcome::HttpStatus`], the status; otherwise 0.
    pub http_status: u32,
    /// One sentence for a person.
    pub detail: String,
    /// Nobody listens at the address: the engine's process is gone, and the next one counts from 0.
    pub process_gone: bool,
}

impl FetchError {
    /// A failure of the given class.
    pub fn new(outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            outcome,
            http_status: 0,
            detail: detail.into(),
            process_gone: false,
        }
    }
}
