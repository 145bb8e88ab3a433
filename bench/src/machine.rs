//! What was measured on.

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;

/// This machine.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
}

impl Machine {
    /// As /proc says it.
    pub(crate) fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            cpu: model.map_or("unknown", |(_, model)| model).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory_kib("MemTotal") / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

/// A line of /proc/meminfo, KiB.
pub(crate) fn memory_kib(name: &str) -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

/// Over the last minute: above the number of cores others were measured, too.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(f64::NAN)
}

/// Watches for time in which nothing ran: a paused virtual machine, a laptop's lid, far too much other work.
#[derive(Debug)]
pub(crate) struct StallWatch(Arc<AtomicU64>);

impl StallWatch {
    /// Watches until dropped. Twenty wake-ups a second cost nothing that a figure would show.
    pub(crate) fn start() -> Self {
        const PACE: Duration = Duration::from_millis(50);
        let longest_us = Arc::<AtomicU64>::default();
        let watched = Arc::downgrade(&longest_us);
        std::thread::spawn(move || {
            let mut last = Instant::now();
            while let Some(longest_us) = watched.upgrade() {
                std::thread::sleep(PACE);
                let late = last.elapsed().saturating_sub(PACE);
                longest_us.fetch_max(late.as_micros() as u64, Ordering::Relaxed);
                last = Instant::now();
            }
        });
        StallWatch(longest_us)
    }

    /// So far.
    pub(crate) fn longest_ms(&self) -> f64 {
        self.0.load(Ordering::Relaxed) as f64 / 1000.0
    }
}

/// The first line a command prints; `None` when it cannot be run.
pub(crate) fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let line = String::from_utf8_lossy(&text).lines().next().map(str::to_owned);
    line.filter(|_| output.status.success())
}

/// Of this program and what made it.
pub(crate) fn versions() -> BTreeMap<String, String> {
    let mut versions = BTreeMap::from([("infer-bench".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    let commands = [
        ("rustc", first_line("rustc", &["--version"])),
        ("commit", first_line("git", &["describe", "--always", "--dirty"])),
    ];
    for (of, version) in commands {
        if let Some(version) = version {
            versions.insert(of.to_owned(), version);
        }
    }
    versions
}
