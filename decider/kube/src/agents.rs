//! What this crate asks of the decider's agents.

/// Agents as the decider knows them. Implementations answer from memory and never wait.
pub trait Agents: Send + Sync + 'static {
    /// Tells the agent of a replica to drain, or to stop draining; remembered for an agent that connects later.
    fn drain(&self, target: &str, pod: &str, draining: bool);

    /// Requests running and waiting in a replica as its agent last said; `None` without fresh data.
    fn load(&self, target: &str, pod: &str) -> Option<f64>;
}
