//! `infer-demo`: the autoscaler at work, seen and checked from outside.

mod demo;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use demo::Common;
use tokio::signal::unix::{SignalKind, signal};

const EXIT_FAILED: u8 = 1;
const EXIT_INTERRUPTED: u8 = 130;

/// The autoscaler at work on this machine, with every claim checked against what happened.
#[derive(Debug, Parser)]
#[command(
    name = "infer-demo",
    version,
    after_help = "Exit codes: 0 every claim held; 1 one did not, or it could not be played; 2 a mistake in usage; \
                  130 interrupted. Whatever the end, nothing is left running."
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A fleet of stand-in engines through calm, rise, burst, fall and zero (about 80 s)
    Run {
        /// The same with the shortest windows (about 33 s)
        #[arg(long)]
        short: bool,
        #[command(flatten)]
        common: Common,
    },
    /// A fleet of real vLLM processes on the CPU, from 1 to 2 and back (four to six minutes, 8 GB of memory)
    Vllm {
        /// What tests/real-engines/setup-vllm.sh has made
        #[arg(long, value_name = "DIR")]
        lab: PathBuf,
        #[command(flatten)]
        common: Common,
    },
}

#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}

async fn interrupted() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    say("\nstopping");
    Ok(())
}

async fn play(args: Args) -> anyhow::Result<ExitCode> {
    let (format, ended) = match args.command {
        Command::Run { short, common } => (common.output, demo::run_sim(&common, short).await?),
        Command::Vllm { lab, common } => (common.output, demo::run_vllm(&common, &lab).await?),
    };
    Ok(if demo::tell(&ended, format)? {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILED)
    })
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let played = tokio::select! {
        played = play(args) => Some(played),
        interrupted = interrupted() => interrupted.err().map(Err),
    };
    // Whichever came second has been dropped by now, and with it the decider and all it had started.
    match played {
        Some(Ok(code)) => code,
        Some(Err(error)) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(EXIT_FAILED)
        }
        None => {
            say("interrupted; everything that was started has been ended");
            ExitCode::from(EXIT_INTERRUPTED)
        }
    }
}
