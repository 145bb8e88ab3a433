//! Starting, ending and watching the processes of a fleet.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::{
    process::Child,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{
    EventKind,
    launch::{self, Launch, Launched},
    probe,
    process::{self, Identity},
    registry::LeavingRecord,
    slot::{Slot, Stage, Then},
    state::unix_ms,
    supervisor::Fleet,
};

/// How long an agent may take to send its last samples.
pub(crate) const AGENT_GRACE: Duration = Duration::from_secs(5);
/// How often a process that is not a child is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// From one SIGKILL to the next, for a process that the system has not ended yet.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// What a watching task found out.
#[derive(Debug)]
pub(crate) enum Note {
    Exited { process: Identity, reason: String },
    Probed { uid: String, result: Result<(), String> },
}

/// A process that was asked to end and belongs to no slot any more.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) replica: String,
    pub(crate) uid: String,
    pub(crate) process: Identity,
    pub(crate) kill_at: Instant,
    pub(crate) killed: bool,
}

impl Leaving {
    pub(crate) fn record(&self) -> LeavingRecord {
        LeavingRecord {
            replica: self.replica.clone(),
            uid: self.uid.clone(),
            process: self.process.clone(),
        }
    }
}

impl Fleet {
    /// Starts what is due: writes the intents first, so that a kill between here and the record leaves an entry to find
    /// the process by.
    pub(crate) async fn start_due(&mut self, now: Instant) {
        let due = |slot: &&Slot| match slot.stage {
            Stage::Pending => true,
            Stage::Failed { retry_at } => retry_at <= now,
            _ => false,
        };
        let due: Vec<u32> = self.slots.values().filter(due).map(|slot| slot.index).collect();
        let mut starting = Vec::new();
        for index in due {
            let port = self.free_port(index);
            let port_comes_free = self.slots.values().any(|s| s.engine.is_some() && !s.is_live());
            let Some(slot) = self.slots.get_mut(&index) else {
                continue;
            };
            if let Some(port) = port {
                slot.stage = Stage::Starting;
                slot.uid = launch::new_uid();
                slot.port = Some(port);
                slot.started_unix_ms = unix_ms();
                slot.startup_ms = None;
                slot.spawned_unix_ms = None;
                slot.ready_unix_ms = None;
                slot.ready_at = None;
                slot.agent_backoff = Default::default();
                slot.agent_retry_at = None;
                slot.agent_problem = None;
                starting.push(index);
            } else if port_comes_free {
                slot.stage = Stage::Pending;
            } else {
                let ports = &self.spec.ports;
                let problem = format!(
                    "no free port on {} in {}-{}",
                    self.spec.host,
                    ports.start(),
                    ports.end()
                );
                self.start_failed(index, problem, now);
            }
        }
        if starting.is_empty() {
            return;
        }
        if let Err(problem) = self.persist().await {
            for index in starting {
                self.start_failed(
                    index,
                    format!("not started, since it could not be recorded: {problem}"),
                    now,
                );
            }
            return;
        }
        for index in starting {
            match self.launch(index, |launch| launch.engine()) {
                Some(Ok(launched)) => self.engine_started(index, launched),
                Some(Err(problem)) => self.start_failed(index, problem, now),
                None => {}
            }
        }
    }

    /// Gives what a start of a slot's processes needs; `None` for a slot that has no port yet.
    pub(crate) fn launch<T>(&self, index: u32, act: impl FnOnce(&Launch<'_>) -> T) -> Option<T> {
        let slot = self.slots.get(&index)?;
        Some(act(&Launch {
            spec: &self.spec,
            state_dir: &self.state_dir,
            boot_id: &self.boot_id,
            target: &self.target,
            decider: &self.decider,
            replica: &slot.name,
            index,
            uid: &slot.uid,
            port: slot.port?,
        }))
    }

    /// The first port nothing uses: from the start of the range for a new replica, from the port after its last one for
    /// a restart, so that a port that looks free and is not does not hold a replica up for good.
    fn free_port(&self, index: u32) -> Option<u16> {
        let taken: Vec<u16> = self.slots.values().filter_map(Slot::port_in_use).collect();
        let last = self.slots.get(&index).and_then(|slot| slot.port);
        let (start, end) = (*self.spec.ports.start(), *self.spec.ports.end());
        let first = last
            .filter(|last| (start..end).contains(last))
            .map_or(start, |last| last + 1);
        let free = |port: &u16| {
            !taken.contains(port) && launch::port_is_free(std::net::SocketAddr::new(self.spec.host, *port))
        };
        (first..=end).chain(start..first).find(free)
    }

    fn engine_started(&mut self, index: u32, launched: Launched) {
        let now = Instant::now();
        let Some(slot) = self.slots.get_mut(&index) else { return };
        let Launched { at, child, identity } = launched;
        slot.spawned_unix_ms = Some(unix_ms());
        slot.spawned_at = at;
        slot.engine = Some(identity.clone());
        // Due at once, after the engines of this step.
        slot.agent_retry_at = self.agent_command.is_some().then_some(now);
        let (name, pid, port) = (slot.name.clone(), identity.pid, slot.port.unwrap_or(0));
        self.counters.starts += 1;
        self.watch_child(identity, child);
        self.begin_probe(index, now + self.spec.startup_probe.timeout);
        self.event(
            Some(&name),
            EventKind::Started,
            format!("engine started, pid {pid}, port {port}"),
        );
    }

    /// A failed start: said when it is not what was said before, tried again after a wait.
    fn start_failed(&mut self, index: u32, problem: String, now: Instant) {
        let Some(slot) = self.slots.get_mut(&index) else { return };
        let said = slot.last_problem.as_ref() == Some(&problem);
        slot.last_problem = Some(problem.clone());
        slot.stage = Stage::Failed {
            retry_at: now + slot.backoff.fail(&self.spec.restart, Duration::ZERO),
        };
        let name = slot.name.clone();
        self.counters.start_failures += 1;
        if !said {
            self.event(Some(&name), EventKind::StartFailed, problem);
        }
    }

    /// Starts the agents that are due.
    pub(crate) fn start_agents(&mut self, now: Instant) {
        let Some(command) = self.agent_command.clone() else {
            return;
        };
        let due = |slot: &&Slot| slot.engine.is_some() && slot.agent_retry_at.is_some_and(|at| at <= now);
        let due: Vec<u32> = self.slots.values().filter(due).map(|slot| slot.index).collect();
        for index in due {
            let launched = self.launch(index, |launch| launch.agent(&command));
            let Some(slot) = self.slots.get_mut(&index) else {
                continue;
            };
            slot.agent_retry_at = None;
            match launched {
                Some(Ok(Launched { child, identity, .. })) => {
                    slot.agent = Some(identity.clone());
                    slot.agent_since = now;
                    self.watch_child(identity, child);
                }
                Some(Err(problem)) => {
                    slot.agent_retry_at = Some(now + slot.agent_backoff.fail(&self.spec.restart, Duration::ZERO));
                    if slot.agent_problem.as_ref() != Some(&problem) {
                        slot.agent_problem = Some(problem.clone());
                        slot.last_problem = Some(problem.clone());
                        let name = slot.name.clone();
                        self.event(Some(&name), EventKind::StartFailed, problem);
                    }
                }
                None => {}
            }
        }
    }

    pub(crate) fn begin_probe(&mut self, index: u32, deadline: Instant) {
        let Some(slot) = self.slots.get_mut(&index) else { return };
        let Some(port) = slot.port else { return };
        let (uid, address) = (slot.uid.clone(), self.spec.address(port));
        let (spec, notes) = (self.spec.clone(), self.notes.clone());
        slot.probe = Some(self.tasks.spawn(async move {
            let result = probe::until_ready(address, &spec.startup_probe, deadline).await;
            // Fails only when the supervisor has ended.
            let _ = notes.send(Note::Probed { uid, result }).await;
        }));
    }

    fn watch_child(&mut self, process: Identity, mut child: Child) {
        let notes = self.notes.clone();
        self.tasks.spawn(async move {
            let reason = process::exit_reason(child.wait().await);
            let _ = notes.send(Note::Exited { process, reason }).await;
        });
    }

    /// Watches a process that is not a child: its exit code is not to be had.
    pub(crate) fn watch_stranger(&mut self, process: Identity) {
        let (notes, boot_id) = (self.notes.clone(), self.boot_id.clone());
        self.tasks.spawn(async move {
            while process.alive(&boot_id) {
                sleep(LOOK).await;
            }
            let reason = "exit code not known, since an earlier decider started it".to_owned();
            let _ = notes.send(Note::Exited { process, reason }).await;
        });
    }

    pub(crate) async fn take_note(&mut self, note: Note) {
        match note {
            Note::Probed { uid, result } => {
                let probed = |slot: &&mut Slot| slot.uid == uid && slot.stage == Stage::Starting;
                let Some(slot) = self.slots.values_mut().find(probed) else {
                    return;
                };
                slot.probe = None;
                let index = slot.index;
                match result {
                    Ok(()) => self.engine_ready(index),
                    Err(problem) => self.startup_timed_out(index, &problem),
                }
            }
            Note::Exited { process, reason } => {
                process.kill_group_remains();
                if let Some(at) = self.leaving.iter().position(|leaving| leaving.process == process) {
                    self.leaving.swap_remove(at);
                } else if let Some(slot) = self.slots.values().find(|slot| slot.engine.as_ref() == Some(&process)) {
                    let index = slot.index;
                    self.engine_ended(index, &reason).await;
                } else if let Some(slot) = self.slots.values().find(|slot| slot.agent.as_ref() == Some(&process)) {
                    let index = slot.index;
                    self.agent_ended(index, &reason);
                }
            }
        }
    }

    fn engine_ready(&mut self, index: u32) {
        let now = Instant::now();
        let Some(slot) = self.slots.get_mut(&index) else { return };
        slot.stage = Stage::Ready;
        slot.ready_at = Some(now);
        let took = now.saturating_duration_since(slot.spawned_at).as_millis();
        // Kept when an engine that was ready before was taken over.
        let startup_ms = *slot.startup_ms.get_or_insert(u64::try_from(took).unwrap_or(u64::MAX));
        slot.ready_unix_ms.get_or_insert(unix_ms());
        let name = slot.name.clone();
        self.event(Some(&name), EventKind::Ready, format!("ready after {startup_ms} ms"));
    }

    fn startup_timed_out(&mut self, index: u32, problem: &str) {
        let Some(slot) = self.slots.get_mut(&index) else { return };
        let text = format!("not ready within {:?}: {problem}", self.spec.startup_probe.timeout);
        slot.last_problem = Some(text.clone());
        let name = slot.name.clone();
        self.counters.startup_timeouts += 1;
        self.event(Some(&name), EventKind::StartupTimeout, text);
        self.terminate(index, Then::Retry, Instant::now());
    }

    /// Asks an engine to end. One that has served ends after its agent, whose last look counts the requests that were
    /// finished since the one before.
    pub(crate) fn terminate(&mut self, index: u32, then: Then, now: Instant) {
        let grace = self.spec.drain.termination_grace;
        let Some(slot) = self.slots.get_mut(&index) else { return };
        slot.stop_probe();
        slot.agent_retry_at = None;
        let served = matches!(slot.stage, Stage::Draining { .. });
        let agent = slot.agent.take_if(|_| served);
        slot.stage = Stage::Terminating {
            told: agent.is_none(),
            kill_at: now + grace + if agent.is_some() { AGENT_GRACE } else { Duration::ZERO },
            killed: false,
            then,
        };
        match (agent, &slot.engine) {
            (Some(agent), _) => {
                let (name, uid) = (slot.name.clone(), slot.uid.clone());
                self.leave(&name, &uid, agent, now);
            }
            (None, Some(engine)) => {
                engine.signal(&self.boot_id, Signal::SIGTERM);
            }
            (None, None) => {}
        }
    }

    /// Kills what was asked to end and did not in time.
    pub(crate) fn advance_terminations(&mut self, now: Instant) {
        let mut killed = Vec::new();
        for slot in self.slots.values_mut() {
            if let Stage::Terminating { told, kill_at, .. } = &mut slot.stage
                && !*told
                && !self.leaving.iter().any(|leaving| leaving.uid == slot.uid)
            {
                *told = true;
                *kill_at = now + self.spec.drain.termination_grace;
                if let Some(engine) = &slot.engine {
                    engine.signal(&self.boot_id, Signal::SIGTERM);
                }
            }
            if let Stage::Terminating {
                kill_at, killed: again, ..
            } = &mut slot.stage
                && *kill_at <= now
            {
                *kill_at = now + KILL_AGAIN;
                let sent = slot
                    .engine
                    .as_ref()
                    .is_some_and(|engine| engine.signal(&self.boot_id, Signal::SIGKILL));
                if sent && !*again {
                    *again = true;
                    killed.push((slot.name.clone(), "engine"));
                }
            }
        }
        for leaving in self.leaving.iter_mut().filter(|leaving| leaving.kill_at <= now) {
            leaving.kill_at = now + KILL_AGAIN;
            if leaving.process.signal(&self.boot_id, Signal::SIGKILL) && !leaving.killed {
                leaving.killed = true;
                killed.push((leaving.replica.clone(), "agent"));
            }
        }
        for (replica, what) in killed {
            self.counters.kills += 1;
            self.event(
                Some(&replica),
                EventKind::Killed,
                format!("{what} did not end in time and was killed"),
            );
        }
    }

    async fn engine_ended(&mut self, index: u32, reason: &str) {
        let now = Instant::now();
        let Some(slot) = self.slots.get_mut(&index) else { return };
        slot.stop_probe();
        slot.engine = None;
        slot.agent_retry_at = None;
        let (name, uid, agent) = (slot.name.clone(), slot.uid.clone(), slot.agent.take());
        let well = slot.well_for(now);
        let (fleet_id, boot_id, stray_uid) = (self.state_dir.fleet_id().to_owned(), self.boot_id.clone(), uid.clone());
        // Workers that left the engine's group still hold its memory.
        let strays = spawn_blocking(move || process::kill_strays(&fleet_id, &boot_id, &stray_uid))
            .await
            .unwrap_or(0);
        if let Some(agent) = agent {
            self.leave(&name, &uid, agent, now);
        }
        let Some(slot) = self.slots.get_mut(&index) else { return };
        let (kind, text) = match slot.stage {
            Stage::Terminating { then: Then::Remove, .. } => {
                self.slots.remove(&index);
                (EventKind::Stopped, format!("engine ended as asked: {reason}"))
            }
            Stage::Terminating { then: Then::Retry, .. } => {
                slot.stage = Stage::Failed {
                    retry_at: now + slot.backoff.fail(&self.spec.restart, well),
                };
                (
                    EventKind::Stopped,
                    format!("engine that did not become ready ended: {reason}"),
                )
            }
            Stage::Draining { .. } => {
                self.slots.remove(&index);
                self.counters.crashes += 1;
                (
                    EventKind::Crashed,
                    format!("engine ended by itself while draining: {reason}"),
                )
            }
            _ => {
                slot.crashes += 1;
                let wait = slot.backoff.fail(&self.spec.restart, well);
                slot.stage = Stage::Failed { retry_at: now + wait };
                let problem = format!("engine ended by itself: {reason}");
                slot.last_problem = Some(problem.clone());
                self.counters.crashes += 1;
                (
                    EventKind::Crashed,
                    format!("{problem}; next try in {:.1} s", wait.as_secs_f64()),
                )
            }
        };
        let strays = if strays > 0 {
            format!("; {strays} processes it left were killed")
        } else {
            String::new()
        };
        self.event(Some(&name), kind, text + &strays);
    }

    fn agent_ended(&mut self, index: u32, reason: &str) {
        let now = Instant::now();
        let Some(slot) = self.slots.get_mut(&index) else { return };
        slot.agent = None;
        let ran = now.saturating_duration_since(slot.agent_since);
        let wait = slot.agent_backoff.fail(&self.spec.restart, ran);
        let ending = matches!(slot.stage, Stage::Terminating { .. });
        if !ending && self.agent_command.is_some() {
            slot.agent_retry_at = Some(now + wait);
        }
        let name = slot.name.clone();
        self.counters.agent_exits += 1;
        let text = format!("agent ended by itself: {reason}");
        self.event(Some(&name), EventKind::AgentExited, text);
    }

    /// Asks a process that belongs to no slot any more to end, and sees to it that it does. It must be watched already.
    pub(crate) fn leave(&mut self, replica: &str, uid: &str, process: Identity, now: Instant) {
        process.signal(&self.boot_id, Signal::SIGTERM);
        let (replica, uid) = (replica.to_owned(), uid.to_owned());
        self.leaving.push(Leaving {
            replica,
            uid,
            process,
            kill_at: now + AGENT_GRACE,
            killed: false,
        });
    }
}
