//! What the tests of bindings share: our custom resources, and deciders that may do what their role says and no more.

use std::time::Duration;

use infer_core::{
    TimeMs,
    decision::{Control, Memory},
};
use infer_kube::{Bindings, Bound, Change, Report, Scope, Targets, bindings::Options};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::targets_cluster::*;

pub(crate) const OURS: &str = "autoscaling.matrixinfer.ai/v1alpha1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A namespace of a test's own in a cluster that knows our kinds. `None` without a cluster.
pub(crate) async fn space(test: &str) -> Option<Space> {
    let mut space = Space::new(test).await?;
    space.config.default_retry = false;
    for crd in infer_api::crd::all() {
        let name = crd["metadata"]["name"].as_str().unwrap();
        let path =
            format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}?fieldManager=test&force=true");
        let kind = "application/apply-patch+yaml";
        until("the definition", || async {
            space.ask("PATCH", &path, Some((kind, crd.clone()))).await.is_ok()
        })
        .await;
    }
    for plural in ["autoscalingpolicies", "autoscalingpolicybindings"] {
        until(plural, || async {
            space.ask("GET", &space.all(OURS, plural), None).await.is_ok()
        })
        .await;
    }
    Some(space)
}

/// Somebody who may do what [`infer_kube::rbac`] says, in this namespace.
pub(crate) async fn limited(space: &Space) -> Config {
    let namespace = &space.name;
    let rules = |scopes: &[Scope]| {
        let rules = infer_kube::rbac()
            .into_iter()
            .filter(|rule| scopes.contains(&rule.scope));
        rules
            .map(|rule| serde_json::to_value(rule).unwrap())
            .collect::<Vec<Value>>()
    };
    let subject = json!([{"kind": "ServiceAccount", "name": "decider", "namespace": namespace}]);
    let role = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    space
        .create(
            &space.all("v1", "serviceaccounts"),
            json!({"metadata": {"name": "decider"}}),
        )
        .await;
    let own = json!({"metadata": {"name": "decider"}, "rules": rules(&[Scope::Own, Scope::Targets])});
    space.create(&format!("{RBAC}/namespaces/{namespace}/roles"), own).await;
    let binding = json!({"metadata": {"name": "decider"}, "subjects": subject, "roleRef": role("Role", "decider")});
    space
        .create(&format!("{RBAC}/namespaces/{namespace}/rolebindings"), binding)
        .await;
    let name = format!("decider-{namespace}");
    let all = json!({"metadata": {"name": name}, "rules": rules(&[Scope::Cluster])});
    space.create(&format!("{RBAC}/clusterroles"), all).await;
    let binding = json!({"metadata": {"name": name}, "subjects": subject, "roleRef": role("ClusterRole", &name)});
    space.create(&format!("{RBAC}/clusterrolebindings"), binding).await;
    let path = format!("{}/decider/token", space.all("v1", "serviceaccounts"));
    let token = space
        .ask("POST", &path, Some(("application/json", json!({"spec": {}}))))
        .await
        .unwrap();
    // What the manifests bring along.
    let lease = json!({"metadata": {"name": "infer-decider-shard-0", "labels": {"of": "release"}}});
    space
        .create(&space.all("coordination.k8s.io/v1", "leases"), lease)
        .await;
    space
        .create(
            &space.all("v1", "secrets"),
            json!({"metadata": {"name": infer_kube::ca::SECRET}}),
        )
        .await;
    let mut config = Config::new(space.config.cluster_url.clone());
    config.root_cert = space.config.root_cert.clone();
    config.default_retry = false;
    config.auth_info.token = Some(token["status"]["token"].as_str().unwrap().to_owned().into());
    // Rules are known to the API server a moment after they were made, the last ones last.
    let client = Client::try_from(config.clone()).unwrap();
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}});
    until("the rules are known", || async {
        let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews");
        let request = request.header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(&review).unwrap()).unwrap();
        let rules = client
            .request::<Value>(request)
            .await
            .map(|answer| answer["status"].to_string());
        rules.is_ok_and(|rules| rules.contains("tokenreviews") && rules.contains("leases"))
    })
    .await;
    config
}

/// One decider.
pub(crate) struct Decider {
    pub(crate) bindings: Bindings,
    pub(crate) targets: Targets,
    pub(crate) changes: mpsc::Receiver<Change>,
}

impl Decider {
    pub(crate) fn start(client: Client, space: &Space, name: &str) -> Decider {
        let targets = infer_kube::targets::Options {
            namespaces: vec![space.name.clone()],
            ..options()
        };
        let targets = Targets::start(client.clone(), targets, std::sync::Arc::new(FakeAgents::default()));
        let options = Options {
            namespaces: vec![space.name.clone()],
            ..Options::new(name, &format!("https://{name}:9400"), &space.name)
        };
        let (bindings, changes) = Bindings::start(client, options, targets.clone());
        Decider {
            bindings,
            targets,
            changes,
        }
    }

    #[track_caller]
    pub(crate) fn next(&mut self) -> impl Future<Output = Change> + '_ {
        let at = std::panic::Location::caller();
        async move {
            let next = tokio::time::timeout(PATIENCE, self.changes.recv()).await;
            next.unwrap_or_else(|_| panic!("no change in time ({at})"))
                .expect("it goes on")
        }
    }

    pub(crate) async fn bound(&mut self) -> Box<Bound> {
        match self.next().await {
            Change::Bound(bound) => bound,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn gone(&mut self) -> String {
        match self.next().await {
            Change::Gone(key) => key,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn policy(space: &Space, name: &str, target: f64) {
    let policy = json!({"apiVersion": OURS, "kind": "AutoscalingPolicy", "metadata": {"name": name},
        "spec": {"metrics": [{"type": "concurrency", "target": target}]}});
    space.create(&space.all(OURS, "autoscalingpolicies"), policy).await;
}

pub(crate) async fn bind(space: &Space, name: &str, target: &str) {
    let binding = json!({"apiVersion": OURS, "kind": "AutoscalingPolicyBinding", "metadata": {"name": name},
        "spec": {"policyRef": {"name": "p"}, "scaling": {"maxReplicas": 8,
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}}}});
    space
        .create(&space.all(OURS, "autoscalingpolicybindings"), binding)
        .await;
}

pub(crate) fn path(space: &Space, plural: &str, name: &str) -> String {
    format!("{}/{name}", space.all(OURS, plural))
}

pub(crate) async fn status(space: &Space, name: &str) -> Value {
    space.get(&path(space, "autoscalingpolicybindings", name)).await["status"].clone()
}

/// `True Deciding`, or nothing.
pub(crate) fn condition(status: &Value, kind: &str) -> String {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind);
    let word = |field: &str| {
        found
            .and_then(|found| found[field].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    format!("{} {}", word("status"), word("reason"))
}

#[track_caller]
pub(crate) fn until_condition<'a>(
    space: &'a Space,
    name: &'a str,
    kind: &'a str,
    expected: &'a str,
) -> impl Future<Output = Value> + 'a {
    let at = std::panic::Location::caller();
    async move {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = status(space, name).await;
            if condition(&status, kind) == expected {
                return status;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "waited in vain for {kind} {expected} of {name} ({at}): {status:#}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Notes of the Events of a binding with this reason.
pub(crate) async fn events(space: &Space, name: &str, reason: &str) -> Vec<String> {
    let list = space.get(&space.all("events.k8s.io/v1", "events")).await;
    let events = list["items"].as_array().unwrap().iter();
    let ours = events.filter(|event| event["regarding"]["name"] == name && event["reason"] == reason);
    ours.map(|event| event["note"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn report(bound: &Bound, desired: u32) -> Report {
    Report {
        key: bound.key.clone(),
        desired,
        mode: "stable",
        control: Control::Auto,
        reason: "concurrency 24 of 8 per replica".to_owned(),
        decision: None,
        changed: None,
        applied: false,
        not_applied: None,
        limited: None,
        metrics_available: true,
        memory: Memory::start(&bound.policy, 1, TimeMs(0)),
    }
}

/// Decision `id`, from `from` to `to`.
pub(crate) fn decision(bound: &Bound, id: u64, from: u32, to: u32) -> Report {
    Report {
        decision: Some((id, now().0)),
        changed: Some((from, to)),
        applied: true,
        ..report(bound, to)
    }
}
