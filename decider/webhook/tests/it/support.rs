//! Pods, bindings, reviews, and a cluster made of lists.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use infer_api::{BindingSpec, PolicySpec, TargetRef, read_binding_spec, read_policy_spec};
use infer_webhook::{AgentInjector, Cluster, Dependent, Endpoint, Injector, Verdict, Webhook};
use serde_json::{Value, json};

/// What the tests' cluster consists of.
#[derive(Default)]
pub(crate) struct Known {
    /// Target (kind/name) and its owner.
    pub(crate) owners: Vec<(&'static str, &'static str)>,
    pub(crate) policies: Vec<(&'static str, PolicySpec)>,
    pub(crate) dependents: Vec<Dependent>,
    pub(crate) notes: Vec<(&'static str, &'static str)>,
}

#[derive(Clone, Default)]
pub(crate) struct FakeCluster(pub(crate) Arc<Known>);

impl Cluster for FakeCluster {
    fn other_owner(&self, namespace: &str, binding: &str, target: &TargetRef) -> Option<String> {
        assert_eq!((namespace, binding), ("chat", "b"));
        let owner = self.0.owners.iter().find(|(name, _)| *name == target.to_string());
        owner.map(|(_, owner)| (*owner).to_owned())
    }

    fn policy(&self, _: &str, name: &str) -> Option<PolicySpec> {
        let found = self.0.policies.iter().find(|(known, _)| *known == name);
        found.map(|(_, policy)| policy.clone())
    }

    fn dependents(&self, _: &str, policy: &str) -> Vec<Dependent> {
        let uses = |user: &&Dependent| user.spec.policy_ref.as_ref().is_some_and(|used| used.name == policy);
        self.0.dependents.iter().filter(uses).cloned().collect()
    }

    fn target_note(&self, _: &str, target: &TargetRef) -> Option<String> {
        let found = self.0.notes.iter().find(|(name, _)| *name == target.to_string());
        found.map(|(_, note)| (*note).to_owned())
    }
}

/// An injector that always says the same.
pub(crate) struct Says(pub(crate) Verdict);

impl Injector for Says {
    fn inject(&self, _: &Value) -> Verdict {
        self.0.clone()
    }
}

pub(crate) fn webhook() -> Webhook {
    Webhook::new(
        AgentInjector::new(infer_inject::Options::default()),
        FakeCluster::default(),
    )
}

pub(crate) fn engine_pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "chat-7d9-", "labels": {"app": "chat"}},
        "spec": {"containers": [{
            "name": "vllm",
            "image": "vllm/vllm-openai:v0.10.0",
            "command": ["vllm", "serve", "model", "--port", "8000"],
            "ports": [{"containerPort": 8000}],
        }]},
    })
}

pub(crate) fn policy_spec(activation_scale: u32) -> Value {
    json!({"metrics": [{"type": "waiting", "target": 4}], "activationScale": activation_scale})
}

pub(crate) fn policy(activation_scale: u32) -> PolicySpec {
    read_policy_spec(&policy_spec(activation_scale)).unwrap()
}

pub(crate) fn binding_spec(target: &str) -> Value {
    json!({
        "policyRef": {"name": "p"},
        "scaling": {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
            "minReplicas": 1,
            "maxReplicas": 4,
        },
    })
}

pub(crate) fn binding(target: &str) -> BindingSpec {
    read_binding_spec(&binding_spec(target)).unwrap()
}

/// A review of a request in namespace `chat`.
pub(crate) fn review(kind: &str, operation: &str, object: &Value, old: &Value) -> Value {
    let group = if kind == "Pod" {
        ""
    } else {
        "autoscaling.matrixinfer.ai"
    };
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": group, "version": "v1alpha1", "kind": kind},
            "resource": {"group": group, "version": "v1alpha1", "resource": "things"},
            "name": "b",
            "namespace": "chat",
            "operation": operation,
            "userInfo": {"username": "someone"},
            "object": object,
            "oldObject": old,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

/// The response's part of the answer; what every answer must be is checked here.
pub(crate) fn ask(webhook: &Webhook, endpoint: Endpoint, review: &Value) -> Value {
    let answer = webhook.review(endpoint, review.to_string().as_bytes()).unwrap();
    let mut answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
    assert_eq!(
        answer["response"]["patch"].is_null(),
        answer["response"]["patchType"].is_null()
    );
    answer["response"].take()
}

/// The patch of a response, decoded.
pub(crate) fn patch(response: &Value) -> Value {
    assert_eq!(response["patchType"], "JSONPatch");
    let bytes = BASE64_STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Warnings, and why it was refused.
pub(crate) fn said(response: &Value) -> String {
    let warnings = response["warnings"].as_array().into_iter().flatten();
    let warnings: Vec<&str> = warnings.map(|warning| warning.as_str().unwrap()).collect();
    let message = response["status"]["message"].as_str().unwrap_or_default();
    format!("{message}{}", warnings.join("\n"))
}
