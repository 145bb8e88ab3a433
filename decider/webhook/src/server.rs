//! The HTTPS server: HTTP/1.1 and HTTP/2 over the decider's own certificates.

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use infer_trust::{ALPN_HTTP, Certificates, TlsConnection, server_config, tls_incoming};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, interval, timeout},
};
use tokio_stream::StreamExt;

use crate::Webhook;

/// How connections are treated.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Connections at the same time; more wait. An API server holds one with HTTP/2 and some tens with HTTP/1.1, and a
    /// cluster has three to five of them, so this is ample; at up to 60 KiB of buffers each it is 15 MiB at worst.
    pub connections_max: usize,
    /// A connection without a request for this long is closed. API servers drop idle ones after 90 s: they come first.
    pub idle_timeout: Duration,
    /// With all places taken, a connection without a request for this long makes way. So connections that somebody opens
    /// and keeps, however many, delay an API server by no more than their turns.
    pub crowded_idle_timeout: Duration,
    /// What requests under way are given to finish at the end. API servers give up a webhook after 10 s by default.
    pub drain_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            connections_max: 256,
            idle_timeout: Duration::from_secs(120),
            crowded_idle_timeout: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Streams of one HTTP/2 connection. API servers limit themselves to 100 or so; a body of each may be in memory.
const STREAMS_MAX: u32 = 250;
/// For the head of a request; the body has its own limit.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves the webhooks until `shutdown` resolves; then finishes requests under way, within the options' limit.
///
/// # Errors
/// When the certificates make no TLS configuration. Nothing that a client does is one.
pub async fn serve(
    listener: TcpListener,
    certificates: &Certificates,
    webhook: Webhook,
    options: Options,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), infer_trust::Error> {
    let config = server_config(certificates, ALPN_HTTP)?;
    let (stop, stopped) = watch::channel(false);
    let mut incoming = tls_incoming(listener, config, wait(stopped.clone()));
    let places = Arc::new(Semaphore::new(options.connections_max.max(1)));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((place, incoming.next().await?.ok()?))
        };
        let (place, connection) = tokio::select! {
            next = next => match next {
                Some(next) => next,
                None => break,
            },
            () = &mut shutdown => break,
        };
        while connections.try_join_next().is_some() {}
        let (webhook, places, stopped) = (webhook.clone(), Arc::clone(&places), stopped.clone());
        connections.spawn(async move {
            let _place = place;
            serve_connection(connection, webhook, options, &places, stopped).await;
        });
    }
    let _ = stop.send(true);
    let drained = timeout(options.drain_timeout, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "webhook connections did not finish in time"
        );
    }
    Ok(())
}

/// When a connection was last used.
#[derive(Default)]
struct Use {
    requests_now: AtomicU32,
    /// Milliseconds after the connection's start.
    last_ms: AtomicU64,
}

async fn serve_connection(
    connection: TlsConnection,
    webhook: Webhook,
    options: Options,
    places: &Semaphore,
    mut stopped: watch::Receiver<bool>,
) {
    let start = Instant::now();
    let used = Arc::new(Use::default());
    let service = service_fn({
        let used = Arc::clone(&used);
        move |request| {
            let (webhook, used) = (webhook.clone(), Arc::clone(&used));
            used.requests_now.fetch_add(1, Relaxed);
            let guard = InUse { used, start };
            async move {
                let response = webhook.answer(request).await;
                drop(guard);
                Ok::<_, Infallible>(response)
            }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), service));
    let look_every = options.idle_timeout.min(options.crowded_idle_timeout);
    let mut look = interval(look_every.max(Duration::from_millis(1)));
    let mut ending = false;
    loop {
        tokio::select! {
            // A client that hangs up is no event.
            _ = serving.as_mut() => return,
            _ = stopped.wait_for(|stopped| *stopped), if !ending => {
                serving.as_mut().graceful_shutdown();
                ending = true;
            }
            _ = look.tick() => {
                let idle = start.elapsed().saturating_sub(Duration::from_millis(used.last_ms.load(Relaxed)));
                let crowded = places.available_permits() == 0;
                let limit = if crowded { look_every } else { options.idle_timeout };
                if used.requests_now.load(Relaxed) > 0 || idle < limit {
                    continue;
                }
                if ending {
                    // It has been asked to end before, and is still there.
                    return;
                }
                serving.as_mut().graceful_shutdown();
                ending = true;
            }
        }
    }
}

/// One request, from its head to its answer, also when its client goes away in between.
struct InUse {
    used: Arc<Use>,
    start: Instant,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used.last_ms.store(ms, Relaxed);
        self.used.requests_now.fetch_sub(1, Relaxed);
    }
}

async fn wait(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone has stopped as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
