//! `inferctl` asks the decider what it does and why, and tells it what people want.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0, 1 when the work failed, 2 for a mistake in the command
//! line or in a document.

mod args;
mod client;
mod commands;
mod failure;
mod input;
mod output;
pub mod reference;
mod render;
mod time;
mod view;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, Command};
use crate::client::{Address, Client};
use crate::failure::Failure;
use crate::output::Printer;

/// Runs the command of the process's arguments and says how it went.
pub fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // A reader of `inferctl --help` that goes away early is no failure.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let result = Cli::from_arg_matches(&matches)
        .map_err(|error| Failure::Usage(error.to_string()))
        .and_then(|cli| {
            let address = Address::new(&cli.global.server, matches.value_source("server"));
            run(cli, address)
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                let _ = writeln!(anstream::stderr(), "inferctl: {message}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: Cli, address: Address) -> Result<(), Failure> {
    let printer = Printer::new(cli.global.output);
    match &cli.command {
        Command::Policy(command) => return commands::policy::run(command, &printer),
        Command::Inject(args) => return commands::inject::inject(args, &printer),
        Command::Uninject { manifest } => return commands::inject::uninject(manifest, &printer),
        Command::Completion { shell } => return commands::completion::run(*shell, &printer),
        _ => {}
    }
    // One connection and one thing at a time: the calling thread is enough.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Work(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let mut client = Client::connect(address, cli.global.timeout).await?;
        match cli.command {
            Command::Status => commands::read::status(&mut client, &printer).await,
            Command::Targets { name } => commands::read::targets(&mut client, &printer, name).await,
            Command::Decisions(args) if args.follow => commands::read::follow(&mut client, &printer, args).await,
            Command::Decisions(args) => commands::read::decisions(&mut client, &printer, args).await,
            Command::Explain { what } => commands::explain::run(&mut client, &printer, what).await,
            Command::Windows(args) => commands::read::windows(&mut client, &printer, args).await,
            Command::Watch { target } => commands::watch::run(&mut client, &printer, target).await,
            Command::Pause(args) => commands::control::pause(&mut client, &printer, args).await,
            Command::Resume { target } => commands::control::resume(&mut client, &printer, target).await,
            Command::Override(args) => commands::control::override_replicas(&mut client, &printer, args).await,
            Command::Policy(_) | Command::Inject(_) | Command::Uninject { .. } | Command::Completion { .. } => Ok(()),
        }
    })
}
