//! What a run has left: processes that carry its mark in their environment.

use std::fs;

/// Name of the environment variable that a decider is started with. Engines, agents and their workers inherit it, so
/// that they are found without asking the program under test.
pub const MARK: &str = "INFER_TEST_RUN";

/// A live process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Its command line.
    pub command: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.command)
    }
}

/// Every live process that carries the mark with this value. Dead ones that wait for their parent are not among them.
pub fn marked(mark: &str) -> Vec<Process> {
    let entry = format!("{MARK}={mark}");
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut processes: Vec<_> = pids
        .filter_map(|pid| {
            // Empty for the dead, unreadable for other users' processes.
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            environment
                .split(|byte| *byte == 0)
                .find(|have| *have == entry.as_bytes())?;
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
            Some(Process { pid, command })
        })
        .collect();
    processes.sort_by_key(|process| process.pid);
    processes
}
