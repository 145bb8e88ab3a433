//! The demo itself: what it claims holds, and an interruption leaves nothing behind.

use std::{path::Path, process::Stdio};

use infer_tests::harness::until;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::process::Command;

use crate::support::{SOON, turn};

fn short_demo(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infer-demo"));
    command
        .args(["run", "--short", "--output", "json", "--run-dir"])
        .arg(directory);
    command
}

/// The claims themselves are the demo's; this is that they are made, hold, and are told.
#[tokio::test]
async fn every_claim_of_the_short_demo_holds() {
    let _turn = turn().await;
    let directory = tempfile::tempdir().unwrap();
    let output = short_demo(directory.path()).output().await.unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{}\n{stderr}\n{stdout}", output.status);
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(summary["ok"], true, "{stdout}");
    assert!(summary["claims"].as_array().unwrap().len() >= 12, "{stdout}");
    let report = std::fs::read_to_string(summary["report"].as_str().unwrap()).unwrap();
    assert_eq!(report.matches("<svg").count(), 3);
    for outside in ["http-equiv", "<script", "<link", "<img", "src=", "url(", "@import"] {
        assert!(
            !report.contains(outside),
            "the report asks for something outside itself: {outside}"
        );
    }
}

/// Pids of the engines that the demo's decider has started.
fn engines(directory: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(directory.join("fleet-demo.json")).unwrap_or_default();
    let registry: Value = serde_json::from_str(&text).unwrap_or_default();
    let replicas = registry["replicas"].as_array().cloned().unwrap_or_default();
    replicas
        .iter()
        .filter_map(|replica| replica["engine"]["pid"].as_i64()?.try_into().ok())
        .collect()
}

#[tokio::test]
async fn an_interrupted_demo_leaves_nothing_running() {
    let _turn = turn().await;
    let directory = tempfile::tempdir().unwrap();
    let mut demo = short_demo(directory.path());
    let mut demo = demo.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = until(SOON, "the first engine", || async {
        let engines = engines(directory.path());
        if engines.is_empty() {
            Err("none".to_owned())
        } else {
            Ok(engines)
        }
    });
    let engines = started.await.unwrap();
    let pid = demo.id().unwrap().try_into().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    let status = demo.wait().await.unwrap();
    assert_eq!(status.code(), Some(130));
    for engine in engines {
        assert!(
            !Path::new(&format!("/proc/{engine}")).exists(),
            "engine {engine} runs on"
        );
    }
}
