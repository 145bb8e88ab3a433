//! A small server that streams tokens at a known pace, or misbehaves as told.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

type Body = BoxBody<Bytes, io::Error>;

/// What to do with a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    /// All tokens, the count and the end mark.
    #[default]
    Good,
    /// Status 503.
    Refuse,
    /// Half of the tokens, then the connection breaks.
    Break,
    /// All tokens but no end mark.
    NoDone,
    /// Half of the tokens, then an orderly end.
    Short,
    /// Status 200 and an error event.
    ErrorEvent,
    /// One token and then nothing.
    Hang,
    /// An answer that is not a stream.
    Json,
}

/// How the server behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    pub(crate) first_token: Duration,
    pub(crate) gap: Duration,
    /// Manners of the n-th requests, from 0; the others are good.
    pub(crate) manners: HashMap<usize, Manner>,
}

/// A running server; ends when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
    _stop: DropGuard,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    prompt_tokens: AtomicUsize,
}

impl Server {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let seen = Arc::<Seen>::default();
        tokio::spawn(
            stop.clone()
                .run_until_cancelled_owned(serve(listener, Arc::new(behaviour), Arc::clone(&seen))),
        );
        Self {
            address,
            seen,
            _stop: stop.drop_guard(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn prompt_tokens(&self) -> usize {
        self.seen.prompt_tokens.load(Ordering::SeqCst)
    }
}

async fn serve(listener: TcpListener, behaviour: Arc<Behaviour>, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        seen.connections.fetch_add(1, Ordering::SeqCst);
        let (behaviour, seen) = (Arc::clone(&behaviour), Arc::clone(&seen));
        let service = service_fn(move |request| answer(request, Arc::clone(&behaviour), Arc::clone(&seen)));
        connections.spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    request: Request<Incoming>,
    behaviour: Arc<Behaviour>,
    seen: Arc<Seen>,
) -> Result<Response<Body>, Infallible> {
    let index = seen.requests.fetch_add(1, Ordering::SeqCst);
    let chat = request.uri().path() == "/v1/chat/completions";
    let authorized = request.headers().contains_key("authorization");
    let body: serde_json::Value =
        serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
    let prompt = if chat {
        &body["messages"][0]["content"]
    } else {
        &body["prompt"]
    };
    let prompt_tokens = prompt
        .as_array()
        .map_or_else(|| prompt.as_str().unwrap().split(' ').count(), Vec::len);
    seen.prompt_tokens.fetch_add(prompt_tokens, Ordering::SeqCst);
    let tokens = body["max_tokens"].as_u64().unwrap();
    let manner = behaviour.manners.get(&index).copied().unwrap_or_default();
    let builder = Response::builder().header("x-replica", if authorized { "keyed" } else { "open" });
    let full = |text: &'static str| Full::from(text).map_err(|never: Infallible| match never {}).boxed();
    Ok(match manner {
        Manner::Refuse => builder
            .status(StatusCode::SERVICE_UNAVAILABLE)
            .body(full("{\"error\":{\"message\":\"no replica\"}}"))
            .unwrap(),
        Manner::Json => builder
            .header("content-type", "application/json")
            .body(full("{}"))
            .unwrap(),
        _ => {
            // One frame ahead is enough: the client reads as fast as the server writes.
            let (sender, receiver) = mpsc::channel(1);
            let script = Script {
                sender,
                chat,
                tokens,
                prompt_tokens,
            };
            tokio::spawn(async move { script.play(manner, &behaviour).await });
            let stream = Frames(receiver);
            builder
                .header("content-type", "text/event-stream; charset=utf-8")
                .body(BodyExt::boxed(StreamBody::new(stream)))
                .unwrap()
        }
    })
}

/// The channel as a stream of body frames.
struct Frames(mpsc::Receiver<io::Result<Frame<Bytes>>>);

impl futures_util::Stream for Frames {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

struct Script {
    sender: mpsc::Sender<io::Result<Frame<Bytes>>>,
    chat: bool,
    tokens: u64,
    prompt_tokens: usize,
}

impl Script {
    async fn send(&self, data: &str) {
        let event = Bytes::from(format!("data: {data}\n\n"));
        // A client that has gone is part of some tests.
        let _ = self.sender.send(Ok(Frame::data(event))).await;
    }

    async fn token(&self, last: bool) {
        let reason = if last { "\"length\"" } else { "null" };
        let text = if self.chat {
            "\"delta\":{\"content\":\"a\"}"
        } else {
            "\"text\":\"a\""
        };
        self.send(&format!(
            "{{\"choices\":[{{\"index\":0,{text},\"finish_reason\":{reason}}}]}}"
        ))
        .await;
    }

    async fn play(self, manner: Manner, behaviour: &Behaviour) {
        tokio::time::sleep(behaviour.first_token).await;
        let count = match manner {
            Manner::Break | Manner::Short => self.tokens / 2,
            Manner::Hang => 1,
            Manner::ErrorEvent => 0,
            _ => self.tokens,
        };
        for token in 0..count {
            if token > 0 {
                tokio::time::sleep(behaviour.gap).await;
            }
            self.token(token + 1 == self.tokens).await;
        }
        match manner {
            Manner::Break => {
                let _ = self.sender.send(Err(io::Error::other("broken on purpose"))).await;
            }
            Manner::Hang => self.sender.closed().await,
            Manner::ErrorEvent => {
                self.send("{\"error\":{\"message\":\"too many queued\",\"code\":503}}")
                    .await
            }
            Manner::NoDone => {}
            _ => {
                let usage = format!(
                    "{{\"prompt_tokens\":{},\"completion_tokens\":{count}}}",
                    self.prompt_tokens
                );
                self.send(&format!("{{\"choices\":[],\"usage\":{usage}}}")).await;
                self.send("[DONE]").await;
            }
        }
    }
}
