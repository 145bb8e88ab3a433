//! What passes through, and how.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use infer_frontdoor::Options;
use std::time::Duration;

use crate::support::*;

#[tokio::test]
async fn each_piece_leaves_as_it_arrives() {
    let door = Door::start(Options::default()).await;
    let mut replica = Upstream::start().await;
    door.endpoints(&[("a", replica.address)]);
    let mut client = Client::connect(door.address).await;

    let (response, out) = tokio::join!(client.post("{}"), async { replica.next().await.stream() });
    let mut response = response;
    for text in ["data: 1\n\n", "data: 2\n\n", "data: [DONE]\n\n"] {
        // The replica has sent no more than this yet, so nobody is waiting for the end.
        out.send(text).await;
        assert_eq!(piece(&mut response).await.unwrap().unwrap(), text);
        assert_eq!(door.handle.in_flight("a"), 1);
    }
    drop(out);
    assert!(piece(&mut response).await.is_none());
    let stats = door.settled().await;
    assert_eq!((stats.requests_total, stats.completed), (1, 1));
}

#[tokio::test]
async fn heads_are_passed_on_without_what_is_of_one_connection() {
    let door = Door::start(Options::default()).await;
    let mut replica = Upstream::start().await;
    door.endpoints(&[("chat-7", replica.address)]);
    let mut client = Client::connect(door.address).await;

    let mut request = post("{\"stream\":true}");
    *request.uri_mut() = "/v1/completions?x=1%20y".parse().unwrap();
    for (name, value) in [
        ("authorization", "Bearer key"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("x-forwarded-for", "10.1.2.3"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let answer = async {
        let exchange = replica.next().await;
        let head = &exchange.head;
        assert_eq!(head.method, Method::POST);
        assert_eq!(head.uri, "/v1/completions?x=1%20y");
        assert_eq!(head.headers["authorization"], "Bearer key");
        assert_eq!(head.headers["x-forwarded-for"], "10.1.2.3, 127.0.0.1");
        assert_eq!(head.headers["host"], "door");
        assert_eq!(head.headers["content-length"], "15");
        assert!(
            !head.headers.contains_key("x-hop") && !head.headers.contains_key("te"),
            "{:?}",
            head.headers
        );
        assert_eq!(exchange.body, "{\"stream\":true}");
        exchange.stream_with(|mut response| {
            *response.status_mut() = StatusCode::CREATED;
            response
                .headers_mut()
                .insert("x-request-id", HeaderValue::from_static("r1"));
            response
                .headers_mut()
                .insert("keep-alive", HeaderValue::from_static("timeout=5"));
            response
        })
    };
    let (response, out) = tokio::join!(client.request(request), answer);
    let response = response.unwrap();
    drop(out);
    assert_eq!(response.headers()["x-replica"], "chat-7");
    assert_eq!(response.headers()["x-request-id"], "r1");
    assert!(!response.headers().contains_key("keep-alive"));
    assert_eq!(read_all(response).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn an_engines_own_error_is_passed_on_and_not_retried() {
    let door = Door::start(Options::default()).await;
    let mut replica = Upstream::start().await;
    door.endpoints(&[("a", replica.address)]);
    let asked = ask_later(door.address, "{}");
    replica
        .next()
        .await
        .reply(StatusCode::SERVICE_UNAVAILABLE, "engine overloaded");
    assert_eq!(
        asked.await.unwrap(),
        (StatusCode::SERVICE_UNAVAILABLE, "engine overloaded".to_owned())
    );
    let stats = door.settled().await;
    assert_eq!(
        (
            stats.completed,
            stats.replicas[0].requests_total,
            stats.replicas[0].aside
        ),
        (1, 1, false)
    );
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let door = Door::start(Options::default()).await;
    let (count, mut connections) = tokio::sync::mpsc::unbounded_channel();
    let address = raw_upstream(move |number, mut stream| {
        let count = count.clone();
        async move {
            count.send(number).unwrap();
            while read_request(&mut stream).await {
                write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    door.endpoints(&[("a", address)]);
    let mut client = Client::connect(door.address).await;
    for _ in 0..20 {
        let response = client.post("{}").await;
        assert_eq!(read_all(response).await, (StatusCode::OK, "ok".to_owned()));
    }
    // A connection that has not yet turned round is passed over, which on a loaded machine may happen now and then.
    let mut opened = 0;
    while connections.try_recv().is_ok() {
        opened += 1;
    }
    assert!(opened < 10, "{opened} connections for 20 requests");
    assert_eq!(door.settled().await.completed, 20);
    assert_eq!(door.handle.stats().connections, 1);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_the_client_can_read_why() {
    let door = Door::start(Options {
        max_body_bytes: 100_000,
        ..Options::default()
    })
    .await;
    let mut replica = Upstream::start().await;
    door.endpoints(&[("a", replica.address)]);

    let response = Client::connect(door.address).await.post(vec![b' '; 700_000]).await;
    let (status, body) = read_all(response).await;
    assert_eq!(
        (status, error_code(&body).as_str()),
        (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large")
    );

    let mut client = Client::connect(door.address).await;
    let (response, ()) = tokio::join!(client.post(vec![b' '; 100_000]), async {
        let exchange = replica.next().await;
        assert_eq!(exchange.body.len(), 100_000);
        exchange.reply(StatusCode::OK, "");
    });
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    let stats = door.settled().await;
    assert_eq!((stats.rejected.body_too_large, stats.completed), (1, 1));
}

#[tokio::test]
async fn all_bodies_together_are_bounded() {
    let options = Options {
        max_buffered_bytes: 1000,
        ..Options::default()
    };
    let door = Door::start(options).await;
    let first = tokio::spawn({
        let address = door.address;
        async move { Client::connect(address).await.post(vec![b' '; 700]).await.status() }
    });
    until("the first to be held", || door.handle.waiting() == 1).await;
    assert_eq!(door.handle.stats().buffered_bytes, 700);
    let response = Client::connect(door.address).await.post(vec![b' '; 400]).await;
    let (status, body) = read_all(response).await;
    assert_eq!(
        (status, error_code(&body).as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "buffers_full")
    );
    door.endpoints(&[("a", Upstream::start().await.answering("ok"))]);
    assert_eq!(first.await.unwrap(), StatusCode::OK);
    assert_eq!(door.settled().await.rejected.buffers_full, 1);
}

#[tokio::test]
async fn a_client_that_takes_nothing_stops_its_replica_and_is_let_go() {
    let door = Door::start(Options {
        body_idle_timeout: Duration::from_millis(500),
        ..Options::default()
    })
    .await;
    let mut replica = Upstream::start().await;
    door.endpoints(&[("a", replica.address)]);
    let mut client = Client::connect(door.address).await;
    let (response, out) = tokio::join!(client.post("{}"), async { replica.next().await.stream() });

    // What the sockets and hyper's buffers hold is far below this; a proxy without back-pressure takes all of it.
    let most = 256 << 20;
    let chunk = Bytes::from(vec![b'x'; 1 << 20]);
    let mut sent = 0;
    while sent < most && out.push(chunk.clone()).await {
        sent += chunk.len();
    }
    assert!(sent < most / 2, "the replica could send {sent} bytes");
    out.closed().await;
    drop(response);
    assert_eq!(door.settled().await.client_disconnected, 1);
}
