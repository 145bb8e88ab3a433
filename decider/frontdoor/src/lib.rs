//! The front door of a local fleet: a streaming reverse proxy for the OpenAI API.
//!
//! It sends each request to the least-loaded ready replica, holds requests while there is none, and counts what it
//! does, so that the decider sees demand even when the fleet stands at zero.
//!
//! ```no_run
//! # async fn example() -> Result<(), infer_frontdoor::Error> {
//! use infer_frontdoor::{Endpoint, FrontDoor, Options};
//!
//! let options = Options { listen: ([127, 0, 0, 1], 8000).into(), ..Options::default() };
//! let (door, handle) = FrontDoor::bind(options).await?;
//! handle.set_endpoints(vec![Endpoint { replica: "chat-0".into(), address: ([127, 0, 0, 1], 8100).into() }]);
//! door.run(std::future::pending()).await
//! # }
//! ```
//!
//! How a request travels: [`server`](FrontDoor) accepts it, its body is read whole (bounded), the gate gives it a lease
//! on a replica (or holds it), it is sent over a pooled or a fresh connection, and the lease travels with the response
//! body until that body has ended. See the crate's README for the bounds and promises.

mod balance;
mod body;
mod gate;
mod headers;
mod io;
mod options;
mod pool;
mod proxy;
mod queue;
mod replica;
mod reply;
mod server;
mod stats;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use options::{Endpoint, Error, Options};
pub use server::{FrontDoor, Handle};
pub use stats::{Failed, Rejected, ReplicaStats, Retried, Stats};

/// Locks, also after another thread has panicked while holding the lock: what we guard are counters and sets whose
/// every intermediate state is valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
