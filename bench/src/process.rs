//! Processes: started, looked at from outside, and never left behind.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Units of /proc/PID/stat's times per second: part of Linux' ABI.
const TICKS_PER_S: u64 = 100;

/// Every child that has not been waited for.
static CHILDREN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn children_now() -> MutexGuard<'static, BTreeSet<u32>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When this program is asked to end in the middle: asks every child to end (a decider then ends its engines) and waits
/// for that.
pub(crate) fn end_all() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let pids = children_now().clone();
    for pid in &pids {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGTERM);
    }
    let began = Instant::now();
    while began.elapsed() < PATIENCE && pids.iter().any(|pid| is_alive(*pid)) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A child that ends, at the latest, with this value.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Starts it.
    pub(crate) fn start(what: &str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {what}"))?;
        children_now().insert(child.id());
        Ok(Process {
            child,
            what: what.to_owned(),
        })
    }

    /// Its id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error when it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} has ended by itself: {status}", self.what),
            None => Ok(()),
        }
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.what))?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> anyhow::Result<ExitStatus> {
        self.child.wait().with_context(|| format!("waiting for {}", self.what))
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn stop(mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        self.signal_and_wait(patience)
    }

    fn signal_and_wait(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)
            .with_context(|| format!("ending {}", self.what))?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > patience {
                bail!("{} has not ended {} s after SIGTERM", self.what, patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // Nobody is left to be told.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        children_now().remove(&self.child.id());
    }
}

/// This program as something that stands around a measured one: says where it listens, and at its end what it saw.
#[derive(Debug)]
pub(crate) struct HelperProcess {
    process: Process,
    stdout: BufReader<ChildStdout>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl HelperProcess {
    /// Starts `infer-bench helper <arguments>`.
    pub(crate) fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("where this program is")?;
        let mut command = Command::new(program);
        command.arg("helper").args(arguments).stdout(Stdio::piped());
        let mut process = Process::start(&format!("helper {}", arguments.join(" ")), &mut command)?;
        let stdout = process.child.stdout.take().context("no stdout")?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line).context("where a helper listens")?;
        let address = line
            .trim()
            .parse()
            .with_context(|| format!("helper {arguments:?} said {line:?}"))?;
        Ok(HelperProcess {
            process,
            stdout,
            address,
        })
    }

    /// Its id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Ends it. Returns what it saw.
    pub(crate) fn finish(mut self) -> anyhow::Result<serde_json::Value> {
        kill(Pid::from_raw(self.process.pid() as i32), Signal::SIGTERM)?;
        let mut line = String::new();
        self.stdout.read_line(&mut line).context("what a helper saw")?;
        self.process.signal_and_wait(Duration::from_secs(10))?;
        serde_json::from_str(&line).with_context(|| format!("a helper said {line:?}"))
    }
}

/// A port that was free just now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// CPU time a process has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuTime {
    at: Instant,
    /// User and system time as accounted to the whole process, in steps of 10 ms.
    ticks: u64,
    /// The scheduler's time on a CPU, all living threads together, ns.
    on_cpu_ns: u64,
}

impl CpuTime {
    /// Now.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = stat(pid)?;
        let ticks = |at: usize| stat.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let mut on_cpu_ns = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end while we look.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            on_cpu_ns += text
                .split(' ')
                .next()
                .and_then(|ns| ns.parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(CpuTime {
            at: Instant::now(),
            ticks: ticks(11) + ticks(12),
            on_cpu_ns,
        })
    }

    /// Percent of one core since `before`, by the scheduler's clock.
    pub(crate) fn percent_since(&self, before: &CpuTime) -> f64 {
        let wall_ns = self.at.duration_since(before.at).as_nanos() as f64;
        100.0 * self.on_cpu_ns.saturating_sub(before.on_cpu_ns) as f64 / wall_ns
    }

    /// Percent of one core since `before`, by the process's own accounting.
    pub(crate) fn accounted_percent_since(&self, before: &CpuTime) -> f64 {
        let used_s = self.ticks.saturating_sub(before.ticks) as f64 / TICKS_PER_S as f64;
        100.0 * used_s / self.at.duration_since(before.at).as_secs_f64()
    }
}

/// Fields of /proc/PID/stat from the state on.
fn stat(pid: u32) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    let (_, fields) = text.rsplit_once(") ").context("a stat without a name")?;
    Ok(fields.split(' ').map(str::to_owned).collect())
}

/// Memory of a process, MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) rss_mib: f64,
    /// Resident now, shared pages counted by share.
    pub(crate) pss_mib: f64,
    /// The most that was ever resident.
    pub(crate) peak_rss_mib: f64,
}

impl Memory {
    /// Now.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("reading smaps_rollup")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading status")?;
        let mib = |text: &str, name: &str| -> anyhow::Result<f64> {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .with_context(|| format!("no {name}"))?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
        };
        Ok(Memory {
            rss_mib: mib(&rollup, "Rss:")?,
            pss_mib: mib(&rollup, "Pss:")?,
            peak_rss_mib: mib(&status, "VmHWM:")?,
        })
    }
}

/// Children of a process (of any of its threads) that run `program`.
pub(crate) fn children(pid: u32, program: &str) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children = lists.flat_map(|list| {
        list.split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect::<Vec<u32>>()
    });
    let runs = |pid: &u32| {
        // Right after the fork it still has its parent's name.
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == program)
    };
    children.filter(runs).collect()
}

/// Whether a process is there and has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    stat(pid).is_ok_and(|fields| fields.first().is_some_and(|state| state != "Z" && state != "X"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_and_ended() {
        let process = Process::start("sleep", Command::new("sleep").arg("60")).unwrap();
        let pid = process.pid();
        assert!(is_alive(pid));
        assert!(Memory::of(pid).unwrap().rss_mib > 0.0);
        CpuTime::of(pid).unwrap();
        assert!(!process.stop(Duration::from_secs(5)).unwrap().success());
        assert!(!is_alive(pid));
    }
}
