//! The command: exit codes and streams.

use std::process::{Command, Output, Stdio};

use crate::{
    decider::{Decider, Manners},
    engine::Engine,
};

fn infer_agent(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infer-agent"));
    command.args(args).stdin(Stdio::null());
    command
}

#[track_caller]
fn check(args: &[&str], code: i32, said: &str) -> Output {
    let output = infer_agent(args).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(said), "{args:?} does not say {said:?}: {stderr}");
    output
}

#[test]
fn mistakes_end_with_2_and_a_reason() {
    check(&[], 2, "Usage");
    check(&["run", "--interval-ms", "3"], 2, "200..=60000");
    check(&["run", "--fast-interval-ms", "3"], 2, "0 (off)");
    check(&["run", "--engine-url", "localhost:8000"], 2, "http://HOST:PORT");
    check(&["run", "--decider", "https://decider:9400"], 2, "INFER_AGENT_CA_PEM");
    check(
        &["run", "--decider", "https://decider:9400", "--ca-pem", "ca.pem"],
        2,
        "-----BEGIN CERTIFICATE-----",
    );
    check(&["run", "--token-file", "token"], 2, "over https:// only");
    check(&["run", "--http-listen", "9402"], 2, "0.0.0.0:9402");
    check(&["run", "--mapping", "no-such-file.yaml"], 2, "no-such-file.yaml");
    check(
        &["run", "--mapping", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")],
        2,
        "Cargo.toml: line 1",
    );
    check(&["inspect", "--after", "no-such-file.prom"], 2, "no-such-file.prom");
}

#[test]
fn captures_are_inspected_without_a_network() {
    let folder = std::env::temp_dir().join(format!("infer-agent-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let body = |running: u32, tokens: u32| {
        let labels = r#"{engine="0",model_name="tiny"}"#;
        format!("vllm:num_requests_running{labels} {running}\nvllm:generation_tokens_total{labels} {tokens}\n")
    };
    let before = write("before.prom", &body(1, 100));
    let after = write("after.prom", &body(3, 150));
    let other = write("other.prom", "go_goroutines 12\n");

    let output = check(
        &["inspect", "--before", &before, "--after", &after, "--output", "json"],
        0,
        "",
    );
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    assert_eq!(
        (&json["gauges"]["running"], &json["deltas"]["generation_tokens"]),
        (&3.0.into(), &50.into())
    );
    let output = check(&["inspect", "--after", &after], 0, "");
    assert!(String::from_utf8_lossy(&output.stdout).contains("tiny"));
    let output = check(&["inspect", "--after", &other], 1, "vLLM or SGLang");
    assert!(output.stdout.is_empty());
    std::fs::remove_dir_all(folder).expect("removed");
}

#[tokio::test]
async fn sigterm_ends_with_0_after_a_goodbye() {
    let engine = Engine::start().await;
    let decider = Decider::start(Manners::default());
    let agent = infer_agent(&[
        "run",
        "--interval-ms",
        "200",
        "--log-format",
        "json",
        "--pod-name",
        "chat-0",
    ])
    .env("INFER_AGENT_ENGINE_URL", engine.url())
    .env("INFER_AGENT_DECIDER", decider.url())
    .stderr(Stdio::piped())
    .spawn()
    .expect("it runs");
    decider
        .until("two samples", |heard| heard.iter().any(|c| c.newest() >= 2))
        .await;
    let killed = Command::new("kill")
        .args(["-TERM", &agent.id().to_string()])
        .status()
        .expect("kill");
    assert!(killed.success());
    let waiting = tokio::task::spawn_blocking(move || agent.wait_with_output());
    let output = waiting.await.expect("no panic").expect("it ran");
    assert_eq!(output.status.code(), Some(0));
    let heard = decider.until("goodbye", |heard| heard[0].goodbye.is_some()).await;
    assert_eq!(
        heard[0].goodbye.as_ref().map(|goodbye| goodbye.newest_sequence),
        Some(heard[0].newest())
    );
    let log = String::from_utf8(output.stderr).expect("UTF-8");
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("each line of the log is JSON");
    }
    assert!(log.contains("\"drained\":true"), "{log}");
}
