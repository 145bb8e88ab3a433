use std::{path::Path, process::Command};

use super::results;

const BENCHES: [&str; 7] = ["parser", "agent", "agent-size", "decide", "ingest", "jump", "restart"];
const ON_A_CONTROL_PLANE: [&str; 4] = ["webhook", "kube-jump", "kube-restart", "kube-scale"];

/// Runs them with the binaries beside this one, of whatever profile: that benches run, not what they measure. The names of
/// those that were skipped, each of which has said so.
fn run(benches: &[&'static str]) -> Vec<&'static str> {
    let program = Path::new(env!("CARGO_BIN_EXE_infer-bench"));
    let beside = program.parent().unwrap();
    let missing = ["infer-decider", "infer-agent", "infersim", "inferctl"]
        .into_iter()
        .find(|name| !beside.join(name).is_file());
    if let Some(missing) = missing {
        eprintln!(
            "skipped: {} not found (cargo build --workspace --bins)",
            beside.join(missing).display()
        );
        return benches.to_vec();
    }
    let out = tempfile::tempdir().unwrap();
    let run = Command::new(program)
        .args(["run", "--quick", "--out"])
        .arg(out.path())
        .args(benches)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    let mut skipped = Vec::new();
    for bench in benches {
        let name = format!("{bench}.json");
        match std::fs::read_to_string(out.path().join(&name)) {
            Ok(text) => results::check(&name, &text, true),
            Err(_) if said.contains(&format!("bench {bench}: skipped")) => skipped.push(*bench),
            Err(error) => panic!("no {name}: {error}; {said}"),
        }
    }
    skipped
}

#[test]
fn every_bench_runs() {
    // Each says by itself what it needs, and these need nothing but their binaries.
    let skipped = run(&BENCHES);
    assert!(skipped.is_empty() || skipped == BENCHES, "{skipped:?}");
}

#[test]
fn every_bench_on_a_control_plane_runs() {
    let skipped = run(&ON_A_CONTROL_PLANE);
    if !skipped.is_empty() {
        eprintln!("skipped: no control plane for {skipped:?} (tests/cluster/build.sh)");
    }
}
