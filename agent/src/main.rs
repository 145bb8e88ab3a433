//! The `infer-agent` command.

#![allow(clippy::print_stdout, reason = "`inspect` gives its result on stdout")]

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use infer_agent::{Agent, Credentials, Error, Options, Settings};
use infer_proto::v1::PodIdentity;
use infer_reader::Mapping;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Where a Pod's kubelet expects probes and `/drain`.
const HTTP_PORT: u16 = 9402;

const EXIT_CODES: &str = "\
Exit codes:
  0  stopped as asked (SIGTERM, SIGINT), or inspected
  1  failed at work
  2  a mistake in flags, environment or mapping; a file that cannot be opened";

/// Reads an inference engine's metrics and streams them to the decider.
#[derive(Debug, Parser)]
#[command(name = "infer-agent", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sample the engine and report to the decider until stopped.
    #[command(after_help = EXIT_CODES)]
    Run(Box<Run>),
    /// Show what the agent would make of captured metrics, without a network.
    #[command(after_help = EXIT_CODES)]
    Inspect(Inspect),
}

#[derive(Debug, Args)]
struct Run {
    /// The engine, http://HOST:PORT.
    #[arg(
        long,
        env = "INFER_AGENT_ENGINE_URL",
        default_value = "http://127.0.0.1:8000",
        value_name = "URL"
    )]
    engine_url: String,
    /// Where the engine serves its metrics; default: as the mapping says, or /metrics.
    #[arg(long, env = "INFER_AGENT_METRICS_PATH", value_name = "PATH")]
    metrics_path: Option<String>,
    /// The decider's gRPC endpoint, http://HOST:PORT or https://HOST:PORT.
    #[arg(
        long,
        env = "INFER_AGENT_DECIDER",
        default_value = "http://127.0.0.1:9400",
        value_name = "URL"
    )]
    decider: String,
    /// Certificates of the authority that signs the decider's certificate, PEM; for https.
    #[arg(long, env = "INFER_AGENT_CA_PEM", hide_env_values = true, value_name = "PEM")]
    ca_pem: Option<String>,
    /// A file with such certificates, besides the PEM; read again at each connect.
    #[arg(long, env = "INFER_AGENT_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A file with the bearer token to show to the decider, over https only; read again at each connect.
    #[arg(long, env = "INFER_AGENT_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Name of this Pod or replica; default: $POD_NAME, or the host name, which in a Pod is the same.
    #[arg(long, env = "INFER_AGENT_POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// What tells two Pods of the same name apart; default: $POD_UID.
    #[arg(long, env = "INFER_AGENT_POD_UID", value_name = "UID")]
    pod_uid: Option<String>,
    /// Namespace of the Pod; default: $POD_NAMESPACE, or empty, as outside Kubernetes.
    #[arg(long, env = "INFER_AGENT_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// The target this replica belongs to; empty: the decider finds out.
    #[arg(long, env = "INFER_AGENT_TARGET", default_value = "", value_name = "NAME")]
    target: String,
    /// Between full scrapes, until the decider wishes otherwise.
    #[arg(long, env = "INFER_AGENT_INTERVAL_MS", default_value_t = 1_000, value_name = "MS",
          value_parser = clap::value_parser!(u32).range(200..=60_000))]
    interval_ms: u32,
    /// Between cheap looks at the queue; 0: none, whatever the decider wishes.
    #[arg(long, env = "INFER_AGENT_FAST_INTERVAL_MS", default_value_t = 250, value_name = "MS",
          value_parser = fast_interval)]
    fast_interval_ms: u32,
    /// Longest time for one scrape; default: four fifths of the interval, at most 5000.
    #[arg(long, env = "INFER_AGENT_SCRAPE_TIMEOUT_MS", value_name = "MS",
          value_parser = clap::value_parser!(u32).range(1..=60_000))]
    scrape_timeout_ms: Option<u32>,
    /// A mapping file, for an engine that the agent does not know.
    #[arg(long, env = "INFER_AGENT_MAPPING", value_name = "FILE")]
    mapping: Option<PathBuf>,
    /// Where to serve /livez, /readyz, /drain and /metrics, or `off`; default: port 9402 of all addresses when $POD_NAME,
    /// $POD_NAMESPACE and $POD_UID are set, otherwise off.
    #[arg(long, env = "INFER_AGENT_HTTP_LISTEN", value_name = "ADDRESS", value_parser = http_listen)]
    http_listen: Option<HttpListen>,
    /// How long after a request for /drain an idle engine is not yet believed to stay idle.
    #[arg(long, env = "INFER_AGENT_DRAIN_SETTLE_MS", default_value_t = 2_000, value_name = "MS",
          value_parser = clap::value_parser!(u32).range(..=60_000))]
    drain_settle_ms: u32,
    /// Longest time for the goodbye after SIGTERM.
    #[arg(long, env = "INFER_AGENT_DRAIN_MS", default_value_t = 3_000, value_name = "MS")]
    drain_ms: u32,
    /// How to write the log, which goes to stderr.
    #[arg(long, env = "INFER_AGENT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// How much to log.
    #[arg(long, env = "INFER_AGENT_LOG_LEVEL", value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,
}

#[derive(Debug, Args)]
struct Inspect {
    /// Metrics as captured from the engine.
    #[arg(long, value_name = "FILE")]
    after: PathBuf,
    /// An earlier capture of the same engine; default: everything in AFTER counts from 0.
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// A mapping file, for an engine that the agent does not know.
    #[arg(long, value_name = "FILE")]
    mapping: Option<PathBuf>,
    /// How to print what was read.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HttpListen {
    Off,
    At(SocketAddr),
}

/// What the downward API tells a container in these variables; empty ones tell nothing.
struct Downward {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
}

impl Downward {
    fn from_environment() -> Self {
        let get = |name| given(std::env::var(name).ok());
        Self {
            name: get("POD_NAME"),
            namespace: get("POD_NAMESPACE"),
            uid: get("POD_UID"),
        }
    }

    fn is_complete(&self) -> bool {
        self.name.is_some() && self.namespace.is_some() && self.uid.is_some()
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Whose fault a failure is, which is its exit code.
enum Failure {
    Usage(anyhow::Error),
    Work(anyhow::Error),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => run_agent(*run),
        Command::Inspect(inspect) => inspect_captures(&inspect),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (error, code) = match &failure {
                Failure::Work(error) => (error, 1),
                Failure::Usage(error) => (error, 2),
            };
            // Not through the log, whose level may hide it.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("infer-agent: {error:#}\n").as_bytes());
            ExitCode::from(code)
        }
    }
}

fn run_agent(run: Run) -> Result<(), Failure> {
    start_log(run.log_format, run.log_level.into());
    let downward = Downward::from_environment();
    let listener = match run.http_listen {
        Some(HttpListen::At(address)) => Some(listen(&[address])?),
        None if downward.is_complete() => Some(listen(&[
            // Of both families where the machine has both, as the other one's Pods must be reached, too.
            (Ipv6Addr::UNSPECIFIED, HTTP_PORT).into(),
            (Ipv4Addr::UNSPECIFIED, HTTP_PORT).into(),
        ])?),
        Some(HttpListen::Off) | None => None,
    };
    let options = Options {
        engine_url: run.engine_url,
        metrics_path: run.metrics_path,
        decider: run.decider,
        credentials: Credentials {
            ca_pem: given(run.ca_pem),
            ca_file: run.ca_file.filter(|file| !file.as_os_str().is_empty()),
            token_file: run.token_file.filter(|file| !file.as_os_str().is_empty()),
        },
        pod: PodIdentity {
            namespace: given(run.namespace).or(downward.namespace).unwrap_or_default(),
            name: given(run.pod_name)
                .or(downward.name)
                .or_else(host_name)
                .unwrap_or_default(),
            uid: given(run.pod_uid).or(downward.uid).unwrap_or_default(),
            target: run.target,
        },
        settings: Settings {
            interval_ms: run.interval_ms,
            fast_interval_ms: run.fast_interval_ms,
            ..Settings::default()
        },
        scrape_timeout_ms: run.scrape_timeout_ms,
        drain_ms: run.drain_ms,
        drain_settle_ms: run.drain_settle_ms,
        mapping: run.mapping.as_deref().map(read_mapping).transpose()?,
        ..Options::default()
    };
    // One thread: a scrape a second and one stream do not fill a hundredth of it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .map_err(Failure::Work)?;
    let summary = runtime.block_on(async {
        let stop = stop_signal().map_err(Failure::Work)?;
        let mut agent = Agent::new(options);
        if let Some(listener) = listener {
            agent = agent.with_http(listener);
        }
        agent.run(stop).await.map_err(|error| match error {
            Error::Listener(_) => Failure::Work(error.into()),
            _ => Failure::Usage(error.into()),
        })
    })?;
    tracing::info!(
        samples = summary.samples,
        acked = summary.acked,
        lost = summary.lost,
        connections = summary.connections,
        drained = summary.drained,
        "stopped"
    );
    Ok(())
}

/// Ready with the first SIGTERM or SIGINT. The handlers stand when this returns, not when it is first polled.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn start_log(format: LogFormat, level: tracing::Level) {
    // The level is for this program; of its libraries only trouble is of interest, unless everything is asked for.
    let libraries = if level == tracing::Level::TRACE {
        level
    } else {
        level.min(tracing::Level::WARN)
    };
    let targets = Targets::new().with_default(libraries).with_target("infer_agent", level);
    let registry = tracing_subscriber::registry().with(targets);
    match format {
        LogFormat::Human => {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry
                .with(
                    tracing_subscriber::fmt::layer()
                        .with_writer(std::io::stderr)
                        .with_ansi(is_terminal),
                )
                .init();
        }
        LogFormat::Json => {
            registry
                .with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr))
                .init();
        }
    }
}

/// A variable that is set to nothing is not set.
fn given(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

fn host_name() -> Option<String> {
    let name = std::env::var("HOSTNAME")
        .or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname"))
        .ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// A socket on the first of these addresses that can be had.
fn listen(addresses: &[SocketAddr]) -> Result<TcpListener, Failure> {
    let named = addresses.last().map(ToString::to_string).unwrap_or_default();
    TcpListener::bind(addresses)
        .with_context(|| format!("cannot listen on {named}; choose with --http-listen"))
        .map_err(Failure::Work)
}

fn http_listen(text: &str) -> Result<HttpListen, String> {
    match text {
        "off" => Ok(HttpListen::Off),
        _ => text
            .parse()
            .map(HttpListen::At)
            .map_err(|_| "neither ADDRESS:PORT, like 0.0.0.0:9402, nor off".into()),
    }
}

fn fast_interval(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(ms @ (0 | 50..=60_000)) => Ok(ms),
        Ok(ms) => Err(format!("{ms} is neither 0 (off) nor in 50..=60000")),
        Err(error) => Err(format!("{error}")),
    }
}

fn read_mapping(path: &Path) -> Result<Mapping, Failure> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the mapping {}", path.display()))
        .map_err(Failure::Usage)?;
    Mapping::from_yaml(&text)
        .with_context(|| format!("mapping {}", path.display()))
        .map_err(Failure::Usage)
}

fn inspect_captures(args: &Inspect) -> Result<(), Failure> {
    let read = |path: &PathBuf| {
        std::fs::read(path)
            .with_context(|| format!("cannot read {}", path.display()))
            .map_err(Failure::Usage)
    };
    let after = read(&args.after)?;
    let before = args.before.as_ref().map(read).transpose()?;
    let mapping = args.mapping.as_deref().map(read_mapping).transpose()?;
    let inspection = infer_reader::inspect(&after, before.as_deref(), mapping)
        .with_context(|| format!("cannot make sense of {}", args.after.display()))
        .map_err(Failure::Work)?;
    match args.output {
        Output::Table => print!("{}", infer_reader::render_table(&inspection)),
        Output::Json => {
            let json = serde_json::to_string_pretty(&inspection)
                .context("cannot write JSON")
                .map_err(Failure::Work)?;
            println!("{json}");
        }
    }
    Ok(())
}
