//! Taking over what an earlier supervisor of this fleet left running.

use std::collections::HashSet;

use tokio::{
    task::{JoinSet, spawn_blocking},
    time::Instant,
};

use crate::{
    Error, EventKind, probe,
    process::{self, Found, Identity},
    registry::{Record, RecordStage, Registry},
    slot::{Slot, Stage, Then},
    state::unix_ms,
    supervisor::Fleet,
};

impl Fleet {
    /// Adopts each recorded process that is still the one recorded, finds those that were started and not yet recorded
    /// by the environment they carry, and ends those that belong to no replica.
    pub(crate) async fn take_over(&mut self) -> Result<(), Error> {
        let path = self.state_dir.registry_path(&self.spec.name);
        let (fleet_id, boot_id) = (self.state_dir.fleet_id().to_owned(), self.boot_id.clone());
        let read = spawn_blocking(move || Ok::<_, Error>((Registry::load(&path)?, Found::scan(&fleet_id, &boot_id))));
        let (registry, mut found) = read.await.unwrap_or(Err(Error::Runtime))?;
        found.retain(|found| found.fleet == self.spec.name);
        // Oldest first: an engine comes before the processes it started.
        found.sort_by_key(|found| (found.identity.start_ticks, found.identity.pid));
        let registry = registry.unwrap_or_default();
        (self.wanted, self.plan_id) = (registry.wanted, registry.plan_id);

        let now = Instant::now();
        let was_ready = self.ready_and_answering(&registry.replicas).await;
        for record in registry.replicas {
            let answers = was_ready.contains(&record.index);
            self.take_over_replica(record, answers, &found, now).await;
        }
        for leaving in registry.leaving {
            if leaving.process.alive(&self.boot_id) {
                self.watch_stranger(leaving.process.clone());
                self.leave(&leaving.replica, &leaving.uid, leaving.process, now);
            }
        }
        self.take_over_unrecorded(found, now);
        Ok(())
    }

    /// Probes the replicas recorded as ready once, all at the same time: their slots.
    async fn ready_and_answering(&self, records: &[Record]) -> HashSet<u32> {
        let mut probes = JoinSet::new();
        let ready = |record: &&Record| matches!(record.stage, RecordStage::Ready);
        for record in records.iter().filter(ready) {
            let alive = record.engine.as_ref().is_some_and(|engine| engine.alive(&self.boot_id));
            if let (true, Some(port)) = (alive, record.port) {
                let (index, spec) = (record.index, self.spec.clone());
                probes.spawn(async move {
                    let answer = probe::once(spec.address(port), &spec.startup_probe.path).await;
                    answer.is_ok().then_some(index)
                });
            }
        }
        probes.join_all().await.into_iter().flatten().collect()
    }

    async fn take_over_replica(&mut self, record: Record, answers: bool, found: &[Found], now: Instant) {
        let index = record.index;
        let stage = record.stage;
        let drain_until = record.drain_until_unix_ms.unwrap_or(0);
        let recorded = record.engine.clone();
        let of = |agent: bool| {
            found
                .iter()
                .find(|f| f.leader && f.agent == agent && f.uid == record.uid)
        };
        let alive = |process: Option<Identity>| process.filter(|process| process.alive(&self.boot_id));
        let engine = match &record.engine {
            Some(_) => alive(record.engine.clone()),
            // An intent: the process may have been started and not recorded any more.
            None => of(false).map(|found| found.identity.clone()),
        };
        // A restart of an agent has no intent, so an agent that was recorded may have a successor that was not.
        let agent = alive(record.agent.clone()).or_else(|| of(true).map(|f| f.identity.clone()));
        let mut slot = Slot::restore(record, now);
        let Some(engine) = engine else {
            self.take_over_without_engine(slot, recorded.is_some(), stage, agent, now)
                .await;
            return;
        };
        let name = slot.name.clone();
        let age = unix_ms().saturating_sub(slot.spawned_unix_ms.unwrap_or(slot.started_unix_ms));
        slot.spawned_at = now.checked_sub(std::time::Duration::from_millis(age)).unwrap_or(now);
        slot.engine = Some(engine.clone());
        slot.ready_at = slot.ready_unix_ms.map(|_| now);
        let left_ms = drain_until.saturating_sub(unix_ms());
        let left = std::time::Duration::from_millis(left_ms).min(self.spec.drain.timeout);
        slot.stage = match stage {
            RecordStage::Ready if answers => Stage::Ready,
            RecordStage::Draining => Stage::Draining {
                deadline: now + left,
                until_unix_ms: drain_until,
                idle_since: None,
            },
            _ => Stage::Starting,
        };
        let phase = slot.phase();
        let probe_until = match stage {
            // It was ready and does not answer now: it gets the whole time to do so again.
            RecordStage::Ready => now + self.spec.startup_probe.timeout,
            _ => slot.spawned_at + self.spec.startup_probe.timeout,
        };
        let needs_probe = slot.stage == Stage::Starting && stage != RecordStage::Terminating;
        let pid = engine.pid;
        self.slots.insert(index, slot);
        let older = self.launch(index, |launch| process::fnv1a(launch.argv(&self.spec.engine.command)));
        let older = if older.is_some_and(|hash| hash != engine.command_hash) {
            ", runs an older command"
        } else {
            ""
        };
        self.watch_stranger(engine);
        self.take_over_agent(index, agent, now);
        if stage == RecordStage::Terminating {
            self.terminate(index, Then::Remove, now);
        } else if needs_probe {
            self.begin_probe(index, probe_until);
        }
        self.counters.adopted += 1;
        self.event(
            Some(&name),
            EventKind::Adopted,
            format!("engine taken over, pid {pid}, {phase:?}{older}"),
        );
    }

    /// Keeps an agent that does what one started now would do. Another (the decider's address changed) is replaced, which
    /// costs the engine nothing.
    fn take_over_agent(&mut self, index: u32, agent: Option<Identity>, now: Instant) {
        let command = self.agent_command.clone();
        let expected = command.and_then(|command| self.launch(index, |launch| process::fnv1a(launch.argv(&command))));
        let Some(slot) = self.slots.get_mut(&index) else { return };
        let (name, uid) = (slot.name.clone(), slot.uid.clone());
        match agent {
            Some(agent) if expected.as_ref() == Some(&agent.command_hash) => {
                slot.agent = Some(agent.clone());
                self.watch_stranger(agent);
            }
            other => {
                slot.agent_retry_at = expected.map(|_| now);
                if let Some(agent) = other {
                    self.watch_stranger(agent.clone());
                    self.leave(&name, &uid, agent, now);
                }
            }
        }
    }

    /// A recorded replica whose engine is not there.
    async fn take_over_without_engine(
        &mut self,
        mut slot: Slot,
        was_recorded: bool,
        stage: RecordStage,
        agent: Option<Identity>,
        now: Instant,
    ) {
        let (fleet_id, boot_id, uid) = (
            self.state_dir.fleet_id().to_owned(),
            self.boot_id.clone(),
            slot.uid.clone(),
        );
        let _ = spawn_blocking(move || process::kill_strays(&fleet_id, &boot_id, &uid)).await;
        if let Some(agent) = agent {
            self.watch_stranger(agent.clone());
            self.leave(&slot.name, &slot.uid, agent, now);
        }
        // An intent that was never carried out, and what was on its way out, are done with.
        let keep = match stage {
            RecordStage::Failed => true,
            RecordStage::Starting | RecordStage::Ready => was_recorded,
            RecordStage::Draining | RecordStage::Terminating => false,
        };
        if !keep {
            return;
        }
        if stage != RecordStage::Failed {
            slot.crashes += 1;
            self.counters.crashes += 1;
            let problem = "engine ended while no decider was running: exit code not known".to_owned();
            slot.last_problem = Some(problem.clone());
            self.event(Some(&slot.name), EventKind::Crashed, problem);
        }
        // The wait is over: taking over took longer than a first one, and the count of failures is kept for the next.
        slot.stage = Stage::Failed { retry_at: now };
        self.slots.insert(slot.index, slot);
    }

    /// What carries this fleet's environment and belongs to no slot: an engine whose slot is free is adopted, anything
    /// else is ended.
    fn take_over_unrecorded(&mut self, found: Vec<Found>, now: Instant) {
        let known = |fleet: &Self, uid: &str| {
            let leaving = fleet.leaving.iter().any(|leaving| leaving.uid == uid);
            leaving
                || fleet
                    .slots
                    .values()
                    .any(|slot| slot.uid == uid && slot.engine.is_some())
        };
        for engine in found.iter().filter(|found| !found.agent && found.leader) {
            let (Some(index), Some(port)) = (engine.index, engine.port) else {
                continue;
            };
            let free = self.slots.get(&index).is_none_or(|slot| slot.engine.is_none());
            if known(self, &engine.uid) || !free || !self.spec.ports.contains(&port) {
                continue;
            }
            let agent = found
                .iter()
                .find(|found| found.agent && found.leader && found.uid == engine.uid);
            let slot = Slot {
                uid: engine.uid.clone(),
                port: Some(port),
                stage: Stage::Starting,
                engine: Some(engine.identity.clone()),
                ..Slot::new(&self.spec.name, index, now)
            };
            let (name, pid) = (slot.name.clone(), engine.identity.pid);
            self.slots.insert(index, slot);
            self.watch_stranger(engine.identity.clone());
            self.take_over_agent(index, agent.map(|agent| agent.identity.clone()), now);
            self.begin_probe(index, now + self.spec.startup_probe.timeout);
            self.counters.adopted += 1;
            let text = format!("engine taken over, pid {pid}, found by its environment");
            self.event(Some(&name), EventKind::Adopted, text);
        }
        for orphan in found {
            if known(self, &orphan.uid) || !orphan.identity.alive(&self.boot_id) {
                continue;
            }
            let name = orphan
                .index
                .map_or_else(|| "?".to_owned(), |index| format!("{}-{index}", self.spec.name));
            let text = format!(
                "pid {} of an earlier start belongs to no replica and is ended",
                orphan.identity.pid
            );
            self.event(Some(&name), EventKind::Orphan, text);
            self.watch_stranger(orphan.identity.clone());
            self.leave(&name, &orphan.uid, orphan.identity, now);
        }
    }
}
