//! What people ask and say.

use infer_core::decision::Control;
use infer_proto::v1::{self, explain_request::What};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{Agent, Decider, sample};

#[tokio::test]
async fn an_override_holds_until_it_ends_and_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let mut people = decider.ask().await;
    let order = |replicas, for_s| v1::OverrideRequest {
        target: "chat".to_owned(),
        replicas,
        for_s,
        reason: "game day".to_owned(),
    };
    let refused = people.r#override(order(6, 0)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message().contains("for_s must be 1 to")),
        (Code::InvalidArgument, true)
    );
    let refused = people.r#override(order(21, 60)).await.unwrap_err();
    assert!(refused.message().contains("maxReplicas 20"), "{refused:?}");
    let told = people.r#override(order(6, 3600)).await.unwrap().into_inner();
    assert_eq!((told.control.as_str(), told.override_replicas), ("override", Some(6)));
    decider
        .until("six replicas", |_| {
            decider.table.fleets.lock().unwrap()["chat"].view.spec == 6
        })
        .await;

    let decisions = people.list_decisions(v1::ListDecisionsRequest {
        target: "chat".to_owned(),
        ..Default::default()
    });
    let newest = decisions.await.unwrap().into_inner().decisions.remove(0);
    assert_eq!(
        (newest.replicas_before, newest.replicas_after, newest.bound_by.as_str()),
        (1, 6, "override")
    );
    assert!(newest.applied);
    let explained = people
        .explain(v1::ExplainRequest {
            what: Some(What::DecisionId(newest.id)),
        })
        .await
        .unwrap()
        .into_inner();
    assert!(explained.recomputed_equal);
    assert_eq!(explained.steps.last().unwrap().after, 6.0);
    assert!(
        serde_json::from_str::<infer_core::decision::Record>(&explained.record_json)
            .unwrap()
            .recomputes()
    );

    let table = std::sync::Arc::clone(&decider.table);
    decider.stop();
    let decider = Decider::start_with(directory.path(), table).await;
    assert_eq!(decider.shared.state().targets["chat"].control(), Control::Override(6));
    let mut people = decider.ask().await;
    let kept = people
        .explain(v1::ExplainRequest {
            what: Some(What::DecisionId(newest.id)),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(kept.decision.unwrap().reason, newest.reason);
    let resumed = people
        .resume(v1::ResumeRequest {
            target: "chat".to_owned(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(resumed.control, "auto");
    people.r#override(order(7, 1)).await.unwrap();
    decider
        .until("the end of the override", |shared| {
            shared.state().targets["chat"].word.is_none()
        })
        .await;
    // A new decision is numbered after the old ones.
    let status = people.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert!(status.decisions > newest.id);
}

#[tokio::test]
async fn paused_and_advisory_targets_are_decided_on_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let mut people = decider.ask().await;
    let pause = v1::PauseRequest {
        target: "chat".to_owned(),
        for_s: 0,
        reason: "upgrade".to_owned(),
    };
    assert_eq!(people.pause(pause).await.unwrap().into_inner().control, "paused");
    for (target, pod) in [("chat", "chat-0"), ("draft", "draft-0")] {
        let (mut agent, _) = Agent::greet(&decider, target, pod, "boot", 1).await;
        for sequence in 1..=20 {
            agent
                .report(sample(&agent, sequence, (20 - sequence) * 1000, 16.0, 80.0))
                .await
                .unwrap();
        }
    }
    decider
        .until("two decisions not applied", |shared| {
            let state = shared.state();
            ["chat", "draft"].iter().all(|target| {
                state
                    .decisions
                    .iter()
                    .any(|decision| decision.record.target == *target && !decision.applied)
            })
        })
        .await;
    assert!(decider.table.applied.lock().unwrap().is_empty());
    let decisions = people
        .list_decisions(v1::ListDecisionsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .decisions;
    let why = |target: &str| {
        let decision = decisions
            .iter()
            .find(|decision| decision.target == target && !decision.applied)
            .unwrap();
        assert!(decision.replicas_after > 1, "{decision:?}");
        decision.not_applied.clone()
    };
    assert_eq!(
        (why("chat").as_str(), why("draft").as_str()),
        ("paused", "advisory mode")
    );
}

#[tokio::test]
async fn watches_tell_what_is_and_then_what_changes() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let mut people = decider.ask().await;
    let mut targets = people
        .watch_targets(v1::WatchTargetsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let first: Vec<_> = [targets.next().await, targets.next().await]
        .map(|target| target.unwrap().unwrap().name)
        .into();
    assert_eq!(first, ["chat", "draft"]);
    let watch = v1::WatchDecisionsRequest {
        target: "chat".to_owned(),
        backlog: 10,
    };
    let mut decisions = people.watch_decisions(watch).await.unwrap().into_inner();
    let order = v1::OverrideRequest {
        target: "chat".to_owned(),
        replicas: 3,
        for_s: 60,
        reason: String::new(),
    };
    people.r#override(order).await.unwrap();
    let seen = loop {
        let decision = decisions.next().await.unwrap().unwrap();
        if decision.replicas_after == 3 {
            break decision;
        }
    };
    assert_eq!((seen.target.as_str(), seen.applied), ("chat", true));
    let changed = loop {
        let target = targets.next().await.unwrap().unwrap();
        if target.replicas.unwrap().spec == 3 {
            break target;
        }
    };
    assert_eq!(changed.name, "chat");
    decider.stop();
    // A stopping decider ends its watches rather than leaving people waiting.
    while let Some(Ok(_)) = decisions.next().await {}
    while let Some(Ok(_)) = targets.next().await {}
}

#[tokio::test]
async fn unknown_names_are_answered_with_the_known_ones() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let mut people = decider.ask().await;
    let target = || "caht".to_owned();
    let explain = people
        .explain(v1::ExplainRequest {
            what: Some(What::Target(target())),
        })
        .await
        .unwrap_err();
    let windows = people
        .get_windows(v1::GetWindowsRequest {
            target: target(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    let resume = people.resume(v1::ResumeRequest { target: target() }).await.unwrap_err();
    for status in [explain, windows, resume] {
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("chat, draft"), "{status:?}");
    }
    let quantile = v1::GetWindowsRequest {
        target: "chat".to_owned(),
        window_s: 0,
        quantiles: vec![95.0],
    };
    assert_eq!(
        people.get_windows(quantile).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let id = people
        .explain(v1::ExplainRequest {
            what: Some(What::DecisionId(999)),
        })
        .await
        .unwrap_err();
    assert_eq!(id.code(), Code::NotFound);
    assert_eq!(
        people
            .explain(v1::ExplainRequest { what: None })
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
}

/// What `grpcurl` needs: reflection that lists the services, and health that says they serve.
#[tokio::test]
async fn health_and_reflection() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let channel = decider.channel().await;
    for service in [
        "",
        "matrixinfer.autoscaler.v1.Telemetry",
        "matrixinfer.autoscaler.v1.Decisions",
    ] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let health = HealthClient::new(channel.clone())
            .check(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(health.status, 1, "{service:?} is not serving");
    }
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.next().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in [
        "matrixinfer.autoscaler.v1.Decisions",
        "matrixinfer.autoscaler.v1.Telemetry",
        "grpc.health.v1.Health",
    ] {
        assert!(names.iter().any(|known| known == name), "{name} not in {names:?}");
    }
}
