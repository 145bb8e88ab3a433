//! The HTTP server: connections, life and death.
//!
//! `serve` takes a bound listener and a shutdown future. A crash (see `faults`) ends it at once and without a word to
//! anybody, and so does a shutdown without a grace period, as with a real engine.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::core::Engine;
use super::faults::{Faults, Scheduled};
use super::handlers::{Context, handle};

/// How the server behaves beside what the engine does.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long running requests may go on after shutdown.
    pub shutdown_grace: Duration,
    /// Idle connections are closed after this long; uvicorn's default is 5 s.
    pub keep_alive: Duration,
    /// Failures to inject.
    pub failures: Vec<Scheduled>,
}

/// Why `serve` returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The shutdown future resolved.
    ShutDown,
    /// A crash was injected: the process is to end with exit code 1, now.
    Crashed,
}

/// Serves until `shutdown` resolves or a crash is injected.
pub async fn serve(
    engine: Engine,
    listener: TcpListener,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> Outcome {
    let faults = Faults::default();
    let context = Context::new(engine.clone(), faults.clone());
    // Everything below ends with this set when `serve` returns.
    let mut background = JoinSet::new();
    background.spawn({
        let engine = engine.clone();
        async move { engine.run().await }
    });
    let begun = Instant::now();
    for scheduled in options.failures {
        let context = context.clone();
        background.spawn(async move {
            tokio::time::sleep_until(begun + Duration::from_secs_f64(scheduled.at_s)).await;
            context.inject(scheduled.failure);
        });
    }
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Tokens are small and must not wait for each other.
                    let _ = stream.set_nodelay(true);
                    connections.spawn(connection(stream, context.clone(), options.keep_alive, stopped.clone()));
                }
                // Out of file descriptors, most likely: let connections end before trying again.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut shutdown => break,
            () = faults.crashed() => return Outcome::Crashed,
        }
    }
    drop(listener);
    let _ = stop.send(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        _ = tokio::time::timeout(options.shutdown_grace, drained) => Outcome::ShutDown,
        () = faults.crashed() => Outcome::Crashed,
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    context: Context,
    keep_alive: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let context = context.clone();
        async move { Ok::<_, Infallible>(handle(context, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(keep_alive)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // An error here is the client's going away, which the requests' own guards have dealt with.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
