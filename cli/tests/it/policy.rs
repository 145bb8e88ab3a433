//! `policy check`, which needs no decider.

use serde_json::Value;

use crate::{file, run, run_with};

const POLICY: &str = "\
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicy
metadata: {name: interactive}
spec: {metrics: [{type: waiting, target: 4}]}
";
const REST: &str = "\
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicyBinding
metadata: {name: chat}
spec:
  policyRef: {name: interactive}
  mode: advisory
  scaling: {targetRef: {kind: LocalFleet, name: chat}, maxReplicas: 4}
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: LocalFleet
metadata: {name: chat}
spec:
  model: tiny
  engine: {command: [engine, '{port}'], ports: {from: 18000, to: 18099}}
";

#[test]
fn right_documents_are_taken_together() {
    let directory = tempfile::tempdir().expect("a directory");
    let (policy, rest) = (
        file(&directory, "policy.yaml", POLICY),
        file(&directory, "rest.yaml", REST),
    );
    let text = run(&format!("policy check {policy} {rest}")).ok();
    assert_eq!(
        text,
        "valid: AutoscalingPolicy interactive, AutoscalingPolicyBinding chat, LocalFleet chat\n\n\
         TARGET  BINDING  POLICY       MODE      REPLICAS\n\
         chat    chat     interactive  advisory  1 to 4\n"
    );
    let json: Value = serde_json::from_str(&run(&format!("policy check {policy} {rest} -o json")).ok()).expect("JSON");
    assert_eq!(json["valid"], true);
    assert_eq!(json["targets"][0]["policy"], "interactive");
    assert_eq!(json["mistakes"], serde_json::json!([]));
}

#[test]
fn mistakes_are_told_with_exit_code_2() {
    let directory = tempfile::tempdir().expect("a directory");
    let policy = file(
        &directory,
        "p.yaml",
        &POLICY.replace("target: 4", "target: 0").replace("waiting", "wating"),
    );
    let messages = run(&format!("policy check {policy}")).failed(2);
    assert!(
        messages.starts_with(&format!(
            "{policy}:4:25: AutoscalingPolicy interactive: spec.metrics[0].type: "
        )),
        "{messages}"
    );
    assert_eq!(messages.lines().count(), 2, "{messages}");
    let json = run(&format!("policy check {policy} --output json"));
    assert_eq!((json.code, json.stderr.as_str()), (2, ""));
    let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["valid"], false);
    assert_eq!(json["mistakes"][1]["field"], "spec.metrics[0].target");
    assert_eq!(json["mistakes"][1]["line"], 4);
}

#[test]
fn documents_may_come_from_stdin() {
    let messages = run_with("policy check -", &POLICY.replace(" 4}", " 0}")).failed(2);
    assert!(messages.starts_with("<stdin>:4:42: "), "{messages}");
}

#[test]
fn files_that_are_not_there_or_not_documents() {
    let directory = tempfile::tempdir().expect("a directory");
    assert!(
        run("policy check /nowhere.yaml")
            .failed(2)
            .contains("cannot read /nowhere.yaml: No such file")
    );
    let empty = file(&directory, "empty.yaml", "# nothing\n---\n");
    assert!(
        run(&format!("policy check {empty}"))
            .failed(2)
            .contains("there is no document in")
    );
    let path = directory.path().join("binary.yaml");
    std::fs::write(&path, b"a: 1\nb: \xff\n").expect("a file can be written");
    let messages = run(&format!("policy check {}", path.display())).failed(2);
    assert!(messages.contains("not UTF-8 text, first in line 2"), "{messages}");
    assert!(run("policy check").failed(2).contains("<FILE>"));
}

/// As the API server would, once nothing in them is meant for this machine.
#[test]
fn documents_for_a_cluster_are_checked_as_such() {
    let binding = REST.split("---").next().expect("a document");
    let in_cluster = binding.replace(
        "kind: LocalFleet, name: chat",
        "apiVersion: apps/v1, kind: Deployment, name: chat",
    );
    assert_eq!(
        run_with("policy check -", &format!("{POLICY}---\n{in_cluster}")).ok(),
        "valid for a cluster: AutoscalingPolicy interactive, AutoscalingPolicyBinding chat\n\n\
         TARGET  BINDING  POLICY       MODE      REPLICAS\n\
         chat    chat     interactive  advisory  1 to 4\n"
    );
    let policy_in_cluster = run_with("policy check - -o json", &in_cluster).ok();
    let json: Value = serde_json::from_str(&policy_in_cluster).expect("JSON");
    assert_eq!((&json["valid"], &json["cluster"]), (&true.into(), &true.into()));
    let no_version = in_cluster.replace("apiVersion: apps/v1, kind: Deployment", "kind: Deployment");
    let message = run_with("policy check -", &no_version).failed(2);
    assert!(message.contains("spec.scaling.targetRef"), "{message}");
}
