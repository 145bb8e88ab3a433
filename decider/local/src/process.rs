//! Telling one process from another, and signalling the right one.
//!
//! A pid alone is not an identity: pids are used again. A process is the same one only if pid, start time (clock ticks
//! since boot) and boot id all match. What was started but not yet recorded is found by the environment it carries.

use std::{
    collections::HashSet,
    fs,
    hash::{Hash, Hasher},
    io,
    process::ExitStatus,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Carried by every process started: which state directory it belongs to.
pub(crate) const ENV_FLEET_ID: &str = "INFER_FLEET_ID";
/// Carried by every process started: which start of which replica it is.
pub(crate) const ENV_UID: &str = "INFER_REPLICA_UID";
/// Name of the fleet.
pub(crate) const ENV_FLEET: &str = "INFER_LOCAL_FLEET";
/// Slot of the replica in the fleet.
pub(crate) const ENV_INDEX: &str = "INFER_LOCAL_INDEX";
/// The engine's port.
pub(crate) const ENV_PORT: &str = "INFER_LOCAL_PORT";
/// `engine` or `agent`.
pub(crate) const ENV_ROLE: &str = "INFER_LOCAL_ROLE";

/// Which process this is, for all time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks from boot to the start of the process.
    pub(crate) start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`: start times are comparable within one boot only.
    pub(crate) boot_id: String,
    /// FNV-1a of the command line, arguments divided by NUL. For people and for telling that a replica runs an older
    /// command; engines rewrite their titles, so it is no part of the identity.
    pub(crate) command_hash: String,
}

impl Identity {
    fn key(&self) -> (u32, u64, &str) {
        (self.pid, self.start_ticks, &self.boot_id)
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// What `/proc/<pid>/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) dead: bool,
    pub(crate) group: u32,
    pub(crate) start_ticks: u64,
}

/// The id of this boot.
pub(crate) fn boot_id() -> Result<String, Error> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).map_err(|source| Error::Proc { path: PATH, source })?;
    Ok(text.trim().to_owned())
}

/// Reads `/proc/<pid>/stat`; `None` when there is no such process.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in brackets and may hold anything, brackets included.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    // Field 22, with state as field 3 and the group as field 5.
    let start_ticks = fields.nth(16)?.parse().ok()?;
    Some(Stat {
        dead: matches!(state, "Z" | "X" | "x"),
        group,
        start_ticks,
    })
}

/// FNV-1a, 64 bit: the same in every build, which the standard hasher does not promise.
pub(crate) fn fnv1a(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.as_ref().iter().chain(&[0]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

impl Identity {
    /// The identity of a process that is there now.
    pub(crate) fn of(pid: u32, boot_id: &str, command: &[String]) -> Option<Self> {
        let start_ticks = stat(pid)?.start_ticks;
        Some(Self {
            pid,
            start_ticks,
            boot_id: boot_id.to_owned(),
            command_hash: fnv1a(command),
        })
    }

    /// Whether this very process still runs; a zombie does not.
    pub(crate) fn alive(&self, boot_id: &str) -> bool {
        self.stat(boot_id).is_some_and(|stat| !stat.dead)
    }

    fn stat(&self, boot_id: &str) -> Option<Stat> {
        if self.boot_id != boot_id {
            return None;
        }
        stat(self.pid).filter(|stat| stat.start_ticks == self.start_ticks)
    }

    /// Signals this process, and its whole group when it leads one. False when it is gone.
    pub(crate) fn signal(&self, boot_id: &str, signal: Signal) -> bool {
        match self.stat(boot_id) {
            Some(stat) if stat.group == self.pid => send_group(self.pid, signal),
            Some(stat) if !stat.dead => send(self.pid, signal),
            _ => false,
        }
    }

    /// Kills what a leader that was just seen to end left in its group. A group keeps its number as long as it has a
    /// member, so the number can belong to someone else only if a process of that pid is there and is not this one.
    pub(crate) fn kill_group_remains(&self) -> bool {
        let taken_over = stat(self.pid).is_some_and(|stat| stat.start_ticks != self.start_ticks);
        !taken_over && send_group(self.pid, Signal::SIGKILL)
    }
}

fn raw(pid: u32) -> Option<Pid> {
    // 0 and 1 would mean "my own group" and "everything".
    i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}

fn send(pid: u32, signal: Signal) -> bool {
    raw(pid).is_some_and(|pid| kill(pid, signal).is_ok())
}

fn send_group(pid: u32, signal: Signal) -> bool {
    raw(pid).is_some_and(|pid| killpg(pid, signal).is_ok())
}

/// A live process that carries our environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) identity: Identity,
    pub(crate) leader: bool,
    pub(crate) fleet: String,
    pub(crate) uid: String,
    pub(crate) index: Option<u32>,
    pub(crate) port: Option<u16>,
    pub(crate) agent: bool,
}

impl Found {
    /// Looks through every process of this machine for those that carry the id of a state directory. Reads files of
    /// `/proc`, some milliseconds for a thousand processes: not for the runtime's threads.
    pub(crate) fn scan(fleet_id: &str, boot_id: &str) -> Vec<Self> {
        let own = std::process::id();
        pids()
            .into_iter()
            .filter(|pid| *pid != own)
            .filter_map(|pid| Self::read(pid, fleet_id, boot_id))
            .collect()
    }

    fn read(pid: u32, fleet_id: &str, boot_id: &str) -> Option<Self> {
        let before = stat(pid).filter(|stat| !stat.dead)?;
        // Other users' processes are not readable, and not ours.
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        // Between the two reads the pid may have changed hands.
        stat(pid).filter(|after| after.start_ticks == before.start_ticks)?;
        let value = |key: &str| {
            let entry = environment.split(|byte| *byte == 0).find_map(|entry| {
                entry
                    .strip_prefix(key.as_bytes())
                    .and_then(|rest| rest.strip_prefix(b"="))
            })?;
            std::str::from_utf8(entry).ok().map(str::to_owned)
        };
        if value(ENV_FLEET_ID)? != fleet_id {
            return None;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = command.strip_suffix(&[0]).unwrap_or(&command);
        Some(Self {
            identity: Identity {
                pid,
                start_ticks: before.start_ticks,
                boot_id: boot_id.to_owned(),
                command_hash: fnv1a(command.split(|byte| *byte == 0)),
            },
            leader: before.group == pid,
            fleet: value(ENV_FLEET)?,
            uid: value(ENV_UID)?,
            index: value(ENV_INDEX).and_then(|index| index.parse().ok()),
            port: value(ENV_PORT).and_then(|port| port.parse().ok()),
            agent: value(ENV_ROLE).as_deref() == Some("agent"),
        })
    }
}

/// Kills every process that carries one of these replica uids in the given role, wherever it moved to; says how many.
pub(crate) fn kill_strays(fleet_id: &str, boot_id: &str, uid: &str) -> usize {
    let strays: HashSet<_> = Found::scan(fleet_id, boot_id)
        .into_iter()
        .filter(|found| found.uid == uid && !found.agent)
        .map(|found| found.identity)
        .collect();
    strays
        .iter()
        .filter(|identity| identity.signal(boot_id, Signal::SIGKILL))
        .count()
}

fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// How a child ended, in words.
pub(crate) fn exit_reason(status: io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => format!("signal {number} ({signal})"),
                Err(_) => format!("signal {number}"),
            },
            (None, None) => status.to_string(),
        },
        Err(error) => format!("could not be waited for: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_hostile_program_name() {
        let text = "42 (a) R (b) S 1 77 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20";
        assert_eq!(
            parse_stat(text),
            Some(Stat {
                dead: false,
                group: 77,
                start_ticks: 987_654
            })
        );
        assert_eq!(parse_stat("42 (a) Z 1 77"), None);
    }

    #[test]
    fn a_process_is_itself_and_not_its_pid_s_next_owner() {
        let boot = boot_id().unwrap();
        let own = Identity::of(std::process::id(), &boot, &[]).unwrap();
        assert!(own.alive(&boot));
        assert!(
            !Identity {
                start_ticks: own.start_ticks + 1,
                ..own.clone()
            }
            .alive(&boot)
        );
        assert!(
            !Identity {
                boot_id: "another boot".into(),
                ..own
            }
            .alive(&boot)
        );
    }

    #[test]
    fn the_hash_is_fnv1a_and_tells_arguments_apart() {
        // FNV-1a of a single NUL byte: (offset ^ 0) * prime.
        assert_eq!(
            fnv1a([""]),
            format!("{:016x}", 0xcbf2_9ce4_8422_2325_u64.wrapping_mul(0x0100_0000_01b3))
        );
        assert_ne!(fnv1a(["ab", "c"]), fnv1a(["a", "bc"]));
    }

    #[test]
    fn no_signal_ever_goes_to_everything() {
        assert_eq!((raw(0), raw(1), raw(u32::MAX)), (None, None, None));
    }
}
