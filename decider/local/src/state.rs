//! What a fleet looks like from outside.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::FleetSpec;

/// Where a replica is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// On its way: the start-up probe has not passed yet.
    Starting,
    /// In the list of endpoints.
    Ready,
    /// Out of the list of endpoints, finishing its requests or ending.
    Draining,
    /// Its engine crashed or could not be started; waits for the next try.
    Failed,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplicaState {
    /// `<fleet>-<n>`; the same across restarts.
    pub name: String,
    /// Of this start; another after a restart.
    pub uid: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// The engine's port, when it has one.
    pub port: Option<u16>,
    /// Where the engine is reached, when it has a port.
    pub endpoint: Option<SocketAddr>,
    /// The engine's process.
    pub engine_pid: Option<u32>,
    /// The agent's process.
    pub agent_pid: Option<u32>,
    /// From the start of the process to the first 200 of the start-up probe.
    pub startup_ms: Option<u64>,
    /// Engine crashes of this replica since it was created, restarts included.
    pub crashes: u64,
    /// What went wrong last, with the exit code or signal; kept after recovery.
    pub last_problem: Option<String>,
    /// When this start was decided.
    pub started_unix_ms: u64,
    /// When the engine's process was there.
    pub spawned_unix_ms: Option<u64>,
    /// When the start-up probe passed.
    pub ready_unix_ms: Option<u64>,
    /// Requests under way, by the sender's count at the time of this picture.
    pub in_flight: usize,
}

/// Counted since the supervisor began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Engine processes started.
    pub starts: u64,
    /// Engines that could not be started at all (program not found, no free port).
    pub start_failures: u64,
    /// Engines that did not pass the start-up probe in time.
    pub startup_timeouts: u64,
    /// Engines that ended without being asked to.
    pub crashes: u64,
    /// Drains begun.
    pub drains: u64,
    /// Drains taken back because the replica was wanted again.
    pub drains_cancelled: u64,
    /// Drains that ended with requests still under way.
    pub drain_timeouts: u64,
    /// Engines and agents ended with SIGKILL because SIGTERM did not end them in time.
    pub kills: u64,
    /// Engines taken over from an earlier decider.
    pub adopted: u64,
    /// Agents that ended without being asked to.
    pub agent_exits: u64,
}

/// A fleet at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetState {
    /// What the fleet is made of.
    pub spec: Arc<FleetSpec>,
    /// The wanted count; `None` before the first was told.
    pub wanted: Option<u32>,
    /// The plan that told it.
    pub plan_id: Option<String>,
    /// By slot.
    pub replicas: Vec<ReplicaState>,
    /// Processes of replicas already gone from the list that have been asked to end and have not yet: agents sending
    /// their last samples.
    pub leaving: usize,
    /// What happened so far.
    pub counters: Counters,
    /// False until the supervisor has looked for what an earlier one has left: nothing is known before.
    pub taken_over: bool,
}

impl FleetState {
    /// How many replicas are in a phase.
    #[must_use]
    pub fn count(&self, phase: Phase) -> usize {
        self.replicas.iter().filter(|replica| replica.phase == phase).count()
    }

    /// The replica of this name.
    #[must_use]
    pub fn replica(&self, name: &str) -> Option<&ReplicaState> {
        self.replicas.iter().find(|replica| replica.name == name)
    }
}

/// What an [`Event`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// An engine process was started.
    Started,
    /// A start-up probe passed.
    Ready,
    /// A process could not be started.
    StartFailed,
    /// A start-up probe did not pass in time.
    StartupTimeout,
    /// An engine ended by itself.
    Crashed,
    /// A drain began.
    Draining,
    /// A drain was taken back.
    DrainCancelled,
    /// A drain ended with requests under way.
    DrainTimedOut,
    /// SIGKILL was needed.
    Killed,
    /// An engine ended as asked.
    Stopped,
    /// A process of an earlier decider was taken over.
    Adopted,
    /// A process of an earlier decider that belongs to no replica is being ended.
    Orphan,
    /// An agent ended by itself.
    AgentExited,
    /// The state directory could not be written.
    StateNotWritten,
}

/// Something that happened, also logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    pub unix_ms: u64,
    /// The fleet.
    pub fleet: String,
    /// The replica, when it is about one.
    pub replica: Option<String>,
    /// What.
    pub kind: EventKind,
    /// In words.
    pub text: String,
}

/// Wall clock, ms since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
