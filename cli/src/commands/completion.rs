//! `completion`.

use clap::CommandFactory;

use crate::args::{Cli, Shell};
use crate::failure::Failure;
use crate::output::Printer;

pub(crate) fn run(shell: Shell, printer: &Printer) -> Result<(), Failure> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "inferctl", &mut script);
    printer.text(&String::from_utf8_lossy(&script))
}
