//! `infer-decider`: run on this machine or in a cluster, check documents, clean up.

use std::{future::Future, io::IsTerminal as _, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use infer_api::{Documents, parse_sources};
use infer_decider::{cluster, service};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// Decides how many inference replicas there should be, and says why.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 ended as asked; 1 failed at work; 2 a mistake in documents or usage."
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the decider with fleets on this machine.
    Run(Run),
    /// Run the decider in a Kubernetes cluster: bindings are custom resources, targets anything with a replica count.
    Kubernetes {
        #[command(flatten)]
        options: Box<cluster::Options>,
        #[command(flatten)]
        log: Log,
    },
    /// End what a decider that was killed has left running: only what it has started.
    Cleanup {
        /// The killed decider's state directory.
        #[arg(long, env = "INFER_DECIDER_STATE_DIR", default_value = ".run/decider")]
        state_dir: PathBuf,
    },
    /// Check documents and say what is wrong with them, without running anything.
    Check {
        /// YAML files with AutoscalingPolicy, AutoscalingPolicyBinding and LocalFleet documents.
        #[arg(required = true)]
        config: Vec<PathBuf>,
    },
}

#[derive(clap::Args)]
struct Run {
    /// YAML file with AutoscalingPolicy, AutoscalingPolicyBinding and LocalFleet documents; may be repeated.
    #[arg(long, required = true)]
    config: Vec<PathBuf>,
    /// Where journal, registry and logs are kept.
    #[arg(long, env = "INFER_DECIDER_STATE_DIR", default_value = ".run/decider")]
    state_dir: PathBuf,
    /// Address for gRPC: agents report here, inferctl asks here. Port 0 picks one; see addresses.json in the state dir.
    #[arg(long, env = "INFER_DECIDER_LISTEN", default_value = "127.0.0.1:9400")]
    listen: SocketAddr,
    /// Address for /metrics, /livez and /readyz.
    #[arg(long, env = "INFER_DECIDER_HTTP_LISTEN", default_value = "127.0.0.1:9401")]
    http_listen: SocketAddr,
    /// No /metrics, /livez and /readyz.
    #[arg(long)]
    no_http: bool,
    /// At a stop let engines and agents run on for the next decider to take over.
    #[arg(long)]
    leave_engines: bool,
    #[command(flatten)]
    log: Log,
}

#[derive(clap::Args)]
struct Log {
    /// Log lines for people or for machines.
    #[arg(long, env = "INFER_DECIDER_LOG_FORMAT", default_value = "human")]
    log_format: LogFormat,
    /// What to log, as tracing's EnvFilter has it.
    #[arg(long, env = "INFER_DECIDER_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

/// Reads all documents, or says every mistake found.
fn read_documents(files: &[PathBuf]) -> Result<Documents, String> {
    let mut sources = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        sources.push((file.display().to_string(), text));
    }
    parse_sources(sources.iter().map(|(name, text)| (name.as_str(), text.as_str())))
        .map_err(|errors| errors.to_string())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let documents = match &args.command {
        Command::Run(Run { config, .. }) | Command::Check { config } => read_documents(config),
        Command::Cleanup { .. } | Command::Kubernetes { .. } => Ok(Documents::default()),
    };
    let documents = match documents {
        Ok(documents) => documents,
        Err(mistakes) => {
            say(&mistakes);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let result = match args.command {
        Command::Check { .. } => {
            say(&format!(
                "{} documents, {} targets, no mistakes",
                documents.len(),
                documents.targets().len()
            ));
            return ExitCode::SUCCESS;
        }
        Command::Cleanup { state_dir } => cleanup(state_dir),
        Command::Kubernetes { options, log } => match options.certificate_names() {
            Ok(_) => run_in_cluster(*options, &log),
            Err(mistake) => {
                say(&mistake);
                return ExitCode::from(EXIT_USAGE);
            }
        },
        Command::Run(run) => {
            if documents.fleets.is_empty() {
                say("nothing to run: the documents have no LocalFleet");
                return ExitCode::from(EXIT_USAGE);
            }
            run_decider(run, documents)
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// To the person at the terminal; data goes to stdout, and this is none.
#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}

fn start_log(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.log).with_context(|| format!("--log {:?}", log.log))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A log file is read by people and tools that do not know escapes.
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr);
    match log.log_format {
        LogFormat::Human => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Completes at SIGTERM or SIGINT.
fn signals() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
}

fn run_decider(run: Run, documents: Documents) -> anyhow::Result<ExitCode> {
    start_log(&run.log)?;
    raise_file_limit();
    let options = service::Options {
        documents,
        state_dir: run.state_dir,
        listen: run.listen,
        http_listen: (!run.no_http).then_some(run.http_listen),
        leave_engines: run.leave_engines,
    };
    runtime()?.block_on(async {
        service::run(options, signals()?).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn run_in_cluster(options: cluster::Options, log: &Log) -> anyhow::Result<ExitCode> {
    start_log(log)?;
    raise_file_limit();
    runtime()?.block_on(async {
        cluster::run(options, signals()?).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Every agent and every request at a front door is an open file; the usual soft limit of 1024 is for programs of old.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

fn cleanup(state_dir: PathBuf) -> anyhow::Result<ExitCode> {
    const GRACE: Duration = Duration::from_secs(5);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let report = runtime.block_on(infer_local::cleanup(&state_dir, GRACE))?;
    for ended in &report.ended {
        let how = if ended.killed { "killed" } else { "ended" };
        say(&format!(
            "{how} pid {} of fleet {} ({:?})",
            ended.pid, ended.fleet, ended.role
        ));
    }
    say(&format!(
        "{} ended, {} were gone already, {} left",
        report.ended.len(),
        report.gone,
        report.remaining.len()
    ));
    Ok(if report.remaining.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILED)
    })
}
