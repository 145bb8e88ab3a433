//! What is no review, and that nothing in a review makes the webhooks fall over.

use infer_webhook::{
    Endpoint, Webhook,
    review::{self, Response},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{engine_pod, review as make, webhook};

#[test]
fn what_is_no_review_is_told_so() {
    let good = make("Pod", "CREATE", &engine_pod(), &Value::Null);
    let with = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        changed.to_string()
    };
    for (body, expected) in [
        (String::new(), "not an AdmissionReview: EOF"),
        ("garbage".to_owned(), "not an AdmissionReview: expected value"),
        ("[]".to_owned(), "not an AdmissionReview"),
        ("{}".to_owned(), "admission.k8s.io/v1"),
        (
            with("/apiVersion", "admission.k8s.io/v1beta1".into()),
            "admissionReviewVersions: [v1]",
        ),
        (with("/kind", "Pod".into()), "is a \"Pod\""),
        (with("/request", Value::Null), "no request with a uid"),
        (with("/request/uid", "".into()), "no request with a uid"),
        (with("/request/uid", 7.into()), "invalid type"),
        (with("/request/operation", json!({})), "invalid type"),
        (
            with("/request/object", "DEEP".into()).replace("\"DEEP\"", &"[".repeat(100_000)),
            "recursion limit",
        ),
        (
            with("/request/oldObject", "DEEP".into()).replace("\"DEEP\"", &"{\"a\":".repeat(100_000)),
            "recursion limit",
        ),
    ] {
        for endpoint in [Endpoint::MutatePods, Endpoint::Validate] {
            let error = webhook().review(endpoint, body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{}: {error}", &body[..body.len().min(100)]);
        }
    }
}

#[test]
fn what_may_be_left_out_may_be_null_as_well() {
    let bare = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {"uid": "u"},
    });
    review::read(bare.to_string().as_bytes()).unwrap();
    let mut nulls = make("Pod", "CREATE", &Value::Null, &Value::Null);
    for field in ["object", "oldObject", "dryRun", "options", "userInfo"] {
        nulls["request"][field] = Value::Null;
    }
    nulls["request"]["subResource"] = Value::Null;
    let read = review::read(nulls.to_string().as_bytes()).unwrap();
    assert!(!read.dry_run);
}

#[test]
fn warnings_are_fit_for_a_header_and_few() {
    let mut response = Response::allow("u");
    for _ in 0..100 {
        response.warn(&"ä\n".repeat(1_000));
    }
    assert_eq!(response.warnings.len(), 16);
    assert!(
        response
            .warnings
            .iter()
            .all(|warning| !warning.contains(char::is_control))
    );
    assert!(response.warnings.iter().all(|warning| warning.chars().count() == 256));
}

#[test]
fn an_empty_patch_is_no_patch() {
    let mut response = Response::allow("u");
    response.patch(&json!([]));
    assert_eq!(response, Response::allow("u"));
}

/// JSON of any shape, with some of the names that matter.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "metadata",
        "spec",
        "containers",
        "initContainers",
        "volumes",
        "labels",
        "annotations",
        "name",
        "image",
        "args",
        "ports",
        "lifecycle",
        "policy",
        "policyRef",
        "scaling",
        "targetRef",
        "roles",
        "metrics",
        "deletionTimestamp",
        "autoscaling.matrixinfer.ai/inject",
        "autoscaling.matrixinfer.ai/engine-port",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        Just(Value::from("enabled")),
        Just(Value::from("vllm")),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(key.clone(), inner, 0..6)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

fn answer(webhook: &Webhook, endpoint: Endpoint, review: &Value) -> Value {
    let answer = webhook.review(endpoint, review.to_string().as_bytes()).unwrap();
    serde_json::from_slice(&answer).unwrap()
}

proptest! {
    #[test]
    fn every_pod_is_allowed(metadata in any_json(), spec in any_json()) {
        let pod = json!({"metadata": metadata, "spec": spec});
        let answer = answer(&webhook(), Endpoint::MutatePods, &make("Pod", "CREATE", &pod, &Value::Null));
        prop_assert_eq!(&answer["response"]["allowed"], true);
    }

    #[test]
    fn every_object_gets_an_answer(
        object in any_json(),
        old in any_json(),
        kind in prop::sample::select(vec!["AutoscalingPolicy", "AutoscalingPolicyBinding"]),
        operation in prop::sample::select(vec!["CREATE", "UPDATE", "DELETE", "CONNECT", ""]),
    ) {
        let answer = answer(&webhook(), Endpoint::Validate, &make(kind, operation, &object, &old));
        let response = &answer["response"];
        prop_assert_eq!(&response["allowed"] == false, !response["status"]["message"].is_null());
    }

    #[test]
    fn every_sequence_of_bytes_gets_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(webhook().review(Endpoint::MutatePods, &bytes).is_err());
    }
}
