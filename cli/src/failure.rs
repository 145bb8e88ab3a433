//! Ways for a command to fail, and their exit codes.

use std::io;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A mistake in the command line or in a document.
    Usage(String),
    /// The work failed.
    Work(String),
    /// Writing the output failed.
    Output(io::Error),
    /// Everything has been said already, and something is wrong with a document.
    Told,
}

impl Failure {
    /// What to say on stderr. Nothing to those who stopped reading.
    pub(crate) fn message(&self) -> Option<String> {
        match self {
            Failure::Usage(message) | Failure::Work(message) => Some(message.clone()),
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Failure::Output(error) => Some(format!("cannot write the output: {error}")),
            Failure::Told => None,
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) | Failure::Told => 2,
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Failure::Work(_) | Failure::Output(_) => 1,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}
