//! Pods: who gets an agent, who does not, and that nobody is refused.

use std::sync::atomic::Ordering::Relaxed;

use infer_inject::{INJECT_LABEL, Options};
use infer_webhook::{AgentInjector, Endpoint, Injector, Skip, Verdict, Webhook};
use serde_json::{Value, json};

use crate::support::{FakeCluster, Says, ask, engine_pod, patch, review, said, webhook};

const MUTATE: Endpoint = Endpoint::MutatePods;

#[test]
fn an_engine_gets_the_agent_that_injection_puts_there() {
    let webhook = webhook();
    let pod = engine_pod();
    let response = ask(&webhook, MUTATE, &review("Pod", "CREATE", &pod, &Value::Null));
    assert_eq!(response["allowed"], true);
    assert_eq!(response["auditAnnotations"]["injected"], "vllm:8000");
    let mut after = pod.clone();
    infer_inject::inject(&mut after, &Options::default()).unwrap();
    assert_eq!(patch(&response), infer_inject::json_patch(&pod, &after));
    assert_eq!(webhook.counters().injected.load(Relaxed), 1);

    // The API server may ask again about what it got.
    let again = ask(&webhook, MUTATE, &review("Pod", "CREATE", &after, &Value::Null));
    assert_eq!(again["allowed"], true);
    assert!(again["patch"].is_null());
    assert_eq!(webhook.counters().skipped(Skip::AlreadyInjected), 1);
}

#[test]
fn options_change_for_pods_to_come() {
    let injector = AgentInjector::new(Options::default());
    let webhook = Webhook::new(injector.clone(), FakeCluster::default());
    let request = review("Pod", "CREATE", &engine_pod(), &Value::Null);
    assert!(
        !patch(&ask(&webhook, MUTATE, &request))
            .to_string()
            .contains("NEW BUNDLE")
    );
    injector.set_options(Options {
        ca_pem: Some("NEW BUNDLE".to_owned()),
        ..(*injector.options()).clone()
    });
    assert!(
        patch(&ask(&webhook, MUTATE, &request))
            .to_string()
            .contains("NEW BUNDLE")
    );
}

#[test]
fn whatever_is_not_to_be_injected_is_allowed_as_it_is() {
    let labelled = |mut pod: Value, value: &str| {
        pod["metadata"]["labels"][INJECT_LABEL] = value.into();
        pod
    };
    let two_strangers = json!({
        "metadata": {"name": "db", "labels": {}},
        "spec": {"containers": [{"name": "a", "image": "postgres"}, {"name": "b", "image": "nginx"}]},
    });
    // Kind, operation, Pod; which counter; what is said.
    let cases: [(&str, &str, Value, Option<Skip>, &str); 9] = [
        ("Deployment", "CREATE", engine_pod(), Some(Skip::NotANewPod), ""),
        ("Pod", "UPDATE", engine_pod(), Some(Skip::NotANewPod), ""),
        ("Pod", "DELETE", Value::Null, Some(Skip::NotANewPod), ""),
        (
            "Pod",
            "CREATE",
            labelled(engine_pod(), "disabled"),
            Some(Skip::Disabled),
            "",
        ),
        (
            "Pod",
            "CREATE",
            labelled(engine_pod(), "yes"),
            Some(Skip::Disabled),
            "allowed: enabled, disabled",
        ),
        (
            "Pod",
            "CREATE",
            two_strangers.clone(),
            Some(Skip::NoEngine),
            "infer-agent: ",
        ),
        // It asks for an agent itself, and cannot have one.
        (
            "Pod",
            "CREATE",
            labelled(two_strangers, "enabled"),
            None,
            "infer-agent was not injected: ",
        ),
        (
            "Pod",
            "CREATE",
            json!({"spec": {"containers": "many"}}),
            None,
            "infer-agent was not injected: ",
        ),
        ("Pod", "CREATE", Value::Null, None, "infer-agent was not injected: "),
    ];
    for (kind, operation, pod, skip, says) in cases {
        let webhook = webhook();
        let response = ask(&webhook, MUTATE, &review(kind, operation, &pod, &Value::Null));
        let context = format!("{kind} {operation} {pod}: {response}");
        assert_eq!(response["allowed"], true, "{context}");
        assert!(response["patch"].is_null(), "{context}");
        assert!(said(&response).contains(says), "{context}");
        assert_eq!(says.is_empty(), said(&response).is_empty(), "{context}");
        let counters = webhook.counters();
        assert_eq!(counters.injected.load(Relaxed), 0, "{context}");
        assert_eq!(counters.failed.load(Relaxed), u64::from(skip.is_none()), "{context}");
        for reason in Skip::ALL {
            assert_eq!(counters.skipped(reason), u64::from(skip == Some(reason)), "{context}");
        }
    }
}

#[test]
fn a_subresource_of_a_pod_is_no_new_pod() {
    let webhook = webhook();
    let mut request = review("Pod", "CREATE", &engine_pod(), &Value::Null);
    request["request"]["subResource"] = "eviction".into();
    assert!(ask(&webhook, MUTATE, &request)["patch"].is_null());
    assert_eq!(webhook.counters().skipped(Skip::NotANewPod), 1);
}

#[test]
fn a_dry_run_gets_the_same_answer_and_counts_as_nothing() {
    for verdict in [
        AgentInjector::new(Options::default()).inject(&engine_pod()),
        Verdict::Failed("no".to_owned()),
        Verdict::Skipped {
            reason: Skip::NoEngine,
            notes: Vec::new(),
        },
    ] {
        let (wet, dry) = [(); 2]
            .map(|()| Webhook::new(Says(verdict.clone()), FakeCluster::default()))
            .into();
        let mut request = review("Pod", "CREATE", &engine_pod(), &Value::Null);
        let expected = ask(&wet, MUTATE, &request);
        request["request"]["dryRun"] = true.into();
        assert_eq!(ask(&dry, MUTATE, &request), expected);
        let counters = dry.counters();
        assert_eq!(counters.dry_run.load(Relaxed), 1);
        assert_eq!(counters.injected.load(Relaxed) + counters.failed.load(Relaxed), 0);
        assert_eq!(Skip::ALL.map(|reason| counters.skipped(reason)), [0; 4]);
        assert_eq!(counters.mutate_latency.buckets().iter().sum::<u64>(), 1);
    }
}

#[test]
fn a_failure_is_said_counted_and_refuses_nobody() {
    let problem = format!("line one\nline two {}", "x".repeat(1_000));
    let webhook = Webhook::new(Says(Verdict::Failed(problem)), FakeCluster::default());
    let response = ask(&webhook, MUTATE, &review("Pod", "CREATE", &engine_pod(), &Value::Null));
    assert_eq!(response["allowed"], true);
    assert!(response["patch"].is_null());
    // It travels on as an HTTP header.
    let said = said(&response);
    assert!(
        said.starts_with("infer-agent was not injected: line one line two x"),
        "{said}"
    );
    assert_eq!(said.chars().count(), 256);
    assert_eq!(webhook.counters().failed.load(Relaxed), 1);
}
