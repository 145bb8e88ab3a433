//! Requests while no replica is ready.

use std::time::Duration;

use http::StatusCode;
use infer_frontdoor::Options;

use crate::support::*;

#[tokio::test]
async fn held_at_zero_and_released_when_a_replica_appears() {
    let door = Door::start(Options::default()).await;
    let mut demand = door.handle.demand_changed();
    let mut asked = Vec::new();
    for waiting in 1..=5 {
        asked.push(ask_later(door.address, "{}"));
        soon("news of demand", demand.changed()).await.unwrap();
        assert_eq!(*demand.borrow_and_update(), waiting);
        assert_eq!(door.handle.waiting() as u64, waiting);
    }
    let stats = door.handle.stats();
    assert_eq!(
        (stats.held_max, stats.held_total, stats.waiting_bytes, stats.open),
        (5, 5, 10, 5)
    );
    door.endpoints(&[("a", Upstream::start().await.answering("at last"))]);
    for asked in asked {
        assert_eq!(
            soon("a held request", asked).await.unwrap(),
            (StatusCode::OK, "at last".to_owned())
        );
    }
    let stats = door.settled().await;
    assert_eq!((stats.completed, stats.held_max, stats.rejected_total()), (5, 5, 0));

    // With a replica ready nothing is held, so nothing wakes the decider.
    assert_eq!(ask(door.address, "{}").await.0, StatusCode::OK);
    assert!(!demand.has_changed().unwrap());
    assert_eq!(door.settled().await.held_total, 5);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_by_number_and_by_bytes() {
    for (options, body) in [
        (
            Options {
                max_held_requests: 2,
                ..Options::default()
            },
            "{}",
        ),
        (
            Options {
                max_held_bytes: 25,
                ..Options::default()
            },
            "ten bytes.",
        ),
    ] {
        let door = Door::start(options).await;
        let held = [ask_later(door.address, body), ask_later(door.address, body)];
        until("two to be held", || door.handle.waiting() == 2).await;
        let response = Client::connect(door.address).await.post(body).await;
        assert!(response.headers().contains_key("retry-after"));
        assert_eq!(response.headers()["x-replica"], "none");
        let (status, text) = read_all(response).await;
        assert_eq!(
            (status, error_code(&text).as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "queue_full")
        );
        // A client that goes frees its place at once.
        held[0].abort();
        until("the place to be free", || door.handle.waiting() == 1).await;
        let third = ask_later(door.address, body);
        until("the third to be held", || door.handle.waiting() == 2).await;
        door.endpoints(&[("a", Upstream::start().await.answering("ok"))]);
        assert_eq!(soon("the third", third).await.unwrap().0, StatusCode::OK);
        let stats = door.settled().await;
        assert_eq!(
            (stats.completed, stats.client_disconnected, stats.rejected.queue_full),
            (2, 1, 1)
        );
        assert_eq!(stats.held_max, 2);
    }
}

#[tokio::test]
async fn held_no_longer_than_the_queue_time() {
    let door = Door::start(Options {
        queue_timeout: Duration::from_millis(50),
        ..Options::default()
    })
    .await;
    let response = Client::connect(door.address).await.post("{}").await;
    assert!(response.headers().contains_key("retry-after"));
    let (status, text) = read_all(response).await;
    assert_eq!(
        (status, error_code(&text).as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "queue_timeout")
    );
    let stats = door.settled().await;
    assert_eq!((stats.rejected.queue_timeout, stats.held_max), (1, 1));
}

#[tokio::test]
async fn only_posts_are_held_and_the_models_are_known() {
    let door = Door::start(Options {
        model: Some("m-1".into()),
        ..Options::default()
    })
    .await;
    let demand = door.handle.demand_changed();
    let mut client = Client::connect(door.address).await;

    let response = client.request(get("/v1/models")).await.unwrap();
    assert_eq!(response.headers()["x-replica"], "none");
    let (status, text) = read_all(response).await;
    let models: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, models["data"][0]["id"].as_str()),
        (StatusCode::OK, Some("m-1"))
    );

    let response = client.request(get("/health")).await.unwrap();
    let (status, text) = read_all(response).await;
    assert_eq!(
        (status, error_code(&text).as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "no_replica")
    );
    assert!(!demand.has_changed().unwrap());

    // With a replica it is the one who answers.
    door.endpoints(&[("a", Upstream::start().await.answering("from a"))]);
    let response = client.request(get("/v1/models")).await.unwrap();
    assert_eq!(read_all(response).await.1, "from a");
    let stats = door.settled().await;
    assert_eq!(
        (stats.completed, stats.rejected.no_replica, stats.held_total),
        (2, 1, 0)
    );

    let nameless = Door::start(Options::default()).await;
    let response = Client::connect(nameless.address)
        .await
        .request(get("/v1/models"))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_with_clients_that_go_leaves_nothing_behind() {
    let door = Door::start(Options::default()).await;
    let asked: Vec<_> = (0..200)
        .map(|_| ask_later(door.address, "{\"prompt\":\"x\"}"))
        .collect();
    until("all to be held", || door.handle.waiting() == 200).await;
    for client in asked.iter().step_by(2) {
        client.abort();
    }
    until("half to be gone", || door.handle.waiting() == 100).await;
    let a = Upstream::start().await.answering("ok");
    let b = Upstream::start().await.answering("ok");
    door.endpoints(&[("a", a), ("b", b)]);
    for client in asked.into_iter().skip(1).step_by(2) {
        assert_eq!(soon("a held request", client).await.unwrap().0, StatusCode::OK);
    }
    let stats = door.settled().await;
    assert_eq!(
        (stats.requests_total, stats.completed, stats.client_disconnected),
        (200, 100, 100)
    );
    assert_eq!(stats.held_max, 200);
    until("all connections to be closed", || door.handle.stats().connections == 0).await;
}
