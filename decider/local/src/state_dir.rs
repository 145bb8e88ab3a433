//! The directory a decider owns: registries, logs, and the lock that makes it the only one.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{Error, process};

/// How long a lock may outlive a decider that is dead: a child it was just starting shares the lock until it runs its
/// program, and on a loaded machine that takes its time.
const CHILD_OF_THE_DEAD: Duration = Duration::from_secs(2);
/// The same for a decider that let go of its lock and lives on, as after [`crate::Shutdown::Leave`] within one process.
const CHILD_OF_THE_LIVING: Duration = Duration::from_millis(250);
/// How often a held lock is tried.
const LOOK: Duration = Duration::from_millis(10);

/// A locked state directory. The lock lives as long as this value and ends with the process, however it ends.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    fleet_id: String,
    /// Held for its lock. A child that was forked but has not yet run its program shares it, so whoever gets the lock
    /// finds every child of the previous holder with its environment in place.
    _lock: File,
}

impl StateDir {
    /// Creates the directory where needed and locks it. Blocks, at most about two seconds, when the lock is held.
    ///
    /// # Errors
    /// [`Error::Held`] with the pid of a live decider that has it; [`Error::StateFile`] when it cannot be made.
    pub fn lock(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        fs::create_dir_all(path.join("logs")).map_err(failed("create", path))?;
        Self::lock_existing(path)
    }

    pub(crate) fn lock_existing(path: &Path) -> Result<Self, Error> {
        let path = path.canonicalize().map_err(failed("read", path))?;
        let file_path = path.join("lock");
        let open = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file_path);
        let mut file = open.map_err(failed("create", &file_path))?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let holder = read_pid(&mut file);
                    let alive = holder.is_some_and(|pid| process::stat(pid).is_some_and(|stat| !stat.dead));
                    let patience = if alive { CHILD_OF_THE_LIVING } else { CHILD_OF_THE_DEAD };
                    if began.elapsed() >= patience {
                        let unknown = || "its pid is not written yet".to_owned();
                        let holder = holder.map_or_else(unknown, |pid| format!("pid {pid}"));
                        return Err(Error::Held { path, holder });
                    }
                    std::thread::sleep(LOOK);
                }
                Err(TryLockError::Error(source)) => {
                    return Err(Error::StateFile {
                        action: "lock",
                        path: file_path,
                        source,
                    });
                }
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed("write", &file_path))?;
        let meta = fs::metadata(&path).map_err(failed("read", &path))?;
        // Path, device and inode: the same path in another container, whose processes this one may see, is another
        // directory and must not be taken for this one.
        let inode = format!("{}:{}", meta.dev(), meta.ino());
        let fleet_id = process::fnv1a([path.as_os_str().as_bytes(), inode.as_bytes()]);
        Ok(Self {
            path,
            fleet_id,
            _lock: file,
        })
    }

    /// The directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What every process started from here carries in `INFER_FLEET_ID`.
    #[must_use]
    pub fn fleet_id(&self) -> &str {
        &self.fleet_id
    }

    /// Names of the fleets that have a registry here, whether or not they are still configured: one that is not can be
    /// ended with [`crate::end_fleet`].
    ///
    /// # Errors
    /// [`Error::StateFile`] when the directory cannot be read.
    pub fn fleets(&self) -> Result<Vec<String>, Error> {
        let entries = fs::read_dir(&self.path).map_err(failed("read", &self.path))?;
        let name = |file: String| Some(file.strip_prefix("fleet-")?.strip_suffix(".json")?.to_owned());
        let mut fleets: Vec<_> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(name)
            .collect();
        fleets.sort_unstable();
        Ok(fleets)
    }

    pub(crate) fn registry_path(&self, fleet: &str) -> PathBuf {
        self.path.join(format!("fleet-{fleet}.json"))
    }

    pub(crate) fn log_path(&self, replica: &str, role: &str) -> PathBuf {
        self.path.join("logs").join(format!("{replica}.{role}.log"))
    }
}

/// The pid in a lock file. A holder that was stopped between locking and writing leaves none, or an older one's.
fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Makes the [`Error::StateFile`] of a failed action on a path.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::StateFile { action, path, source }
}
