//! `inferctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    inferctl::main()
}
