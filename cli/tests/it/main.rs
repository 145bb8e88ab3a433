//! Runs the real binary against a decider of canned answers.
#![allow(clippy::expect_used)]

mod cluster;
mod commands;
mod inject;
mod kube;
mod policy;
mod reference;
mod server;

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// What a run left behind.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(output: Output) -> Self {
        Run {
            code: output.status.code().expect("not killed"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// The output of a run in which all went well.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{}", self.stdout);
        self.stdout
    }

    /// The messages of a run that ended with `code` and printed no data.
    #[track_caller]
    fn failed(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{}", self.stderr);
        self.stderr
    }
}

/// `inferctl` with arguments separated by blanks, in an environment that says nothing.
fn inferctl(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inferctl"));
    command
        .args(args.split_whitespace())
        .env_remove("INFERCTL_SERVER")
        .env_remove("INFERCTL_CA_FILE")
        .env_remove("INFERCTL_TOKEN")
        .env_remove("INFERCTL_TOKEN_FILE")
        .stdin(Stdio::null());
    command
}

fn run(args: &str) -> Run {
    Run::of(inferctl(args).output().expect("inferctl runs"))
}

/// Like [`run`], with something on stdin.
fn run_with(args: &str, stdin: &str) -> Run {
    let mut child = inferctl(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("inferctl runs");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(stdin.as_bytes()).expect("it reads");
    drop(pipe);
    Run::of(child.wait_with_output().expect("it ends"))
}

/// A file in `directory`, and its path.
fn file(directory: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("a file can be written");
    path.display().to_string()
}
