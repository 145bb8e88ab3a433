//! One replica's place in the fleet.

use std::time::Duration;

use tokio::{task::AbortHandle, time::Instant};

use crate::{
    FleetSpec, Phase, ReplicaState, Traffic,
    backoff::Backoff,
    process::Identity,
    registry::{Record, RecordStage},
};

/// What to do once an engine that was asked to end has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is no longer wanted.
    Remove,
    /// It did not become ready: try again after a wait.
    Retry,
}

/// Where a slot is in its life, finer than [`Phase`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// To be started as soon as there is a port.
    Pending,
    /// Started, the probe runs.
    Starting,
    Ready,
    Draining {
        deadline: Instant,
        until_unix_ms: u64,
        idle_since: Option<Instant>,
    },
    /// To end: first the agent, which counts what the engine has finished last, then the engine.
    Terminating {
        /// Whether the engine was sent SIGTERM, or is still there for its agent's last look.
        told: bool,
        kill_at: Instant,
        killed: bool,
        then: Then,
    },
    /// No engine; the next try is due at this time.
    Failed {
        retry_at: Instant,
    },
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) stage: Stage,
    pub(crate) port: Option<u16>,
    pub(crate) engine: Option<Identity>,
    pub(crate) agent: Option<Identity>,
    pub(crate) agent_since: Instant,
    pub(crate) agent_backoff: Backoff,
    /// When the agent is to be started again; `None` while it runs or when there is none.
    pub(crate) agent_retry_at: Option<Instant>,
    pub(crate) agent_problem: Option<String>,
    pub(crate) backoff: Backoff,
    pub(crate) spawned_at: Instant,
    pub(crate) ready_at: Option<Instant>,
    pub(crate) probe: Option<AbortHandle>,
    pub(crate) startup_ms: Option<u64>,
    pub(crate) crashes: u64,
    pub(crate) last_problem: Option<String>,
    pub(crate) started_unix_ms: u64,
    pub(crate) spawned_unix_ms: Option<u64>,
    pub(crate) ready_unix_ms: Option<u64>,
}

impl Slot {
    pub(crate) fn new(fleet: &str, index: u32, now: Instant) -> Self {
        Self {
            index,
            name: format!("{fleet}-{index}"),
            uid: String::new(),
            stage: Stage::Pending,
            port: None,
            engine: None,
            agent: None,
            agent_since: now,
            agent_backoff: Backoff::default(),
            agent_retry_at: None,
            agent_problem: None,
            backoff: Backoff::default(),
            spawned_at: now,
            ready_at: None,
            probe: None,
            startup_ms: None,
            crashes: 0,
            last_problem: None,
            started_unix_ms: crate::state::unix_ms(),
            spawned_unix_ms: None,
            ready_unix_ms: None,
        }
    }

    /// Whether it counts towards the wanted number.
    pub(crate) fn is_live(&self) -> bool {
        matches!(
            self.stage,
            Stage::Pending | Stage::Starting | Stage::Ready | Stage::Failed { .. }
        ) || matches!(self.stage, Stage::Terminating { then: Then::Retry, .. })
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.stage {
            Stage::Pending | Stage::Starting => Phase::Starting,
            Stage::Ready => Phase::Ready,
            Stage::Draining { .. } | Stage::Terminating { then: Then::Remove, .. } => Phase::Draining,
            Stage::Failed { .. } | Stage::Terminating { then: Then::Retry, .. } => Phase::Failed,
        }
    }

    /// The port, once it is this start's; a slot that waits keeps its last one only to try the next after it.
    pub(crate) fn port_in_use(&self) -> Option<u16> {
        self.port
            .filter(|_| !matches!(self.stage, Stage::Pending | Stage::Failed { .. }))
    }

    /// How long the engine has been ready.
    pub(crate) fn well_for(&self, now: Instant) -> Duration {
        self.ready_at
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    pub(crate) fn stop_probe(&mut self) {
        if let Some(probe) = self.probe.take() {
            probe.abort();
        }
    }

    pub(crate) fn state(&self, spec: &FleetSpec, traffic: &dyn Traffic) -> ReplicaState {
        let port = self.port_in_use();
        ReplicaState {
            name: self.name.clone(),
            uid: self.uid.clone(),
            phase: self.phase(),
            port,
            endpoint: port.map(|port| spec.address(port)),
            engine_pid: self.engine.as_ref().map(|engine| engine.pid),
            agent_pid: self.agent.as_ref().map(|agent| agent.pid),
            startup_ms: self.startup_ms,
            crashes: self.crashes,
            last_problem: self.last_problem.clone(),
            started_unix_ms: self.started_unix_ms,
            spawned_unix_ms: self.spawned_unix_ms,
            ready_unix_ms: self.ready_unix_ms,
            in_flight: traffic.in_flight(&self.name),
        }
    }

    pub(crate) fn record(&self) -> Record {
        let (stage, drain_until_unix_ms) = match self.stage {
            Stage::Pending | Stage::Starting => (RecordStage::Starting, None),
            Stage::Ready => (RecordStage::Ready, None),
            Stage::Draining { until_unix_ms, .. } => (RecordStage::Draining, Some(until_unix_ms)),
            Stage::Terminating { .. } => (RecordStage::Terminating, None),
            Stage::Failed { .. } => (RecordStage::Failed, None),
        };
        Record {
            index: self.index,
            name: self.name.clone(),
            uid: self.uid.clone(),
            stage,
            port: self.port,
            engine: self.engine.clone(),
            agent: self.agent.clone(),
            started_unix_ms: self.started_unix_ms,
            spawned_unix_ms: self.spawned_unix_ms,
            ready_unix_ms: self.ready_unix_ms,
            startup_ms: self.startup_ms,
            drain_until_unix_ms,
            crashes: self.crashes,
            failures: self.backoff.failures,
            last_problem: self.last_problem.clone(),
        }
    }

    /// The slot of a record, before it is known what of it still runs.
    pub(crate) fn restore(record: Record, now: Instant) -> Self {
        Self {
            name: record.name,
            uid: record.uid,
            port: record.port,
            backoff: Backoff {
                failures: record.failures,
            },
            startup_ms: record.startup_ms,
            crashes: record.crashes,
            last_problem: record.last_problem,
            started_unix_ms: record.started_unix_ms,
            spawned_unix_ms: record.spawned_unix_ms,
            ready_unix_ms: record.ready_unix_ms,
            ..Self::new("", record.index, now)
        }
    }
}
