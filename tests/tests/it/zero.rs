//! From no replica to one and back.

use infer_proto::v1::{ExplainRequest, ListDecisionsRequest, Target, explain_request::What};
use infer_tests::harness::for_target;

use crate::support::{Directory, Fleet, SOON, complete, start, turn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_wakes_the_fleet_and_silence_ends_it() {
    let _turn = turn().await;
    let directory = Directory::new();
    let fleet = Fleet {
        min: 0,
        initial: 0,
        ..Fleet::new("chat")
    };
    let (decider, client) = start(&directory, &fleet).await;

    let (url, model) = (fleet.url(), fleet.model());
    let held = tokio::spawn(async move { complete(&url, &model, 8).await });
    let holds = |target: &Target| target.gateway_waiting.is_some_and(|waiting| waiting > 0.0);
    for_target(&client, "chat", SOON, "the request to be held", holds)
        .await
        .unwrap();
    let (answer, body) = held.await.unwrap().unwrap();
    assert!(answer.is_success(), "{answer}: {body:?}");
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 8);

    let none = |target: &Target| {
        let now = target.replicas.unwrap_or_default();
        now.spec + now.desired + now.ready + now.starting + now.draining == 0 && target.pods.is_empty()
    };
    for_target(&client, "chat", SOON, "no replica", none).await.unwrap();
    let decisions = client
        .clone()
        .list_decisions(ListDecisionsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .decisions;
    let change = |from: u32, to: u32| {
        decisions
            .iter()
            .find(|made| made.applied && (made.replicas_before, made.replicas_after) == (from, to))
    };
    let (woken, ended) = (change(0, 1).unwrap(), change(1, 0).unwrap());
    assert!(ended.id > woken.id);
    let what = Some(What::DecisionId(woken.id));
    let explanation = client
        .clone()
        .explain(ExplainRequest { what })
        .await
        .unwrap()
        .into_inner();
    assert!(explanation.recomputed_equal);
    let record: serde_json::Value = serde_json::from_str(&explanation.record_json).unwrap();
    assert_eq!(
        record["inputs"]["gateway_waiting"], 1.0,
        "it was the held request that woke it"
    );
    let only_decider = decider.processes();
    assert_eq!(only_decider.len(), 1, "{only_decider:?}");
}
