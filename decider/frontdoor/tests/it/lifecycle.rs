//! Start, own endpoints, limits, end.

use std::time::Duration;

use http::{Method, StatusCode};
use infer_frontdoor::{Error, Options};

use crate::support::*;

#[tokio::test]
async fn own_endpoints_answer_and_are_no_traffic() {
    let door = Door::start(Options::default()).await;
    let nobody = Nobody::new();
    door.endpoints(&[("a", nobody.address())]);
    let mut client = Client::connect(door.address).await;
    let response = client.request(get("/-/healthz")).await.unwrap();
    assert_eq!(read_all(response).await.0, StatusCode::OK);
    let response = client.request(get("/-/stats")).await.unwrap();
    let stats: serde_json::Value = serde_json::from_str(&read_all(response).await.1).unwrap();
    assert_eq!(stats, serde_json::to_value(door.handle.stats()).unwrap());
    assert_eq!(
        (&stats["requests_total"], &stats["connections"]),
        (&0.into(), &1.into())
    );
    assert_eq!(stats["replicas"][0]["replica"], "a");
    let response = client.request(get("/-/other")).await.unwrap();
    assert_eq!(read_all(response).await.0, StatusCode::NOT_FOUND);
    let mut request = get("/-/stats");
    *request.method_mut() = Method::DELETE;
    let response = client.request(request).await.unwrap();
    assert_eq!(read_all(response).await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn further_connections_wait_for_room() {
    let door = Door::start(Options {
        max_connections: 1,
        ..Options::default()
    })
    .await;
    door.endpoints(&[("a", Upstream::start().await.answering("ok"))]);
    let mut first = Client::connect(door.address).await;
    assert_eq!(read_all(first.post("{}").await).await.0, StatusCode::OK);
    let second = ask_later(door.address, "{}");
    for _ in 0..20 {
        assert_eq!(read_all(first.post("{}").await).await.0, StatusCode::OK);
        assert!(!second.is_finished());
    }
    drop(first);
    assert_eq!(soon("the second client", second).await.unwrap().0, StatusCode::OK);
    assert_eq!(door.settled().await.completed, 22);
}

#[tokio::test]
async fn shutdown_lets_what_is_in_flight_finish() {
    let mut door = Door::start(Options::default()).await;
    let held = ask_later(door.address, "{}");
    until("one to be held", || door.handle.waiting() == 1).await;
    let mut replica = Upstream::start().await;
    let mut demand = door.handle.demand_changed();
    door.endpoints(&[("a", replica.address)]);
    let exchange = replica.next().await;
    let out = exchange.stream();
    out.send("begin ").await;
    door.endpoints(&[]);
    let refused = ask_later(door.address, "{}");
    soon("another one to be held", demand.changed()).await.unwrap();

    door.begin_stop();
    let (status, text) = soon("the held one", refused).await.unwrap();
    assert_eq!(
        (status, error_code(&text).as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "shutting_down")
    );
    assert_eq!(door.handle.in_flight("a"), 1);
    out.send("end").await;
    drop(out);
    assert_eq!(
        soon("the one in flight", held).await.unwrap(),
        (StatusCode::OK, "begin end".to_owned())
    );
    let (handle, address) = (door.handle.clone(), door.address);
    door.stopped().await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    let stats = handle.stats();
    assert_eq!(
        (
            stats.completed,
            stats.rejected.shutting_down,
            stats.open,
            stats.connections
        ),
        (1, 1, 0, 0)
    );
}

#[tokio::test]
async fn shutdown_waits_no_longer_than_the_drain_time() {
    let mut door = Door::start(Options {
        drain_timeout: Duration::from_millis(50),
        ..Options::default()
    })
    .await;
    let mut replica = Upstream::start().await;
    door.endpoints(&[("a", replica.address)]);
    let mut client = Client::connect(door.address).await;
    let (mut response, out) = tokio::join!(client.post("{}"), async { replica.next().await.stream() });
    door.begin_stop();
    assert!(matches!(piece(&mut response).await, Some(Err(_))));
    out.closed().await;
    let handle = door.handle.clone();
    assert!(matches!(
        door.stopped().await,
        Err(Error::CutOff { connections: 1, .. })
    ));
    let stats = handle.stats();
    assert_eq!((stats.failed.cut_off, stats.open, stats.in_flight_total), (1, 0, 0));
}
