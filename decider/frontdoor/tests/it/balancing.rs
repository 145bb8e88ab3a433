//! Who gets a request.

use http::StatusCode;
use infer_frontdoor::Options;

use crate::support::*;

#[tokio::test]
async fn open_streams_are_load_so_two_replicas_share_them_evenly() {
    let door = Door::start(Options::default()).await;
    let (mut a, mut b) = (Upstream::start().await, Upstream::start().await);
    door.endpoints(&[("a", a.address), ("b", b.address)]);
    let (mut responses, mut outs) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let mut client = Client::connect(door.address).await;
        let (response, out) = tokio::join!(client.post("{}"), async {
            tokio::select! { exchange = a.next() => exchange.stream(), exchange = b.next() => exchange.stream() }
        });
        outs.push(out);
        responses.push((client, response));
    }
    // Their heads are all through: only their bodies are open.
    assert_eq!((door.handle.in_flight("a"), door.handle.in_flight("b")), (10, 10));
    drop(outs);
    for (_, response) in responses {
        assert_eq!(read_all(response).await.0, StatusCode::OK);
    }
    assert_eq!(door.settled().await.completed, 20);
}

#[tokio::test]
async fn the_fast_replica_gets_more_than_the_slow_one() {
    let door = Door::start(Options::default()).await;
    let mut slow = Upstream::start().await;
    let fast = Upstream::start().await.answering("fast");
    door.endpoints(&[("slow", slow.address), ("fast", fast)]);
    let mut at_slow = Vec::new();
    let mut answered = 0;
    for _ in 0..30 {
        let mut asked = ask_later(door.address, "{}");
        tokio::select! {
            answer = &mut asked => {
                assert_eq!(answer.unwrap().1, "fast");
                answered += 1;
            }
            exchange = slow.next() => at_slow.push((exchange, asked)),
        }
    }
    // As long as the slow one has a request, it has more than the idle fast one.
    assert!(at_slow.len() <= 1, "{} requests at the slow replica", at_slow.len());
    assert!(answered >= 29);
    for (exchange, asked) in at_slow {
        exchange.reply(StatusCode::OK, "slow");
        assert_eq!(asked.await.unwrap().1, "slow");
    }
    assert_eq!(door.settled().await.completed, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equally_loaded_replicas_all_get_some() {
    let door = Door::start(Options::default()).await;
    let mut endpoints = Vec::new();
    for name in ["a", "b", "c"] {
        endpoints.push((name, Upstream::start().await.answering(name)));
    }
    door.endpoints(&endpoints);
    let mut client = Client::connect(door.address).await;
    for _ in 0..100 {
        let response = client.post("{}").await;
        let replica = response.headers()["x-replica"].clone();
        assert_eq!(read_all(response).await.1, replica.to_str().unwrap());
    }
    // One of three is left out of 100 picks with a chance of 3 * (2/3)^100, about 1e-17.
    let stats = door.settled().await;
    assert!(
        stats.replicas.iter().all(|replica| replica.requests_total > 0),
        "{stats:?}"
    );
}

#[tokio::test]
async fn a_removed_replica_finishes_what_it_has_and_gets_nothing_new() {
    let door = Door::start(Options::default()).await;
    let mut old = Upstream::start().await;
    door.endpoints(&[("old", old.address)]);
    let mut client = Client::connect(door.address).await;
    let (mut response, out) = tokio::join!(client.post("{}"), async { old.next().await.stream() });
    out.send("begin ").await;
    assert_eq!(piece(&mut response).await.unwrap().unwrap(), "begin ");

    door.endpoints(&[("new", Upstream::start().await.answering("new"))]);
    for _ in 0..20 {
        assert_eq!(ask(door.address, "{}").await.1, "new");
    }
    assert_eq!(door.handle.in_flight("old"), 1);
    let stats = door.handle.stats();
    let removed = stats.replicas.iter().find(|replica| replica.replica == "old").unwrap();
    assert!(removed.removed && removed.requests_total == 1, "{removed:?}");

    let idle = tokio::spawn({
        let handle = door.handle.clone();
        async move { handle.idle("old").await }
    });
    out.send("end").await;
    drop(out);
    assert_eq!(piece(&mut response).await.unwrap().unwrap(), "end");
    assert!(piece(&mut response).await.is_none());
    soon("the removed replica to be idle", idle).await.unwrap();
    assert_eq!(door.handle.in_flight("old"), 0);
    let stats = door.settled().await;
    assert_eq!(stats.completed, 21);
    assert!(
        stats.replicas.iter().all(|replica| replica.replica == "new"),
        "{stats:?}"
    );
}

#[tokio::test]
async fn a_replica_that_returns_while_busy_keeps_its_load() {
    let door = Door::start(Options::default()).await;
    let mut a = Upstream::start().await;
    door.endpoints(&[("a", a.address)]);
    let mut client = Client::connect(door.address).await;
    let (response, out) = tokio::join!(client.post("{}"), async { a.next().await.stream() });
    door.endpoints(&[]);
    door.endpoints(&[("a", a.address), ("b", Upstream::start().await.answering("b"))]);
    assert_eq!(door.handle.in_flight("a"), 1);
    for _ in 0..10 {
        assert_eq!(ask(door.address, "{}").await.1, "b");
    }
    drop(out);
    assert_eq!(read_all(response).await.0, StatusCode::OK);
    let asked = ask_later(door.address, "{}");
    // It is ready for requests again too.
    door.endpoints(&[("a", a.address)]);
    let second = ask_later(door.address, "{}");
    let exchange = a.next().await;
    exchange.reply(StatusCode::OK, "a");
    let replies = async {
        loop {
            a.next().await.reply(StatusCode::OK, "a");
        }
    };
    tokio::select! {
        () = replies => {}
        both = async { (asked.await.unwrap().0, second.await.unwrap()) } => {
            assert_eq!(both.0, StatusCode::OK);
            assert_eq!(both.1.1, "a");
        }
    }
    door.settled().await;
}
