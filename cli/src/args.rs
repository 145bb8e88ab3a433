//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where a decider listens unless told otherwise.
pub(crate) const DEFAULT_SERVER: &str = "http://127.0.0.1:9400";

/// Asks the decider what it does and why, and tells it what people want.
#[derive(Debug, Parser)]
#[command(name = "inferctl", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Address of the decider; https:// for one in a cluster
    #[arg(long, global = true, env = "INFERCTL_SERVER", default_value = DEFAULT_SERVER, value_name = "ADDRESS")]
    pub(crate) server: String,
    /// Certificates (PEM) of the authority that signs the decider's; no other is trusted, so https needs it
    #[arg(long, global = true, env = "INFERCTL_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// File with the token that says who asks; INFERCTL_TOKEN may hold the token itself
    #[arg(long, global = true, env = "INFERCTL_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Name that the decider's certificate must hold, where it is reached under another, such as infer-decider
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,
    #[command(flatten)]
    pub(crate) kube: KubeArgs,
    /// Form of the output
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table, value_name = "FORM")]
    pub(crate) output: Format,
    /// How long to wait for the decider, such as 500ms, 10s or 2m
    #[arg(long, global = true, value_parser = duration, default_value = "10s", value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct KubeArgs {
    /// Find the decider with kubectl: address, certificates and token from the cluster; as kubectl-infer this is the default
    #[arg(long, global = true)]
    pub(crate) kube: bool,
    /// With --kube: the decider's namespace
    #[arg(long, global = true, default_value = "infer-system", value_name = "NAMESPACE")]
    pub(crate) namespace: String,
    /// With --kube: context of the kubeconfig; by default its current one
    #[arg(long, global = true, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,
    /// With --kube: ask as this service account; by default as who the kubeconfig says, if that has a token
    #[arg(long, global = true, value_name = "NAMESPACE/NAME", value_parser = service_account)]
    pub(crate) service_account: Option<ServiceAccount>,
    /// With --kube: the decider to ask; by default the one that decides
    #[arg(long, global = true, value_name = "POD")]
    pub(crate) decider: Option<String>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs; one object per line where output goes on
    Json,
    /// For programs; one document per object where output goes on
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How the decider is
    Status,
    /// Every target, or one in full
    Targets {
        /// Name of a target
        name: Option<String>,
    },
    /// Decisions that were made, newest first
    Decisions(DecisionsArgs),
    /// Why a decision came out as it did: inputs, every step, what bound it
    Explain {
        /// Id of a decision, or name of a target for its newest one; may be left out when there is one target
        #[arg(value_name = "DECISION_ID|TARGET")]
        what: Option<String>,
    },
    /// What was measured over a window: gauges, rates, latency percentiles
    Windows(WindowsArgs),
    /// Targets as they change, until interrupted
    Watch {
        /// Only this target
        target: Option<String>,
    },
    /// Stop changing a target's replicas; decisions go on, not applied
    Pause(PauseArgs),
    /// End a pause or an override
    Resume {
        /// Name of the target
        target: String,
    },
    /// Fix a target's replica count for a while
    Override(OverrideArgs),
    /// Work with policy documents, without a decider
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Put the agent into the Pods of a manifest, without a decider, as its webhook would; the manifest goes to stdout, and
    /// with --ca-file or --kube the authority's certificates into it
    Inject(InjectArgs),
    /// Take out of a manifest what injection put there; the manifest goes to stdout
    Uninject {
        #[command(flatten)]
        manifest: ManifestArgs,
    },
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

impl Command {
    /// Whether the answer is about everything that one decider has.
    pub(crate) fn lists(&self) -> bool {
        match self {
            Command::Status | Command::Targets { name: None } | Command::Watch { target: None } => true,
            Command::Explain { what } => what.is_none(),
            Command::Decisions(args) => args.target.is_none(),
            _ => false,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DecisionsArgs {
    /// Only of this target
    pub(crate) target: Option<String>,
    /// Show the last decisions, oldest first, then each new one as it is made
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// How many; by default the decider's choice, or 10 with --follow
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub(crate) limit: Option<u32>,
    /// Only those before the decision with this id, for paging
    #[arg(long, conflicts_with = "follow", value_parser = clap::value_parser!(u64).range(1..), value_name = "DECISION_ID")]
    pub(crate) before: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct WindowsArgs {
    /// Name of the target
    pub(crate) target: String,
    /// Length of the window, in whole seconds; by default the policy's stable window
    #[arg(long, value_parser = whole_seconds, value_name = "DURATION")]
    pub(crate) window: Option<u32>,
    /// Quantiles of the latencies, between 0 and 1 [default: 0.5,0.9,0.95,0.99]
    #[arg(long, value_parser = quantile, value_delimiter = ',', value_name = "Q")]
    pub(crate) quantile: Vec<f64>,
}

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Name of the target
    pub(crate) target: String,
    /// When the pause ends by itself, such as 10m; by default when somebody resumes
    #[arg(long = "for", value_parser = whole_seconds, value_name = "DURATION")]
    pub(crate) for_s: Option<u32>,
    /// Why, for the record
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct OverrideArgs {
    /// Name of the target
    pub(crate) target: String,
    /// How many replicas
    #[arg(long, value_name = "N")]
    pub(crate) replicas: u32,
    /// How long, such as 10m; an override always ends
    #[arg(long = "for", value_parser = whole_seconds, value_name = "DURATION")]
    pub(crate) for_s: u32,
    /// Why, for the record
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(crate) reason: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Check documents and say everything that is wrong with them; exit code 2 when something is
    Check {
        /// Files with AutoscalingPolicy, AutoscalingPolicyBinding and LocalFleet documents, taken together; - is stdin
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    /// Documents of Kubernetes, YAML or JSON; - is stdin
    #[arg(long = "file", short, value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct InjectArgs {
    #[command(flatten)]
    pub(crate) manifest: ManifestArgs,
    /// The decider's gRPC endpoint as the Pods will see it; by default that of an installation under its usual name
    #[arg(long, value_name = "URL")]
    pub(crate) decider_url: Option<String>,
    /// The agent's image; by default the one of this version
    #[arg(long, value_name = "IMAGE")]
    pub(crate) agent_image: Option<String>,
    /// An ordinary container instead of a native sidecar, for Kubernetes before 1.29
    #[arg(long)]
    pub(crate) fallback: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// A number and its unit: "500ms", "10s", "2m", "1h", "1d"; more than 0.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_ms: f64 = match &text[digits.len()..] {
        "ms" => 1.0,
        "s" => 1000.0,
        "m" | "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        "" => return Err(format!("a unit is missing; write {text}s for seconds (ms, s, m, h, d)")),
        unit => return Err(format!("{unit:?} is not a unit; allowed: ms, s, m, h, d")),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| format!("{digits:?} is not a number; write for example 10s"))?;
    let duration = Duration::try_from_secs_f64(number * unit_ms / 1000.0).map_err(|_| "is out of range".to_owned())?;
    if duration.is_zero() {
        Err("must be more than 0".to_owned())
    } else {
        Ok(duration)
    }
}

fn service_account(text: &str) -> Result<ServiceAccount, String> {
    match text.split('/').collect::<Vec<_>>().as_slice() {
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => Ok(ServiceAccount {
            namespace: (*namespace).to_owned(),
            name: (*name).to_owned(),
        }),
        _ => Err("write its namespace and its name: NAMESPACE/NAME".to_owned()),
    }
}

fn whole_seconds(text: &str) -> Result<u32, String> {
    let duration = duration(text)?;
    match u32::try_from(duration.as_secs()) {
        Ok(seconds) if duration.subsec_nanos() == 0 && seconds > 0 => Ok(seconds),
        Ok(_) => Err("must be whole seconds, at least 1s".to_owned()),
        Err(_) => Err("is too long".to_owned()),
    }
}

fn quantile(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(quantile) if quantile > 0.0 && quantile < 1.0 => Ok(quantile),
        Ok(quantile) if (1.0..100.0).contains(&quantile) => Err(format!(
            "must be between 0 and 1; the {text}th percentile is {}",
            quantile / 100.0
        )),
        _ => Err("must be a number between 0 and 1, such as 0.95".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_need_a_unit_and_mean_it() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(whole_seconds("10m"), Ok(600));
        assert_eq!(whole_seconds("1h"), Ok(3600));
        assert_eq!(whole_seconds("1d"), Ok(86400));
        for bad in ["10", "s", "", "-1s", "10y", "0s", "infs", "1e400s", "ten s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["500ms", "1.5s", "99999999d"] {
            assert!(whole_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quantiles_are_shares() {
        assert_eq!(quantile("0.95"), Ok(0.95));
        assert!(quantile("95").is_err_and(|message| message.contains("0.95")));
        for bad in ["0", "1", "100", "-0.5", "nan", "p95"] {
            assert!(quantile(bad).is_err(), "{bad}");
        }
    }
}
