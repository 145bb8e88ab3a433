//! TLS servers as clients find them: swaps, silence, garbage, shutdown, tonic.

use std::{
    convert::Infallible,
    future::{Ready, pending, ready},
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use infer_trust::{
    ALPN_GRPC, Authority, Certificates, Incoming, Limits, client_config, client_tls, connector, server_config,
    tls_incoming, tls_incoming_with,
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt;
use tonic::{
    codegen::{Service, http},
    server::NamedService,
    transport::{Endpoint, Server},
};

fn names() -> Vec<String> {
    vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
}

fn certificates() -> (Authority, Certificates) {
    let now = SystemTime::now();
    let authority = Authority::generate(now).unwrap();
    let certificates = Certificates::issue(authority.clone(), names(), now).unwrap();
    (authority, certificates)
}

/// A server that sends back what it gets; the address, and its counters.
async fn echo(certificates: &Certificates, limits: Limits) -> (SocketAddr, Arc<infer_trust::HandshakeCounters>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = server_config(certificates, &[]).unwrap();
    let incoming = tls_incoming_with(listener, config, limits, pending());
    let counters = incoming.counters();
    tokio::spawn(serve_echo(incoming));
    (address, counters)
}

async fn serve_echo(mut incoming: Incoming) {
    while let Some(connection) = incoming.next().await {
        let (mut reader, mut writer) = tokio::io::split(connection.unwrap());
        tokio::spawn(async move { tokio::io::copy(&mut reader, &mut writer).await });
    }
}

async fn connect(address: SocketAddr, bundle: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let connector = connector(bundle, &[]).unwrap();
    let stream = TcpStream::connect(address).await?;
    connector
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
}

async fn ping(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_swap_is_seen_by_who_connects_next_and_by_nobody_else() {
    let (authority, certificates) = certificates();
    let (address, _) = echo(&certificates, Limits::default()).await;
    let old_bundle = authority.bundle().to_owned();
    let mut before = connect(address, &old_bundle).await.unwrap();
    ping(&mut before).await;

    let later = SystemTime::now() + Duration::from_secs(1);
    let next = authority.rotate(later).unwrap();
    assert!(certificates.swap_authority(next.clone(), later).unwrap());
    assert_eq!(certificates.bundle().as_deref(), Some(next.bundle()));

    // One that still knows the old CA only, and one with the new bundle.
    let mut after = connect(address, &old_bundle).await.unwrap();
    ping(&mut after).await;
    let mut new = connect(address, next.bundle()).await.unwrap();
    ping(&mut new).await;
    ping(&mut before).await;
    assert_ne!(shown(&before), shown(&after));
    assert_eq!(shown(&after), shown(&new));
}

#[tokio::test]
async fn swaps_during_handshakes_break_none() {
    let (authority, certificates) = certificates();
    let (address, counters) = echo(&certificates, Limits::default()).await;
    let bundle = authority.bundle().to_owned();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let bundle = bundle.clone();
        clients.spawn(async move { ping(&mut connect(address, &bundle).await.unwrap()).await });
        certificates
            .swap_authority(authority.clone(), SystemTime::now())
            .unwrap();
        tokio::task::yield_now().await;
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(counters.completed.load(Relaxed), 20);
    assert_eq!(counters.failed.load(Relaxed), 0);
}

#[tokio::test]
async fn silence_and_garbage_end_alone() {
    let (authority, certificates) = certificates();
    let limits = Limits {
        handshakes_max: 4,
        handshake_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let (address, counters) = echo(&certificates, limits).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    ping(&mut connect(address, authority.bundle()).await.unwrap()).await;
    // A client that trusts somebody else hangs up in the middle.
    let stranger = Authority::generate(SystemTime::now()).unwrap();
    connect(address, stranger.bundle()).await.unwrap_err();
    // Both are closed by the server: the garbage at once (perhaps after an alert), the silence after its time.
    let mut rest = Vec::new();
    let _ = garbage.read_to_end(&mut rest).await;
    rest.clear();
    let _ = silent.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    assert_eq!(counters.timed_out.load(Relaxed), 1);
    ping(&mut connect(address, authority.bundle()).await.unwrap()).await;
    assert_eq!(counters.completed.load(Relaxed), 2);
    assert_eq!(counters.failed.load(Relaxed), 2);
}

#[tokio::test]
async fn many_silent_clients_make_way() {
    let (authority, certificates) = certificates();
    let limits = Limits {
        handshakes_max: 4,
        // Longer than any test: only making way helps.
        handshake_timeout: Duration::from_secs(3_600),
        patience: Duration::from_millis(20),
    };
    let (address, counters) = echo(&certificates, limits).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    ping(&mut connect(address, authority.bundle()).await.unwrap()).await;
    // The 21st got a place, so at least 17 have lost theirs.
    assert!(counters.evicted.load(Relaxed) >= 17);
    assert_eq!(counters.timed_out.load(Relaxed), 0);
}

#[tokio::test]
async fn a_burst_of_honest_clients_is_served_to_the_last() {
    let (authority, certificates) = certificates();
    let limits = Limits {
        handshakes_max: 8,
        patience: Duration::from_secs(60),
        ..Limits::default()
    };
    let (address, counters) = echo(&certificates, limits).await;
    let bundle = authority.bundle().to_owned();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let bundle = bundle.clone();
        clients.spawn(async move { ping(&mut connect(address, &bundle).await.unwrap()).await });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(counters.completed.load(Relaxed), 100);
    assert_eq!(counters.evicted.load(Relaxed), 0);
}

#[tokio::test]
async fn shutdown_ends_the_stream_and_the_listener_and_no_open_connection() {
    let (authority, certificates) = certificates();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let config = server_config(&certificates, &[]).unwrap();
    let incoming = tls_incoming(listener, config, async move {
        let _ = stopped.await;
    });
    let server = tokio::spawn(serve_echo(incoming));
    let mut open = connect(address, authority.bundle()).await.unwrap();
    ping(&mut open).await;
    // A handshake under way does not delay the end.
    let _silent = TcpStream::connect(address).await.unwrap();
    stop.send(()).unwrap();
    server.await.unwrap();
    TcpStream::connect(address).await.unwrap_err();
    ping(&mut open).await;
}

#[tokio::test]
async fn a_dropped_stream_closes_its_listener() {
    let (_, certificates) = certificates();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = server_config(&certificates, &[]).unwrap();
    drop(tls_incoming(listener, config, pending()));
    // The task is aborted when it next runs.
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

/// Remembers who called, and answers with status 0.
#[derive(Clone, Default)]
struct Caller(Arc<Mutex<Option<SocketAddr>>>);

impl NamedService for Caller {
    const NAME: &'static str = "test.Caller";
}

impl Service<http::Request<tonic::body::Body>> for Caller {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        *self.0.lock().unwrap() = tonic::Request::from_http(request).remote_addr();
        let mut response = http::Response::new(tonic::body::Body::empty());
        response
            .headers_mut()
            .insert("grpc-status", http::HeaderValue::from_static("0"));
        ready(Ok(response))
    }
}

#[tokio::test]
async fn tonic_serves_it_and_knows_who_calls() {
    let (authority, certificates) = certificates();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let until = |mut stopped: tokio::sync::watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let config = server_config(&certificates, ALPN_GRPC).unwrap();
    let incoming = tls_incoming(listener, config, until(stopped.clone()));
    let caller = Caller::default();
    let server = tokio::spawn(
        Server::builder()
            .add_service(caller.clone())
            .serve_with_incoming_shutdown(incoming, until(stopped)),
    );

    let mut channel = Endpoint::from_shared(format!("https://localhost:{}", address.port()))
        .unwrap()
        .tls_config(client_tls(authority.bundle()).unwrap())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let request = http::Request::post(format!("https://localhost:{}/test.Caller/Call", address.port()))
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::empty())
        .unwrap();
    std::future::poll_fn(|context| channel.poll_ready(context))
        .await
        .unwrap();
    let response = channel.call(request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "0");
    assert!(caller.0.lock().unwrap().unwrap().ip().is_loopback());
    drop(channel);
    stop.send(true).unwrap();
    server.await.unwrap().unwrap();
}

#[test]
fn a_bundle_without_certificates_is_refused() {
    for bundle in ["", "garbage"] {
        let error = client_config(bundle, &[]).unwrap_err().to_string();
        assert!(error.contains("the CA bundle"), "{error}");
        client_tls(bundle).unwrap_err();
    }
}
