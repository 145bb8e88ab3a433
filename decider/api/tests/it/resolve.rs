//! From objects of a cluster to what is decided about.

use std::time::Duration;

use infer_api::{
    BindingMode, BindingSpec, ForeignChanges, PolicySpec, ResolvedBound, Unresolved, read_binding_spec,
    read_policy_spec, resolve,
};
use infer_core::decision::Control;
use infer_core::policy::Bounds;
use serde_json::{Value, json};

fn policy(metric: Value) -> PolicySpec {
    read_policy_spec(&json!({"metrics": [metric]})).expect("a policy")
}

fn binding(spec: Value) -> BindingSpec {
    read_binding_spec(&spec).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

fn known(name: &str) -> Option<PolicySpec> {
    match name {
        "chat" => Some(policy(json!({"type": "concurrency", "target": 24}))),
        "cache" => Some(policy(json!({"type": "kvUsage", "target": 0.8}))),
        "large" => {
            let mut policy = policy(json!({"type": "waiting", "target": 4}));
            policy.activation_scale = 50;
            Some(policy)
        }
        // Past the API server: nothing would be a negative target's count.
        "broken" => {
            let mut policy = policy(json!({"type": "waiting", "target": 4}));
            policy.metrics[0].target = -1.0;
            Some(policy)
        }
        _ => None,
    }
}

fn resolved(spec: Value) -> Vec<ResolvedBound> {
    resolve("infer", "chat", &binding(spec), known).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn unresolved(spec: &BindingSpec, message: &str) {
    let error = resolve("infer", "chat", spec, known).expect_err("a mistake");
    assert_eq!(error.to_string(), message);
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name})
}

fn scaling(policy: &str) -> Value {
    json!({"policyRef": {"name": policy}, "scaling": {"targetRef": deployment("engine"), "maxReplicas": 4}})
}

#[test]
fn one_target_is_one_part() {
    let mut spec = scaling("chat");
    spec["mode"] = "paused".into();
    spec["drain"] = json!({"timeoutSeconds": 5});
    spec["foreignChanges"] = "correct".into();
    let bounds = resolved(spec);
    let [bound] = bounds.as_slice() else {
        panic!("{bounds:?}")
    };
    assert_eq!((bound.key.as_str(), bound.policy_name.as_str()), ("infer/chat", "chat"));
    assert_eq!((bound.mode, bound.control()), (BindingMode::Paused, Control::Paused));
    assert_eq!(bound.bounds, Bounds { min: 1, max: 4 });
    assert_eq!(bound.drain_timeout, Duration::from_secs(5));
    assert_eq!(bound.foreign_changes, ForeignChanges::Correct);
    let part = &bound.parts[0];
    assert_eq!(
        (part.api_version.as_str(), part.kind.as_str()),
        ("apps/v1", "Deployment")
    );
    assert_eq!((part.name.as_str(), part.target_name.as_str()), ("engine", "engine"));
    assert_eq!((part.min, part.max, part.cost), (1, 4, 1.0));
}

#[test]
fn targets_of_different_cost_share_one_count() {
    let bounds = resolved(json!({
        "policyRef": {"name": "chat"},
        "optimize": {
            "targets": [
                {"name": "h100", "targetRef": deployment("a"), "minReplicas": 1, "maxReplicas": 4, "cost": 4.5},
                {"targetRef": deployment("b"), "minReplicas": 2, "maxReplicas": 8, "cost": 1},
            ],
            "maxReplicas": 10,
        },
    }));
    let [bound] = bounds.as_slice() else {
        panic!("{bounds:?}")
    };
    assert_eq!(bound.bounds, Bounds { min: 3, max: 10 });
    let parts: Vec<_> = bound
        .parts
        .iter()
        .map(|part| (part.name.as_str(), part.min, part.max, part.cost))
        .collect();
    assert_eq!(parts, [("h100", 1, 4, 4.5), ("b", 2, 8, 1.0)]);
}

#[test]
fn each_role_is_decided_about_by_itself() {
    let bounds = resolved(json!({
        "policyRef": {"name": "chat"},
        "roles": [
            {"name": "prefill", "targetRef": deployment("p"), "maxReplicas": 4},
            {"name": "decode", "targetRef": deployment("d"), "maxReplicas": 8, "policyRef": {"name": "cache"}},
            {"name": "encode", "targetRef": deployment("e"), "maxReplicas": 2},
        ],
        "ratio": {"numerator": "prefill", "denominator": "decode", "min": 0.25, "max": 2},
    }));
    let told: Vec<_> = bounds
        .iter()
        .map(|bound| (bound.key.as_str(), bound.policy_name.as_str(), bound.ratio.is_some()))
        .collect();
    let expected = [
        ("infer/chat/prefill", "chat", true),
        ("infer/chat/decode", "cache", true),
        ("infer/chat/encode", "chat", false),
    ];
    assert_eq!(told, expected);
    let ratio = bounds[1].ratio.clone().expect("a ratio");
    assert_eq!(
        (ratio.numerator.as_str(), ratio.denominator.as_str()),
        ("infer/chat/prefill", "infer/chat/decode")
    );
    assert_eq!(bounds[1].role.as_deref(), Some("decode"));
    assert_eq!(bounds[1].parts.len(), 1);
}

#[test]
fn a_missing_policy_is_waited_for_and_a_wrong_one_is_not() {
    let spec = binding(scaling("nowhere"));
    let error = resolve("infer", "chat", &spec, known).expect_err("there is none");
    assert_eq!(error, Unresolved::NoPolicy(vec!["nowhere".to_owned()]));
    unresolved(&spec, "there is no AutoscalingPolicy nowhere in this namespace");
    unresolved(
        &binding(scaling("broken")),
        "spec.policyRef.name: AutoscalingPolicy broken is wrong: spec.metrics[0].target: -1.0 is too small; allowed: more than 0",
    );
    unresolved(
        &binding(scaling("large")),
        "spec.policyRef.name: activationScale of AutoscalingPolicy large is 50, more than maxReplicas, 4; allowed: 1 to 4",
    );
}

#[test]
fn objects_that_came_past_the_api_server_are_told_what_is_wrong() {
    let right = binding(scaling("chat"));
    let mut spec = right.clone();
    spec.scaling.as_mut().expect("scaling").min_replicas = -7;
    unresolved(&spec, "spec.scaling.minReplicas: -7 is too small; allowed: 0 to 100000");
    let mut spec = right.clone();
    spec.scaling.as_mut().expect("scaling").max_replicas = 0;
    unresolved(&spec, "spec.scaling.maxReplicas: 0 is too small; allowed: 1 to 100000");
    let mut spec = right.clone();
    spec.scaling.as_mut().expect("scaling").min_replicas = 5;
    unresolved(
        &spec,
        "spec.scaling.minReplicas: 5 is more than maxReplicas, 4; allowed: 0 to 4",
    );
    let mut spec = right.clone();
    spec.scaling.as_mut().expect("scaling").target_ref.api_version = None;
    unresolved(
        &spec,
        "spec.scaling.targetRef.apiVersion: is required in a cluster and missing; for example apps/v1 for a Deployment",
    );
    let mut spec = right;
    spec.scaling = None;
    unresolved(
        &spec,
        "spec: has none of scaling, optimize and roles; allowed: exactly one of scaling, optimize and roles",
    );
    for (json, message) in [
        (json!(null), "spec: expected a mapping, found nothing"),
        (
            json!({"scaling": 5}),
            "spec.scaling: expected a mapping, found the number 5",
        ),
        (
            json!({"policyref": {"name": "chat"}}),
            "spec.policyref: is not a known field; did you mean policyRef?",
        ),
    ] {
        let mistakes = read_binding_spec(&json).expect_err("a mistake");
        assert!(mistakes[0].to_string().starts_with(message), "{mistakes:?}");
    }
}

/// Between 1/3 and 1/3 there is 1 of 3, and between 0.4 and 0.45 there is nothing below 5.
#[test]
fn a_ratio_must_be_possible_in_whole_numbers() {
    let spec = |min: f64, max: f64| {
        json!({
            "policyRef": {"name": "chat"},
            "roles": [
                {"name": "a", "targetRef": deployment("a"), "maxReplicas": 4},
                {"name": "b", "targetRef": deployment("b"), "maxReplicas": 4},
            ],
            "ratio": {"numerator": "a", "denominator": "b", "min": min, "max": max},
        })
    };
    assert!(read_binding_spec(&spec(1.0 / 3.0, 1.0 / 3.0)).is_ok());
    let mistakes = read_binding_spec(&spec(0.4, 0.45)).expect_err("a mistake");
    assert_eq!(
        mistakes[0].to_string(),
        "spec.ratio: no count of a (1 to 4) and b (1 to 4) has a quotient from 0.4 to 0.45; widen the ratio or the limits of the roles"
    );
}

#[test]
fn a_few_words_for_tables() {
    assert_eq!(binding(scaling("chat")).target_summary(), "Deployment/engine");
    let mut policy = policy(json!({"type": "ttft", "target": 1000, "quantile": 0.95}));
    policy.metrics.extend(known("cache").expect("known").metrics);
    assert_eq!(policy.summary(), "ttft p95 1000 ms, kvUsage 0.8");
}
