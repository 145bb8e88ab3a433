//! Puts the agent into a Pod and takes it out again: pure functions on the Pod as JSON.
//!
//! The admission webhook and `inferctl inject` call the same [`inject`], so that both give the same result. See the
//! README for what is added, and for the annotations that say what cannot be seen.

mod command;
mod documents;
mod engine;
mod error;
mod ordered;
mod patch;
mod pod;
mod sidecar;
mod wanted;
mod workload;
mod yaml;

pub use documents::{DocumentError, Rewritten, Workload, inject_documents, uninject_documents};
pub use engine::{Engine, EngineKind};
pub use error::Error;
pub use patch::json_patch;
pub use pod::{Injected, inject, is_injected, uninject};
pub use wanted::{Wish, wanted};
pub use workload::{Outcome, inject_object, uninject_object};

/// Label `enabled` or `disabled`, on a Namespace or a Pod template: is the agent wanted here?
pub const INJECT_LABEL: &str = "autoscaling.matrixinfer.ai/inject";
/// Annotation: name of the container that is the engine.
pub const ENGINE_CONTAINER: &str = "autoscaling.matrixinfer.ai/engine-container";
/// Annotation: port on which the engine serves its metrics.
pub const ENGINE_PORT: &str = "autoscaling.matrixinfer.ai/engine-port";
/// Annotation: path of the engine's metrics.
pub const METRICS_PATH: &str = "autoscaling.matrixinfer.ai/metrics-path";
/// Annotation: the agent's image, instead of [`Options::agent_image`].
pub const AGENT_IMAGE: &str = "autoscaling.matrixinfer.ai/agent-image";
/// Annotation: the agent's HTTP port, instead of [`AGENT_HTTP_PORT`]; for Pods on the host's network.
pub const AGENT_PORT: &str = "autoscaling.matrixinfer.ai/agent-port";
/// Annotation set by injection: [`INJECTION_VERSION`].
pub const INJECTED: &str = "autoscaling.matrixinfer.ai/injected";
/// Annotation set by injection: what was found and what is to be undone, as JSON.
pub const INJECTION: &str = "autoscaling.matrixinfer.ai/injection";
/// What [`INJECTED`] says; goes up when what is added changes its form.
pub const INJECTION_VERSION: &str = "v1";

/// Name of the agent's container and of its port.
pub const AGENT_CONTAINER: &str = "infer-agent";
/// Name of the volume with the agent's token.
pub const TOKEN_VOLUME: &str = "infer-agent-token";
/// Where the token's volume is mounted in the agent's container.
pub const TOKEN_DIRECTORY: &str = "/var/run/secrets/infer-agent";
/// Whom the token is for.
pub const TOKEN_AUDIENCE: &str = "infer-decider";
/// Where the agent serves probes, drain and its own metrics.
pub const AGENT_HTTP_PORT: u16 = 9402;

/// What injection has to know beside the Pod. `Default` fits a decider installed under its usual name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The decider's gRPC endpoint as Pods see it, `https://HOST:PORT`.
    pub decider_url: String,
    /// Certificates (PEM) of the authority that signs the decider's. An agent trusts no other, so `https` needs it.
    pub ca_pem: Option<String>,
    /// The agent's image, unless the Pod's annotation names another.
    pub agent_image: String,
    /// When the agent's image is pulled. None: as Kubernetes does by itself.
    pub image_pull_policy: Option<String>,
    /// True: an init container with `restartPolicy: Always` (Kubernetes 1.29 and later, which starts it before the engine
    /// and stops it after). False: one more ordinary container.
    pub native_sidecar: bool,
    /// User and group of the agent's process, unless the Pod names others. None: the image's, for clusters such as
    /// OpenShift that choose users themselves.
    pub run_as_user: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            decider_url: "https://infer-decider.infer-system.svc:9400".into(),
            ca_pem: None,
            agent_image: concat!("matrixinfer/infer-agent:", env!("CARGO_PKG_VERSION")).into(),
            image_pull_policy: None,
            native_sidecar: true,
            run_as_user: Some(65_532),
        }
    }
}
