//! What a local fleet is made of.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use crate::{Error, template};

/// A fleet of engine processes on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetSpec {
    /// Name of the fleet: lower-case letters, digits and `-`, at most 63 characters. Replicas are `<name>-<n>`.
    pub name: String,
    /// What `{model}` stands for in the templates.
    pub model: String,
    /// How an engine is started.
    pub engine: Engine,
    /// The ports engines listen on, one each; its length bounds the fleet.
    pub ports: RangeInclusive<u16>,
    /// The address engines listen on (`{host}`); the unspecified address is probed at loopback.
    pub host: IpAddr,
    /// When a started engine counts as ready.
    pub startup_probe: StartupProbe,
    /// How an engine is ended.
    pub drain: Drain,
    /// How a crashed engine or agent is started again.
    pub restart: Restart,
    /// What runs beside each engine.
    pub agent: Agent,
    /// Environment of the agent, templated, on top of the decider's own.
    pub agent_env: BTreeMap<String, String>,
    /// Bound on each log file, in bytes: a file beyond it is moved to `<name>.1` (replacing the one there).
    pub log_max_bytes: u64,
}

/// How an engine process is started.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Engine {
    /// Program and arguments. Placeholders: `{port} {host} {replica} {index} {uid} {model} {fleet} {engine_url}`.
    pub command: Vec<String>,
    /// Environment, templated like the command, on top of the decider's own.
    pub env: BTreeMap<String, String>,
    /// Working directory; the decider's when absent.
    pub working_dir: Option<PathBuf>,
}

/// HTTP GET until 200.
#[derive(Debug, Clone, PartialEq)]
pub struct StartupProbe {
    /// Path and query.
    pub path: String,
    /// Pause between two tries.
    pub interval: Duration,
    /// From the start of the process; an engine that is not ready by then is killed and started again.
    pub timeout: Duration,
}

impl Default for StartupProbe {
    fn default() -> Self {
        Self {
            path: "/health".into(),
            interval: Duration::from_millis(250),
            timeout: Duration::from_secs(600),
        }
    }
}

/// How an engine is ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Drain {
    /// Longest wait for requests under way.
    pub timeout: Duration,
    /// From SIGTERM to SIGKILL.
    pub termination_grace: Duration,
    /// How long an engine must have been seen idle before it is ended. Covers the request that picked its replica just
    /// before the replica left the list of endpoints.
    pub settle: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            termination_grace: Duration::from_secs(10),
            settle: Duration::from_millis(200),
        }
    }
}

/// Exponential backoff with jitter: doubles from `initial_backoff` to `max_backoff`.
#[derive(Debug, Clone, PartialEq)]
pub struct Restart {
    /// Wait after the first failure.
    pub initial_backoff: Duration,
    /// Longest wait.
    pub max_backoff: Duration,
    /// A process that ran this long (an engine: was ready this long) starts from `initial_backoff` again.
    pub reset_after: Duration,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            initial_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(60),
            reset_after: Duration::from_secs(60),
        }
    }
}

/// The process beside each engine.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Agent {
    /// `infer-agent run --engine-url {engine_url} --pod-name {replica} --pod-uid {uid} --target {target} --decider
    /// {decider}`, the program found beside the current executable, else on PATH.
    #[default]
    Beside,
    /// Another program; placeholders as for the engine, and `{target} {decider}`.
    Command(Vec<String>),
    /// No agent: the engine is watched by other means.
    Off,
}

impl FleetSpec {
    /// A fleet with the defaults: loopback, an agent beside each engine, 64 MiB of log.
    #[must_use]
    pub fn new(name: impl Into<String>, command: Vec<String>, ports: RangeInclusive<u16>) -> Self {
        Self {
            name: name.into(),
            model: String::new(),
            engine: Engine {
                command,
                ..Engine::default()
            },
            ports,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            startup_probe: StartupProbe::default(),
            drain: Drain::default(),
            restart: Restart::default(),
            agent: Agent::default(),
            agent_env: BTreeMap::new(),
            log_max_bytes: 64 << 20,
        }
    }

    /// How many ports, and so replicas, the range holds.
    #[must_use]
    pub fn port_count(&self) -> u32 {
        if self.ports.is_empty() {
            0
        } else {
            u32::from(*self.ports.end()) - u32::from(*self.ports.start()) + 1
        }
    }

    /// Where the engine of a port is reached.
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        let host = match self.host {
            IpAddr::V4(host) if host.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(host) if host.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            host => host,
        };
        SocketAddr::new(host, port)
    }

    /// The agent's command template, `None` when there is to be no agent.
    pub(crate) fn agent_command(&self) -> Option<Vec<String>> {
        match &self.agent {
            Agent::Off => None,
            Agent::Command(command) => Some(command.clone()),
            Agent::Beside => {
                let beside = std::env::current_exe()
                    .ok()
                    .map(|exe| exe.with_file_name("infer-agent"));
                let program = match beside {
                    Some(path) if path.is_file() => path.to_string_lossy().into_owned(),
                    _ => "infer-agent".to_owned(),
                };
                let arguments = [
                    "run",
                    "--engine-url",
                    "{engine_url}",
                    "--pod-name",
                    "{replica}",
                    "--pod-uid",
                    "{uid}",
                ]
                .into_iter()
                .chain(["--target", "{target}", "--decider", "{decider}"]);
                Some(std::iter::once(program).chain(arguments.map(str::to_owned)).collect())
            }
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`Error::Spec`] naming the first wrong field.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |field: &str, problem: String| {
            Err(Error::Spec {
                fleet: self.name.clone(),
                field: field.to_owned(),
                problem,
            })
        };
        let good_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty()
            || self.name.len() > 63
            || !self.name.chars().all(good_name)
            || self.name.starts_with('-')
        {
            let rule = "must be 1 to 63 lower-case letters, digits or \"-\", and not begin with \"-\"";
            return wrong("name", rule.into());
        }
        if self.ports.is_empty() || *self.ports.start() == 0 {
            return wrong(
                "ports",
                "must be a range of ports from low to high, not holding 0, such as 9000-9015".into(),
            );
        }
        if !self.startup_probe.path.starts_with('/') || self.startup_probe.path.parse::<http::Uri>().is_err() {
            return wrong(
                "startup_probe.path",
                "must be a path that begins with \"/\", such as \"/health\"".into(),
            );
        }
        if self.startup_probe.interval.is_zero() || self.startup_probe.timeout.is_zero() {
            return wrong("startup_probe", "interval and timeout must be above 0".into());
        }
        if self.restart.initial_backoff.is_zero() || self.restart.max_backoff < self.restart.initial_backoff {
            return wrong(
                "restart",
                "initial backoff must be above 0 and at most the maximum backoff".into(),
            );
        }
        let agent = match &self.agent {
            Agent::Command(command) => Some(command),
            Agent::Beside | Agent::Off => None,
        };
        for (field, command) in [("engine.command", Some(&self.engine.command)), ("agent.command", agent)] {
            let Some(command) = command else { continue };
            if command.first().is_none_or(String::is_empty) {
                return wrong(field, "must name a program, then its arguments".into());
            }
            for (index, text) in command.iter().enumerate() {
                if let Err(problem) = template::check(text) {
                    return wrong(&format!("{field}[{index}]"), problem);
                }
            }
        }
        for (field, env) in [("engine.env", &self.engine.env), ("agent.env", &self.agent_env)] {
            for (key, text) in env {
                if key.is_empty() || key.contains(['=', '\0']) {
                    return wrong(field, format!("\"{key}\" is not a name of an environment variable"));
                }
                if let Err(problem) = template::check(text) {
                    return wrong(&format!("{field}.{key}"), problem);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_with_their_field() {
        let good = || FleetSpec::new("chat", vec!["engine".into(), "--port={port}".into()], 9000..=9003);
        assert!(good().validate().is_ok());
        assert_eq!(good().port_count(), 4);
        type Change = fn(&mut FleetSpec);
        let cases: [(&str, Change); 6] = [
            ("name", |s| s.name = "Chat".into()),
            ("ports", |s| s.ports = RangeInclusive::new(5, 4)),
            ("engine.command[1]", |s| s.engine.command[1] = "{prot}".into()),
            ("engine.command", |s| s.engine.command.clear()),
            ("engine.env.X", |s| _ = s.engine.env.insert("X".into(), "{nope}".into())),
            ("startup_probe.path", |s| s.startup_probe.path = "health".into()),
        ];
        for (field, change) in cases {
            let mut spec = good();
            change(&mut spec);
            let Err(Error::Spec { field: named, .. }) = spec.validate() else {
                panic!("{field} passed")
            };
            assert_eq!(named, field);
        }
    }

    #[test]
    fn the_unspecified_address_is_reached_at_loopback() {
        let mut spec = FleetSpec::new("chat", vec!["engine".into()], 9000..=9003);
        spec.host = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        assert_eq!(spec.address(9001).to_string(), "127.0.0.1:9001");
    }
}
