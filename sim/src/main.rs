//! The `infersim` binary: argument parsing and exit codes, nothing else.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use infer_api::{Purpose, parse_sources_for};
use infersim::{
    conformance::{Tally, replay_file},
    policy,
};

const EXIT_USAGE: u8 = 2;

/// A simulated inference fleet.
#[derive(Debug, Parser)]
#[command(
    name = "infersim",
    version,
    after_help = "Exit codes: 0 all well; 1 failed at work; 2 a mistake in documents, files or usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stand in for a vLLM or SGLang server.
    Engine(Box<infersim::engine::cli::Args>),
    /// Send requests on a schedule and measure what a client sees.
    Load(Box<infer_load::cli::Args>),
    /// Replay conformance vectors against the brain.
    Conformance {
        /// Vector files (JSON).
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Be the brain on stdin and stdout: the lockstep protocol, JSON lines.
    Policy {
        /// YAML file with AutoscalingPolicy and AutoscalingPolicyBinding documents.
        #[arg(long)]
        manifest: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    let result = match Cli::parse().command {
        Command::Engine(args) => infersim::engine::cli::run(*args).await,
        Command::Load(args) => infer_load::cli::run(*args).await,
        Command::Conformance { files } => Ok(conformance(&files)),
        Command::Policy { manifest } => Ok(run_policy(&manifest)),
    };
    result.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}

#[allow(clippy::print_stdout)]
fn conformance(files: &[PathBuf]) -> ExitCode {
    let mut tally = Tally::default();
    for file in files {
        match replay_file(file) {
            Ok(of_file) => tally.add(of_file),
            Err(problem) => {
                tracing::error!("{problem}");
                return ExitCode::from(EXIT_USAGE);
            }
        }
    }
    for failure in &tally.failures {
        println!("FAILED {failure}");
    }
    for (family, count) in &tally.unsupported {
        println!("unsupported family {family}: {count} cases skipped");
    }
    let skipped: usize = tally.unsupported.values().sum();
    let skipped = if skipped > 0 {
        format!(", {skipped} skipped")
    } else {
        String::new()
    };
    println!("{} passed, {} failed{skipped}", tally.passed, tally.failures.len());
    if tally.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_policy(manifest: &PathBuf) -> ExitCode {
    let file = manifest.display().to_string();
    let text = std::fs::read_to_string(manifest)
        .with_context(|| file.clone())
        .map_err(|error| format!("{error:#}"));
    let documents = text.and_then(|text| {
        parse_sources_for(Purpose::Policies, [(file.as_str(), text.as_str())]).map_err(|errors| errors.to_string())
    });
    let documents = match documents {
        Ok(documents) => documents,
        Err(problem) => {
            tracing::error!("{problem}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match policy::run(&documents, std::io::stdin().lock(), std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!("{problem}");
            ExitCode::FAILURE
        }
    }
}
