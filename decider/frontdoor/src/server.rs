//! Listening, the connections of clients, and the handle.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    balance::Members,
    body::Budget,
    gate::Gate,
    io::StallIo,
    options::{Endpoint, Error, Options},
    pool::BUFFER_BYTES,
    proxy,
    replica::Aside,
    stats::{Counters, Stats},
};

/// How long a client may take for a request's head, and how long its connection may be idle. Longer than clients keep
/// theirs (5 s to 60 s), so that it is the client who closes, and its next request does not meet a closing connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// The pause after a failed accept (mostly: no file descriptor left), so that it is not retried in a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the tasks of a front door share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) gate: Gate,
    pub(crate) counters: Counters,
    pub(crate) budget: Budget,
    connections: AtomicUsize,
}

impl Shared {
    pub(crate) fn stats(&self) -> Stats {
        let mut stats = self.counters.snapshot();
        self.gate.fill(&mut stats);
        stats.replicas = self.gate.members.all().iter().map(|replica| replica.stats()).collect();
        stats.in_flight_total = stats.replicas.iter().map(|replica| replica.in_flight).sum();
        stats.buffered_bytes = self.budget.used();
        stats.connections = self.connections.load(Ordering::Relaxed);
        stats
    }
}

/// Steers and observes a [`FrontDoor`]. Cheap to clone; may outlive it.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Replaces the set of replicas.
    ///
    /// After the return a removed replica gets no new request; what is in flight there is finished, and counted by
    /// [`Handle::in_flight`] until then. A replica whose name and address stay keeps its state. Of several with the same
    /// name the first one counts.
    pub fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        self.shared.gate.set_endpoints(endpoints);
    }

    /// Requests at this replica whose response has not ended, also when it was removed in the meantime; 0 for an unknown
    /// one.
    #[must_use]
    pub fn in_flight(&self, replica: &str) -> usize {
        let replicas = self.shared.gate.members.all();
        replicas
            .iter()
            .filter(|r| r.endpoint.replica == replica)
            .map(|r| r.in_flight())
            .sum()
    }

    /// Returns once nothing is in flight at this replica: at once for an idle or unknown one. Meant for one that was
    /// removed; another one may have been given a request again by the time of the return.
    pub async fn idle(&self, replica: &str) {
        loop {
            let replicas = self.shared.gate.members.all();
            let Some(busy) = replicas
                .iter()
                .find(|r| r.endpoint.replica == replica && r.in_flight() > 0)
            else {
                return;
            };
            busy.idle().await;
        }
    }

    /// Requests held now because no replica is ready.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.gate.waiting()
    }

    /// Tells of rising demand: the value is the number of requests ever held, so `changed()` returns whenever
    /// [`Handle::waiting`] has risen since the last look, also if that was before the call.
    #[must_use]
    pub fn demand_changed(&self) -> watch::Receiver<u64> {
        self.shared.gate.held()
    }

    /// A snapshot of all counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

/// A front door that listens, but serves only once it runs.
#[derive(Debug)]
pub struct FrontDoor {
    listener: TcpListener,
    local_addr: SocketAddr,
    handle: Handle,
}

impl FrontDoor {
    /// Checks the options and listens.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] for a setting that cannot work, [`Error::Bind`] when the address cannot be had.
    pub async fn bind(options: Options) -> Result<(Self, Handle), Error> {
        options.check()?;
        let address = options.listen;
        let bind = |source| Error::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let local_addr = listener.local_addr().map_err(bind)?;
        let members = Members::new(Aside {
            base: options.aside_base,
            max: options.aside_max,
            connect_timeout: options.connect_timeout,
        });
        let shared = Shared {
            gate: Gate::new(
                members,
                options.max_held_requests,
                options.max_held_bytes,
                options.queue_timeout,
            ),
            counters: Counters::default(),
            budget: Budget::new(options.max_buffered_bytes),
            connections: AtomicUsize::new(0),
            options,
        };
        let handle = Handle {
            shared: Arc::new(shared),
        };
        Ok((
            Self {
                listener,
                local_addr,
                handle: handle.clone(),
            },
            handle,
        ))
    }

    /// Where it listens, with the port it was given.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` completes. Then it accepts nothing more, refuses held requests, and waits for those in
    /// flight up to the drain time. Dropping the future cuts everything off at once.
    ///
    /// # Errors
    ///
    /// [`Error::CutOff`] when requests were in flight at the end of the drain time.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Self {
            listener,
            local_addr,
            handle,
        } = self;
        let shared = handle.shared;
        // Also when this future is dropped: no replica keeps connections or a watcher, nobody is held.
        let _closing = Closing(shared.clone());
        tracing::info!(address = %local_addr, "front door listens");
        let draining = CancellationToken::new();
        let permits = Arc::new(Semaphore::new(shared.options.max_connections));
        let mut connections = JoinSet::new();
        {
            let mut tidy = interval(shared.options.pool_idle_timeout);
            let mut shutdown = std::pin::pin!(shutdown);
            // A task of its own, as the gate keeps its waker; it ends with the set.
            let releasing = shared.clone();
            let mut release = JoinSet::new();
            release.spawn(async move { releasing.gate.release().await });
            loop {
                tokio::select! {
                    () = &mut shutdown => break,
                    Some(_) = connections.join_next(), if !connections.is_empty() => {}
                    _ = tidy.tick() => shared.gate.members.tidy(shared.options.pool_idle_timeout),
                    (accepted, permit) = accept(&listener, &permits) => match accepted {
                        Ok((stream, peer)) => {
                            let client = Client { permit, shared: shared.clone(), peer };
                            connections.spawn(client.serve(stream, draining.clone()));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept a connection");
                            sleep(ACCEPT_PAUSE).await;
                        }
                    },
                }
            }
        }
        drop(listener);
        shared.gate.close();
        draining.cancel();
        let limit = shared.options.drain_timeout;
        let drained = timeout(limit, async { while connections.join_next().await.is_some() {} }).await;
        let left = connections.len();
        if drained.is_err() && left > 0 {
            shared.counters.cut_off();
            connections.shutdown().await;
            return Err(Error::CutOff {
                connections: left,
                after: limit,
            });
        }
        Ok(())
    }
}

/// Waits for room and then for a client.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (io::Result<(TcpStream, SocketAddr)>, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let permit = permits.clone().acquire_owned().await.ok();
    (listener.accept().await, permit)
}

struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.gate.close();
        self.0.gate.set_endpoints(Vec::new());
    }
}

/// A client's connection.
struct Client {
    permit: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
    peer: SocketAddr,
}

impl Client {
    async fn serve(self, stream: TcpStream, draining: CancellationToken) {
        let Self {
            permit: _permit,
            shared,
            peer,
        } = self;
        let _counted = Counted::new(shared.clone());
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "client has gone");
            return;
        }
        let io = TokioIo::new(StallIo::new(stream, shared.options.body_idle_timeout));
        let service = service_fn(|request| proxy::serve(shared.clone(), peer, request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = &mut connection => result,
            () = draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "client connection ended");
        }
    }
}

/// Counts a connection while it lives.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: Arc<Shared>) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
