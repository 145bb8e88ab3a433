//! Nothing that happens to the control plane or to a decider makes it do something wrong.

use std::time::{Duration, Instant};

use infer_tests::harness::cluster::{Agents, Load};

use crate::{
    fleet::{BINDINGS, CHAT, Fleet, Options, PER_REPLICA, running, steps},
    support::{SOON, Scene},
};

/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(8);
/// Five replicas' worth.
const MUCH: Load = Load {
    running: PER_REPLICA,
    waiting: 4 * PER_REPLICA,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_api_server_shrinks_nothing_and_decisions_go_on() {
    let Some(scene) = Scene::open_alone("away").await else {
        return;
    };
    let options = Options {
        initial: 2,
        ..Options::default()
    };
    let fleet = Fleet::within(scene, options, running(2 * PER_REPLICA)).await;
    fleet.scene.cluster.stop_api_server().await.unwrap();
    let gone = Instant::now();
    // A burst that nobody can answer.
    fleet.loads.set_total(MUCH);
    tokio::time::sleep(OUTAGE.saturating_sub(gone.elapsed())).await;
    fleet.scene.cluster.start_api_server().await.unwrap();
    let back = Instant::now();
    fleet.wants("five replicas", |replicas| replicas == 5).await;
    let took = back.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?} after the API server's return");
    let scales = fleet.scales();
    let steps = steps(&scales);
    assert!(
        steps
            .iter()
            .all(|(user, replicas)| *user == fleet.user && *replicas > 2),
        "{steps:?}"
    );
    fleet.scene.settled(CHAT, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_decider_comes_back_and_changes_nothing() {
    let options = Options {
        initial: 3,
        stabilization_s: 30,
        ..Options::default()
    };
    let Some(fleet) = Fleet::open("killed", options, running(3 * PER_REPLICA)).await else {
        return;
    };
    for _ in 0..3 {
        fleet.decider.kill().unwrap();
        let killed = fleet.audit.mark().unwrap();
        fleet.decider.launch().unwrap();
        fleet.decider.wait_ready().await.unwrap();
        // It has written to the binding again, so it decides.
        let wrote = || async {
            let writes = fleet.audit.since(killed, |request| {
                request.user == fleet.user && request.namespace == fleet.scene.namespace && request.is_write()
            });
            if writes.unwrap().is_empty() {
                Err("no write".to_owned())
            } else {
                Ok(())
            }
        };
        infer_tests::harness::until(SOON, "a sign of life", wrote)
            .await
            .unwrap();
        fleet.holds(8, "after a restart", |replicas| replicas == 3).await;
    }
    fleet.condition(CHAT, "MetricsAvailable", "True").await;
    assert!(fleet.scales().is_empty(), "{:?}", fleet.scales());
    // And it is alive.
    fleet.loads.set_total(Load {
        running: 3 * PER_REPLICA,
        waiting: 2 * PER_REPLICA,
    });
    fleet.wants("five replicas", |replicas| replicas == 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_decider_takes_over_in_a_burst() {
    let options = Options {
        initial: 2,
        stabilization_s: 30,
        ..Options::default()
    };
    let Some(fleet) = Fleet::open("lease", options, running(2 * PER_REPLICA)).await else {
        return;
    };
    let second = fleet.add_decider("second").await;
    fleet
        .holds(3, "two deciders and no news", |replicas| replicas == 2)
        .await;
    fleet.loads.set_total(MUCH);
    fleet.decider.kill().unwrap();
    let killed = Instant::now();
    fleet.wants("five replicas", |replicas| replicas == 5).await;
    // A Lease of 6 s, agents that look for their decider, one tick.
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?} after the leader's death");
    let scales = fleet.scales();
    let steps = steps(&scales);
    assert!(steps.windows(2).all(|pair| pair[0].1 < pair[1].1), "{steps:?}");
    assert!(steps.iter().all(|(_, replicas)| *replicas > 2), "{steps:?}");
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_hands_over_and_changes_nothing() {
    let options = Options {
        initial: 3,
        stabilization_s: 30,
        ..Options::default()
    };
    let Some(fleet) = Fleet::open("rolling", options, running(3 * PER_REPLICA)).await else {
        return;
    };
    let second = fleet.add_decider("second").await;
    fleet.decider.stop().await.unwrap();
    fleet.holds(8, "after the handover", |replicas| replicas == 3).await;
    assert!(fleet.scales().is_empty(), "{:?}", fleet.scales());
    fleet.loads.set_total(Load {
        running: 3 * PER_REPLICA,
        waiting: 2 * PER_REPLICA,
    });
    fleet.wants("five replicas", |replicas| replicas == 5).await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_without_a_token_are_not_heard() {
    let Some(fleet) = Fleet::open("token", Options::default(), running(3)).await else {
        return;
    };
    let Agents { decider, ca_pem, .. } = fleet.decider.agents(&fleet.scene.api, SOON).await.unwrap();
    let certificate = tonic::transport::Certificate::from_pem(ca_pem);
    let tls = tonic::transport::ClientTlsConfig::new().ca_certificate(certificate);
    let channel = tonic::transport::Endpoint::from_shared(decider)
        .unwrap()
        .tls_config(tls)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let pod = fleet.pods().await.into_iter().next().unwrap();
    let hello = infer_proto::v1::AgentMessage {
        sent_ms: 1,
        body: Some(infer_proto::v1::agent_message::Body::Hello(infer_proto::v1::Hello {
            agent_version: "0.1.0".to_owned(),
            pod: Some(infer_proto::v1::PodIdentity {
                namespace: fleet.scene.namespace.clone(),
                name: pod.0,
                uid: pod.1["metadata"]["uid"].as_str().unwrap().to_owned(),
                target: String::new(),
            }),
            boot: Some(infer_proto::v1::Boot {
                id: "00112233445566778899aabbccddeeff".to_owned(),
                started_unix_ms: 1,
            }),
            ..infer_proto::v1::Hello::default()
        })),
    };
    let mut client = infer_proto::v1::telemetry_client::TelemetryClient::new(channel);
    let answer = match client.report(tokio_stream::once(hello)).await {
        Ok(mut answers) => answers.get_mut().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    assert_eq!(answer.unwrap_err().code(), tonic::Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_object_harms_nobody_else() {
    let Some(fleet) = Fleet::open("broken", Options::default(), running(3)).await else {
        return;
    };
    // A target that is not there is waited for, and said.
    let missing = crate::fleet::binding("missing", "nowhere", &Options::default());
    fleet.scene.apply(missing).await;
    let resolved = fleet.condition("missing", "TargetsResolved", "False").await;
    assert!(resolved.message.contains("nowhere"), "{resolved:?}");
    fleet.loads.set_total(MUCH);
    fleet.wants("five replicas", |replicas| replicas == 5).await;
    let path = fleet.scene.path(BINDINGS, "autoscalingpolicybindings/missing");
    fleet.scene.api.delete(&path).await.unwrap();
}
