//! The `infersim` binary: argument parsing and exit codes, nothing else.

use std::process::ExitCode;

use clap::Parser;

/// A simulated inference fleet.
#[derive(Debug, Parser)]
#[command(name = "infersim", version, arg_required_else_help = true)]
enum Cli {
    /// Stand in for a vLLM or SGLang server.
    Engine(Box<infersim::engine::cli::Args>),
    /// Send requests on a schedule and measure what a client sees.
    Load(Box<infer_load::cli::Args>),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    let result = match Cli::parse() {
        Cli::Engine(args) => infersim::engine::cli::run(*args).await,
        Cli::Load(args) => infer_load::cli::run(*args).await,
    };
    result.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}
