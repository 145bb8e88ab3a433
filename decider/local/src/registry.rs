//! The registry on disk: what a fleet consists of, so that the next decider can take it over.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{Error, process::Identity, state_dir::failed};

/// One fleet. An entry without an engine is an intent: it was written before the process was started.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Registry {
    pub(crate) fleet: String,
    /// The wanted count last told, if any was.
    pub(crate) wanted: Option<u32>,
    pub(crate) plan_id: Option<String>,
    pub(crate) replicas: Vec<Record>,
    /// Processes that were asked to end and had not yet.
    #[serde(default)]
    pub(crate) leaving: Vec<LeavingRecord>,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) stage: RecordStage,
    pub(crate) port: Option<u16>,
    pub(crate) engine: Option<Identity>,
    pub(crate) agent: Option<Identity>,
    pub(crate) started_unix_ms: u64,
    pub(crate) spawned_unix_ms: Option<u64>,
    pub(crate) ready_unix_ms: Option<u64>,
    pub(crate) startup_ms: Option<u64>,
    pub(crate) drain_until_unix_ms: Option<u64>,
    pub(crate) crashes: u64,
    /// Failures in a row: a crash loop goes on where it was.
    pub(crate) failures: u32,
    pub(crate) last_problem: Option<String>,
}

/// How far a replica had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RecordStage {
    Starting,
    Ready,
    Draining,
    Terminating,
    Failed,
}

/// A process that was asked to end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeavingRecord {
    pub(crate) replica: String,
    pub(crate) uid: String,
    pub(crate) process: Identity,
}

impl Registry {
    /// Reads a registry; an absent one is `None`. One that does not parse (a disk that lost power) is moved aside with a
    /// warning: the environment of the processes then says what there is.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, Error> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", path)(source)),
        };
        match serde_json::from_slice(&bytes) {
            Ok(registry) => Ok(Some(registry)),
            Err(error) => {
                let aside = path.with_extension("json.unreadable");
                tracing::warn!(path = %path.display(), %error, aside = %aside.display(), "registry does not parse, moved aside");
                fs::rename(path, &aside).map_err(failed("write", path))?;
                Ok(None)
            }
        }
    }

    /// The bytes to write.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }
}

/// Replaces a file in one step: whoever reads it sees the old or the new content, whenever this process is killed.
/// Nothing is synced: a killed process leaves its writes with the kernel, and a power failure, which would not, ends the
/// recorded processes as well. A start must not wait for a busy disk (seconds were seen).
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("json.new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)
    };
    write().map_err(failed("write", path))
}

/// Removes a file that may be absent already.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("write", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_written_and_a_broken_one_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet-chat.json");
        assert_eq!(Registry::load(&path).unwrap(), None);
        let registry = Registry {
            fleet: "chat".into(),
            wanted: Some(3),
            ..Registry::default()
        };
        replace(&path, &registry.encode().unwrap()).unwrap();
        assert_eq!(Registry::load(&path).unwrap(), Some(registry));
        fs::write(&path, "{ half").unwrap();
        assert_eq!(Registry::load(&path).unwrap(), None);
        assert!(dir.path().join("fleet-chat.json.unreadable").exists());
        remove(&path).unwrap();
    }
}
