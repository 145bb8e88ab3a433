//! A real engine server on an ephemeral port, and a plain client for it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use infersim::engine::cli::Args;
use infersim::engine::core::Engine;
use infersim::engine::server::{self, Outcome};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

#[derive(clap::Parser)]
struct Parser {
    #[command(flatten)]
    args: Args,
}

/// A server in this process. Dropping it shuts it down.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Option<oneshot::Sender<()>>,
    pub(crate) outcome: JoinHandle<Outcome>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Server {
    /// Starts one with the arguments of `infersim engine`, separated by blanks.
    pub(crate) async fn start(arguments: &str) -> Self {
        let Parser { args } = clap::Parser::parse_from(["test"].into_iter().chain(arguments.split_whitespace()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let engine = Engine::new(args.engine_options().unwrap());
        let options = server::Options {
            shutdown_grace: Duration::from_secs_f64(args.shutdown_grace_s),
            keep_alive: Duration::from_secs_f64(args.keep_alive_s),
            failures: args.fail,
        };
        let (shutdown, stopped) = oneshot::channel::<()>();
        let outcome = tokio::spawn(server::serve(engine, listener, options, async {
            let _ = stopped.await;
        }));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            address,
            shutdown: Some(shutdown),
            outcome,
            client,
        }
    }

    /// Sends a request and returns the response with its body still to come.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::from(body.to_owned()));
        self.client.request(request.body(body).unwrap()).await.unwrap()
    }

    /// Status and body of a GET.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        whole(self.send(Method::GET, path, &[], "").await).await
    }

    /// Status and body of a POST.
    pub(crate) async fn post(&self, path: &str, body: &str) -> (u16, String) {
        whole(self.send(Method::POST, path, &[], body).await).await
    }

    /// The metrics page.
    pub(crate) async fn metrics(&self) -> String {
        let (status, page) = self.get("/metrics").await;
        assert_eq!(status, 200);
        page
    }

    /// Waits until the metrics page satisfies a condition.
    pub(crate) async fn metrics_until(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        until(what, async || Some(self.metrics().await).filter(|page| condition(page))).await
    }
}

/// Status and body.
pub(crate) async fn whole(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Polls until there is a value; fails the test when that takes absurdly long.
pub(crate) async fn until<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        loop {
            if let Some(value) = poll().await {
                return value;
            }
            pace.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"))
}

/// The value of the only sample that starts so.
#[track_caller]
pub(crate) fn sample(page: &str, start: &str) -> f64 {
    let lines: Vec<_> = page.lines().filter(|l| l.starts_with(start)).collect();
    assert_eq!(lines.len(), 1, "{start}: {lines:?}");
    lines[0].rsplit(' ').next().unwrap().parse().unwrap()
}
