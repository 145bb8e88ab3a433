//! Real processes under a test's or a demo's hand.

mod binaries;
pub mod cluster;
mod decider;
mod http;
pub mod node;
mod ports;
mod processes;
mod wait;

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

pub use binaries::Binaries;
pub use decider::{Client, Decider, Options};
pub use http::http_get;
pub use ports::{free_port, free_range};
pub use processes::{MARK, Process, marked};
pub use wait::{for_target, until};

/// What went wrong with the programs under test.
#[derive(Debug, Error)]
pub enum Error {
    /// A program is not there.
    #[error("{} is missing: build first: make build", .path.display())]
    NotBuilt {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A program could not be started, or a file not written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The decider ended although nobody asked it to.
    #[error("infer-decider ended at its start ({status}); the end of {}:\n{log}", .path.display())]
    Ended {
        /// How.
        status: String,
        /// Its log file.
        path: PathBuf,
        /// The last lines of it.
        log: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {} s; last seen: {seen}", .within.as_secs_f64())]
    TooLate {
        /// What was waited for.
        what: String,
        /// For how long.
        within: Duration,
        /// The last thing seen instead.
        seen: String,
    },
    /// No free port.
    #[error("no {count} free ports in a row on 127.0.0.1")]
    NoPorts {
        /// How many were wanted.
        count: u16,
    },
    /// The decider could not be reached.
    #[error("cannot reach the decider: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// The decider refused.
    #[error("the decider says: {0}")]
    Status(Box<tonic::Status>),
    /// A program failed.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// Which.
        program: String,
        /// How.
        status: String,
        /// What it said.
        stderr: String,
    },
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Error::Status(Box::new(status))
    }
}
