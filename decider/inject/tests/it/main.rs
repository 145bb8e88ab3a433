//! Injection into realistic Pods, its laws over arbitrary ones, and manifests as text.
#![allow(clippy::expect_used)]

mod documents;
mod laws;
mod pods;

use infer_inject::{Injected, Options, inject};
use serde_json::{Value, json};

/// Options as a decider would have them.
fn options() -> Options {
    Options {
        ca_pem: Some("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".into()),
        ..Options::default()
    }
}

/// A Pod of these containers, given in YAML, and further fields of its spec.
fn pod(spec: &str) -> Value {
    let spec: Value = serde_saphyr::from_str(spec).expect("YAML");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "chat-0", "labels": {"app": "chat"}},
        "spec": spec,
    })
}

/// The Pod with its agent, the agent's container, and what was found.
#[track_caller]
fn injected(pod: &Value) -> (Value, Value, Injected) {
    let mut after = pod.clone();
    let injected = inject(&mut after, &options()).expect("it can be injected");
    assert!(injected.changed, "{injected:?}");
    let agent = after["spec"]["initContainers"]
        .as_array()
        .and_then(|items| items.last())
        .cloned();
    (after, agent.expect("an agent"), injected)
}
