//! What the supervisor asks of whoever sends requests to the engines.

use std::{fmt, net::SocketAddr, sync::Arc};

/// A replica that may be given requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name of the replica, `<fleet>-<n>`.
    pub replica: String,
    /// Where its engine listens.
    pub address: SocketAddr,
}

/// The sender of requests, normally the front door. Both calls come from the supervisor's task and must not block.
pub trait Traffic: Send + Sync + 'static {
    /// From now on new requests go to these replicas only. Called with the whole list on each change; a replica that
    /// left the list keeps the requests it has.
    fn set_endpoints(&self, ready: Vec<Endpoint>);

    /// Requests now under way at a replica; 0 for one that is not known.
    fn in_flight(&self, replica: &str) -> usize;
}

/// For a fleet whose requests do not pass through this process: only the engine's own word tells when it is idle.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTraffic;

impl Traffic for NoTraffic {
    fn set_endpoints(&self, _ready: Vec<Endpoint>) {}

    fn in_flight(&self, _replica: &str) -> usize {
        0
    }
}

/// The engine's own word on how busy it is: replica name → running + waiting requests as last reported, `None` when
/// nothing recent is known. A drain waits for this to be 0 too, because requests may reach an engine past the front
/// door. `None` does not hold a drain up.
#[derive(Clone)]
pub struct Running(Arc<Lookup>);

type Lookup = dyn Fn(&str) -> Option<f64> + Send + Sync;

impl Running {
    /// Wraps the look-up; it is called from the supervisor's task and must not block.
    pub fn new(lookup: impl Fn(&str) -> Option<f64> + Send + Sync + 'static) -> Self {
        Self(Arc::new(lookup))
    }

    /// Running + waiting requests of a replica as last reported.
    #[must_use]
    pub fn of(&self, replica: &str) -> Option<f64> {
        (self.0)(replica)
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Running(..)")
    }
}
