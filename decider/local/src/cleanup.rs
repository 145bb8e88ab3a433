//! Ending what a dead decider left.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{
    Error, StateDir,
    process::{self, Found, Identity},
    registry::{self, Registry},
};

/// How often the processes being ended are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long the system may take to end what was killed.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// What a process was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// An inference engine, or a process it started.
    Engine,
    /// An agent, or a process it started.
    Agent,
}

/// A process that was ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// Its pid.
    pub pid: u32,
    /// Its fleet.
    pub fleet: String,
    /// Its replica's start.
    pub uid: String,
    /// What it was for.
    pub role: Role,
    /// Whether SIGKILL was needed.
    pub killed: bool,
}

/// What a clean-up did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Processes ended.
    pub ended: Vec<Ended>,
    /// Recorded processes that were gone already, or whose pid belongs to someone else by now; left alone.
    pub gone: usize,
    /// Pids that are still there after SIGKILL (stuck in the kernel); their registry is kept. Empty when all is well.
    pub remaining: Vec<u32>,
}

/// Ends everything a dead decider left running in a state directory and removes its registries: SIGTERM, then after
/// `grace` SIGKILL. Touches only processes that are the ones recorded (pid, start time and boot all match) or that carry
/// this directory's id in their environment.
///
/// # Errors
/// [`Error::Held`] when a decider is alive; [`Error::NoStateDir`] when there is no such directory.
pub async fn cleanup(state_dir: impl AsRef<Path>, grace: Duration) -> Result<Report, Error> {
    let path = state_dir.as_ref();
    if !path.is_dir() {
        return Err(Error::NoStateDir {
            path: path.to_path_buf(),
        });
    }
    let own = path.to_path_buf();
    let locked = spawn_blocking(move || StateDir::lock_existing(&own)).await;
    let state_dir = locked.unwrap_or(Err(Error::Runtime))?;
    end(&state_dir, None, grace).await
}

/// The same for one fleet of a state directory this process holds, for a fleet that is no longer configured. It must have
/// no running supervisor.
///
/// # Errors
/// [`Error::StateFile`] when its registry cannot be read or removed.
pub async fn end_fleet(state_dir: &StateDir, fleet: &str, grace: Duration) -> Result<Report, Error> {
    end(state_dir, Some(fleet), grace).await
}

async fn end(state_dir: &StateDir, only: Option<&str>, grace: Duration) -> Result<Report, Error> {
    let boot_id = process::boot_id()?;
    let mut report = Report::default();
    let mut targets: HashMap<Identity, Ended> = HashMap::new();
    let mut fleets = state_dir.fleets()?;
    fleets.retain(|fleet| only.is_none_or(|only| only == fleet));
    for fleet in &fleets {
        let Some(registry) = Registry::load(&state_dir.registry_path(fleet))? else {
            continue;
        };
        let replicas = registry.replicas.into_iter().flat_map(|record| {
            let engine = record.engine.map(|engine| (record.uid.clone(), Role::Engine, engine));
            [engine, record.agent.map(|agent| (record.uid, Role::Agent, agent))]
                .into_iter()
                .flatten()
        });
        let leaving = registry
            .leaving
            .into_iter()
            .map(|leaving| (leaving.uid, Role::Agent, leaving.process));
        for (uid, role, process) in replicas.chain(leaving) {
            if process.alive(&boot_id) {
                let ended = Ended {
                    pid: process.pid,
                    fleet: fleet.clone(),
                    uid,
                    role,
                    killed: false,
                };
                targets.insert(process, ended);
            } else {
                report.gone += 1;
            }
        }
    }
    let mut signal = Signal::SIGTERM;
    let mut deadline = Instant::now() + grace;
    let mut signalled: HashSet<Identity> = HashSet::new();
    loop {
        // Each time anew: an engine may start a worker while it is being ended.
        for found in scan(state_dir, &boot_id).await {
            if only.is_none_or(|only| only == found.fleet) {
                let role = if found.agent { Role::Agent } else { Role::Engine };
                let pid = found.identity.pid;
                let ended = Ended {
                    pid,
                    fleet: found.fleet,
                    uid: found.uid,
                    role,
                    killed: false,
                };
                targets.entry(found.identity).or_insert(ended);
            }
        }
        let (alive, dead): (Vec<_>, Vec<_>) = targets.keys().cloned().partition(|process| process.alive(&boot_id));
        for process in dead {
            // What the process left in its group ends with it, as under a supervisor.
            process.kill_group_remains();
            report.ended.extend(targets.remove(&process));
        }
        if alive.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            if signal == Signal::SIGKILL {
                report.remaining = alive.iter().map(|process| process.pid).collect();
                break;
            }
            signal = Signal::SIGKILL;
            deadline = Instant::now() + AFTER_KILL;
            signalled.clear();
        }
        for process in alive {
            if !signalled.insert(process.clone()) {
                continue;
            }
            if process.signal(&boot_id, signal)
                && signal == Signal::SIGKILL
                && let Some(ended) = targets.get_mut(&process)
            {
                ended.killed = true;
            }
        }
        sleep(LOOK).await;
    }
    if report.remaining.is_empty() {
        for fleet in &fleets {
            registry::remove(&state_dir.registry_path(fleet))?;
        }
    }
    report.ended.sort_by_key(|ended| ended.pid);
    Ok(report)
}

async fn scan(state_dir: &StateDir, boot_id: &str) -> Vec<Found> {
    let (fleet_id, boot_id) = (state_dir.fleet_id().to_owned(), boot_id.to_owned());
    spawn_blocking(move || Found::scan(&fleet_id, &boot_id))
        .await
        .unwrap_or_default()
}
