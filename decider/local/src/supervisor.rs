//! The supervisor: one task that owns a fleet. Everything it learns arrives as a change of the wanted count, a note from
//! a task that watches a process or a probe, or the time of the next thing due; after each it takes one step.

use std::{collections::BTreeMap, future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast, mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep_until},
};

use crate::{
    Counters, Error, Event, EventKind, FleetSpec, FleetState, Handle, NoTraffic, Running, StateDir, Traffic,
    handle::Wanted,
    launch,
    lifecycle::{Leaving, Note},
    process,
    registry::{self, Registry},
    slot::{Slot, Stage},
    state::unix_ms,
    traffic::Endpoint,
};

/// Notes from watching tasks. Each task sends one and ends; a full queue only makes the next one wait, so the size is
/// what may pile up during one slow write of the registry.
const NOTES: usize = 256;
/// Events kept for a slow reader: a whole fleet of a hundred replicas going through a start or a stop.
const EVENTS: usize = 256;
/// How often a drain looks at the requests under way.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// How often the logs' sizes are looked at.
const LOG_LOOK: Duration = Duration::from_secs(10);

/// What a supervisor is made from.
#[derive(Clone)]
pub struct Options {
    /// The fleet.
    pub spec: FleetSpec,
    /// The locked state directory; several fleets share it.
    pub state_dir: Arc<StateDir>,
    /// Who sends requests to the engines.
    pub traffic: Arc<dyn Traffic>,
    /// The engines' own word on how busy they are, as a second source for drains.
    pub running: Option<Running>,
    /// What `{target}` stands for: the target the agents report for.
    pub target: String,
    /// What `{decider}` stands for: the address agents report to.
    pub decider: String,
    /// Longest drain of each replica when the supervisor is stopped.
    pub stop_drain: Duration,
}

impl Options {
    /// No traffic, no second source, 5 s for drains at a stop.
    #[must_use]
    pub fn new(spec: FleetSpec, state_dir: Arc<StateDir>) -> Self {
        Self {
            spec,
            state_dir,
            traffic: Arc::new(NoTraffic),
            running: None,
            target: String::new(),
            decider: String::new(),
            stop_drain: Duration::from_secs(5),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("spec", &self.spec)
            .field("state_dir", &self.state_dir)
            .finish_non_exhaustive()
    }
}

/// How a supervisor is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Drain for a short while, end every process, remove the registry: nothing is left behind.
    Stop,
    /// End at once and let the engines and agents run on: the next supervisor of this fleet takes them over.
    Leave,
}

/// Keeps one fleet at its wanted count.
pub struct Supervisor {
    fleet: Fleet,
    handle: Handle,
    wanted: watch::Receiver<Wanted>,
    notes: mpsc::Receiver<Note>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor")
            .field("fleet", &self.fleet.spec.name)
            .finish_non_exhaustive()
    }
}

impl Supervisor {
    /// Checks the specification. Nothing is started or taken over before [`Supervisor::run`].
    ///
    /// # Errors
    /// [`Error::Spec`] naming the wrong field; [`Error::Proc`] without a Linux `/proc`.
    pub fn new(options: Options) -> Result<Self, Error> {
        options.spec.validate()?;
        let boot_id = process::boot_id()?;
        let spec = Arc::new(options.spec);
        let (notes_sender, notes) = mpsc::channel(NOTES);
        let (wanted_sender, wanted) = watch::channel(Wanted::default());
        let (events, _) = broadcast::channel(EVENTS);
        let (state, state_receiver) = watch::channel(FleetState {
            spec: spec.clone(),
            wanted: None,
            plan_id: None,
            replicas: Vec::new(),
            leaving: 0,
            counters: Counters::default(),
            taken_over: false,
        });
        let handle = Handle {
            fleet: spec.name.as_str().into(),
            ports: spec.port_count(),
            wanted: wanted_sender,
            state: state_receiver,
            events: events.clone(),
            traffic: options.traffic.clone(),
        };
        let fleet = Fleet {
            agent_command: spec.agent_command(),
            spec,
            state_dir: options.state_dir,
            traffic: options.traffic,
            running: options.running,
            target: options.target,
            decider: options.decider,
            stop_drain: options.stop_drain,
            boot_id,
            slots: BTreeMap::new(),
            leaving: Vec::new(),
            wanted: None,
            plan_id: None,
            counters: Counters::default(),
            stopping: false,
            tasks: JoinSet::new(),
            notes: notes_sender,
            state,
            events,
            written: Vec::new(),
            write_problem: None,
            endpoints: None,
            logs_due: Instant::now() + LOG_LOOK,
        };
        Ok(Self {
            fleet,
            handle,
            wanted,
            notes,
        })
    }

    /// A handle to the fleet; it works before, during and (for looking) after [`Supervisor::run`].
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes over what an earlier supervisor left and keeps the fleet at its wanted count until `shutdown` resolves, then
    /// ends as it says. Dropping this future is the same as a kill of the decider: engines and agents run on and the
    /// next supervisor takes them over.
    ///
    /// # Errors
    /// When the registry of an earlier supervisor cannot be read: starting a second fleet beside a first one unseen
    /// would be worse than not starting. Later trouble with the state directory is reported as an event and retried.
    pub async fn run(self, shutdown: impl Future<Output = Shutdown> + Send) -> Result<(), Error> {
        // The handle stays alive here so that the channel of wanted counts has a sender until the end.
        let Self {
            mut fleet,
            handle: _handle,
            mut wanted,
            mut notes,
        } = self;
        let mut shutdown = pin!(shutdown);
        fleet.take_over().await?;
        // A count told before now is newer than the one taken over.
        let told = wanted.borrow_and_update().clone();
        if told.replicas.is_some() {
            (fleet.wanted, fleet.plan_id) = (told.replicas, told.plan_id);
        }
        loop {
            fleet.step().await;
            if fleet.stopping && fleet.slots.is_empty() && fleet.leaving.is_empty() {
                fleet.finish()?;
                return Ok(());
            }
            let wake = fleet.next_wake();
            tokio::select! {
                how = &mut shutdown, if !fleet.stopping => match how {
                    Shutdown::Leave => {
                        tracing::info!(fleet = fleet.spec.name, "supervisor ends, engines run on");
                        return Ok(());
                    }
                    Shutdown::Stop => fleet.begin_stop(),
                },
                _ = wanted.changed() => {
                    let new = wanted.borrow_and_update().clone();
                    (fleet.wanted, fleet.plan_id) = (new.replicas, new.plan_id);
                }
                Some(note) = notes.recv() => {
                    fleet.take_note(note).await;
                    while let Ok(note) = notes.try_recv() {
                        fleet.take_note(note).await;
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }
}

/// A fleet and everything known about it. The other modules of the crate each add a part of its behaviour.
pub(crate) struct Fleet {
    pub(crate) spec: Arc<FleetSpec>,
    pub(crate) agent_command: Option<Vec<String>>,
    pub(crate) state_dir: Arc<StateDir>,
    pub(crate) traffic: Arc<dyn Traffic>,
    pub(crate) running: Option<Running>,
    pub(crate) target: String,
    pub(crate) decider: String,
    pub(crate) stop_drain: Duration,
    pub(crate) boot_id: String,
    pub(crate) slots: BTreeMap<u32, Slot>,
    pub(crate) leaving: Vec<Leaving>,
    pub(crate) wanted: Option<u32>,
    pub(crate) plan_id: Option<String>,
    pub(crate) counters: Counters,
    pub(crate) stopping: bool,
    /// Watchers and probes; they end with this value, the processes they watch do not.
    pub(crate) tasks: JoinSet<()>,
    pub(crate) notes: mpsc::Sender<Note>,
    state: watch::Sender<FleetState>,
    events: broadcast::Sender<Event>,
    written: Vec<u8>,
    write_problem: Option<String>,
    endpoints: Option<Vec<Endpoint>>,
    logs_due: Instant,
}

impl Fleet {
    /// Brings the fleet one step nearer to what is wanted and tells the world.
    pub(crate) async fn step(&mut self) {
        let now = Instant::now();
        while self.tasks.try_join_next().is_some() {}
        self.reconcile(now);
        // Before the drains look at the requests under way: no request may be sent after the last look.
        self.update_traffic();
        self.advance_drains(now);
        self.advance_terminations(now);
        self.start_due(now).await;
        self.start_agents(Instant::now());
        // A failure was said, and is tried again with the next step.
        let _ = self.persist().await;
        self.update_traffic();
        self.publish();
        self.bound_logs(now);
    }

    /// When there is something to do next, if nothing happens before.
    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let slots = self.slots.values().flat_map(|slot| {
            let stage = match slot.stage {
                Stage::Draining { deadline, .. } => Some(deadline.min(now + DRAIN_LOOK)),
                Stage::Terminating { kill_at, .. } => Some(kill_at),
                Stage::Failed { retry_at } => Some(retry_at),
                Stage::Pending | Stage::Starting | Stage::Ready => None,
            };
            [stage, slot.agent_retry_at].into_iter().flatten()
        });
        let leaving = self.leaving.iter().map(|leaving| leaving.kill_at);
        slots.chain(leaving).fold(self.logs_due, Instant::min)
    }

    fn begin_stop(&mut self) {
        tracing::info!(
            fleet = self.spec.name,
            replicas = self.slots.len(),
            "stopping the fleet"
        );
        self.stopping = true;
        let latest = Instant::now() + self.stop_drain;
        for slot in self.slots.values_mut() {
            if let Stage::Draining { deadline, .. } = &mut slot.stage {
                *deadline = latest.min(*deadline);
            }
        }
    }

    fn finish(&mut self) -> Result<(), Error> {
        registry::remove(&self.state_dir.registry_path(&self.spec.name))?;
        tracing::info!(fleet = self.spec.name, "fleet stopped, nothing left behind");
        Ok(())
    }

    /// Tells the sender of requests which replicas are ready, when that changed.
    fn update_traffic(&mut self) {
        let ready = self.slots.values().filter(|slot| slot.stage == Stage::Ready);
        let endpoints: Vec<_> = ready
            .filter_map(|slot| {
                Some(Endpoint {
                    replica: slot.name.clone(),
                    address: self.spec.address(slot.port?),
                })
            })
            .collect();
        if self.endpoints.as_ref() != Some(&endpoints) {
            self.traffic.set_endpoints(endpoints.clone());
            self.endpoints = Some(endpoints);
        }
    }

    /// Writes the registry when it changed; says a failure once.
    pub(crate) async fn persist(&mut self) -> Result<(), String> {
        let registry = Registry {
            fleet: self.spec.name.clone(),
            wanted: self.wanted,
            plan_id: self.plan_id.clone(),
            replicas: self.slots.values().map(Slot::record).collect(),
            leaving: self.leaving.iter().map(Leaving::record).collect(),
        };
        let path = self.state_dir.registry_path(&self.spec.name);
        let result = match registry.encode() {
            Ok(bytes) if bytes == self.written => return Ok(()),
            Ok(bytes) => {
                let copy = bytes.clone();
                let written = spawn_blocking(move || registry::replace(&path, &copy))
                    .await
                    .unwrap_or(Err(Error::Runtime));
                written.map(|()| bytes).map_err(|error| match &error {
                    Error::StateFile { source, .. } => format!("{error}: {source}"),
                    _ => error.to_string(),
                })
            }
            Err(error) => Err(format!("cannot encode the registry: {error}")),
        };
        match result {
            Ok(bytes) => {
                self.written = bytes;
                self.write_problem = None;
                Ok(())
            }
            Err(problem) => {
                if self.write_problem.as_ref() != Some(&problem) {
                    self.event(None, EventKind::StateNotWritten, problem.clone());
                    self.write_problem = Some(problem.clone());
                }
                Err(problem)
            }
        }
    }

    fn publish(&mut self) {
        let new = FleetState {
            spec: self.spec.clone(),
            wanted: self.wanted,
            plan_id: self.plan_id.clone(),
            replicas: self
                .slots
                .values()
                .map(|slot| slot.state(&self.spec, &*self.traffic))
                .collect(),
            leaving: self.leaving.len(),
            counters: self.counters,
            taken_over: true,
        };
        self.state.send_if_modified(|state| {
            let changed = *state != new;
            if changed {
                *state = new;
            }
            changed
        });
    }

    /// Logs an event and gives it to whoever listens.
    pub(crate) fn event(&self, replica: Option<&str>, kind: EventKind, text: String) {
        let fleet = self.spec.name.as_str();
        match kind {
            EventKind::StartFailed | EventKind::StateNotWritten => {
                tracing::error!(fleet, replica, ?kind, "{text}");
            }
            EventKind::Crashed
            | EventKind::StartupTimeout
            | EventKind::DrainTimedOut
            | EventKind::Killed
            | EventKind::Orphan
            | EventKind::AgentExited => tracing::warn!(fleet, replica, ?kind, "{text}"),
            _ => tracing::info!(fleet, replica, ?kind, "{text}"),
        }
        let event = Event {
            unix_ms: unix_ms(),
            fleet: fleet.to_owned(),
            replica: replica.map(str::to_owned),
            kind,
            text,
        };
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    fn bound_logs(&mut self, now: Instant) {
        if now < self.logs_due {
            return;
        }
        self.logs_due = now + LOG_LOOK;
        let paths: Vec<_> = self
            .slots
            .values()
            .flat_map(|slot| ["engine", "agent"].map(|role| self.state_dir.log_path(&slot.name, role)))
            .collect();
        let max_bytes = self.spec.log_max_bytes;
        spawn_blocking(move || {
            for path in paths {
                if let Err(error) = launch::bound_log(&path, max_bytes) {
                    tracing::warn!(path = %path.display(), %error, "cannot bound log");
                }
            }
        });
    }
}
