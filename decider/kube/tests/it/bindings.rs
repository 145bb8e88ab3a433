//! Bindings against a real API server: what is said is true, and who may decide decides.

use std::time::{Duration, Instant};

use infer_core::{TimeMs, behavior::Recommendation};
use infer_kube::{Change, Ownership, Report};
use kube::Client;
use serde_json::json;

use crate::{bindings_cluster::*, targets_cluster::*};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_the_truth_with_the_rights_of_the_role() {
    let Some(space) = space("truth").await else { return };
    let (client, record) = recorded(limited(&space).await);
    let mut decider = Decider::start(client, &space, "one");
    bind(&space, "chat", "chat").await;
    until("ready", || async { decider.bindings.is_ready() }).await;
    let status = until_condition(&space, "chat", "Ready", "False PolicyNotFound").await;
    assert_eq!(condition(&status, "Conflict"), "False NoConflict");
    assert_eq!(decider.bindings.missing(), Vec::<String>::new());

    policy(&space, "p", 8.0).await;
    let bound = decider.bound().await;
    assert_eq!(
        (bound.key.as_str(), bound.bounds.max),
        (format!("{}/chat", space.name).as_str(), 8)
    );
    assert_eq!((bound.policy.metrics[0].target, bound.memory.is_some()), (8.0, false));
    assert_eq!(decider.bindings.owner_of_target(&bound.key), Ownership::Mine);
    assert!(decider.bindings.may_act(&bound.key));
    let status = until_condition(&space, "chat", "TargetsResolved", "False TargetNotFound").await;
    assert_eq!(condition(&status, "Ready"), "False TargetNotFound");
    let policies = path(&space, "autoscalingpolicies", "p");
    until("the policy's status", || async {
        space.get(&policies).await["status"]["boundBy"] == 1
    })
    .await;
    assert_eq!(space.get(&policies).await["status"]["metrics"], "concurrency 8");

    space.workload("deployments", "chat", 2).await;
    let status = until_condition(&space, "chat", "TargetsResolved", "True Found").await;
    assert_eq!(condition(&status, "MetricsAvailable"), "Unknown NoDecisionYet");
    decider.bindings.report(report(&bound, 2));
    let status = until_condition(&space, "chat", "Ready", "True Deciding").await;
    assert_eq!(status["targets"][0]["lastDecision"], json!(null));
    until("two ready", || async {
        self::status(&space, "chat").await["readyReplicas"] == 2
    })
    .await;

    // Repeating oneself writes nothing: when the next thing is said, it is the only thing written since.
    let writes = || {
        record
            .with("PATCH")
            .into_iter()
            .filter(|request| request.ends_with("/chat/status"))
            .count()
    };
    let before = writes();
    for _ in 0..50 {
        let same = Report {
            reason: format!("another sentence {}", fastrand::u32(..)),
            ..report(&bound, 2)
        };
        decider.bindings.report(same);
    }
    // Two decisions at once: one write, two Events, and the later one is told.
    let first = decision(&bound, 6, 1, 2);
    let mut second = decision(&bound, 7, 2, 3);
    second.memory.recommendations.push(Recommendation {
        at: TimeMs(5),
        replicas: 3,
    });
    decider.bindings.report(first);
    decider.bindings.report(second);
    decider.bindings.report(report(&bound, 3));
    until("the decision", || async {
        self::status(&space, "chat").await["targets"][0]["lastDecision"]["id"] == 7
    })
    .await;
    assert_eq!(writes() - before, 1);
    let status = self::status(&space, "chat").await;
    assert_eq!(
        (&status["desiredReplicas"], &status["target"]),
        (&json!(3), &json!("Deployment/chat"))
    );
    assert_eq!(status["targets"][0]["lastDecision"]["from"], 2);
    assert!(
        status["targets"][0]["memory"]
            .as_str()
            .unwrap()
            .contains("recommendations")
    );
    until("Events", || async { events(&space, "chat", "Scaled").await.len() == 2 }).await;
    assert!(
        events(&space, "chat", "Scaled")
            .await
            .iter()
            .any(|note| note.contains("from 2 to 3 replicas"))
    );

    // Somebody else changes the count.
    let scale = format!(
        "{}/chat/scale?fieldManager=somebody",
        space.all("apps/v1", "deployments")
    );
    space.merge(&scale, json!({"spec": {"replicas": 5}})).await;
    until("an Event", || async {
        !events(&space, "chat", "ReplicasChangedByOther").await.is_empty()
    })
    .await;
    let note = events(&space, "chat", "ReplicasChangedByOther").await.remove(0);
    assert!(
        note.starts_with("somebody changed") && note.contains("from 2 to 5"),
        "{note}"
    );

    // Only the fields of the status are ours.
    let object = space.get(&path(&space, "autoscalingpolicybindings", "chat")).await;
    let managed = object["metadata"]["managedFields"].as_array().unwrap();
    let own: Vec<_> = managed
        .iter()
        .filter(|entry| entry["manager"] == "infer-decider")
        .collect();
    assert_eq!(own.len(), 1);
    assert_eq!(
        (&own[0]["operation"], &own[0]["subresource"]),
        (&json!("Apply"), &json!("status"))
    );

    // Whoever writes something else there does not get through with it.
    let status_path = format!("{}/status", path(&space, "autoscalingpolicybindings", "chat"));
    space
        .merge(&status_path, json!({"status": {"desiredReplicas": 77}}))
        .await;
    until("the truth again", || async {
        self::status(&space, "chat").await["desiredReplicas"] == 3
    })
    .await;

    // Another limit is told at once, and the decision before stays told.
    let limits = json!({"spec": {"scaling": {"maxReplicas": 4}}});
    space
        .merge(&path(&space, "autoscalingpolicybindings", "chat"), limits)
        .await;
    assert_eq!(decider.bound().await.bounds.max, 4);
    until("the limit", || async {
        self::status(&space, "chat").await["maxReplicas"] == 4
    })
    .await;
    assert_eq!(
        self::status(&space, "chat").await["targets"][0]["lastDecision"]["id"],
        7
    );

    space
        .ask("DELETE", &path(&space, "autoscalingpolicybindings", "chat"), None)
        .await
        .unwrap();
    assert_eq!(decider.gone().await, bound.key);
    until("nobody is bound", || async {
        space.get(&policies).await["status"]["boundBy"] == 0
    })
    .await;
    decider.bindings.release().await;
    let lease = space
        .get(&format!(
            "{}/infer-decider-shard-0",
            space.all("coordination.k8s.io/v1", "leases")
        ))
        .await;
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["metadata"]["labels"]["of"]),
        (&json!(""), &json!("release"))
    );
    decider.targets.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_target_has_one_binding() {
    let Some(space) = space("conflict").await else { return };
    let client = Client::try_from(limited(&space).await).unwrap();
    let mut decider = Decider::start(client, &space, "one");
    policy(&space, "p", 8.0).await;
    space.workload("deployments", "chat", 1).await;
    space.workload("deployments", "code", 1).await;
    let hpa = |name: &str, target: &str| {
        json!({"metadata": {"name": name}, "spec": {"maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}}})
    };
    let hpas = space.all("autoscaling/v2", "horizontalpodautoscalers");

    bind(&space, "a-first", "chat").await;
    assert!(decider.bound().await.key.ends_with("/a-first"));
    bind(&space, "b-second", "chat").await;
    let status = until_condition(&space, "b-second", "Conflict", "True TargetTaken").await;
    assert_eq!(condition(&status, "ScalingActive"), "False TargetTaken");
    assert!(
        status["conditions"]
            .to_string()
            .contains("AutoscalingPolicyBinding a-first has Deployment/chat")
    );
    until("an Event", || async {
        !events(&space, "b-second", "Conflict").await.is_empty()
    })
    .await;
    let other = infer_api::TargetRef {
        api_version: Some("apps/v1".to_owned()),
        kind: "Deployment".to_owned(),
        name: "chat".to_owned(),
        replicas_path: None,
    };
    let owner = decider.bindings.other_owner(&space.name, "c", &other);
    assert_eq!(owner.as_deref(), Some("AutoscalingPolicyBinding a-first"));

    // Editing the holder does not lose it the target, and the waiting one gets it when the holder is gone.
    until_condition(&space, "a-first", "Conflict", "False NoConflict").await;
    let limits = json!({"spec": {"scaling": {"maxReplicas": 4}}});
    space
        .merge(&path(&space, "autoscalingpolicybindings", "a-first"), limits)
        .await;
    assert_eq!(decider.bound().await.bounds.max, 4);
    space
        .ask("DELETE", &path(&space, "autoscalingpolicybindings", "a-first"), None)
        .await
        .unwrap();
    assert!(decider.gone().await.ends_with("/a-first"));
    assert!(decider.bound().await.key.ends_with("/b-second"));
    until_condition(&space, "b-second", "Conflict", "False NoConflict").await;

    // A younger HPA is told of, an older one is respected.
    space.create(&hpas, hpa("late", "chat")).await;
    let status = until_condition(&space, "b-second", "Conflict", "True DisturbedByOther").await;
    assert!(
        status["conditions"]
            .to_string()
            .contains("HorizontalPodAutoscaler late")
    );
    space.create(&hpas, hpa("early", "code")).await;
    until("the HPA is known", || async {
        let code = infer_api::TargetRef {
            name: "code".to_owned(),
            ..other.clone()
        };
        decider.bindings.other_owner(&space.name, "c", &code).is_some()
    })
    .await;
    bind(&space, "code", "code").await;
    until_condition(&space, "code", "Conflict", "True TargetTaken").await;
    space.ask("DELETE", &format!("{hpas}/early"), None).await.unwrap();
    assert!(decider.bound().await.key.ends_with("/code"));

    // A spec that nobody checked (an old object, an edited definition) has a condition of its own and harms nobody; here
    // the policy is removed, which is told the same way.
    space
        .ask("DELETE", &path(&space, "autoscalingpolicies", "p"), None)
        .await
        .unwrap();
    let mut gone = vec![decider.gone().await, decider.gone().await];
    gone.sort();
    assert_eq!(
        gone,
        [format!("{}/b-second", space.name), format!("{}/code", space.name)]
    );
    until_condition(&space, "code", "Ready", "False PolicyNotFound").await;
    decider.bindings.release().await;
}

#[test]
fn a_killed_owner_is_followed_and_a_leaving_one_at_once() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let here = runtime();
    let Some(space) = here.block_on(space("handover")) else {
        return;
    };
    let client = |space: &Space| Client::try_from(space.config.clone()).unwrap();

    // The first decider lives in a runtime of its own, which is torn down under it: as `kill -9` does it.
    let doomed = runtime();
    let (mut first, bound) = doomed.block_on(async {
        policy(&space, "p", 8.0).await;
        space.workload("deployments", "chat", 2).await;
        bind(&space, "chat", "chat").await;
        let mut first = Decider::start(client(&space), &space, "first");
        let bound = first.bound().await;
        let mut decided = decision(&bound, 3, 1, 2);
        decided.memory.recommendations.push(Recommendation {
            at: TimeMs(77),
            replicas: 2,
        });
        first.bindings.report(decided);
        until("the decision", || async {
            status(&space, "chat").await["targets"][0]["lastDecision"]["id"] == 3
        })
        .await;
        (first, bound)
    });
    let mut second = here.block_on(async {
        let second = Decider::start(client(&space), &space, "second");
        until("it stands by", || async { second.bindings.is_ready() }).await;
        let other = Ownership::Other {
            endpoint: "https://first:9400".to_owned(),
        };
        until("it knows the owner", || async {
            second.bindings.owner_of_target(&bound.key) == other
        })
        .await;
        assert_eq!(second.bindings.owner_of(&space.name, "some-pod"), other);
        assert!(!second.bindings.may_act(&bound.key));
        second
    });
    assert!(first.changes.try_recv().is_err(), "nobody took anything");
    assert!(first.bindings.may_act(&bound.key));
    let killed = Instant::now();
    doomed.shutdown_background();
    here.block_on(async {
        let taken = second.bound().await;
        assert!(!first.bindings.may_act(&bound.key), "the old owner has stopped by then");
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(8), "{took:?}");
        eprintln!("taken over {took:?} after the kill");
        let remembered = taken.memory.as_ref().expect("what the first one remembered");
        assert_eq!(remembered.recommendations[0].at, TimeMs(77));
        let status = until_condition(&space, "chat", "TargetsResolved", "True Found").await;
        assert_eq!(status["targets"][0]["lastDecision"]["id"], 3, "nothing is unsaid");

        let mut third = Decider::start(client(&space), &space, "third");
        until("it stands by", || async { third.bindings.is_ready() }).await;
        second.bindings.report(decision(&taken, 9, 2, 3));
        let leaving = Instant::now();
        let release = second.bindings.release();
        let (bound, ()) = tokio::join!(third.bound(), release);
        let took = leaving.elapsed();
        eprintln!("handed over in {took:?}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(second.next().await, Change::Gone(bound.key.clone()));
        assert!(second.changes.recv().await.is_none(), "and nothing after it");
        let status = self::status(&space, "chat").await;
        assert_eq!(
            status["targets"][0]["lastDecision"]["id"], 9,
            "what was owed was written"
        );
        third.bindings.release().await;
    });
    first.targets = second.targets.clone();
}

/// Many bindings at once, a list that is longer than a page, and shards with two owners.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_deciders_share_and_one_takes_all() {
    let Some(space) = space("shards").await else { return };
    let client = Client::try_from(space.config.clone()).unwrap();
    policy(&space, "p", 8.0).await;
    for n in 0..12 {
        bind(&space, &format!("b{n}"), &format!("t{n}")).await;
    }
    let start = |name: &str| {
        let targets = infer_kube::Targets::start(client.clone(), options(), std::sync::Arc::new(FakeAgents::default()));
        let options = infer_kube::bindings::Options {
            namespaces: vec![space.name.clone()],
            shards: 2,
            ..infer_kube::bindings::Options::new(name, &format!("https://{name}"), &space.name)
        };
        infer_kube::Bindings::start(client.clone(), options, targets)
    };
    // Those that start together share, unless one of them is kept from its turn for long: then they start again.
    let (one, mut one_told, two, mut two_told) = loop {
        let ((one, one_told), (two, two_told)) = (start("one"), start("two"));
        until("all are taken", || async { one.shards().0 + two.shards().0 == 2 }).await;
        if one.shards().0 == 1 {
            break (one, one_told, two, two_told);
        }
        tokio::join!(one.release(), two.release());
    };
    let mut keys = Vec::new();
    while keys.len() < 12 {
        tokio::select! {
            Some(Change::Bound(bound)) = one_told.recv() => {
                assert_eq!(one.owner_of_target(&bound.key), Ownership::Mine);
                keys.push(bound.key);
            }
            Some(Change::Bound(bound)) = two_told.recv() => keys.push(bound.key),
        }
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 12, "each has one owner");
    let theirs: Vec<&String> = keys
        .iter()
        .filter(|key| one.owner_of_target(key) != Ownership::Mine)
        .collect();
    assert!(!theirs.is_empty() && theirs.len() < 12);
    let elsewhere = Ownership::Other {
        endpoint: "https://two".to_owned(),
    };
    until("it knows of the other", || async {
        one.owner_of_target(theirs[0]) == elsewhere
    })
    .await;
    // A Pod that nobody knows is sent on once, and then left alone for a while.
    assert_eq!(one.owner_of(&space.name, "stray"), elsewhere);
    assert_eq!(one.owner_of(&space.name, "stray"), Ownership::Unknown);
    two.release().await;
    for _ in 0..theirs.len() {
        assert!(matches!(one_told.recv().await, Some(Change::Bound(_))));
    }
    assert_eq!(one.shards(), (2, 2));
    assert!(keys.iter().all(|key| one.may_act(key)));
    one.release().await;
}
