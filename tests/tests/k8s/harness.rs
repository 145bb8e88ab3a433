//! What all the others rely on: that the cluster is a real one and does what the harness says of it.

use std::time::Duration;

use infer_tests::harness::{
    cluster::{Abilities, Agents, Api, Condition, Engines, Load, Loads, RUN_LABEL, Runner},
    until,
};
use serde_json::json;

use crate::support::{SOON, Scene, deployment};

#[tokio::test]
async fn deployments_get_ready_pods_and_the_audit_log_knows_who_scaled() {
    let Some(scene) = Scene::open("fleet", Abilities::Fleet).await else {
        return;
    };
    let (api, audit) = (&scene.api, scene.cluster.audit().unwrap());
    scene.apply(deployment("web", 2, &json!({}), &json!({}))).await;
    scene.settled("web", 2).await;

    let mark = audit.mark().unwrap();
    let scale = format!("{}/scale", scene.deployment("web"));
    api.patch(&scale, &json!({"spec": {"replicas": 5}})).await.unwrap();
    scene.settled("web", 5).await;
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 1}});
    assert!(api.patch(&scale, &stale).await.unwrap_err().is("Conflict"));
    let scales = audit
        .since(mark, |request| {
            request.namespace == scene.namespace && request.is_scale()
        })
        .unwrap();
    let said: Vec<_> = scales
        .iter()
        .map(|request| {
            (
                request.user.as_str(),
                request.replicas,
                request.name.as_str(),
                request.code,
            )
        })
        .collect();
    assert_eq!(said, [("admin", Some(5), "web", 200), ("admin", Some(1), "web", 409)]);

    api.patch(&scale, &json!({"spec": {"replicas": 0}})).await.unwrap();
    until(SOON, "no Pods", || async {
        let pods = api.list(&scene.path("/api/v1", "pods")).await.unwrap();
        if pods.is_empty() {
            Ok(())
        } else {
            Err(format!("{} Pods", pods.len()))
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_user_has_the_rights_of_his_roles() {
    let Some(scene) = Scene::open("users", Abilities::Fleet).await else {
        return;
    };
    let kubeconfig = scene.cluster.kubeconfig_for("somebody", Some("readers")).unwrap();
    let somebody = Api::connect(&kubeconfig).await.unwrap();
    let path = scene.path("/api/v1", "configmaps");
    assert!(somebody.list(&path).await.unwrap_err().is("Forbidden"));
    let rights = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: read}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: read}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: read}
subjects: [{kind: Group, name: readers, apiGroup: rbac.authorization.k8s.io}]
"#;
    scene.api.apply(&scene.namespace, rights).await.unwrap();
    let list = || async { somebody.list(&path).await.map_err(|error| error.to_string()) };
    until(SOON, "the right to list", list).await.unwrap();
}

#[tokio::test]
async fn an_api_server_that_was_killed_comes_back_with_its_objects() {
    let Some(scene) = Scene::open_alone("outage").await else {
        return;
    };
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept", "namespace": scene.namespace}});
    let kept = scene.api.create(&map).await.unwrap();
    scene.cluster.stop_api_server().await.unwrap();
    assert!(scene.api.get("/version").await.is_err());
    scene.cluster.start_api_server().await.unwrap();
    let path = scene.path("/api/v1", "configmaps/kept");
    let now = scene.api.wait_for(&path, SOON, "the object", |_| true).await.unwrap();
    assert_eq!(now["metadata"]["uid"], kept["metadata"]["uid"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_with_processes_follow_their_agents() {
    let Some(scene) = Scene::open("processes", Abilities::Fleet).await else {
        return;
    };
    let loads = Loads::default();
    loads.set_total(Load { running: 2, waiting: 0 });
    // Nobody is there; the agent serves all the same.
    let agents = Agents {
        decider: "http://127.0.0.1:9".to_owned(),
        ca_pem: String::new(),
        env: Vec::new(),
    };
    let runner = Runner::start(scene.cluster, &scene.namespace, Engines::Fake(loads.clone()), agents)
        .await
        .unwrap();
    scene
        .apply(deployment("web", 2, &json!({RUN_LABEL: "yes"}), &json!({})))
        .await;
    scene.settled("web", 2).await;
    let engines = runner.engines();
    assert_eq!(engines.len(), 2, "{:?}", runner.problems());

    // A busy engine holds its Pod back for as long as it is busy.
    let victim = engines.keys().next().unwrap();
    let path = scene.path("/api/v1", &format!("pods/{victim}"));
    scene.api.delete(&path).await.unwrap();
    let leaving = |pod: &serde_json::Value| {
        pod["metadata"]["deletionTimestamp"].is_string()
            && Condition::of(pod, "Ready").is_some_and(|condition| condition.status == "True")
    };
    scene
        .api
        .wait_for(&path, SOON, "a Pod that is held back", leaving)
        .await
        .unwrap();
    // Longer than a process has from SIGTERM to SIGKILL.
    for _ in 0..24 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(scene.api.get(&path).await.is_ok() && runner.agent(victim).is_some_and(|agent| agent.is_alive()));
    }
    loads.set_total(Load::default());
    scene.api.wait_gone(&path, SOON).await.unwrap();
    scene.settled("web", 2).await;
    assert!(runner.problems().is_empty(), "{:?}", runner.problems());
}
