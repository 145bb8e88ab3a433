//! The brain outside of the decider: conformance vectors and the lockstep protocol, through the real binary.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

const MANIFEST: &str = "
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicyBinding
metadata: {name: b}
spec:
  policy:
    metrics: [{type: concurrency, target: 10}]
  scaling: {targetRef: {apiVersion: apps/v1, kind: Deployment, name: h100}, minReplicas: 1, maxReplicas: 32}
";

fn infersim(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_infersim"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A policy that has answered an error no longer reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors")).join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: ../shared/vectors/{name} not found");
    None
}

#[test]
fn conformance_vectors_pass() {
    for name in ["stable_panic_behavior.json", "windows.json"] {
        let Some(path) = shared(name) else { continue };
        let output = infersim(&["conformance", path.to_str().unwrap()], "");
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains(" passed, 0 failed\n"), "{}", text(&output));
    }
}

#[test]
fn a_family_of_later_is_skipped_not_passed() {
    let Some(path) = shared("packing.json") else { return };
    let output = infersim(&["conformance", path.to_str().unwrap()], "");
    assert!(
        text(&output) == "unsupported family minimal_cost: 63 cases skipped\n40 passed, 0 failed, 63 skipped\n",
        "{}",
        text(&output)
    );
}

#[test]
fn a_case_that_fails_is_told_and_fails_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.json");
    let case = |id: &str, stable_window_s: u32, panic_window_s: u32| {
        json!({
            "id": id,
            "family": "kpa_windows",
            "input": {"stable_window_s": stable_window_s, "panic_window_pct": 10},
            "expect": {"stable_window_s": stable_window_s, "panic_window_s": panic_window_s}
        })
    };
    let vectors = json!({"cases": [case("good", 60, 6), case("bad", 60, 7)]});
    std::fs::write(&path, vectors.to_string()).unwrap();
    let output = infersim(&["conformance", path.to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output),
        "FAILED bad: panic window: got 6.0, expected 7.0\n1 passed, 1 failed\n"
    );
    let mut packing = json!({"cases": [{
        "id": "cheap_first",
        "family": "greedy_doubling",
        "input": {
            "targets": [{"name": "a", "cost": 2, "min": 0, "max": 4}, {"name": "b", "cost": 1, "min": 1, "max": 2}],
            "cost_expansion_rate_percent": 200,
            "total_replicas": 3
        },
        "expect": {"replicas": {"a": 1, "b": 2}}
    }]});
    std::fs::write(&path, packing.to_string()).unwrap();
    let output = infersim(&["conformance", path.to_str().unwrap()], "");
    assert_eq!(text(&output), "1 passed, 0 failed\n");
    packing["cases"][0]["input"]["total_replicas"] = json!(2);
    std::fs::write(&path, packing.to_string()).unwrap();
    let output = infersim(&["conformance", path.to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output),
        "FAILED cheap_first: replicas: got {\"a\": 0, \"b\": 2}, expected {\"a\": 1, \"b\": 2}\n0 passed, 1 failed\n"
    );
    std::fs::write(&path, "{").unwrap();
    assert_eq!(
        infersim(&["conformance", path.to_str().unwrap()], "").status.code(),
        Some(2)
    );
}

fn init(replicas: u32) -> Value {
    let variant = json!({"name": "h100", "cost": 6.88, "min": 1, "max": 32, "replicas": replicas});
    let slo = json!({"ttft_ms": 2000, "itl_ms": 50, "quantile": 0.95});
    json!({"type": "init", "t_s": 0.0, "tick_s": 1.0, "slo": slo, "variants": [variant]})
}

fn observe(t_s: u32, pods: u32, running: f64, fresh: bool) -> Value {
    let pod = |index: u32| {
        if !fresh {
            return json!({"name": format!("h100-{index}"), "fresh": false});
        }
        json!({
            "name": format!("h100-{index}"), "fresh": true, "running": running, "waiting": 0, "kv_usage": 0.41,
            "prompt_tokens": 5120, "generation_tokens": 812, "requests": 4,
            "ttft_ms": [[250, 3], [500, 1]], "itl_ms": [[25, 700], [50, 112]], "e2e_ms": [[5000, 4], ["inf", 1]]
        })
    };
    let pods: Vec<_> = (0..pods).map(pod).collect();
    let count = pods.len();
    let variant = json!({"name": "h100", "spec": count, "ready": count, "starting": 0, "started_s": [], "pods": pods});
    json!({"type": "observe", "t_s": t_s, "variants": [variant], "gateway": {"waiting": 0}})
}

fn lockstep(lines: &[Value]) -> (Option<i32>, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("m.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let output = infersim(&["policy", "--manifest", manifest.to_str().unwrap()], &input);
    let answers = text(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    (output.status.code(), answers)
}

#[test]
fn one_line_in_one_line_out() {
    let mut lines = vec![init(2)];
    lines.extend((1..=70).map(|t_s| observe(t_s, 2, 9.0, true)));
    lines.extend((71..=80).map(|t_s| observe(t_s, 2, 45.0, true)));
    lines.push(json!({"type": "end"}));
    let (code, answers) = lockstep(&lines);
    assert_eq!(code, Some(0));
    assert_eq!(answers.len(), lines.len() - 1);
    assert_eq!(answers[0], json!({"type": "ready"}));
    let calm = &answers[70];
    assert_eq!(
        (&calm["type"], &calm["t_s"], &calm["mode"]),
        (&json!("decide"), &json!(70.0), &json!("stable"))
    );
    assert_eq!(calm["replicas"], json!({"h100": 2}));
    let burst = &answers[80];
    assert_eq!(
        (&burst["mode"], &burst["replicas"]["h100"]),
        (&json!("panic"), &json!(9))
    );
    assert!(burst["reason"].as_str().unwrap().contains("concurrency"));
}

#[test]
fn the_same_input_gives_the_same_output() {
    let mut lines = vec![init(3)];
    lines.extend((1..=100).map(|t_s| observe(t_s, 3, f64::from(t_s % 17), t_s % 5 != 0)));
    lines.push(json!({"type": "end"}));
    assert_eq!(lockstep(&lines), lockstep(&lines));
}

#[test]
fn a_malformed_line_gets_an_error_line_and_exit_1() {
    let bad = [
        json!({"type": "observe", "t_s": 1.0, "variants": []}),
        json!({"type": "nonsense"}),
        json!([1, 2]),
    ];
    for line in bad {
        let (code, answers) = lockstep(&[line.clone(), json!({"type": "end"})]);
        assert_eq!((code, answers.len()), (Some(1), 1), "{line}");
        assert!(
            answers[0]["message"].as_str().unwrap().starts_with("line 1: "),
            "{answers:?}"
        );
    }
    let mut negative = observe(1, 1, 1.0, true);
    negative["variants"][0]["pods"][0]["waiting"] = json!(-1);
    let mut descending = observe(1, 1, 1.0, true);
    descending["variants"][0]["pods"][0]["ttft_ms"] = json!([[500, 1], [250, 1]]);
    let mut too_many = observe(1, 2, 1.0, true);
    too_many["variants"][0]["spec"] = json!(1);
    let mut stranger = observe(1, 1, 1.0, true);
    stranger["variants"][0]["name"] = json!("a100");
    for line in [negative, descending, too_many, stranger] {
        let (code, answers) = lockstep(&[init(1), line.clone(), json!({"type": "end"})]);
        assert_eq!((code, &answers[1]["type"]), (Some(1), &json!("error")), "{line}");
    }
    let (code, answers) = lockstep(&[init(1), observe(5, 1, 1.0, true), observe(4, 1, 1.0, true)]);
    assert_eq!((code, &answers[2]["type"]), (Some(1), &json!("error")));
    // The input just ends: said, too.
    let (code, answers) = lockstep(&[init(1)]);
    assert_eq!((code, answers.len()), (Some(1), 2));
}
