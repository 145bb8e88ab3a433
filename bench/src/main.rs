//! `infer-bench`: measures what is promised and writes what it found, with everything needed to find it again.
//!
//! Every bench is a module; the processes it measures are the real release binaries, and what stands around them (an
//! engine's port, a sink for samples) are helpers in processes of their own, so that only the thing itself is measured.

mod agent;
mod agent_size;
mod body;
mod decide;
mod fleet;
mod helper;
mod http;
mod ingest;
mod jump;
mod kube;
mod machine;
mod parser;
mod process;
mod report;
mod restart;
mod workload;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};

use process::Process;
use report::Report;

/// Measures what is promised.
#[derive(Debug, Parser)]
#[command(
    name = "infer-bench",
    version,
    after_help = "Exit codes: 0 measured (a missed target is a result); 1 could not be measured; 2 usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run benches and write their results.
    Run(Run),
    /// What stands around a measured process; started by benches.
    #[command(hide = true, subcommand)]
    Helper(helper::Helper),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Which; default: all.
    #[arg(value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(NAMES))]
    names: Vec<String>,
    /// Short runs that show that every bench works. Their figures mean little.
    #[arg(long)]
    quick: bool,
    /// Directory with infer-decider, infer-agent, infersim and inferctl; default: this program's.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Where results go.
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    out: PathBuf,
    /// How the binaries were built, for the results: "release, lto fat, musl agent".
    #[arg(long, value_name = "TEXT", default_value = "unknown")]
    build: String,
}

const NAMES: [&str; 11] = [
    "parser",
    "agent",
    "agent-size",
    "decide",
    "ingest",
    "jump",
    "restart",
    "webhook",
    "kube-jump",
    "kube-restart",
    "kube-scale",
];
/// Those that start a control plane. It ends with the process, so each has one to itself.
const ON_A_CONTROL_PLANE: [&str; 4] = ["webhook", "kube-jump", "kube-restart", "kube-scale"];

/// How a bench ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There are figures.
    Measured,
    /// Something that it needs is not here.
    Skipped(String),
}

/// What every bench is given.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// Short runs.
    pub(crate) quick: bool,
    /// Where the measured binaries are.
    pub(crate) bin_dir: PathBuf,
    /// How they were built.
    pub(crate) build: String,
}

impl Setting {
    /// A binary to measure.
    pub(crate) fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.bin_dir.join(name);
        if !path.is_file() {
            bail!(
                "{} is not there; bench/run builds it, or give --bin-dir",
                path.display()
            );
        }
        Ok(path)
    }

    /// `full`, or `quick` in a quick run.
    pub(crate) fn either<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Task::Run(run) => end_children_with_us().and_then(|()| run_benches(run)),
        Task::Helper(helper) => helper::run(helper).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        say(&format!("infer-bench: {error:#}"));
        ExitCode::FAILURE
    })
}

/// SIGINT and SIGTERM end what was started before they end this program.
fn end_children_with_us() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        process::end_all();
        std::process::exit(1);
    });
    Ok(())
}

/// To the person who waits.
#[allow(clippy::print_stderr, reason = "progress goes to stderr")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

#[allow(clippy::print_stdout, reason = "the table is the result")]
fn run_benches(run: Run) -> anyhow::Result<ExitCode> {
    let beside = std::env::current_exe().context("where this program is")?;
    let setting = Setting {
        quick: run.quick,
        bin_dir: run
            .bin_dir
            .or_else(|| Some(beside.parent()?.to_owned()))
            .unwrap_or_default(),
        build: run.build,
    };
    let names = if run.names.is_empty() {
        NAMES.map(str::to_owned).into()
    } else {
        run.names
    };
    std::fs::create_dir_all(&run.out).with_context(|| format!("making {}", run.out.display()))?;
    let mut failed = false;
    let several = names.len() > 1;
    for name in names {
        if several && ON_A_CONTROL_PLANE.contains(&name.as_str()) {
            failed |= !run_alone(&name, &setting, &run.out)?;
            continue;
        }
        say(&format!("bench {name}: running"));
        let mut report = Report::begin(&name, &setting);
        match bench(&name, &setting, &mut report) {
            Ok(Outcome::Skipped(why)) => say(&format!("bench {name}: skipped: {why}")),
            Ok(Outcome::Measured) => {
                report.end();
                report.write(&run.out)?;
                println!("{}", report.table());
            }
            Err(error) => {
                failed = true;
                say(&format!("bench {name}: could not be measured: {error:#}"));
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs a bench in a process of its own. Whether it was measured or skipped.
fn run_alone(name: &str, setting: &Setting, out: &Path) -> anyhow::Result<bool> {
    let mut command = Command::new(std::env::current_exe().context("where this program is")?);
    command.args(["run", name, "--build", &setting.build]);
    command.arg("--out").arg(out).arg("--bin-dir").arg(&setting.bin_dir);
    if setting.quick {
        command.arg("--quick");
    }
    Ok(Process::start(&format!("bench {name}"), &mut command)?
        .wait()?
        .success())
}

fn bench(name: &str, setting: &Setting, report: &mut Report) -> anyhow::Result<Outcome> {
    match name {
        "parser" => parser::run(setting, report),
        "agent" => agent::run(setting, report),
        "agent-size" => agent_size::run(setting, report),
        "decide" => decide::run(setting, report),
        "ingest" => ingest::run(setting, report),
        "jump" => jump::run(setting, report),
        "restart" => restart::run(setting, report),
        "webhook" => return kube::webhook::run(setting, report),
        "kube-jump" => return kube::jump::run(setting, report),
        "kube-restart" => return kube::restart::run(setting, report),
        "kube-scale" => return kube::scale::run(setting, report),
        name => bail!("there is no bench {name:?}"),
    }?;
    Ok(Outcome::Measured)
}
