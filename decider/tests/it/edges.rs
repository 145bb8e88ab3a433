//! The edges of the service: TLS, readiness, metrics, and gateways that tell of waiting requests.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use http::StatusCode;
use infer_core::decision::Control;
use infer_decider::{
    actuate::BoxFuture,
    auth::{Access, Authenticate},
    hooks::{Hooks, TakeDemand},
    http as edge, service,
};
use infer_proto::v1::{self, decisions_client::DecisionsClient};
use infer_trust::{ALPN_GRPC, Authority, Certificates, client_tls, server_config, tls_incoming};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::{Status, transport::Endpoint};

use crate::support::{Decider, Table, spec};

#[tokio::test]
async fn people_and_agents_are_served_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let now = std::time::SystemTime::now();
    let authority = Authority::generate(now).unwrap();
    let names = vec!["decider.test".to_owned()];
    let certificates = Certificates::issue(authority.clone(), names, now).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let config = server_config(&certificates, ALPN_GRPC).unwrap();
    let incoming = tls_incoming(listener, config, std::future::pending());
    let server = tokio::spawn(service::serve_incoming(incoming, Arc::clone(&decider.shared), stopped));
    let connect = |authority: &Authority| {
        let tls = client_tls(authority.bundle()).unwrap().domain_name("decider.test");
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        endpoint.tls_config(tls).unwrap()
    };
    let channel = connect(&authority).connect().await.unwrap();
    let status = DecisionsClient::new(channel)
        .get_status(v1::GetStatusRequest {})
        .await
        .unwrap();
    assert_eq!(status.into_inner().targets, 2);
    // Another authority's client does not talk to us, and one without TLS gets nowhere.
    let stranger = Authority::generate(now).unwrap();
    assert!(connect(&stranger).connect().await.is_err());
    let plain = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let asked = match plain.connect().await {
        Ok(channel) => DecisionsClient::new(channel)
            .get_status(v1::GetStatusRequest {})
            .await
            .is_ok(),
        Err(_) => false,
    };
    assert!(!asked);
    stop.send(true).unwrap();
    server.await.unwrap().unwrap();
}

/// Remembers what it was told.
#[derive(Default)]
struct Gateway(Mutex<Vec<(String, String)>>);

impl TakeDemand for Gateway {
    fn told(&self, binding: &str, body: &[u8]) -> Result<(), (StatusCode, String)> {
        if binding != "team/chat" {
            return Err((StatusCode::NOT_FOUND, format!("no {binding} here")));
        }
        let body = String::from_utf8(body.to_vec()).unwrap();
        self.0.lock().unwrap().push((binding.to_owned(), body));
        Ok(())
    }
}

/// Lets "Bearer gate" write in namespace "team".
struct Gate;

impl Authenticate for Gate {
    fn agent(&self, _: Option<String>, _: v1::PodIdentity) -> BoxFuture<Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }

    fn person(&self, token: Option<String>, access: Access, namespace: String) -> BoxFuture<Result<(), Status>> {
        Box::pin(async move {
            match (token.as_deref(), access, namespace.as_str()) {
                (None, ..) => Err(Status::unauthenticated("a token is missing")),
                (Some("gate"), Access::Write, "team") => Ok(()),
                _ => Err(Status::permission_denied("not yours")),
            }
        })
    }
}

/// One HTTP/1.0 request; the status and the body.
async fn ask(address: &str, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let token = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.0\r\n{token}content-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn readiness_metrics_and_demand_over_http() {
    let directory = tempfile::tempdir().unwrap();
    let table = Arc::new(Table::default());
    table.set("team/chat", 1);
    let (ready, gateway) = (Arc::new(AtomicBool::new(false)), Arc::new(Gateway::default()));
    let hooks = Hooks {
        authenticate: Arc::new(Gate),
        readiness: {
            let ready = Arc::clone(&ready);
            Arc::new(move || match ready.load(Ordering::Relaxed) {
                true => vec![],
                false => vec!["the Leases have not been read yet".to_owned()],
            })
        },
        demand: Some(Arc::clone(&gateway) as _),
        ..Hooks::default()
    };
    let specs = vec![spec("team/chat", Control::Auto)];
    let decider = Decider::start_among(directory.path(), Arc::clone(&table), specs, hooks).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(edge::serve(listener, Arc::clone(&decider.shared), stopped));

    let (code, body) = ask(&address, "GET", "/readyz", None, "").await;
    assert_eq!(code, 503);
    assert!(body.contains("not ready: the Leases have not been read yet"), "{body}");
    assert_eq!(ask(&address, "GET", "/livez", None, "").await.0, 200);
    ready.store(true, Ordering::Relaxed);
    assert_eq!(ask(&address, "GET", "/readyz", None, "").await.0, 200);

    let waiting = "{\"waiting\": 3}";
    let long = " ".repeat(5000);
    for (method, path, token, body, code, words) in [
        ("POST", "/demand/team/chat", Some("gate"), waiting, 200, "ok"),
        ("POST", "/demand/team/chat", None, waiting, 401, "a token is missing"),
        ("POST", "/demand/team/chat", Some("other"), waiting, 403, "not yours"),
        (
            "POST",
            "/demand/team/code",
            Some("gate"),
            waiting,
            404,
            "no team/code here",
        ),
        (
            "POST",
            "/demand/team/chat",
            Some("gate"),
            &long,
            400,
            "at most 4096 bytes",
        ),
        ("GET", "/demand/team/chat", Some("gate"), "", 405, "only POST"),
        ("GET", "/nothing", None, "", 404, "there are /metrics"),
    ] {
        let (got, said) = ask(&address, method, path, token, body).await;
        assert_eq!(got, code, "{method} {path}: {said}");
        assert!(said.contains(words), "{method} {path}: {said}");
    }
    assert_eq!(
        *gateway.0.lock().unwrap(),
        [("team/chat".to_owned(), waiting.to_owned())]
    );
    // Whoever waits is looked at early.
    table.looks.lock().unwrap().clear();
    ask(&address, "POST", "/demand/team/chat", Some("gate"), waiting).await;
    let looked = |_: &infer_decider::state::Shared| !table.looks.lock().unwrap().is_empty();
    decider.until("a look", looked).await;

    let (_, metrics) = ask(&address, "GET", "/metrics", None, "").await;
    for line in [
        "infer_decider_ready 1",
        "infer_decider_unauthenticated_total 2",
        "infer_decider_plans_in_flight 0",
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line} is not in {metrics}");
    }
}
