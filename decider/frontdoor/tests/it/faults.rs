//! Replicas and clients that fail.

use std::time::Duration;

use http::{HeaderValue, StatusCode};
use infer_frontdoor::Options;
use tokio::net::TcpListener;

use crate::support::*;

#[tokio::test]
async fn a_refused_connection_is_tried_on_another_replica() {
    let door = Door::start(Options {
        aside_base: Duration::from_secs(10),
        ..Options::default()
    })
    .await;
    let alive = Upstream::start().await.answering("alive");
    let nobody = Nobody::new();
    door.endpoints(&[("dead", nobody.address()), ("alive", alive)]);
    for _ in 0..40 {
        assert_eq!(ask(door.address, "{}").await, (StatusCode::OK, "alive".to_owned()));
    }
    // It is picked first with a chance of one half each time until it is put aside.
    let stats = door.settled().await;
    assert_eq!(
        (stats.completed, stats.failed_total(), stats.retried.connect),
        (40, 0, 1)
    );
    let dead = stats.replicas.iter().find(|replica| replica.replica == "dead").unwrap();
    assert!(dead.aside && dead.requests_total == 1, "{dead:?}");
}

#[tokio::test]
async fn a_replica_put_aside_comes_back_by_itself() {
    let options = Options {
        aside_base: Duration::from_millis(20),
        aside_max: Duration::from_millis(40),
        ..Options::default()
    };
    let door = Door::start(options).await;
    let nobody = Nobody::new();
    door.endpoints(&[("a", nobody.address())]);
    let asked = ask_later(door.address, "{}");
    until("the request to be held again", || door.handle.waiting() == 1).await;
    assert!(door.handle.stats().replicas[0].aside);
    // No request is spent on looking whether it is back.
    Upstream::start_on(nobody.listen()).answering("back");
    assert_eq!(
        soon("the held request", asked).await.unwrap(),
        (StatusCode::OK, "back".to_owned())
    );
    let stats = door.settled().await;
    assert_eq!((stats.completed, stats.retried.connect), (1, 1));
    assert!(!stats.replicas[0].aside);
}

#[tokio::test]
async fn a_connection_reset_unanswered_is_tried_on_another_replica() {
    let door = Door::start(Options {
        aside_base: Duration::from_secs(10),
        ..Options::default()
    })
    .await;
    let crashing = raw_upstream(|_, mut stream| async move {
        read_request(&mut stream).await;
    })
    .await;
    let alive = Upstream::start().await.answering("alive");
    door.endpoints(&[("crashing", crashing), ("alive", alive)]);
    for _ in 0..40 {
        assert_eq!(ask(door.address, "{}").await.1, "alive");
    }
    let stats = door.settled().await;
    assert_eq!((stats.completed, stats.failed_total(), stats.retried.reset), (40, 0, 1));
}

#[tokio::test]
async fn retries_are_bounded() {
    let options = Options {
        aside_base: Duration::from_millis(1),
        aside_max: Duration::from_millis(1),
        ..Options::default()
    };
    let door = Door::start(options).await;
    let crashing = raw_upstream(|_, mut stream| async move {
        read_request(&mut stream).await;
    })
    .await;
    door.endpoints(&[("crashing", crashing)]);
    let (status, text) = ask(door.address, "{}").await;
    assert_eq!(
        (status, error_code(&text).as_str()),
        (StatusCode::BAD_GATEWAY, "replica_reset")
    );
    let stats = door.settled().await;
    assert_eq!(
        (
            stats.failed.reset,
            stats.retried.reset,
            stats.replicas[0].requests_total
        ),
        (1, 2, 3)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_connection_costs_no_request() {
    let door = Door::start(Options::default()).await;
    // Answers one request on each connection, and closes it on the second one, as a server does whose idle time is up
    // just when a request comes.
    let address = raw_upstream(|_, mut stream| async move {
        if read_request(&mut stream).await {
            write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            read_request(&mut stream).await;
        }
    })
    .await;
    door.endpoints(&[("a", address)]);
    for _ in 0..20 {
        assert_eq!(ask(door.address, "{}").await, (StatusCode::OK, "ok".to_owned()));
    }
    let stats = door.settled().await;
    assert_eq!((stats.completed, stats.failed_total(), stats.retried.reset), (20, 0, 0));
    assert!(stats.retried.stale > 0, "{stats:?}");
    assert!(!stats.replicas[0].aside);
}

#[tokio::test]
async fn a_response_begun_is_never_tried_again() {
    let door = Door::start(Options::default()).await;
    let address = raw_upstream(|_, mut stream| async move {
        read_request(&mut stream).await;
        write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-le").await;
    })
    .await;
    door.endpoints(&[("a", address)]);
    let (status, text) = ask(door.address, "{}").await;
    assert_eq!(
        (status, error_code(&text).as_str()),
        (StatusCode::BAD_GATEWAY, "replica_bad_response")
    );
    let stats = door.settled().await;
    assert_eq!((stats.failed.bad_response, stats.replicas[0].requests_total), (1, 1));
}

#[tokio::test]
async fn a_response_that_breaks_off_is_seen_to_break_off() {
    let door = Door::start(Options::default()).await;
    let mut replica = Upstream::start().await;
    door.endpoints(&[("a", replica.address)]);
    for length in [None, Some("100")] {
        let mut client = Client::connect(door.address).await;
        let (mut response, out) = tokio::join!(client.post("{}"), async {
            replica.next().await.stream_with(|mut response| {
                if let Some(length) = length {
                    response
                        .headers_mut()
                        .insert("content-length", HeaderValue::from_static(length));
                }
                response
            })
        });
        out.send("data: half").await;
        assert_eq!(piece(&mut response).await.unwrap().unwrap(), "data: half");
        out.die().await;
        let end = piece(&mut response).await;
        assert!(matches!(end, Some(Err(_))), "a silent end: {end:?}");
    }
    let stats = door.settled().await;
    assert_eq!((stats.failed.body_broken, stats.completed), (2, 0));
}

#[tokio::test]
async fn a_replica_that_is_silent_for_too_long_is_left() {
    let options = Options {
        header_timeout: Duration::from_millis(500),
        body_idle_timeout: Duration::from_millis(300),
        ..Options::default()
    };
    let door = Door::start(options).await;
    let mut replica = Upstream::start().await;
    door.endpoints(&[("a", replica.address)]);

    let asked = ask_later(door.address, "{}");
    let mut exchange = replica.next().await;
    let (status, text) = asked.await.unwrap();
    assert_eq!(
        (status, error_code(&text).as_str()),
        (StatusCode::GATEWAY_TIMEOUT, "replica_timeout")
    );
    soon("the replica to see it", exchange.answer.closed()).await;

    let mut client = Client::connect(door.address).await;
    let (mut response, out) = tokio::join!(client.post("{}"), async { replica.next().await.stream() });
    assert!(matches!(piece(&mut response).await, Some(Err(_))));
    out.closed().await;
    let stats = door.settled().await;
    assert_eq!((stats.failed.header_timeout, stats.failed.body_idle), (1, 1));
}

#[tokio::test]
async fn a_client_that_goes_ends_its_request_at_the_replica() {
    let door = Door::start(Options::default()).await;
    let mut replica = Upstream::start().await;
    door.endpoints(&[("a", replica.address)]);

    // Before the response.
    let asked = ask_later(door.address, "{}");
    let mut exchange = replica.next().await;
    assert_eq!(door.handle.in_flight("a"), 1);
    asked.abort();
    soon("the replica to see the client go", exchange.answer.closed()).await;
    until("nothing in flight", || door.handle.in_flight("a") == 0).await;

    // Within it, and while the replica is silent.
    let mut client = Client::connect(door.address).await;
    let (mut response, out) = tokio::join!(client.post("{}"), async { replica.next().await.stream() });
    out.send("data: 1\n\n").await;
    assert!(piece(&mut response).await.unwrap().is_ok());
    drop((client, response));
    out.closed().await;

    let stats = door.settled().await;
    assert_eq!(
        (stats.client_disconnected, stats.completed, stats.failed_total()),
        (2, 0, 0)
    );
    assert!(!stats.replicas[0].aside);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let door = Door::start(Options {
        body_read_timeout: Duration::from_millis(50),
        ..Options::default()
    })
    .await;
    let mut stream = tokio::net::TcpStream::connect(door.address).await.unwrap();
    write(
        &mut stream,
        "POST /v1/completions HTTP/1.1\r\nhost: door\r\ncontent-length: 10\r\n\r\n{",
    )
    .await;
    let mut answer = String::new();
    soon(
        "the answer",
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer),
    )
    .await
    .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(door.settled().await.rejected.body_bad, 1);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = TcpListener::bind(local()).await.unwrap();
    let listen = taken.local_addr().unwrap();
    let error = infer_frontdoor::FrontDoor::bind(Options {
        listen,
        ..Options::default()
    })
    .await
    .unwrap_err();
    assert!(error.to_string().contains(&listen.to_string()), "{error}");
    let options = Options {
        queue_timeout: Duration::ZERO,
        ..Options::default()
    };
    let error = infer_frontdoor::FrontDoor::bind(options).await.unwrap_err();
    assert!(error.to_string().contains("queue_timeout"), "{error}");
}
