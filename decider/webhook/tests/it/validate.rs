//! Policies and bindings: what is refused because of other objects, and what must never be.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use infer_inject::Options;
use infer_webhook::{AgentInjector, Dependent, Endpoint, Webhook};
use serde_json::{Value, json};

use crate::support::{FakeCluster, Known, ask, binding, binding_spec, policy, policy_spec, review, said, webhook};

const BINDING: &str = "AutoscalingPolicyBinding";
const POLICY: &str = "AutoscalingPolicy";

fn with(known: Known) -> Webhook {
    Webhook::new(AgentInjector::new(Options::default()), FakeCluster(Arc::new(known)))
}

fn object(spec: Value) -> Value {
    json!({"metadata": {"name": "b", "namespace": "chat"}, "spec": spec})
}

/// Asks, and checks whether it is allowed and what is said.
#[track_caller]
fn check(webhook: &Webhook, request: &Value, allowed: bool, says: &[&str]) {
    let response = ask(webhook, Endpoint::Validate, request);
    assert_eq!(response["allowed"], allowed, "{response}");
    let said = said(&response);
    for expected in says {
        assert!(said.contains(expected), "{expected:?} is not in {said:?}");
    }
    assert_eq!(says.is_empty(), said.is_empty(), "{said}");
}

#[test]
fn a_target_has_one_owner() {
    let known = || Known {
        owners: vec![("Deployment/taken", "HorizontalPodAutoscaler web")],
        policies: vec![("p", policy(1))],
        ..Known::default()
    };
    let free = object(binding_spec("free"));
    let taken = object(binding_spec("taken"));
    check(
        &with(known()),
        &review(BINDING, "CREATE", &free, &Value::Null),
        true,
        &[],
    );
    let refused = [
        "spec.scaling.targetRef",
        "Deployment/taken is scaled by HorizontalPodAutoscaler web",
        "delete HorizontalPodAutoscaler web, or name another target",
    ];
    let webhook = with(known());
    check(
        &webhook,
        &review(BINDING, "CREATE", &taken, &Value::Null),
        false,
        &refused,
    );
    check(&webhook, &review(BINDING, "UPDATE", &taken, &free), false, &refused);
    let response = ask(
        &webhook,
        Endpoint::Validate,
        &review(BINDING, "CREATE", &taken, &Value::Null),
    );
    assert_eq!(response["status"]["code"], 403);
    assert_eq!(response["status"]["reason"], "Forbidden");
    assert_eq!(webhook.counters().validated.load(Relaxed), 3);
    assert_eq!(webhook.counters().refused.load(Relaxed), 3);

    // The conflict was there before: it is not made worse by an edit, and an edit may end it.
    let mut paused = taken.clone();
    paused["spec"]["mode"] = "paused".into();
    let warned = [
        "spec.scaling.targetRef",
        "HorizontalPodAutoscaler web",
        "does not scale it",
    ];
    check(&webhook, &review(BINDING, "UPDATE", &paused, &taken), true, &warned);
    check(&webhook, &review(BINDING, "UPDATE", &free, &taken), true, &[]);
    check(&webhook, &review(BINDING, "DELETE", &Value::Null, &taken), true, &[]);
}

#[test]
fn every_target_of_a_binding_is_looked_at() {
    let target = |name: &str| json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name});
    let roles = object(json!({
        "policyRef": {"name": "p"},
        "roles": [
            {"name": "prefill", "targetRef": target("one"), "maxReplicas": 2},
            {"name": "decode", "targetRef": target("two"), "maxReplicas": 2},
        ],
    }));
    let optimize = object(json!({
        "policyRef": {"name": "p"},
        "optimize": {"targets": [
            {"targetRef": target("one"), "maxReplicas": 2, "cost": 1},
            {"targetRef": target("two"), "maxReplicas": 2, "cost": 3},
        ]},
    }));
    for (object, field) in [
        (roles, "spec.roles[1].targetRef"),
        (optimize, "spec.optimize.targets[1].targetRef"),
    ] {
        let known = |owners| Known {
            owners,
            policies: vec![("p", policy(1))],
            ..Known::default()
        };
        let request = review(BINDING, "CREATE", &object, &Value::Null);
        check(&with(known(vec![])), &request, true, &[]);
        let owned = with(known(vec![("Deployment/two", "ScaledObject x")]));
        check(&owned, &request, false, &[field, "ScaledObject x"]);
    }
}

#[test]
fn what_is_not_there_yet_is_said_and_waited_for() {
    let known = Known {
        notes: vec![(
            "Deployment/chat",
            "Deployment/chat does not exist yet; it is waited for",
        )],
        ..Known::default()
    };
    let request = review(BINDING, "CREATE", &object(binding_spec("chat")), &Value::Null);
    let says = [
        "no AutoscalingPolicy p in namespace chat",
        "spec.scaling.targetRef: Deployment/chat does not exist yet",
    ];
    check(&with(known), &request, true, &says);
}

#[test]
fn a_binding_has_to_fit_its_policy() {
    let known = || Known {
        policies: vec![("p", policy(5))],
        ..Known::default()
    };
    let request = review(BINDING, "CREATE", &object(binding_spec("chat")), &Value::Null);
    check(
        &with(known()),
        &request,
        false,
        &["activationScale of AutoscalingPolicy p is 5, more than maxReplicas, 4"],
    );
    let response = ask(&with(known()), Endpoint::Validate, &request);
    assert_eq!(response["status"]["code"], 422);
}

#[test]
fn a_policy_has_to_fit_the_bindings_that_use_it() {
    let known = |policies: Vec<(&'static str, _)>| Known {
        policies,
        dependents: vec![Dependent {
            name: "user".to_owned(),
            spec: binding("chat"),
        }],
        ..Known::default()
    };
    let policy_object = |activation_scale: u32| {
        let mut object = object(policy_spec(activation_scale));
        object["metadata"]["name"] = "p".into();
        object
    };
    let request = |operation: &str, object: &Value, old: &Value| {
        let mut request = review(POLICY, operation, object, old);
        request["request"]["name"] = "p".into();
        request
    };
    let webhook = with(known(vec![("p", policy(1))]));
    let (fits, too_large) = (policy_object(4), policy_object(5));
    let refused = [
        "AutoscalingPolicyBinding user",
        "would be wrong",
        "more than maxReplicas, 4",
        "change the binding first",
    ];
    check(&webhook, &request("UPDATE", &fits, &policy_object(1)), true, &[]);
    check(
        &webhook,
        &request("UPDATE", &too_large, &policy_object(1)),
        false,
        &refused,
    );
    check(&webhook, &request("CREATE", &too_large, &Value::Null), false, &refused);
    // It was wrong before, so this change is not to blame; making it right is never refused.
    check(
        &webhook,
        &request("UPDATE", &policy_object(6), &too_large),
        true,
        &["stays wrong"],
    );
    check(&webhook, &request("UPDATE", &fits, &too_large), true, &[]);
    check(
        &webhook,
        &request("DELETE", &Value::Null, &fits),
        true,
        &["AutoscalingPolicyBinding user uses this"],
    );
    // Somebody else's policy.
    let mut other = request("CREATE", &too_large, &Value::Null);
    other["request"]["name"] = "q".into();
    check(&webhook, &other, true, &[]);
}

#[test]
fn what_cel_would_refuse_is_refused_without_it() {
    let mut two_policies = binding_spec("chat");
    two_policies["policy"] = policy_spec(1);
    for (kind, spec, says) in [
        (BINDING, two_policies, "spec.policy: stands beside policyRef"),
        (BINDING, json!({}), "spec"),
        (BINDING, Value::Null, "spec"),
        (
            POLICY,
            json!({"metrics": [{"type": "ttft", "target": 1}]}),
            "spec.metrics[0].quantile: is required",
        ),
        (POLICY, json!({"metrics": []}), "spec.metrics"),
        (POLICY, Value::Null, "spec"),
    ] {
        let object = object(spec);
        check(
            &webhook(),
            &review(kind, "CREATE", &object, &Value::Null),
            false,
            &[says],
        );
        check(
            &webhook(),
            &review(kind, "UPDATE", &object, &json!({"spec": {}, "x": 1})),
            object["spec"] == json!({}),
            {
                if object["spec"] == json!({}) {
                    &[]
                } else {
                    std::slice::from_ref(&says)
                }
            },
        );
    }
}

#[test]
fn what_was_wrong_before_never_holds_up_who_does_not_touch_it() {
    let known = || Known {
        owners: vec![("Deployment/taken", "HorizontalPodAutoscaler web")],
        ..Known::default()
    };
    for spec in [binding_spec("taken"), json!({"nonsense": true}), Value::Null] {
        let old = object(spec.clone());
        let mut labelled = old.clone();
        labelled["metadata"]["labels"] = json!({"team": "chat"});
        let mut deleted = object(json!({"still": "nonsense"}));
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        for kind in [BINDING, POLICY] {
            check(&with(known()), &review(kind, "UPDATE", &labelled, &old), true, &[]);
            check(&with(known()), &review(kind, "UPDATE", &deleted, &old), true, &[]);
            check(&with(known()), &review(kind, "DELETE", &Value::Null, &old), true, &[]);
        }
        let mut status = review(BINDING, "UPDATE", &object(json!({"x": 1})), &old);
        status["request"]["subResource"] = "status".into();
        check(&with(known()), &status, true, &[]);
    }
}

#[test]
fn a_kind_that_is_not_ours_goes_through_with_a_hint() {
    let request = review("Pod", "CREATE", &json!({}), &Value::Null);
    check(&webhook(), &request, true, &["is not validated here"]);
}

#[test]
fn a_dry_run_is_judged_and_not_counted() {
    let known = Known {
        owners: vec![("Deployment/taken", "HorizontalPodAutoscaler web")],
        ..Known::default()
    };
    let webhook = with(known);
    let mut request = review(BINDING, "CREATE", &object(binding_spec("taken")), &Value::Null);
    request["request"]["dryRun"] = true.into();
    check(&webhook, &request, false, &["HorizontalPodAutoscaler web"]);
    let counters = webhook.counters();
    assert_eq!(counters.validated.load(Relaxed) + counters.refused.load(Relaxed), 0);
    assert_eq!(counters.dry_run.load(Relaxed), 1);
    assert_eq!(counters.validate_latency.buckets().iter().sum::<u64>(), 1);
}
