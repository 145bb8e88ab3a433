//! Why a Pod gets no agent.

use crate::{AGENT_PORT, ENGINE_CONTAINER, ENGINE_PORT, INJECT_LABEL};

/// Why a Pod gets no agent although one is wanted. The Pod is left as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a Pod, or a field of the wrong type.
    #[error("{field} {problem}")]
    Shape {
        /// Where, as a path in the Pod: `spec.containers[0].name`.
        field: String,
        /// What is wrong there.
        problem: &'static str,
    },
    /// Several containers, and none of them looks like an engine.
    #[error(
        "none of the containers {} looks like vLLM or SGLang; name the engine's container in the annotation \
         {ENGINE_CONTAINER}, or label the Pod {INJECT_LABEL}: disabled",
        .containers.join(", ")
    )]
    NoEngine {
        /// Names of the Pod's containers.
        containers: Vec<String>,
    },
    /// More than one container looks like an engine.
    #[error(
        "the containers {} all look like engines; name the one to report on in the annotation {ENGINE_CONTAINER}",
        .containers.join(", ")
    )]
    SeveralEngines {
        /// Names of those that look like engines.
        containers: Vec<String>,
    },
    /// The annotation names a container that is not there.
    #[error("annotation {ENGINE_CONTAINER}: there is no container {named:?}; there are: {}", .containers.join(", "))]
    UnknownContainer {
        /// What the annotation says.
        named: String,
        /// Names of the Pod's containers.
        containers: Vec<String>,
    },
    /// An annotation's value cannot be used.
    #[error("annotation {annotation}: {value:?} is not usable; expected: {expected}")]
    Annotation {
        /// Name of the annotation.
        annotation: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
    /// The engine's port is given in a way that only the running container can resolve.
    #[error(
        "container {container}: the engine's port {written:?} is known only when it runs; say it in the annotation \
         {ENGINE_PORT}"
    )]
    UnknownPort {
        /// Name of the engine's container.
        container: String,
        /// What stands behind `--port`.
        written: String,
    },
    /// There is something with the name of what would be added.
    #[error("there is a {what} named {name:?} which injection did not put there; rename it")]
    NameTaken {
        /// `container` or `volume`.
        what: &'static str,
        /// The name.
        name: &'static str,
    },
    /// The agent's port is in use in the same Pod.
    #[error(
        "port {port}, where the agent would listen, is used by container {container}; choose another in the annotation {AGENT_PORT}"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// Name of the container that has it.
        container: String,
    },
    /// Without native sidecars, a Pod that is to end by itself would never end.
    #[error(
        "restartPolicy is {restart_policy}: beside an agent as an ordinary container this Pod would never end; it needs native sidecars (Kubernetes 1.29 and later)"
    )]
    WouldNotEnd {
        /// The Pod's restart policy.
        restart_policy: String,
    },
    /// Leaders and workers of a group come from one template.
    #[error(
        "leaders and workers of groups of {size} Pods all come from this template, and only leaders serve; give the leaders a \
         template of their own (leaderTemplate, a copy of this one), or leave injection to the webhook, which tells them apart"
    )]
    SharedTemplate {
        /// Pods in a group.
        size: u64,
    },
    /// The agent is built for Linux.
    #[error("spec.os.name is windows: the agent runs on Linux only")]
    Windows,
}
