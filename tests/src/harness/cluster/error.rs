//! What can go wrong with a cluster.

use std::{io, path::Path, path::PathBuf};

use thiserror::Error as ThisError;

/// Why a cluster does not do what a test wants.
#[derive(Debug, ThisError)]
pub enum Error {
    /// A file or a process.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A part of the control plane ended although nobody asked it to.
    #[error("{name} ended; the end of {}:\n{log}", .path.display())]
    Ended {
        /// Which.
        name: &'static str,
        /// Its log file.
        path: PathBuf,
        /// The last lines of it.
        log: String,
    },
    /// A process outlives its killing.
    #[error("pid {pid} is still there")]
    Undead {
        /// Which.
        pid: u32,
    },
    /// Only a cluster that the harness has started can be broken or listened in to.
    #[error("this cluster is not the harness's own")]
    NotOurs,
    /// A node's network or files.
    #[error("cannot make a node: {0}")]
    Node(String),
    /// No key or certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Keys(#[from] rcgen::Error),
    /// A manifest that is no YAML.
    #[error("no YAML: {0}")]
    Yaml(String),
    /// An object without what is needed to find it.
    #[error("not a Kubernetes object: {0}")]
    NoObject(String),
    /// The API server knows no such kind.
    #[error("the API server has no {kind} in {api_version}")]
    NoKind {
        /// As in the manifest.
        api_version: String,
        /// As in the manifest.
        kind: String,
    },
    /// The API server refused.
    #[error("the API server says {code} {reason}: {message}")]
    Refused {
        /// HTTP's.
        code: u16,
        /// In one word, such as "Invalid".
        reason: String,
        /// For people.
        message: String,
    },
    /// A kubeconfig that cannot be used.
    #[error("{}: {message}", .path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The API server could not be reached, or gave no answer that one can read.
    #[error("the API server: {0}")]
    Exchange(String),
    /// Something did not happen in time, or a port or a program is missing.
    #[error(transparent)]
    Wait(#[from] crate::harness::Error),
}

impl Error {
    /// Whether the API server refused for this reason ("NotFound", "Conflict", "AlreadyExists", "Invalid", …).
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Error::Refused { reason, .. } if reason == wanted)
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    pub(super) fn ended(name: &'static str, log: &Path) -> Self {
        Error::Ended {
            name,
            path: log.to_path_buf(),
            log: super::tail(log),
        }
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Error::Refused {
                code: status.code,
                reason: status.reason,
                message: status.message,
            },
            other => Error::Exchange(other.to_string()),
        }
    }
}
