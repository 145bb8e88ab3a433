//! The server over TLS: both versions of HTTP, keep-alive, limits, garbage, swaps, the end.

use std::{
    net::SocketAddr,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use infer_trust::{Authority, Certificates, connector};
use infer_webhook::{BODY_MAX_BYTES, Options, Webhook, serve};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::client::TlsStream;

use crate::support::{engine_pod, review, webhook};

struct Server {
    address: SocketAddr,
    authority: Authority,
    certificates: Certificates,
    webhook: Webhook,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), infer_trust::Error>>,
}

impl Server {
    async fn start(options: Options) -> Self {
        let now = SystemTime::now();
        let authority = Authority::generate(now).unwrap();
        let certificates = Certificates::issue(authority.clone(), vec!["localhost".to_owned()], now).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let webhook = webhook();
        let task = tokio::spawn({
            let (certificates, webhook) = (certificates.clone(), webhook.clone());
            async move {
                let stopped = async {
                    let _ = stopped.await;
                };
                serve(listener, &certificates, webhook, options, stopped).await
            }
        });
        Server {
            address,
            authority,
            certificates,
            webhook,
            stop,
            task,
        }
    }

    async fn connect(&self, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let connector = connector(self.authority.bundle(), alpn).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        connector.connect(name, stream).await.unwrap()
    }

    async fn http1(&self) -> http1::SendRequest<Full<Bytes>> {
        let stream = self.connect(&[b"http/1.1"]).await;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn http2(&self) -> http2::SendRequest<Full<Bytes>> {
        let stream = self.connect(&[b"h2", b"http/1.1"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("https://localhost{path}"))
        .header("host", "localhost")
        .body(Full::new(body.into()))
        .unwrap()
}

fn mutation() -> Request<Full<Bytes>> {
    let body = review("Pod", "CREATE", &engine_pod(), &Value::Null).to_string();
    request(Method::POST, "/mutate-pods?timeout=10s", body)
}

async fn body(response: Response<hyper::body::Incoming>) -> (StatusCode, Bytes) {
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

async fn assert_injected(response: Response<hyper::body::Incoming>) {
    assert_eq!(response.headers()["content-type"], "application/json");
    let (status, body) = body(response).await;
    assert_eq!(status, StatusCode::OK);
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["response"]["allowed"], true);
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
}

#[tokio::test]
async fn a_kept_connection_answers_request_after_request() {
    let server = Server::start(Options::default()).await;
    let mut sender = server.http1().await;
    for _ in 0..20 {
        sender.ready().await.unwrap();
        assert_injected(sender.send_request(mutation()).await.unwrap()).await;
    }
    assert_eq!(server.webhook.counters().injected.load(Relaxed), 20);
    assert_eq!(
        server.webhook.counters().mutate_latency.buckets().iter().sum::<u64>(),
        20
    );
    server.stop().await;
}

#[tokio::test]
async fn hundreds_of_requests_at_once_over_one_connection_and_over_many() {
    let server = Server::start(Options::default()).await;
    let mut clients = tokio::task::JoinSet::new();
    let shared = server.http2().await;
    for _ in 0..200 {
        let mut sender = shared.clone();
        clients.spawn(async move { assert_injected(sender.send_request(mutation()).await.unwrap()).await });
    }
    for _ in 0..20 {
        let mut sender = server.http1().await;
        clients.spawn(async move {
            assert_injected(sender.send_request(mutation()).await.unwrap()).await;
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(server.webhook.counters().injected.load(Relaxed), 220);
    drop(shared);
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_asked_for_rightly_is_told_what_would_be_right() {
    let server = Server::start(Options::default()).await;
    let mut sender = server.http2().await;
    let valid = review("AutoscalingPolicy", "DELETE", &Value::Null, &Value::Null).to_string();
    for (method, path, content, status, says) in [
        (Method::GET, "/healthz", "", StatusCode::OK, "ok"),
        (
            Method::POST,
            "/validate",
            valid.as_str(),
            StatusCode::OK,
            "\"allowed\":true",
        ),
        (
            Method::GET,
            "/mutate-pods",
            "",
            StatusCode::METHOD_NOT_ALLOWED,
            "only POST",
        ),
        (
            Method::POST,
            "/",
            "",
            StatusCode::NOT_FOUND,
            "POST /mutate-pods, POST /validate",
        ),
        (Method::POST, "/healthz", "", StatusCode::NOT_FOUND, "GET /healthz"),
        (
            Method::POST,
            "/mutate-pods",
            "",
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
        (
            Method::POST,
            "/validate",
            "garbage",
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
    ] {
        let content = content.to_owned();
        let response = sender
            .send_request(request(method.clone(), path, content))
            .await
            .unwrap();
        let (got, text) = body(response).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(got, status, "{method} {path}: {text}");
        assert!(text.contains(says), "{method} {path}: {text}");
    }
    assert_eq!(server.webhook.counters().bad_requests.load(Relaxed), 5);
    drop(sender);
    server.stop().await;
}

#[tokio::test]
async fn a_body_may_be_three_mebibytes_and_no_more() {
    let server = Server::start(Options::default()).await;
    let mut sender = server.http2().await;
    let mut pod = engine_pod();
    pod["metadata"]["annotations"] = serde_json::json!({"padding": ""});
    let empty = review("Pod", "CREATE", &pod, &Value::Null).to_string().len();
    for (length, status) in [
        (BODY_MAX_BYTES, StatusCode::OK),
        (BODY_MAX_BYTES + 1, StatusCode::PAYLOAD_TOO_LARGE),
        (4 * BODY_MAX_BYTES, StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        pod["metadata"]["annotations"]["padding"] = "x".repeat(length - empty).into();
        let content = review("Pod", "CREATE", &pod, &Value::Null).to_string();
        assert_eq!(content.len(), length);
        let response = sender
            .send_request(request(Method::POST, "/mutate-pods", content))
            .await
            .unwrap();
        assert_eq!(response.status(), status, "{length}");
        let _ = response.into_body().collect().await;
    }
    // Without a length given beforehand.
    let mut raw = server.connect(&[b"http/1.1"]).await;
    raw.write_all(b"POST /mutate-pods HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    let chunk = [&b"100000\r\n"[..], &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..4 {
        // The server may close in the middle of it.
        if raw.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let mut answer = [0; 12];
    raw.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    drop((sender, raw));
    server.stop().await;
}

#[tokio::test]
async fn garbage_and_hang_ups_harm_nobody() {
    let server = Server::start(Options::default()).await;
    for garbage in [
        &b"\x00\xff\xfe garbage"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /mutate-pods HTTP/1.1\r\ncontent-length: 100\r\n\r\n{",
        b"POST /mutate-pods HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage",
    ] {
        let mut raw = server.connect(&[b"http/1.1"]).await;
        raw.write_all(garbage).await.unwrap();
        drop(raw);
    }
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP"));
    let mut sender = server.http1().await;
    assert_injected(sender.send_request(mutation()).await.unwrap()).await;
    drop(sender);
    server.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart() {
    let server = Server::start(Options::default()).await;
    let mut before = server.http1().await;
    assert_injected(before.send_request(mutation()).await.unwrap()).await;
    let now = SystemTime::now();
    let next = server.authority.rotate(now).unwrap();
    assert!(server.certificates.swap_authority(next.clone(), now).unwrap());
    let connector = connector(next.bundle(), &[]).unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    connector
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
        .unwrap();
    // The API server still has the old bundle, and its open connection.
    let mut old = server.http1().await;
    assert_injected(old.send_request(mutation()).await.unwrap()).await;
    assert_injected(before.send_request(mutation()).await.unwrap()).await;
    drop((before, old));
    server.stop().await;
}

#[tokio::test]
async fn more_connections_than_places_take_turns() {
    let server = Server::start(Options {
        connections_max: 1,
        crowded_idle_timeout: Duration::from_secs(3_600),
        ..Options::default()
    })
    .await;
    let mut first = server.http1().await;
    assert_injected(first.send_request(mutation()).await.unwrap()).await;
    let mut second = server.http1().await;
    let waiting = tokio::spawn(async move {
        assert_injected(second.send_request(mutation()).await.unwrap()).await;
    });
    assert_injected(first.send_request(mutation()).await.unwrap()).await;
    assert!(!waiting.is_finished());
    drop(first);
    waiting.await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn an_idle_connection_makes_room() {
    let (short, long) = (Duration::from_millis(100), Duration::from_secs(3_600));
    for (idle_timeout, crowded_idle_timeout) in [(short, long), (long, short)] {
        let server = Server::start(Options {
            connections_max: 1,
            idle_timeout,
            crowded_idle_timeout,
            ..Options::default()
        })
        .await;
        // Both versions, and one that never says anything: each is closed, or the last would wait for ever.
        let first = server.http1().await;
        let second = server.http2().await;
        let third = server.connect(&[]).await;
        let mut last = server.http1().await;
        assert_injected(last.send_request(mutation()).await.unwrap()).await;
        drop((first, second, third, last));
        server.stop().await;
    }
}

#[tokio::test]
async fn the_end_waits_for_requests_under_way_and_not_for_idle_connections() {
    let server = Server::start(Options::default()).await;
    let mut idle = server.http1().await;
    assert_injected(idle.send_request(mutation()).await.unwrap()).await;
    // A request whose body has come by half.
    let mut raw = server.connect(&[b"http/1.1"]).await;
    let content = review("Pod", "CREATE", &engine_pod(), &Value::Null).to_string();
    let head = format!(
        "POST /mutate-pods HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        content.len()
    );
    raw.write_all(head.as_bytes()).await.unwrap();
    // The server asks for the body when it has begun to read it.
    let mut go_on = [0; 25];
    raw.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    server.stop.send(()).unwrap();
    while idle.ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
    raw.write_all(content.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = raw.read_to_end(&mut answer).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    server.task.await.unwrap().unwrap();
}
