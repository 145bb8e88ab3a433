//! `inferctl` asks the decider what it does and why, and tells it what people want.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0, 1 when the work failed, 2 for a mistake in the command
//! line or in a document.

mod args;
mod client;
mod commands;
mod credentials;
mod failure;
mod input;
mod kube;
mod output;
pub mod reference;
mod render;
mod time;
mod view;

use std::ffi::OsStr;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use crate::args::{Cli, Command, Global};
use crate::client::{Address, Client};
use crate::credentials::{Authority, Credentials, Token};
use crate::failure::Failure;
use crate::kube::Kube;
use crate::output::Printer;

/// Called so, or with a suffix, this is a plugin of kubectl.
const PLUGIN: &str = "kubectl-infer";

/// Runs the command of the process's arguments and says how it went.
pub fn main() -> ExitCode {
    let is_plugin = std::env::args_os().next().is_some_and(|name| is_plugin(&name));
    let mut command = Cli::command();
    if is_plugin {
        command = command.bin_name("kubectl infer");
    }
    let matches = match command.try_get_matches() {
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
            let way = way(&cli.global, &matches, is_plugin)?;
            run(cli, way)
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

fn is_plugin(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().and_then(OsStr::to_str);
    name.is_some_and(|name| name.starts_with(PLUGIN))
}

/// How to get to a decider.
enum Way {
    Straight(Address),
    Kube,
}

fn way(global: &Global, matches: &ArgMatches, is_plugin: bool) -> Result<Way, Failure> {
    let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    if global.kube.kube && is_given("server") {
        let message = "--kube finds the decider by itself: leave out --kube or --server";
        return Err(Failure::Usage(message.to_owned()));
    }
    if global.kube.kube || is_plugin && !is_given("server") {
        return Ok(Way::Kube);
    }
    for id in ["namespace", "context", "service_account", "decider"] {
        if is_given(id) {
            let flag = id.replace('_', "-");
            return Err(Failure::Usage(format!("--{flag} is of use with --kube only")));
        }
    }
    Ok(Way::Straight(Address::new(
        &global.server,
        matches.value_source("server"),
    )))
}

/// One connection and one thing at a time: the calling thread is enough.
fn wait_for<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Work(format!("cannot start: {error}")))?
        .block_on(work)
}

fn run(cli: Cli, way: Way) -> Result<(), Failure> {
    let printer = Printer::new(cli.global.output);
    let timeout = cli.global.timeout;
    match &cli.command {
        Command::Policy(command) => return commands::policy::run(command, &printer),
        Command::Inject(args) => {
            let authority = match (&cli.global.ca_file, way) {
                (Some(file), _) => Some(Authority::read(file)?),
                (None, Way::Kube) => {
                    let kube = Kube::new(cli.global.kube, timeout);
                    Some(wait_for(kube.authority())?)
                }
                (None, Way::Straight(_)) => None,
            };
            return commands::inject::inject(args, authority.as_ref(), &printer);
        }
        Command::Uninject { manifest } => return commands::inject::uninject(manifest, &printer),
        Command::Completion { shell } => return commands::completion::run(*shell, &printer),
        _ => {}
    }
    let given = Credentials {
        authority: cli.global.ca_file.as_deref().map(Authority::read).transpose()?,
        token: Token::given(cli.global.token_file.as_deref())?,
        server_name: cli.global.tls_server_name,
    };
    wait_for(async {
        let mut client = match way {
            Way::Straight(address) => Client::connect(address, given, timeout).await?,
            Way::Kube => {
                let kube = Kube::new(cli.global.kube, timeout);
                Client::in_cluster(kube, given, timeout, cli.command.lists()).await?
            }
        };
        let result = ask(cli.command, &mut client, &printer).await;
        client.close().await;
        result
    })
}

async fn ask(command: Command, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Command::Status => commands::read::status(client, printer).await,
        Command::Targets { name } => commands::read::targets(client, printer, name).await,
        Command::Decisions(args) if args.follow => commands::read::follow(client, printer, args).await,
        Command::Decisions(args) => commands::read::decisions(client, printer, args).await,
        Command::Explain { what } => commands::explain::run(client, printer, what).await,
        Command::Windows(args) => commands::read::windows(client, printer, args).await,
        Command::Watch { target } => commands::watch::run(client, printer, target).await,
        Command::Pause(args) => commands::control::pause(client, printer, args).await,
        Command::Resume { target } => commands::control::resume(client, printer, target).await,
        Command::Override(args) => commands::control::override_replicas(client, printer, args).await,
        Command::Policy(_) | Command::Inject(_) | Command::Uninject { .. } | Command::Completion { .. } => Ok(()),
    }
}
