//! Accepting TLS connections: bounded, timed, and nobody waits for somebody else's handshake.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;

use crate::{Certificates, Error, provider};

/// What [`Incoming`] yields. tonic's `serve_with_incoming` takes it, and `Request::remote_addr` works with it.
pub type TlsConnection = tokio_rustls::server::TlsStream<TcpStream>;

/// A server that shows `certificates` and asks for none. TLS 1.2 and 1.3.
pub fn server_config(certificates: &Certificates, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates.clone()));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// How many handshakes, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Handshakes at the same time; more wait in the kernel's backlog.
    ///
    /// One takes about 0.2 ms of a core and one or two round trips. With 256 open, a core is kept busy
    /// (5,000 handshakes a second) up to a round trip of 50 ms; at about 30 KiB each they take 8 MiB at worst.
    pub handshakes_max: usize,
    /// A handshake that takes longer is given up.
    pub handshake_timeout: Duration,
    /// With all places taken, the oldest handshake makes way as soon as it has taken this long. So silent clients,
    /// however many, delay an honest one by no more than this, and a burst of honest ones does not throw itself out.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handshakes_max: 256,
            handshake_timeout: Duration::from_secs(5),
            patience: Duration::from_secs(1),
        }
    }
}

/// What has become of connections since the start.
#[derive(Debug, Default)]
pub struct HandshakeCounters {
    /// TCP connections accepted.
    pub accepted: AtomicU64,
    /// Handshakes completed.
    pub completed: AtomicU64,
    /// Handshakes that failed: garbage, no common version, a client that does not trust us, or one that hung up.
    pub failed: AtomicU64,
    /// Handshakes given up because they took too long.
    pub timed_out: AtomicU64,
    /// Handshakes given up to make room for newer ones.
    pub evicted: AtomicU64,
}

/// TLS connections, ready to be read from. Ends after shutdown; dropping it closes the listener.
#[derive(Debug)]
pub struct Incoming {
    connections: mpsc::Receiver<TlsConnection>,
    counters: Arc<HandshakeCounters>,
    // Dropped with the stream, and with it the listener and all handshakes.
    _acceptor: JoinSet<()>,
}

impl Incoming {
    /// What has become of connections so far.
    pub fn counters(&self) -> Arc<HandshakeCounters> {
        Arc::clone(&self.counters)
    }
}

impl Stream for Incoming {
    type Item = io::Result<TlsConnection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

/// Accepts connections and shakes hands until `shutdown` resolves; handshakes under way are then given up.
/// Needs a tokio runtime. Never yields an error: what a client does wrong ends with that client.
pub fn tls_incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Incoming {
    tls_incoming_with(listener, config, Limits::default(), shutdown)
}

/// [`tls_incoming`] with limits of one's own.
pub fn tls_incoming_with(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Incoming {
    // As many as handshakes: a burst can complete while its taker is busy with the first.
    let (sender, connections) = mpsc::channel(limits.handshakes_max.max(1));
    let counters = Arc::new(HandshakeCounters::default());
    let acceptor = Acceptor {
        listener,
        tls: TlsAcceptor::from(config),
        limits,
        sender,
        counters: Arc::clone(&counters),
        handshakes: JoinSet::new(),
        by_age: VecDeque::new(),
    };
    let mut task = JoinSet::new();
    task.spawn(async move {
        tokio::select! {
            () = acceptor.run() => {}
            () = shutdown => {}
        }
    });
    Incoming {
        connections,
        counters,
        _acceptor: task,
    }
}

struct Acceptor {
    listener: TcpListener,
    tls: TlsAcceptor,
    limits: Limits,
    sender: mpsc::Sender<TlsConnection>,
    counters: Arc<HandshakeCounters>,
    handshakes: JoinSet<()>,
    /// Oldest first; finished ones are dropped when they come to the front.
    by_age: VecDeque<(Instant, AbortHandle)>,
}

impl Acceptor {
    async fn run(mut self) {
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Of a client that is gone already there is nothing to say; without file descriptors left
                        // accept would fail at once again, for as long as nobody closes one.
                        if !is_of_client(&error) {
                            tracing::warn!(%error, "cannot accept a TLS connection");
                            sleep(Duration::from_millis(100)).await;
                        }
                        continue;
                    }
                },
                () = self.sender.closed() => return,
            };
            self.counters.accepted.fetch_add(1, Relaxed);
            self.make_room().await;
            self.shake_hands(stream);
        }
    }

    /// Returns when there is a place for one more handshake.
    async fn make_room(&mut self) {
        loop {
            while self.handshakes.try_join_next().is_some() {}
            while self
                .by_age
                .front()
                .is_some_and(|(_, handshake)| handshake.is_finished())
            {
                self.by_age.pop_front();
            }
            if self.handshakes.len() < self.limits.handshakes_max.max(1) {
                return;
            }
            let Some((started, oldest)) = self.by_age.front() else {
                return;
            };
            let makes_way_at = *started + self.limits.patience;
            if makes_way_at <= Instant::now() {
                oldest.abort();
                self.counters.evicted.fetch_add(1, Relaxed);
                self.by_age.pop_front();
                // The aborted one, or another that has finished meanwhile.
                self.handshakes.join_next().await;
                continue;
            }
            tokio::select! {
                _ = self.handshakes.join_next() => {}
                () = sleep_until(makes_way_at) => {}
            }
        }
    }

    fn shake_hands(&mut self, stream: TcpStream) {
        // Finished ones in the middle are forgotten here: the queue never holds more than twice the places.
        if self.by_age.len() >= 2 * self.limits.handshakes_max.max(1) {
            self.by_age.retain(|(_, handshake)| !handshake.is_finished());
        }
        let (tls, sender) = (self.tls.clone(), self.sender.clone());
        let (counters, limit) = (Arc::clone(&self.counters), self.limits.handshake_timeout);
        let handshake = self.handshakes.spawn(async move {
            // Requests and answers are small and wait for each other: Nagle's algorithm would only delay them.
            let _ = stream.set_nodelay(true);
            match timeout(limit, tls.accept(stream)).await {
                Ok(Ok(connection)) => {
                    counters.completed.fetch_add(1, Relaxed);
                    // Fails when the stream of connections has been dropped, and then nobody wants it.
                    let _ = sender.send(connection).await;
                }
                Ok(Err(error)) => {
                    counters.failed.fetch_add(1, Relaxed);
                    tracing::debug!(%error, "TLS handshake failed");
                }
                Err(_) => {
                    counters.timed_out.fetch_add(1, Relaxed);
                    tracing::debug!("TLS handshake took too long");
                }
            }
        });
        self.by_age.push_back((Instant::now(), handshake));
    }
}

fn is_of_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
