//! Nothing outlives the test process.
//!
//! Statics are not dropped at the end of a process, tests abort, people press Ctrl-C and machines run out of memory. So a
//! small shell process waits on a pipe that only the test process holds: when that is closed, however it came to be, the
//! shell ends every process it was told of (by pid and start time, so that nobody else's is hit) and removes the
//! directory. Should it be killed as well, the next run does the same for it.

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{END, Error};

const PREFIX: &str = "infer-cluster-";
/// What has been started, "PID START-TIME" a line.
const PROCESSES: &str = "processes";
/// What is to be done when they are gone: shell commands, a line each, last one first.
const COMMANDS: &str = "commands";
/// The guard itself, as such a line.
const OWNER: &str = "guard";
const LOOK: Duration = Duration::from_millis(10);
const SCRIPT: &str = include_str!("guard.sh");

/// Ends what was started through it, and removes its directory.
#[derive(Debug)]
pub(super) struct Guard {
    directory: PathBuf,
    /// `None` only in the middle of a drop.
    pipe: Mutex<Option<ChildStdin>>,
    process: Mutex<process::Child>,
    kept: AtomicBool,
}

/// A process of a cluster. Dropping it does nothing: the guard ends it.
#[derive(Debug, Clone)]
pub struct Child {
    pid: u32,
    process: Arc<Mutex<process::Child>>,
}

impl Guard {
    pub(super) fn new() -> Result<Self, Error> {
        let temporary = env::temp_dir();
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .map_err(Error::io("create a directory in", &temporary))?
            .keep();
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "infer-cluster-guard"]).arg(&directory);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for the test process; the guard has its work before it then.
            .process_group(0);
        let mut process = command.spawn().map_err(Error::io("start", Path::new("sh")))?;
        let owner = directory.join(OWNER);
        fs::write(&owner, line(process.id())).map_err(Error::io("write", &owner))?;
        Ok(Guard {
            pipe: Mutex::new(process.stdin.take()),
            process: Mutex::new(process),
            directory,
            kept: AtomicBool::new(false),
        })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a program; what it says is appended to the log.
    pub(super) fn spawn(&self, mut command: Command, log: &Path) -> Result<Child, Error> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(Error::io("write", log))?;
        let again = file.try_clone().map_err(Error::io("write", log))?;
        command.stdin(Stdio::null()).stdout(file).stderr(again).process_group(0);
        let program = PathBuf::from(command.get_program());
        let child = command.spawn().map_err(Error::io("start", &program))?;
        let pid = child.id();
        self.tell(&format!("process {}", line(pid)));
        Ok(Child {
            pid,
            process: Arc::new(Mutex::new(child)),
        })
    }

    /// A shell command to run when everything has ended, the last one that was told first.
    pub(super) fn at_end(&self, command: &str) {
        self.tell(&format!("command {command}\n"));
    }

    /// Whether it is the first to ask that the directory stays.
    pub(super) fn keep(&self) -> bool {
        self.tell("keep\n");
        !self.kept.swap(true, Ordering::Relaxed)
    }

    fn tell(&self, text: &str) {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = &mut *pipe {
            // A guard that was killed hears nothing; the next run ends what is left.
            let _ = pipe.write_all(text.as_bytes());
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.lock().unwrap_or_else(PoisonError::into_inner).take());
        let _ = self.process.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

impl Child {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(process.try_wait(), Ok(None))
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        // Reaped or not is known under the lock only: a reaped one's pid may be somebody else's.
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(process.try_wait(), Ok(None))
            && let Ok(pid) = i32::try_from(self.pid)
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// `kill -9`, and waits for its end.
    ///
    /// # Errors
    /// [`Error::Undead`].
    pub fn end(&self, within: Duration) -> Result<(), Error> {
        {
            let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = process.kill();
        }
        let began = Instant::now();
        while self.is_alive() {
            if began.elapsed() > within {
                return Err(Error::Undead { pid: self.pid });
            }
            sleep(LOOK);
        }
        Ok(())
    }
}

fn line(pid: u32) -> String {
    format!("{pid} {}\n", start_time(pid).unwrap_or_default())
}

/// In ticks since boot; `None` for one that is gone or waits for its parent.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything: state is first, start time twentieth.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    (state != "Z").then_some(())?;
    fields.nth(18)?.parse().ok()
}

/// Of a line "PID START-TIME": the pid while it is still that process.
fn alive(line: &str) -> Option<u32> {
    let (pid, start) = line.trim().split_once(' ')?;
    let (pid, start): (u32, u64) = (pid.parse().ok()?, start.parse().ok()?);
    (start_time(pid)? == start).then_some(pid)
}

/// Does for guards that were killed what they would have done.
pub(super) fn end_leftovers() {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else {
        return;
    };
    let left = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for directory in left.map(|entry| entry.path()) {
        // Without an owner it is just being made, or was kept for inspection.
        let Ok(owner) = fs::read_to_string(directory.join(OWNER)) else {
            continue;
        };
        if alive(&owner).is_some() {
            continue;
        }
        let processes = fs::read_to_string(directory.join(PROCESSES)).unwrap_or_default();
        let pids: Vec<_> = processes.lines().filter_map(alive).collect();
        for pid in &pids {
            if let Ok(pid) = i32::try_from(*pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let began = Instant::now();
        while processes.lines().any(|line| alive(line).is_some()) && began.elapsed() < END {
            sleep(LOOK);
        }
        let commands = fs::read_to_string(directory.join(COMMANDS)).unwrap_or_default();
        for command in commands.lines().rev() {
            let _ = Command::new("sh").args(["-c", command]).stderr(Stdio::null()).status();
        }
        let _ = fs::remove_dir_all(&directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    }

    fn gone(pid: u32) -> bool {
        let began = Instant::now();
        while start_time(pid).is_some() && began.elapsed() < END {
            sleep(LOOK);
        }
        start_time(pid).is_none()
    }

    #[test]
    fn a_dropped_guard_leaves_nothing() {
        let guard = Guard::new().unwrap();
        let directory = guard.directory().to_owned();
        let child = guard.spawn(sleeper(), &directory.join("log")).unwrap();
        assert!(child.is_alive() && directory.is_dir());
        let outside = tempfile::tempdir().unwrap();
        let file = outside.path().join("order");
        for word in ["last", "first"] {
            guard.at_end(&format!("echo {word} >>'{}'", file.display()));
        }
        drop(guard);
        assert!(gone(child.pid()) && !directory.exists());
        assert_eq!(fs::read_to_string(file).unwrap(), "first\nlast\n");
    }

    #[test]
    fn what_a_killed_guard_has_left_is_ended_by_the_next() {
        let guard = Guard::new().unwrap();
        let directory = guard.directory().to_owned();
        let child = guard.spawn(sleeper(), &directory.join("log")).unwrap();
        let noted = || fs::read_to_string(directory.join(PROCESSES)).unwrap_or_default();
        let began = Instant::now();
        while noted().is_empty() && began.elapsed() < END {
            sleep(LOOK);
        }
        {
            let mut process = guard.process.lock().unwrap();
            process.kill().unwrap();
            process.wait().unwrap();
        }
        assert!(child.is_alive() && directory.is_dir());
        end_leftovers();
        assert!(gone(child.pid()) && !directory.exists());
    }

    #[test]
    fn a_process_of_another_time_is_left_alone() {
        let own = process::id();
        let start = start_time(own).unwrap();
        assert_eq!(alive(&format!("{own} {start}\n")), Some(own));
        assert_eq!(alive(&format!("{own} {}\n", start + 1)), None);
        assert_eq!(alive("\n"), None);
    }
}
