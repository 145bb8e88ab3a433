//! Connections to one replica, and the idle ones kept for the next request.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::AbortHandle,
    time::{Instant, timeout},
};

use crate::{io::CountingIo, lock};

/// Most idle connections kept for one replica: an engine's usual largest batch (256 sequences) can end in one step.
const IDLE_MAX: usize = 256;

/// hyper's read and write buffers of one connection. Small, so that a slow client soon stops its replica's stream.
pub(crate) const BUFFER_BYTES: usize = 64 << 10;

/// Why no connection was had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Handshake(#[from] hyper::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// One connection. Dropping it closes the socket, whatever it is doing: that is how a client's going reaches the
/// replica, and why no task outlives its request.
pub(crate) struct Conn {
    sender: SendRequest<Full<Bytes>>,
    received: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Conn {
    pub(crate) async fn open(address: SocketAddr, limit: Duration) -> Result<Self, ConnectError> {
        let stream = timeout(limit, TcpStream::connect(address))
            .await
            .map_err(|_| ConnectError::Timeout(limit))??;
        stream.set_nodelay(true)?;
        let (io, received) = CountingIo::new(stream);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .handshake::<_, Full<Bytes>>(TokioIo::new(io))
            .await?;
        // The error also reaches whoever waits for the response, so it is not lost here.
        let task = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Self { sender, received, task })
    }

    /// Bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error> {
        self.sender.send_request(request).await
    }
}

/// The idle connections of one replica.
#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// Oldest first.
    conns: VecDeque<(Instant, Conn)>,
    closed: bool,
}

impl Pool {
    /// Takes the connection used last that is usable and younger than `max_age`.
    pub(crate) fn take(&self, max_age: Duration) -> Option<Conn> {
        let mut idle = lock(&self.idle);
        idle.prune(max_age);
        // A connection that is not ready has given its last response, but its task has not yet turned round.
        let at = idle.conns.iter().rposition(|(_, conn)| conn.sender.is_ready())?;
        idle.conns.remove(at).map(|(_, conn)| conn)
    }

    /// Keeps a connection whose response has ended.
    pub(crate) fn put(&self, conn: Conn) {
        let mut idle = lock(&self.idle);
        if idle.closed || conn.sender.is_closed() {
            return;
        }
        if idle.conns.len() >= IDLE_MAX {
            idle.conns.pop_front();
        }
        idle.conns.push_back((Instant::now(), conn));
    }

    /// Drops what is closed or too old.
    pub(crate) fn prune(&self, max_age: Duration) {
        lock(&self.idle).prune(max_age);
    }

    /// Drops all idle connections.
    pub(crate) fn clear(&self) {
        lock(&self.idle).conns.clear();
    }

    /// Whether connections are kept at all: not for a replica that was removed.
    pub(crate) fn set_open(&self, open: bool) {
        let mut idle = lock(&self.idle);
        idle.closed = !open;
        if !open {
            idle.conns.clear();
        }
    }
}

impl Idle {
    fn prune(&mut self, max_age: Duration) {
        let now = Instant::now();
        self.conns
            .retain(|(since, conn)| !conn.sender.is_closed() && now.duration_since(*since) < max_age);
    }
}
