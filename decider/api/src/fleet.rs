//! `LocalFleet`: engine processes on this machine, what `AutoscalingPolicyBinding` scales where there is no cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::metadata::{ApiVersion, Metadata};
use crate::policy::count;

/// Engine processes on this machine, started, watched and stopped by the decider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalFleet {
    /// Group and version of the document.
    pub api_version: ApiVersion,
    /// Kind of the document.
    pub kind: LocalFleetKind,
    /// Name and notes.
    pub metadata: Metadata,
    /// The fleet itself.
    pub spec: LocalFleetSpec,
}

/// The constant in `kind`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LocalFleetKind {
    #[doc(hidden)]
    #[default]
    LocalFleet,
}

impl LocalFleet {
    /// A document of this kind.
    pub fn new(name: impl Into<String>, spec: LocalFleetSpec) -> Self {
        LocalFleet {
            api_version: ApiVersion::default(),
            kind: Default::default(),
            metadata: Metadata::named(name),
            spec,
        }
    }
}

/// The fleet itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalFleetSpec {
    /// Name of the model served; `{model}` in commands.
    #[schemars(length(min = 1))]
    pub model: String,
    /// Replicas to start with; the binding's limits apply from the first decision on.
    #[serde(default = "default_initial_replicas")]
    #[schemars(range(min = 0, max = 100000))]
    pub initial_replicas: i32,
    /// How a replica is started and reached.
    pub engine: EngineSpec,
    /// When a starting replica counts as ready, and when it has failed to start.
    #[serde(default)]
    pub startup_probe: StartupProbe,
    /// How a replica is stopped.
    #[serde(default)]
    pub drain: DrainSpec,
    /// How a replica that ended by itself is started again.
    #[serde(default)]
    pub restart: RestartSpec,
    /// The agent beside each replica.
    #[serde(default)]
    pub agent: AgentSpec,
    /// One address for the whole fleet that holds requests until a replica can take them. Needed for scaling to zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front_door: Option<FrontDoorSpec>,
}

fn default_initial_replicas() -> i32 {
    1
}

impl LocalFleetSpec {
    /// Replicas to start with.
    pub fn initial_replicas(&self) -> u32 {
        count(self.initial_replicas)
    }
}

/// How a replica is started and reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EngineSpec {
    /// Program and arguments, not run by a shell. Filled in: `{port}`, `{host}`, `{engine_url}`, `{replica}` (its name),
    /// `{index}` (its number from 0, to tell accelerators apart), `{uid}`, `{model}`, `{fleet}`, `{target}`, `{decider}`.
    /// `{port}` must occur here or in `env`.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub command: Vec<String>,
    /// Environment variables to set, with the same placeholders.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Directory the program starts in, relative to the decider's own.
    #[serde(default = "default_working_directory")]
    #[schemars(length(min = 1))]
    pub working_directory: String,
    /// Ports from which each replica gets one.
    pub ports: PortRange,
    /// Address at which replicas are reached.
    #[serde(default = "default_host")]
    #[schemars(length(min = 1))]
    pub host: String,
    /// Path of the engine's metrics.
    #[serde(default = "default_metrics_path")]
    #[schemars(extend("pattern" = "^/"))]
    pub metrics_path: String,
}

fn default_working_directory() -> String {
    ".".to_owned()
}
fn default_host() -> String {
    "127.0.0.1".to_owned()
}
fn default_metrics_path() -> String {
    "/metrics".to_owned()
}

/// Ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortRange {
    /// First port.
    #[schemars(range(min = 1, max = 65535))]
    pub from: i32,
    /// Last port.
    #[schemars(range(min = 1, max = 65535))]
    pub to: i32,
}

impl PortRange {
    /// Every port of the range, ascending.
    pub fn ports(&self) -> impl Iterator<Item = u16> + use<> {
        (self.from..=self.to).filter_map(|port| u16::try_from(port).ok())
    }

    /// How many ports there are.
    pub fn len(&self) -> u32 {
        count(self.to.saturating_sub(self.from).saturating_add(1))
    }

    /// True without any port; such a document is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// When a starting replica counts as ready, and when it has failed to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StartupProbe {
    /// Path asked with GET; the replica is ready when it answers 200.
    #[schemars(extend("pattern" = "^/"))]
    pub path: String,
    /// Time between two questions, in milliseconds.
    #[schemars(range(min = 10, max = 60000))]
    pub interval_milliseconds: i32,
    /// A replica not ready after this long is stopped and started again, in seconds.
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_seconds: i32,
}

impl Default for StartupProbe {
    fn default() -> Self {
        StartupProbe {
            path: "/health".to_owned(),
            interval_milliseconds: 250,
            timeout_seconds: 600,
        }
    }
}

impl StartupProbe {
    /// Time between two questions.
    pub fn interval(&self) -> Duration {
        milliseconds(self.interval_milliseconds)
    }

    /// How long a replica may take to become ready.
    pub fn timeout(&self) -> Duration {
        seconds(self.timeout_seconds)
    }
}

/// How a replica is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainSpec {
    /// How long a replica that gets no new requests may take to finish those it has, in seconds.
    #[schemars(range(min = 0, max = 86400))]
    pub timeout_seconds: i32,
    /// Time between SIGTERM and SIGKILL, in seconds.
    #[schemars(range(min = 0, max = 3600))]
    pub termination_grace_seconds: i32,
}

impl Default for DrainSpec {
    fn default() -> Self {
        DrainSpec {
            timeout_seconds: 60,
            termination_grace_seconds: 10,
        }
    }
}

impl DrainSpec {
    /// How long a replica may take to finish its requests.
    pub fn timeout(&self) -> Duration {
        seconds(self.timeout_seconds)
    }

    /// Time between SIGTERM and SIGKILL.
    pub fn termination_grace(&self) -> Duration {
        seconds(self.termination_grace_seconds)
    }
}

/// How a replica that ended by itself is started again: after a wait that doubles with every failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RestartSpec {
    /// The first wait, in milliseconds.
    #[schemars(range(min = 1, max = 3600000))]
    pub initial_backoff_milliseconds: i32,
    /// The longest wait, in seconds.
    #[schemars(range(min = 1, max = 86400))]
    pub max_backoff_seconds: i32,
    /// After running this long the wait starts anew, in seconds.
    #[schemars(range(min = 1, max = 86400))]
    pub reset_after_seconds: i32,
}

impl Default for RestartSpec {
    fn default() -> Self {
        RestartSpec {
            initial_backoff_milliseconds: 500,
            max_backoff_seconds: 60,
            reset_after_seconds: 60,
        }
    }
}

impl RestartSpec {
    /// The first wait.
    pub fn initial_backoff(&self) -> Duration {
        milliseconds(self.initial_backoff_milliseconds)
    }

    /// The longest wait.
    pub fn max_backoff(&self) -> Duration {
        seconds(self.max_backoff_seconds)
    }

    /// After running this long the wait starts anew.
    pub fn reset_after(&self) -> Duration {
        seconds(self.reset_after_seconds)
    }
}

/// The agent beside each replica: reads the engine's metrics and reports them to the decider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AgentSpec {
    /// Program and arguments of the agent, with the engine's placeholders; absent: the `infer-agent` beside the decider.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub command: Option<Vec<String>>,
    /// Time between two full samples, in milliseconds.
    #[schemars(range(min = 200, max = 60000))]
    pub interval_milliseconds: i32,
    /// Time between two cheap looks at the queue, in milliseconds; 0 for none.
    #[schemars(range(min = 0, max = 60000))]
    pub fast_interval_milliseconds: i32,
    /// Environment variables to set, with the engine's placeholders.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

impl Default for AgentSpec {
    fn default() -> Self {
        AgentSpec {
            command: None,
            interval_milliseconds: 1000,
            fast_interval_milliseconds: 250,
            env: BTreeMap::new(),
        }
    }
}

impl AgentSpec {
    /// Time between two full samples.
    pub fn interval(&self) -> Duration {
        milliseconds(self.interval_milliseconds)
    }

    /// Time between two cheap looks at the queue; `None` for none.
    pub fn fast_interval(&self) -> Option<Duration> {
        (self.fast_interval_milliseconds > 0).then(|| milliseconds(self.fast_interval_milliseconds))
    }
}

/// One address for the whole fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FrontDoorSpec {
    /// Address and port to listen on, such as `127.0.0.1:8080`.
    #[schemars(length(min = 1))]
    pub listen: String,
    /// Requests held at most; more are refused at once with 503.
    #[serde(default = "default_queue_limit")]
    #[schemars(range(min = 0, max = 1000000))]
    pub queue_limit: i32,
    /// How long a request is held before it is refused with 503, in seconds.
    #[serde(default = "default_queue_timeout_seconds")]
    #[schemars(range(min = 1, max = 86400))]
    pub queue_timeout_seconds: i32,
}

fn default_queue_limit() -> i32 {
    1024
}
fn default_queue_timeout_seconds() -> i32 {
    120
}

impl FrontDoorSpec {
    /// Requests held at most.
    pub fn queue_limit(&self) -> usize {
        usize::try_from(self.queue_limit).unwrap_or(0)
    }

    /// How long a request is held.
    pub fn queue_timeout(&self) -> Duration {
        seconds(self.queue_timeout_seconds)
    }
}

fn seconds(value: i32) -> Duration {
    Duration::from_secs(count(value).into())
}

fn milliseconds(value: i32) -> Duration {
    Duration::from_millis(count(value).into())
}
