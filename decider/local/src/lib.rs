//! The local backend: keeps a fleet of inference engine processes, each with an `infer-agent` beside it, on this
//! machine at a wanted count.
//!
//! One [`Supervisor`] per fleet, all sharing the locked [`StateDir`]. [`Supervisor::new`] checks the [`FleetSpec`],
//! [`Supervisor::run`] does the work, and the [`Handle`] scales the fleet and shows its state. Engines outlive a decider
//! that was killed: the next one adopts them from the registry on disk, and [`cleanup`] ends them when no decider is to
//! come. States, transitions, guarantees and files are written down in the crate's README.
//!
//! Linux only: processes are recognised through `/proc`.

mod backoff;
mod cleanup;
mod error;
mod handle;
mod launch;
mod lifecycle;
mod probe;
mod process;
mod reconcile;
mod registry;
mod slot;
mod spec;
mod state;
mod state_dir;
mod supervisor;
mod takeover;
mod template;
mod traffic;

pub use cleanup::{Ended, Report, Role, cleanup, end_fleet};
pub use error::Error;
pub use handle::Handle;
pub use spec::{Agent, Drain, Engine, FleetSpec, Restart, StartupProbe};
pub use state::{Counters, Event, EventKind, FleetState, Phase, ReplicaState};
pub use state_dir::StateDir;
pub use supervisor::{Options, Shutdown, Supervisor};
pub use traffic::{Endpoint, NoTraffic, Running, Traffic};
