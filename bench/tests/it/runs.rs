use std::{path::Path, process::Command};

use super::results;

const BENCHES: [&str; 7] = ["parser", "agent", "agent-size", "decide", "ingest", "jump", "restart"];

/// With the binaries beside this one, of whatever profile: that benches run, not what they measure.
#[test]
fn every_bench_runs() {
    let program = Path::new(env!("CARGO_BIN_EXE_infer-bench"));
    let beside = program.parent().unwrap();
    let missing = ["infer-decider", "infer-agent", "infersim"]
        .into_iter()
        .find(|name| !beside.join(name).is_file());
    if let Some(missing) = missing {
        eprintln!(
            "skipped: {} not found (cargo build --workspace --bins)",
            beside.join(missing).display()
        );
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let run = Command::new(program)
        .args(["run", "--quick", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    for bench in BENCHES {
        let name = format!("{bench}.json");
        let text = std::fs::read_to_string(out.path().join(&name)).unwrap_or_else(|_| panic!("no {name}: {said}"));
        results::check(&name, &text, true);
    }
}
