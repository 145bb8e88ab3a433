//! Targets against a real API server with a real controller-manager and fake nodes.

use std::sync::Arc;

use infer_core::target::Phase;
use infer_kube::targets::{ApplyError, DrainSpec, Targets};
use serde_json::json;

use crate::targets_cluster::*;

const DRAIN: DrainSpec = DrainSpec {
    timeout_s: 300.0,
    quiet_s: 0.5,
};

fn of_phase(fleet: &infer_kube::targets::Fleet, phase: Phase) -> Vec<String> {
    let pods = fleet.view.pods.iter().filter(|pod| pod.phase == phase);
    pods.map(|pod| pod.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_grows_and_shrinks() {
    let Some(mut space) = Space::new("updown").await else {
        return;
    };
    let (client, record) = recorded(space.config.clone());
    space.client = client;
    space.workload("deployments", "chat", 2).await;
    let (targets, agents) = space.start();
    targets.track("k", vec![part(space.target("apps/v1", "Deployment", "chat"))], DRAIN);
    let first = fleet(&targets, "k", "two ready", |fleet| fleet.parts[0].ready == 2).await;
    assert_eq!((first.view.spec, first.stale_since), (2, None));
    let detail = &first.details[0];
    assert_eq!(detail.node.as_deref(), Some("kwok-targets"));
    assert!(detail.startup_ms.is_some() && detail.pod_ip.is_some(), "{detail:?}");
    assert_eq!(targets.key_of(&space.name, &detail.name).as_deref(), Some("k"));

    let up = plan("k", 2, 4);
    targets.apply(up.clone(), "1".to_owned()).await.unwrap();
    assert_eq!(targets.fleet("k").unwrap().view.spec, 4, "known at once");
    assert_eq!(space.count("deployments", "chat").await, 4);
    targets.apply(up, "1".to_owned()).await.unwrap();
    let writes = || {
        record
            .with("PATCH")
            .into_iter()
            .filter(|request| request.starts_with("200") && request.ends_with("/scale"))
            .count()
    };
    assert_eq!(writes(), 1, "never twice for one plan");
    assert!(matches!(
        targets.apply(plan("k", 2, 3), "2".to_owned()).await,
        Err(ApplyError::Stale { from: 2, spec: 4 })
    ));
    let full = fleet(&targets, "k", "four ready", |fleet| fleet.parts[0].ready == 4).await;

    // Two busy ones stay, two with less work go.
    let names = of_phase(&full, Phase::Ready);
    agents.set_load(&names[0], 1.0);
    agents.set_load(&names[1], 9.0);
    agents.set_load(&names[2], 2.0);
    agents.set_load(&names[3], 9.0);
    // The one that was ready last would be spared.
    let newest = full.view.pods.iter().map(|pod| pod.ready_since).max().unwrap();
    targets.apply(plan("k", 4, 2), "3".to_owned()).await.unwrap();
    let draining = fleet(&targets, "k", "two draining", |fleet| fleet.parts[0].draining == 2).await;
    assert_eq!(
        (draining.view.spec, draining.parts[0].spec, draining.parts[0].desired),
        (2, 4, 2)
    );
    let victims = of_phase(&draining, Phase::Draining);
    assert_eq!(agents.draining(), victims);
    assert!(
        full.view
            .pods
            .iter()
            .any(|pod| pod.ready_since == newest && !victims.contains(&pod.name))
    );
    assert_eq!(space.marked().await, victims);
    assert_eq!(space.count("deployments", "chat").await, 4, "not before they are empty");
    agents.idle();
    let small = fleet(&targets, "k", "two left", |fleet| {
        fleet.view.pods.len() == 2 && fleet.parts[0].spec == 2
    })
    .await;
    assert!(
        small.view.pods.iter().all(|pod| !victims.contains(&pod.name)),
        "{victims:?} should be gone, {small:?}"
    );
    assert_eq!(writes(), 2);
    assert!(space.marked().await.is_empty());
    // The reading of the start, and one for each write.
    until("the last reading", || async {
        record
            .with("GET")
            .iter()
            .filter(|request| request.ends_with("chat/scale"))
            .count()
            >= 3
    })
    .await;
    space.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_cancels_a_drain_and_close_leaves_nothing() {
    let Some(space) = Space::new("cancel").await else {
        return;
    };
    space.workload("deployments", "chat", 4).await;
    let (targets, agents) = space.start();
    targets.track("k", vec![part(space.target("apps/v1", "Deployment", "chat"))], DRAIN);
    let full = fleet(&targets, "k", "four ready", |fleet| fleet.parts[0].ready == 4).await;
    for pod in &full.view.pods {
        agents.set_load(&pod.name, 3.0);
    }
    targets.apply(plan("k", 4, 2), "1".to_owned()).await.unwrap();
    assert_eq!((agents.draining().len(), space.marked().await.len()), (2, 2));
    targets.apply(plan("k", 2, 5), "2".to_owned()).await.unwrap();
    assert!(agents.draining().is_empty());
    assert_eq!(space.count("deployments", "chat").await, 5);
    until("no marks", || async { space.marked().await.is_empty() }).await;
    fleet(&targets, "k", "five ready", |fleet| {
        fleet.parts[0].ready == 5 && fleet.parts[0].draining == 0
    })
    .await;

    targets.apply(plan("k", 5, 4), "3".to_owned()).await.unwrap();
    assert_eq!((agents.draining().len(), space.marked().await.len()), (1, 1));
    targets.close().await;
    assert!(agents.draining().is_empty() && space.marked().await.is_empty());
    assert_eq!(space.count("deployments", "chat").await, 5);
    space.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_sets_free_what_was_being_drained() {
    let Some(space) = Space::new("successor").await else {
        return;
    };
    space.workload("deployments", "chat", 3).await;
    let key_parts = || vec![part(space.target("apps/v1", "Deployment", "chat"))];
    let (first, agents) = space.start();
    first.track("k", key_parts(), DRAIN);
    let full = fleet(&first, "k", "three ready", |fleet| fleet.parts[0].ready == 3).await;
    for pod in &full.view.pods {
        agents.set_load(&pod.name, 3.0);
    }
    first.apply(plan("k", 3, 1), "1".to_owned()).await.unwrap();
    assert_eq!(space.marked().await.len(), 2);
    // As if it had been killed.
    drop(first);
    let (second, _) = space.start();
    second.track("k", key_parts(), DRAIN);
    until("no marks", || async { space.marked().await.is_empty() }).await;
    let after = fleet(&second, "k", "three ready", |fleet| fleet.parts[0].ready == 3).await;
    assert_eq!((after.view.spec, space.count("deployments", "chat").await), (3, 3));
    space.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_else_is_noticed_by_name() {
    let Some(space) = Space::new("foreign").await else {
        return;
    };
    space.workload("deployments", "chat", 3).await;
    let (targets, agents) = space.start();
    let mut foreign = targets.foreign_changes();
    targets.track("k", vec![part(space.target("apps/v1", "Deployment", "chat"))], DRAIN);
    let full = fleet(&targets, "k", "three ready", |fleet| fleet.parts[0].ready == 3).await;
    for pod in &full.view.pods {
        agents.set_load(&pod.name, 3.0);
    }
    targets.apply(plan("k", 3, 2), "1".to_owned()).await.unwrap();
    let scale = format!(
        "{}/chat/scale?fieldManager=somebody",
        space.all("apps/v1", "deployments")
    );
    space.merge(&scale, json!({"spec": {"replicas": 6}})).await;
    let change = tokio::time::timeout(PATIENCE, foreign.recv()).await.unwrap().unwrap();
    assert_eq!((change.from, change.to, change.manager.as_str()), (3, 6, "somebody"));
    assert_eq!(change.key, "k");
    let after = fleet(&targets, "k", "six wanted", |fleet| {
        fleet.view.spec == 6 && fleet.parts[0].ready == 6
    })
    .await;
    assert_eq!(after.parts[0].draining, 0, "the drain has ended");
    until("no marks", || async { space.marked().await.is_empty() }).await;
    assert!(agents.draining().is_empty());
    assert!(matches!(
        targets.apply(plan("k", 3, 4), "2".to_owned()).await,
        Err(ApplyError::Stale { from: 3, spec: 6 })
    ));
    // Our own writes are nobody else's.
    targets.apply(plan("k", 6, 7), "3".to_owned()).await.unwrap();
    fleet(&targets, "k", "seven ready", |fleet| fleet.parts[0].ready == 7).await;
    assert!(foreign.try_recv().is_err());
    space.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_in_between_is_met_by_looking_again() {
    let Some(space) = Space::new("race").await else { return };
    space.workload("deployments", "chat", 1).await;
    let (client, record) = recorded(space.config.clone());
    let agents = Arc::new(FakeAgents::default());
    let targets = Targets::start(client, options(), agents);
    targets.track("k", vec![part(space.target("apps/v1", "Deployment", "chat"))], DRAIN);
    fleet(&targets, "k", "one ready", |fleet| fleet.parts[0].ready == 1).await;
    let chat = format!("{}/chat", space.all("apps/v1", "deployments"));
    let writes = || {
        record
            .with("PATCH")
            .into_iter()
            .filter(|request| request.ends_with("/scale"))
            .map(|request| request[..3].to_owned())
            .collect::<Vec<_>>()
    };

    // Something else about the object changes: the write is refused once and then made.
    let (other, at) = (space.clone(), chat.clone());
    record.before("PATCH", async move {
        other
            .merge(&at, json!({"metadata": {"annotations": {"touched": "1"}}}))
            .await;
    });
    targets.apply(plan("k", 1, 2), "1".to_owned()).await.unwrap();
    // Its controller may have been in between as well.
    let all = writes();
    let (last, before) = all.split_last().unwrap();
    assert!(
        last == "200" && !before.is_empty() && before.iter().all(|status| status == "409"),
        "{all:?}"
    );
    assert_eq!(space.count("deployments", "chat").await, 2);

    // The count itself changes: it is left alone.
    fleet(&targets, "k", "two ready", |fleet| fleet.parts[0].ready == 2).await;
    let (other, at) = (space.clone(), chat.clone());
    record.before("PATCH", async move {
        other
            .merge(&format!("{at}/scale"), json!({"spec": {"replicas": 5}}))
            .await;
    });
    let refused = targets.apply(plan("k", 2, 3), "2".to_owned()).await;
    assert!(matches!(refused, Err(ApplyError::Stale { .. })), "{refused:?}");
    assert_eq!(space.count("deployments", "chat").await, 5);
    space.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_stateful_set_the_highest_ordinals_go() {
    let Some(space) = Space::new("ordinals").await else {
        return;
    };
    space.workload("statefulsets", "web", 3).await;
    let (targets, agents) = space.start();
    targets.track("k", vec![part(space.target("apps/v1", "StatefulSet", "web"))], DRAIN);
    fleet(&targets, "k", "three ready", |fleet| fleet.parts[0].ready == 3).await;
    agents.set_load("web-1", 5.0);
    agents.set_load("web-2", 9.0);
    targets.apply(plan("k", 3, 1), "1".to_owned()).await.unwrap();
    assert_eq!(agents.draining(), ["web-1", "web-2"]);
    let costs = space.pods().await;
    assert!(
        costs
            .values()
            .all(|annotations| annotations["controller.kubernetes.io/pod-deletion-cost"].is_null())
    );
    agents.idle();
    let left = fleet(&targets, "k", "one left", |fleet| {
        fleet.view.pods.len() == 1 && fleet.parts[0].spec == 1
    })
    .await;
    assert_eq!(left.view.pods[0].name, "web-0");
    space.end().await;
}

fn definition(group: &str, plural: &str, kind: &str, scale: bool) -> serde_json::Value {
    let mut version = json!({"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        "subresources": {"status": {}}});
    if scale {
        version["subresources"]["scale"] = json!({"specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"});
    }
    json!({"metadata": {"name": format!("{plural}.{group}")}, "spec": {"group": group, "scope": "Namespaced",
        "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind}, "versions": [version]}})
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_comes_later_with_groups_of_pods() {
    let Some(space) = Space::new("later").await else { return };
    let group = format!("{}.example.com", space.name);
    let version = format!("{group}/v1");
    let (targets, agents) = space.start();
    targets.track("k", vec![part(space.target(&version, "GroupSet", "pair"))], DRAIN);
    problem(&targets, "k", "the cluster has no GroupSet").await;
    space
        .create(DEFINITIONS, definition(&group, "groupsets", "GroupSet", true))
        .await;
    problem(&targets, "k", "does not exist").await;
    assert_eq!(targets.fleet("k"), None);
    let all = space.all(&version, "groupsets");
    space
        .create(
            &all,
            json!({"apiVersion": version, "kind": "GroupSet", "metadata": {"name": "pair"}, "spec": {"replicas": 2}}),
        )
        .await;
    problem(&targets, "k", "no Pod selector").await;
    let selector = "leaderworkerset.sigs.k8s.io/name=pair,leaderworkerset.sigs.k8s.io/worker-index=0";
    space
        .merge(
            &format!("{all}/pair/status"),
            json!({"status": {"replicas": 2, "selector": selector}}),
        )
        .await;
    for (name, index, worker) in [("pair-0", "0", "0"), ("pair-0-1", "0", "1"), ("pair-1", "1", "0")] {
        let labels = json!({"leaderworkerset.sigs.k8s.io/name": "pair", "leaderworkerset.sigs.k8s.io/group-index": index,
            "leaderworkerset.sigs.k8s.io/worker-index": worker});
        let annotations = json!({"leaderworkerset.sigs.k8s.io/size": "2"});
        let meta = json!({"name": name, "labels": labels, "annotations": annotations});
        space
            .create(&space.all("v1", "pods"), json!({"metadata": meta, "spec": pod_spec()}))
            .await;
    }
    let seen = fleet(&targets, "k", "a whole group and a half one", |fleet| {
        (fleet.parts[0].ready, fleet.parts[0].starting) == (1, 1)
    })
    .await;
    let names: Vec<_> = seen
        .details
        .iter()
        .map(|detail| (detail.name.as_str(), detail.pods))
        .collect();
    assert_eq!(names, [("pair-0", 2), ("pair-1", 1)]);
    assert!(targets.problems("k").is_empty(), "{:?}", targets.problems("k"));
    targets.apply(plan("k", 2, 3), "1".to_owned()).await.unwrap();
    assert_eq!(space.get(&format!("{all}/pair")).await["spec"]["replicas"], 3);
    // The half group is the first to go, and nobody has to wait for it.
    targets.apply(plan("k", 3, 1), "2".to_owned()).await.unwrap();
    assert_eq!(agents.draining(), ["pair-1"]);
    until("one", || async {
        space.get(&format!("{all}/pair")).await["spec"]["replicas"] == 1
    })
    .await;
    // The definition goes, and with it everything that was known.
    space
        .ask("DELETE", &format!("{DEFINITIONS}/groupsets.{group}"), None)
        .await
        .unwrap();
    problem(&targets, "k", "the cluster has no GroupSet").await;
    assert_eq!(targets.fleet("k"), None);
    space.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_role_of_an_object_even_when_its_list_is_reordered() {
    let Some(space) = Space::new("roles").await else { return };
    let group = format!("{}.example.com", space.name);
    let version = format!("{group}/v1");
    space
        .create(DEFINITIONS, definition(&group, "rolesets", "RoleSet", false))
        .await;
    let all = space.all(&version, "rolesets");
    let role = |name: &str, replicas: u32| json!({"name": name, "replicas": replicas});
    let spec = json!({"roles": [role("prefill", 1), role("decode", 2)]});
    space
        .create(
            &all,
            json!({"apiVersion": version, "kind": "RoleSet", "metadata": {"name": "pd"}, "spec": spec}),
        )
        .await;
    for (name, role) in [("p-0", "prefill"), ("d-0", "decode"), ("d-1", "decode")] {
        let meta = json!({"name": name, "labels": {"app": "pd", "role": role}});
        space
            .create(&space.all("v1", "pods"), json!({"metadata": meta, "spec": pod_spec()}))
            .await;
    }
    let (client, record) = recorded(space.config.clone());
    let targets = Targets::start(client, options(), Arc::new(FakeAgents::default()));
    let mut target = space.target(&version, "RoleSet", "pd");
    target.replicas_path = Some(r#".spec.roles[?(@.name=="decode")].replicas"#.to_owned());
    target.pod_selector = Some("app=pd,role=decode".to_owned());
    targets.track("k", vec![part(target.clone())], DRAIN);
    let seen = fleet(&targets, "k", "two decoders", |fleet| fleet.parts[0].ready == 2).await;
    assert_eq!(seen.view.spec, 2);
    let (other, at) = (space.clone(), format!("{all}/pd"));
    record.before("PATCH", async move {
        other
            .merge(
                &at,
                json!({"spec": {"roles": [role("decode", 2), role("encode", 7), role("prefill", 1)]}}),
            )
            .await;
    });
    targets.apply(plan("k", 2, 4), "1".to_owned()).await.unwrap();
    let roles = space.get(&format!("{all}/pd")).await["spec"]["roles"].clone();
    assert_eq!(roles, json!([role("decode", 4), role("encode", 7), role("prefill", 1)]));
    assert_eq!(record.with("422 PATCH").len() + record.with("409 PATCH").len(), 1);
    assert_eq!(record.with("200 PATCH").len(), 1);
    // A role that is not there, and a kind without a scale subresource.
    target.replicas_path = Some(".spec.roles[name=router].replicas".to_owned());
    targets.track("router", vec![part(target.clone())], DRAIN);
    problem(
        &targets,
        "router",
        r#"no item with name "router" (there are: decode, encode, prefill)"#,
    )
    .await;
    target.replicas_path = None;
    targets.track("whole", vec![part(target)], DRAIN);
    problem(&targets, "whole", "RoleSet has no scale subresource").await;
    space
        .ask("DELETE", &format!("{DEFINITIONS}/rolesets.{group}"), None)
        .await
        .unwrap();
    space.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_rule_is_named_and_its_coming_noticed() {
    let Some(space) = Space::new("rules").await else { return };
    space.workload("deployments", "chat", 2).await;
    let ns = space.name.clone();
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules =
        |verbs: &[&str], resources: &[&str]| json!({"apiGroups": ["", "apps"], "resources": resources, "verbs": verbs});
    let seeing = rules(&["get", "list", "watch"], &["pods", "deployments", "deployments/scale"]);
    space
        .create(
            &format!("{rbac}/clusterroles"),
            json!({"metadata": {"name": ns}, "rules": [rules(&["get", "list", "watch"], &["pods"])]}),
        )
        .await;
    let binding = json!({"metadata": {"name": ns}, "subjects": [{"kind": "User", "name": ns, "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ns}});
    space.create(&format!("{rbac}/clusterrolebindings"), binding).await;
    let mut config = space.config.clone();
    config.auth_info.impersonate = Some(ns.clone());
    let limited = kube::Client::try_from(config).unwrap();
    let agents = Arc::new(FakeAgents::default());
    let targets = Targets::start(limited, options(), agents.clone());
    targets.track("k", vec![part(space.target("apps/v1", "Deployment", "chat"))], DRAIN);
    problem(
        &targets,
        "k",
        "not allowed to get, list and watch deployments in group \"apps\", in all namespaces",
    )
    .await;
    let role = format!("{rbac}/clusterroles/{ns}");
    space.merge(&role, json!({"rules": [seeing]})).await;
    fleet(&targets, "k", "two ready", |fleet| {
        fleet.parts[0].ready == 2 && fleet.stale_since.is_none()
    })
    .await;
    assert!(targets.problems("k").is_empty(), "{:?}", targets.problems("k"));

    let refused = targets.apply(plan("k", 2, 3), "1".to_owned()).await;
    assert!(matches!(refused, Err(ApplyError::Backend(_))), "{refused:?}");
    problem(
        &targets,
        "k",
        &format!("not allowed to patch deployments/scale in group \"apps\", namespace {ns}"),
    )
    .await;
    // Victims can not be marked: nobody is told to drain, and the next try waits.
    let refused = targets.apply(plan("k", 2, 1), "2".to_owned()).await.unwrap_err();
    assert!(
        refused.to_string().contains("cannot patch resource \"pods\""),
        "{refused}"
    );
    problem(&targets, "k", "not allowed to patch pods").await;
    let again = targets.apply(plan("k", 2, 1), "3".to_owned()).await.unwrap_err();
    assert!(again.to_string().contains("tried again in"), "{again}");
    assert!(agents.draining().is_empty());
    assert_eq!(targets.fleet("k").unwrap().view.spec, 2);

    let writing = rules(&["patch"], &["pods", "deployments/scale"]);
    space.merge(&role, json!({"rules": [seeing, writing]})).await;
    until("the rule holds", || async {
        targets.apply(plan("k", 2, 3), "4".to_owned()).await.is_ok()
    })
    .await;
    for path in ["clusterrolebindings", "clusterroles"] {
        space.ask("DELETE", &format!("{rbac}/{path}/{ns}"), None).await.unwrap();
    }
    space.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_parts_are_one_fleet() {
    let Some(space) = Space::new("parts").await else { return };
    space.workload("deployments", "cheap", 1).await;
    space.workload("deployments", "dear", 1).await;
    let (targets, _) = space.start();
    let of = |name: &str, cost: f64| infer_kube::targets::Part {
        name: name.to_owned(),
        min: 1,
        max: 3,
        cost,
        target: space.target("apps/v1", "Deployment", name),
    };
    targets.track("k", vec![of("cheap", 1.0), of("dear", 100.0)], DRAIN);
    fleet(&targets, "k", "two ready", |fleet| {
        fleet.parts.iter().all(|part| part.ready == 1)
    })
    .await;
    targets.apply(plan("k", 2, 5), "1".to_owned()).await.unwrap();
    let grown = fleet(&targets, "k", "five ready", |fleet| {
        of_phase(fleet, Phase::Ready).len() == 5
    })
    .await;
    assert_eq!((grown.view.spec, grown.parts[0].spec, grown.parts[1].spec), (5, 3, 2));
    targets.apply(plan("k", 5, 2), "2".to_owned()).await.unwrap();
    let shrunk = fleet(&targets, "k", "two left", |fleet| fleet.view.pods.len() == 2).await;
    assert_eq!((shrunk.parts[0].spec, shrunk.parts[1].spec), (1, 1));
    // The same again is nothing; other bounds are taken over; another target takes the place of the one before.
    targets.track("k", vec![of("cheap", 1.0), of("dear", 1.0)], DRAIN);
    assert!(targets.fleet("k").is_some());
    targets.track("k", vec![of("cheap", 1.0)], DRAIN);
    let one = fleet(&targets, "k", "one part", |fleet| fleet.view.spec == 1).await;
    assert_eq!(one.parts.len(), 1);
    targets.untrack("k");
    assert_eq!((targets.fleet("k"), targets.problems("k").len()), (None, 0));
    space.end().await;
}
