//! The platform families every single-process Python exporter shows: `python_*` and `process_*`.
//!
//! The process values are this process's own, read from `/proc`; where that cannot be read they are absent, as they are
//! with the Python library. The garbage collector's are zero: there is none.

use super::exposition::Value;
use super::view::Families;

/// What `/proc/self` says.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Process {
    virtual_bytes: u64,
    resident_bytes: u64,
    cpu_s: f64,
    open_fds: u64,
    max_fds: u64,
}

/// Linux's fixed user-visible tick, per second.
const TICKS_PER_S: f64 = 100.0;
/// Page size of every platform this is built for.
const PAGE_BYTES: u64 = 4096;

/// Appends the families. `start_s` is the Unix time the engine started.
pub(super) fn families(f: &mut Families, start_s: f64) {
    let generations = || {
        ["0", "1", "2"]
            .iter()
            .map(|g| (vec![("generation", (*g).to_owned())], Value::Int(0)))
            .collect::<Vec<_>>()
    };
    f.bare_counter("python_gc_objects_collected", "Objects collected.", generations());
    f.bare_counter(
        "python_gc_objects_uncollectable",
        "Objects that could not be collected.",
        generations(),
    );
    f.bare_counter("python_gc_collections", "Collections by generation.", generations());
    let info = [
        ("implementation", "CPython"),
        ("major", "3"),
        ("minor", "12"),
        ("patchlevel", "1"),
        ("version", "3.12.1"),
    ];
    let info = info.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    f.gauge(
        "python_info",
        "The Python this stands in for.",
        vec![(info, Value::Int(1))],
    );
    let Some(process) = read() else { return };
    let one = |value: Value| vec![(vec![], value)];
    f.gauge(
        "process_virtual_memory_bytes",
        "Virtual memory, bytes.",
        one(process.virtual_bytes.into()),
    );
    f.gauge(
        "process_resident_memory_bytes",
        "Resident memory, bytes.",
        one(process.resident_bytes.into()),
    );
    f.gauge(
        "process_start_time_seconds",
        "Start of the process, Unix time.",
        one(start_s.into()),
    );
    f.bare_counter(
        "process_cpu_seconds",
        "CPU time, user and system, s.",
        one(process.cpu_s.into()),
    );
    f.gauge(
        "process_open_fds",
        "Open file descriptors.",
        one(process.open_fds.into()),
    );
    f.gauge(
        "process_max_fds",
        "Most file descriptors allowed.",
        one(process.max_fds.into()),
    );
}

fn read() -> Option<Process> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (virtual_bytes, resident_bytes, cpu_s) = parse_stat(&stat)?;
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let max_fds = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())?;
    let open_fds = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(Process {
        virtual_bytes,
        resident_bytes,
        cpu_s,
        open_fds,
        max_fds,
    })
}

/// Fields 14, 15 (ticks), 23 (bytes) and 24 (pages), counted after the command name, which may hold spaces.
fn parse_stat(stat: &str) -> Option<(u64, u64, f64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let cpu_s = (field(14)? + field(15)?) as f64 / TICKS_PER_S;
    Some((field(23)?, field(24)? * PAGE_BYTES, cpu_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_the_command_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4 10 0 0 0 150 50 0 0 20 0 3 0 99 4096000 25 18446744073709551615 1";
        assert_eq!(parse_stat(stat), Some((4_096_000, 25 * 4096, 2.0)));
        assert_eq!(parse_stat("nonsense"), None);
    }
}
