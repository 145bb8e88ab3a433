//! One owner per target: whoever came first keeps it, the other one is told whose it is.

use std::{fs, time::Duration};

use infer_tests::harness::cluster::{Abilities, Condition, Load, documents};
use serde_json::{Value, json};

use crate::{
    fleet::{BINDINGS, CHAT, Fleet, Options, PER_REPLICA, binding, new_decider, running, steps},
    support::{SOON, Scene, checkout, deployment, yaml_files},
};

/// Five replicas' worth.
const MUCH: Load = Load {
    running: PER_REPLICA,
    waiting: 4 * PER_REPLICA,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_bindings_the_older_one_has_the_target() {
    let Some(fleet) = Fleet::open("two", Options::default(), running(3)).await else {
        return;
    };
    // It would want two at least.
    let late = Options {
        min: 2,
        ..Options::default()
    };
    fleet.scene.apply(binding("late", CHAT, &late)).await;
    let conflict = fleet.condition("late", "Conflict", "True").await;
    assert!(conflict.message.contains(CHAT), "{conflict:?}");
    fleet.condition("late", "ScalingActive", "False").await;
    fleet.condition(CHAT, "Conflict", "False").await;
    fleet
        .holds(5, "the older one wants one", |replicas| replicas == 1)
        .await;

    // The older one goes, the other one takes over.
    let path = fleet.scene.path(BINDINGS, &format!("autoscalingpolicybindings/{CHAT}"));
    fleet.scene.api.delete(&path).await.unwrap();
    fleet.condition("late", "Conflict", "False").await;
    fleet.wants("two replicas", |replicas| replicas == 2).await;
    assert_eq!(steps(&fleet.scales()), [(fleet.user.as_str(), 2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_hpa_keeps_its_target() {
    let options = Options {
        mode: "paused",
        ..Options::default()
    };
    let Some(fleet) = Fleet::open("hpa", options, running(3)).await else {
        return;
    };
    let path = fleet.scene.path(BINDINGS, &format!("autoscalingpolicybindings/{CHAT}"));
    fleet.scene.api.delete(&path).await.unwrap();
    fleet
        .scene
        .apply(json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "by-cpu"},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": CHAT},
                "minReplicas": 1, "maxReplicas": 3,
            },
        }))
        .await;
    fleet.scene.apply(binding("late", CHAT, &Options::default())).await;
    let conflict = fleet.condition("late", "Conflict", "True").await;
    assert!(conflict.message.contains("by-cpu"), "{conflict:?}");
    fleet.loads.set_total(MUCH);
    fleet.holds(5, "the HPA's target", |replicas| replicas == 1).await;
    assert!(
        !steps(&fleet.scales()).iter().any(|(user, _)| *user == fleet.user),
        "{:?}",
        fleet.scales()
    );

    let hpa = fleet
        .scene
        .path("/apis/autoscaling/v2", "horizontalpodautoscalers/by-cpu");
    fleet.scene.api.delete(&hpa).await.unwrap();
    fleet.condition("late", "Conflict", "False").await;
    fleet.wants("five replicas", |replicas| replicas == 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_other_autoscaler_keeps_what_it_has() {
    let Some(scene) = Scene::open("others", Abilities::Fleet).await else {
        return;
    };
    let api = &scene.api;
    // Of each file: the kind, where it is not Kubernetes' own, and one object of it.
    let mut others = Vec::new();
    for file in yaml_files(&checkout("tests/data/autoscalers")) {
        for document in documents(&fs::read_to_string(&file).unwrap()).unwrap() {
            if document["kind"] == "CustomResourceDefinition" {
                api.apply_object(&document).await.unwrap();
                api.wait_established(document["metadata"]["name"].as_str().unwrap(), SOON)
                    .await
                    .unwrap();
            } else {
                others.push(document);
            }
        }
    }
    assert_eq!(others.len(), 4);
    let decider = new_decider(&scene, "first", false).await;
    decider.launch().unwrap();
    decider.wait_ready().await.unwrap();
    scene.apply(deployment(CHAT, 1, &json!({}), &json!({}))).await;
    let path = scene.path(BINDINGS, "autoscalingpolicybindings/late");
    let conflict = |binding: &Value| Condition::of(binding, "Conflict");
    for other in others {
        let (kind, name) = (
            other["kind"].as_str().unwrap(),
            other["metadata"]["name"].as_str().unwrap(),
        );
        let there = scene.apply(other.clone()).await;
        // Who came first is told by creation times, which are whole seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        scene.apply(binding("late", CHAT, &Options::default())).await;
        let refused = api
            .wait_for(&path, SOON, &format!("a conflict with {kind} {name}"), |binding| {
                conflict(binding).is_some_and(|condition| condition.status == "True")
            })
            .await
            .unwrap();
        let message = conflict(&refused).unwrap().message;
        assert!(message.contains(kind) && message.contains(name), "{message}");
        api.delete(&api.path(&there).await.unwrap()).await.unwrap();
        api.wait_for(&path, SOON, "no conflict", |binding| {
            conflict(binding).is_some_and(|condition| condition.status == "False")
        })
        .await
        .unwrap();
        api.delete(&path).await.unwrap();
    }
}
