//! Bodies: a request's is read whole within bounds, a response's is passed on frame by frame.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::{
    pool::Conn,
    replica::Lease,
    stats::{Account, Failure, Outcome, Refusal},
};

/// The bound on all request bodies in memory.
#[derive(Clone)]
pub(crate) struct Budget {
    used: Arc<AtomicUsize>,
    max: usize,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            used: Arc::default(),
            max,
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn charge(&self) -> Charge {
        Charge {
            budget: self.clone(),
            bytes: 0,
        }
    }
}

/// One body's share of the budget, given back when dropped.
pub(crate) struct Charge {
    budget: Budget,
    bytes: usize,
}

impl Charge {
    fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let max = self.budget.max;
        self.budget
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|&used| used <= max)
            })
            .map_err(|_| Refusal::BuffersFull)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads a request's body whole.
///
/// `waits` says that the client waits for a go-ahead (`expect: 100-continue`), so that a body known to be too large is
/// never sent. Otherwise a body over the limit is read on and thrown away up to eight times the limit: a client that
/// cannot send its body to the end mostly fails before it reads the answer that says why.
pub(crate) async fn read(
    body: Incoming,
    budget: &Budget,
    max: usize,
    limit: Duration,
    waits: bool,
) -> Result<(Bytes, Charge), Refusal> {
    if waits && body.size_hint().lower() > max as u64 {
        return Err(Refusal::BodyTooLarge);
    }
    timeout(limit, read_unlimited(body, budget.charge(), max))
        .await
        .map_err(|_| Refusal::BodyTimeout)?
}

async fn read_unlimited(mut body: Incoming, mut charge: Charge, max: usize) -> Result<(Bytes, Charge), Refusal> {
    let announced = body.size_hint().lower();
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut length = 0_usize;
    let mut too_large = announced > max as u64;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BodyMalformed)?.into_data() else {
            continue;
        };
        length = length.saturating_add(data.len());
        if length > max {
            too_large = true;
        }
        if too_large {
            (first, rest) = (Bytes::new(), BytesMut::new());
            charge = charge.budget.charge();
            if length > max.saturating_mul(8) {
                break;
            }
        } else {
            charge.grow(data.len())?;
            // The usual body comes in one piece, and is then not copied.
            if first.is_empty() && rest.is_empty() {
                first = data;
            } else {
                if rest.is_empty() {
                    rest.extend_from_slice(&std::mem::take(&mut first));
                }
                rest.extend_from_slice(&data);
            }
        }
    }
    if too_large {
        return Err(Refusal::BodyTooLarge);
    }
    Ok((if rest.is_empty() { first } else { rest.freeze() }, charge))
}

/// Why a response broke off. Given to hyper, it makes hyper break off the client's connection too.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the replica's response broke off: {0}")]
    Replica(#[from] hyper::Error),
    #[error("the replica's response paused for {0:?}")]
    Idle(Duration),
}

/// A response's body.
pub(crate) enum Reply {
    /// The front door's own.
    Own(Full<Bytes>),
    /// A replica's.
    Stream(Box<Stream>),
}

/// A replica's response on its way through. It holds the request's lease, connection and account until it has ended.
pub(crate) struct Stream {
    incoming: Incoming,
    journey: Option<Journey>,
    idle_timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

/// What a request on its way holds. Fields drop in order: the connection is closed before the lease is given back.
pub(crate) struct Journey {
    pub(crate) conn: Conn,
    pub(crate) lease: Lease,
    pub(crate) account: Account,
}

impl Stream {
    pub(crate) fn new(incoming: Incoming, journey: Journey, idle_timeout: Duration) -> Self {
        let mut stream = Self {
            incoming,
            journey: Some(journey),
            idle_timeout,
            timer: None,
            armed: false,
        };
        stream.end_if_complete();
        stream
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            ready!(self.poll_idle(cx));
            self.fail(Failure::BodyIdle);
            return Poll::Ready(Some(Err(Broken::Idle(self.idle_timeout))));
        };
        // Not armed while the client keeps us waiting: hyper polls only when it has room.
        self.armed = false;
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                // With a known length hyper does not ask again after the last frame.
                self.end_if_complete();
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                self.fail(Failure::BodyBroken);
                Some(Err(error.into()))
            }
            None => {
                self.end();
                None
            }
        })
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.idle_timeout)));
        if !self.armed {
            timer.as_mut().reset(Instant::now() + self.idle_timeout);
            self.armed = true;
        }
        timer.as_mut().poll(cx)
    }

    fn end_if_complete(&mut self) {
        if self.incoming.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(Journey { conn, lease, account }) = self.journey.take() {
            lease.replica().pool.put(conn);
            drop(lease);
            account.settle(Outcome::Completed);
        }
    }

    fn fail(&mut self, failure: Failure) {
        if let Some(Journey { conn, lease, account }) = self.journey.take() {
            tracing::warn!(replica = %lease.replica().endpoint.replica, ?failure, "response broke off");
            drop(conn);
            drop(lease);
            account.settle(Outcome::Failed(failure));
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Stream(stream) => stream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Stream(stream) => stream.incoming.size_hint(),
        }
    }
}
