//! The webhook puts agents into Pods, and never stands in their way.

use infer_tests::harness::{cluster::Abilities, until};
use serde_json::{Value, json};

use crate::{
    fleet::new_decider,
    support::{SOON, Scene, deployment},
};

const INJECT: &str = "autoscaling.matrixinfer.ai/inject";
const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
/// The name that the decider patches its authority into.
const NAME: &str = "infer-decider";

/// The agent's container, which is a native sidecar.
fn agent(pod: &Value) -> Option<&Value> {
    let containers = pod["spec"]["initContainers"].as_array()?;
    containers.iter().find(|container| container["name"] == "infer-agent")
}

/// A Pod that the label asks an agent for.
fn pod(name: &str) -> Value {
    let template = &deployment(name, 1, &json!({INJECT: "enabled"}), &json!({}))["spec"]["template"];
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_get_their_agent_and_are_admitted_without_a_decider() {
    let Some(scene) = Scene::open("inject", Abilities::Fleet).await else {
        return;
    };
    // The configuration's name is fixed and the cluster is one: nobody else here serves webhooks.
    let decider = new_decider(&scene, "first", true).await;
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [{
            "name": "inject.autoscaling.matrixinfer.ai",
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore", "timeoutSeconds": 2,
            "clientConfig": {"url": format!("{}/mutate-pods", decider.webhooks())},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}},
            "objectSelector": {"matchLabels": {INJECT: "enabled"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
        }],
    });
    // As the chart does: it is there before the decider is.
    scene.api.apply_object(&configuration).await.unwrap();
    decider.launch().unwrap();
    decider.wait_ready().await.unwrap();
    let trusted = |object: &Value| {
        let bundle = &object["webhooks"][0]["clientConfig"]["caBundle"];
        bundle.as_str().is_some_and(|bundle| !bundle.is_empty())
    };
    let path = format!("{CONFIGURATIONS}/{NAME}");
    scene
        .api
        .wait_for(&path, SOON, "the decider's authority", trusted)
        .await
        .unwrap();

    // The API server needs a moment to take a new configuration up.
    let mut tries = 0..;
    let injected = until(SOON, "a Pod with an agent", || {
        let name = format!("try-{}", tries.next().unwrap_or(0));
        let scene = &scene;
        async move {
            let made = scene.apply(pod(&name)).await;
            if agent(&made).is_some() {
                Ok(made)
            } else {
                Err(format!("{made}"))
            }
        }
    })
    .await
    .unwrap();
    let agent_container = agent(&injected).unwrap();
    assert_eq!(agent_container["restartPolicy"], "Always");
    assert!(
        agent_container["resources"]["requests"]["memory"].is_string(),
        "{agent_container}"
    );
    assert_eq!(
        agent_container["securityContext"]["runAsNonRoot"], true,
        "{agent_container}"
    );
    let annotation = &injected["metadata"]["annotations"]["autoscaling.matrixinfer.ai/injected"];
    assert!(annotation.is_string(), "{injected}");

    // By a Deployment as well, and they get ready.
    scene
        .apply(deployment("web", 3, &json!({INJECT: "enabled"}), &json!({})))
        .await;
    scene.settled("web", 3).await;
    let pods = scene
        .api
        .list(&scene.path("/api/v1", "pods?labelSelector=app%3Dweb"))
        .await
        .unwrap();
    assert!(
        pods.len() == 3 && pods.iter().all(|pod| agent(pod).is_some()),
        "{pods:?}"
    );
    // Who did not ask gets none.
    scene.apply(deployment("plain", 1, &json!({}), &json!({}))).await;
    scene.settled("plain", 1).await;
    let plain = scene
        .api
        .list(&scene.path("/api/v1", "pods?labelSelector=app%3Dplain"))
        .await
        .unwrap();
    assert!(plain.iter().all(|pod| agent(pod).is_none()), "{plain:?}");

    decider.kill().unwrap();
    let admitted = scene.apply(pod("later")).await;
    assert!(agent(&admitted).is_none(), "{admitted}");
    scene
        .apply(deployment("more", 2, &json!({INJECT: "enabled"}), &json!({})))
        .await;
    scene.settled("more", 2).await;
    scene.api.delete(&path).await.unwrap();
}
