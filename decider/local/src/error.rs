use std::{io, path::PathBuf};

/// What can go wrong in the local backend, worded for the person who has to fix it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The fleet specification is wrong: a configuration mistake.
    #[error("fleet \"{fleet}\": {field}: {problem}")]
    Spec {
        /// The fleet's name as written.
        fleet: String,
        /// The field, as in `engine.command[2]`.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Another decider holds the state directory.
    #[error(
        "state directory {} is held by a live decider ({holder}); stop that one first, or give this one a state directory of its own",
        path.display()
    )]
    Held {
        /// The state directory.
        path: PathBuf,
        /// `pid 123`, or a remark when the holder did not write its pid yet.
        holder: String,
    },
    /// There is no state directory at this path, so there is nothing to clean up.
    #[error("no state directory at {}", path.display())]
    NoStateDir {
        /// The path asked for.
        path: PathBuf,
    },
    /// A file of the state directory could not be read or written.
    #[error("cannot {action} {}", path.display())]
    StateFile {
        /// The verb: `create`, `read`, `write`, `lock`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// `/proc` does not answer; without it no process can be told from another.
    #[error("cannot read {path}: the local backend needs a Linux /proc")]
    Proc {
        /// The file of `/proc`.
        path: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A handle was asked to scale a fleet it does not belong to.
    #[error("this handle scales fleet \"{own}\", not \"{asked}\"")]
    OtherFleet {
        /// The handle's fleet.
        own: String,
        /// The fleet asked for.
        asked: String,
    },
    /// More replicas than ports.
    #[error("fleet \"{fleet}\": {asked} replicas asked for, but its port range holds {ports}")]
    TooManyReplicas {
        /// The fleet.
        fleet: String,
        /// Replicas asked for.
        asked: u32,
        /// Ports in the range.
        ports: u32,
    },
    /// The supervisor has ended.
    #[error("the supervisor of fleet \"{fleet}\" has ended")]
    Stopped {
        /// The fleet.
        fleet: String,
    },
    /// A helper thread of the runtime went away, which happens only while the runtime is shut down.
    #[error("the runtime is shutting down")]
    Runtime,
}
