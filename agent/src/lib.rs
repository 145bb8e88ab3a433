//! The sidecar as a library: reads one engine's metrics, turns them into samples and streams them to the decider.
//!
//! Three parts share one [`Agent`]: a sampler on an absolute schedule, a bounded replay buffer, and the link that sends
//! what is in the buffer. The sampler never waits for the link: while the decider is away the buffer fills, and gives
//! everything it still holds to the next decider.
//!
//! The scraper behind the sampler is a [`Source`]; [`HttpSource`] is the one that talks to a real engine.

mod agent;
mod backoff;
mod clock;
mod credentials;
mod drain;
mod endpoint;

mod http_source;
mod link;
mod metrics;
mod options;
mod probes;
mod replay;
mod sampler;
mod schedule;
mod shared;
mod source;

pub use agent::{Agent, Error, Summary};
pub use credentials::Credentials;
pub use http_source::HttpSource;
pub use options::{Options, Settings};
pub use replay::{Limits as ReplayLimits, Replay};
pub use source::{FetchError, Path, Source};

/// The version this agent tells the decider.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
