//! Probes, `/drain` and metrics for the Pod this agent is in.
//!
//! Whoever can connect may ask, as kubelets have no credentials to show. So nothing here tells a secret, everything is
//! bounded, and a request has no body.

use std::{convert::Infallible, io, net, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{drain, metrics, shared::Shared};

/// Two kubelet probes, a scraper and a preStop hook or two are what is expected. The next waits in the backlog.
const CONNECTIONS: usize = 32;
/// Of them in `/drain`, where they stay: so that the rest is there for probes.
const DRAINS: usize = 8;
/// For the head of a request, the only thing that a client can be slow with.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// hyper's least.
const READ_BUFFER_BYTES: usize = 8 << 10;
/// Kubernetes' `terminationGracePeriodSeconds` when nobody says otherwise.
const DEFAULT_GRACE_S: u64 = 30;
/// Nobody waits longer for one request; bounds how long a connection can stay.
const MAX_GRACE_S: u64 = 86_400;
/// When the agent has nothing else to do any more, for answers on their way.
const CLOSE_GRACE: Duration = Duration::from_millis(500);
/// When the process has no file descriptor left, until it tries again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Server {
    listener: TcpListener,
    handler: Arc<Handler>,
}

struct Handler {
    shared: Arc<Shared>,
    settle: Duration,
    drains: Semaphore,
}

impl Server {
    /// # Errors
    /// When the listener cannot be used with this runtime.
    pub(crate) fn new(listener: net::TcpListener, shared: Arc<Shared>, settle: Duration) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "serving /livez, /readyz, /drain and /metrics");
        }
        Ok(Self {
            listener,
            handler: Arc::new(Handler {
                shared,
                settle,
                drains: Semaphore::new(DRAINS),
            }),
        })
    }

    /// Serves until `done`, and a moment longer for answers that are on their way.
    pub(crate) async fn run(self, done: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        tokio::pin!(done);
        loop {
            tokio::select! {
                () = &mut done => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(self.handler.clone().serve(stream));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "cannot accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.listener);
        let answered = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(CLOSE_GRACE, answered).await;
    }
}

impl Handler {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let service = service_fn(move |request| {
            let handler = self.clone();
            async move { Ok::<_, Infallible>(handler.answer(&request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(READ_BUFFER_BYTES)
            // One request each: an idle connection would take a place from the next probe.
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // What went wrong, the client knows as well.
        let _ = timeout(Duration::from_secs(MAX_GRACE_S) + HEAD_TIMEOUT, connection).await;
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match path {
            // That this answers is what there is to say: the only thread turns.
            "/livez" => text(StatusCode::OK, "ok\n"),
            // Not the decider's being there: without it the engine serves as well as with it.
            "/readyz" => match self.shared.state().drain.reason(Instant::now()) {
                None => text(StatusCode::OK, "ok\n"),
                Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("draining: {reason}\n")),
            },
            "/drain" if request.method() == Method::GET => self.drain(request.uri().query()).await,
            "/drain" => text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
            "/metrics" => {
                let mut response = text(StatusCode::OK, metrics::render(&self.shared));
                let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /livez, /readyz, /drain?grace_seconds=N and /metrics\n",
            ),
        }
    }

    async fn drain(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let Ok(grace) = grace(query) else {
            return text(
                StatusCode::BAD_REQUEST,
                "grace_seconds is a whole number of seconds, the Pod's terminationGracePeriodSeconds: \
                 /drain?grace_seconds=30\n",
            );
        };
        let Ok(_place) = self.drains.try_acquire() else {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many wait for the engine already\n",
            );
        };
        let answer = drain::run_dry(&self.shared, grace, self.settle).await;
        text(
            StatusCode::OK,
            match answer {
                drain::Answer::Dry => "the engine has run dry\n",
                drain::Answer::Gone => "there is no engine\n",
                drain::Answer::OutOfTime => "the grace period is nearly over, and the engine has not run dry\n",
            },
        )
    }
}

fn grace(query: Option<&str>) -> Result<Duration, std::num::ParseIntError> {
    let value = query
        .unwrap_or_default()
        .split('&')
        .find_map(|pair| pair.strip_prefix("grace_seconds="));
    let seconds = value.map_or(Ok(DEFAULT_GRACE_S), |value| value.parse::<u32>().map(u64::from))?;
    Ok(Duration::from_secs(seconds.min(MAX_GRACE_S)))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_period_is_a_number_of_seconds() {
        for (query, seconds) in [
            (None, 30),
            (Some(""), 30),
            (Some("x=1"), 30),
            (Some("grace_seconds=0"), 0),
            (Some("grace_seconds=600"), 600),
            (Some("x=1&grace_seconds=45"), 45),
            (Some("grace_seconds=4294967295"), 86_400),
        ] {
            assert_eq!(grace(query), Ok(Duration::from_secs(seconds)), "{query:?}");
        }
        for query in [
            "grace_seconds=",
            "grace_seconds=-1",
            "grace_seconds=30s",
            "grace_seconds=4294967296",
        ] {
            assert!(grace(Some(query)).is_err(), "{query}");
        }
    }
}
