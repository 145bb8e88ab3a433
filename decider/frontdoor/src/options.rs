//! What a front door is started with.

use std::{io, net::SocketAddr, time::Duration};

/// One replica a front door may send requests to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The replica's name, as given back in the `x-replica` response header.
    pub replica: String,
    /// Where its engine listens.
    pub address: SocketAddr,
}

/// Settings of a front door. `Options::default()` suits one model on one machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 picks a free one (see `FrontDoor::local_addr`). Default 127.0.0.1:8000.
    pub listen: SocketAddr,
    /// The served model's name: with it, `GET /v1/models` is answered here while no replica is ready.
    pub model: Option<String>,
    /// Most requests held while no replica is ready. Default 1024.
    pub max_held_requests: usize,
    /// Most bytes of request bodies held while no replica is ready. Default 64 MiB.
    pub max_held_bytes: usize,
    /// Most bytes of all request bodies in memory: being read, held, or kept for a retry until the response begins.
    /// Default 256 MiB.
    pub max_buffered_bytes: usize,
    /// Largest request body; a larger one is answered 413. Default 8 MiB.
    pub max_body_bytes: usize,
    /// Longest time one request is held. Default 120 s.
    pub queue_timeout: Duration,
    /// Longest time for reading one request body. Default 60 s.
    pub body_read_timeout: Duration,
    /// Longest time for opening a connection to a replica. Default 2 s.
    pub connect_timeout: Duration,
    /// Longest time from sending a request to its response's head. Default 600 s, as engines queue for long.
    pub header_timeout: Duration,
    /// Longest pause inside a response: of the replica in sending, and of the client in taking. Default 300 s.
    pub body_idle_timeout: Duration,
    /// Most further attempts for a request of whose response nothing was received. Default 2.
    pub max_retries: u32,
    /// Idle connections to a replica are dropped after this time. Default 4 s, under uvicorn's 5 s.
    pub pool_idle_timeout: Duration,
    /// How long a replica that failed is put aside at first; doubles up to `aside_max`. Default 1 s.
    pub aside_base: Duration,
    /// Longest time between two looks at a replica that was put aside. Default 10 s.
    pub aside_max: Duration,
    /// Most client connections at a time; further ones wait in the listen backlog. Default 4096.
    pub max_connections: usize,
    /// On shutdown, how long requests in flight may take to finish. Default 30 s.
    pub drain_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8000).into(),
            model: None,
            max_held_requests: 1024,
            max_held_bytes: 64 << 20,
            max_buffered_bytes: 256 << 20,
            max_body_bytes: 8 << 20,
            queue_timeout: Duration::from_secs(120),
            body_read_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            header_timeout: Duration::from_secs(600),
            body_idle_timeout: Duration::from_secs(300),
            max_retries: 2,
            pool_idle_timeout: Duration::from_secs(4),
            aside_base: Duration::from_secs(1),
            aside_max: Duration::from_secs(10),
            max_connections: 4096,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Options {
    /// Names the first setting that cannot work.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let positive = [
            ("queue_timeout", self.queue_timeout),
            ("body_read_timeout", self.body_read_timeout),
            ("connect_timeout", self.connect_timeout),
            ("header_timeout", self.header_timeout),
            ("body_idle_timeout", self.body_idle_timeout),
            ("pool_idle_timeout", self.pool_idle_timeout),
            ("aside_base", self.aside_base),
        ];
        if let Some((field, _)) = positive.iter().find(|(_, value)| value.is_zero()) {
            return Err(Error::Options {
                field,
                want: "more than zero".into(),
            });
        }
        if self.aside_max < self.aside_base {
            return Err(Error::Options {
                field: "aside_max",
                want: format!("at least {:?}", self.aside_base),
            });
        }
        if self.max_connections == 0 || self.max_connections > tokio::sync::Semaphore::MAX_PERMITS {
            return Err(Error::Options {
                field: "max_connections",
                want: "at least 1".into(),
            });
        }
        Ok(())
    }
}

/// Why a front door could not start or ended badly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot work.
    #[error("front door: {field} must be {want}")]
    Options {
        /// The field of [`Options`].
        field: &'static str,
        /// What would be right.
        want: String,
    },
    /// The listen address cannot be had.
    #[error("front door: cannot listen on {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Requests were still in flight at the end of the drain time, and were cut off.
    #[error("front door: {connections} connection(s) cut off, still busy after {after:?}")]
    CutOff {
        /// Client connections cut off.
        connections: usize,
        /// The drain time.
        after: Duration,
    },
}
