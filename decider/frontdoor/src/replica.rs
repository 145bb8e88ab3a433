//! One replica: how many requests are in flight there, whether it may get more, and its connections.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::HeaderValue;
use tokio::{
    net::TcpStream,
    sync::Notify,
    task::AbortHandle,
    time::{sleep, timeout},
};

use crate::{lock, options::Endpoint, pool::Pool, stats::ReplicaStats};

/// When a replica that failed is looked at again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aside {
    pub(crate) base: Duration,
    pub(crate) max: Duration,
    pub(crate) connect_timeout: Duration,
}

impl Aside {
    /// The pause after so many failures on end (at least 1).
    fn pause(&self, failures: u32) -> Duration {
        self.base
            .saturating_mul(1 << failures.saturating_sub(1).min(20))
            .min(self.max)
    }
}

#[derive(Default)]
struct Health {
    /// Failures since the last response.
    failures: u32,
    /// The task that looks whether the replica is back; there is one exactly while the replica is aside.
    watcher: Option<AbortHandle>,
    removed: bool,
    waker: Option<Waker>,
}

pub(crate) struct Replica {
    /// Distinguishes a replica from an earlier one of the same name.
    pub(crate) id: u64,
    pub(crate) endpoint: Endpoint,
    /// The name as a header value.
    pub(crate) header: HeaderValue,
    pub(crate) pool: Pool,
    in_flight: AtomicUsize,
    requests_total: AtomicU64,
    idle: Notify,
    health: Mutex<Health>,
    aside: Aside,
}

impl Replica {
    pub(crate) fn new(id: u64, endpoint: Endpoint, aside: Aside) -> Self {
        let visible: String = endpoint
            .replica
            .chars()
            .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '_' })
            .collect();
        Self {
            id,
            header: HeaderValue::from_str(&visible).unwrap_or_else(|_| HeaderValue::from_static("unnamed")),
            endpoint,
            pool: Pool::default(),
            in_flight: AtomicUsize::new(0),
            requests_total: AtomicU64::new(0),
            idle: Notify::new(),
            health: Mutex::default(),
            aside,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Ready unless the replica is aside.
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut health = lock(&self.health);
        if health.watcher.is_none() {
            return Poll::Ready(());
        }
        health.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Counts a request in; it stays counted until the lease is dropped.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.requests_total.fetch_add(1, Ordering::Relaxed);
        Lease(self.clone())
    }

    /// Takes note of a response.
    pub(crate) fn answered(&self) {
        lock(&self.health).failures = 0;
    }

    /// Gives the replica no requests for a while after it failed, and then until it accepts a connection. The look is a
    /// connection of our own, so no request is spent on finding out.
    pub(crate) fn put_aside(self: &Arc<Self>) {
        self.pool.clear();
        let mut health = lock(&self.health);
        if health.removed || health.watcher.is_some() {
            return;
        }
        health.failures = health.failures.saturating_add(1);
        let pause = self.aside.pause(health.failures);
        tracing::warn!(replica = %self.endpoint.replica, address = %self.endpoint.address, ?pause, "replica put aside");
        // Weak: the watcher must not keep a removed replica.
        let replica = Arc::downgrade(self);
        let (address, aside) = (self.endpoint.address, self.aside);
        let watcher = tokio::spawn(async move {
            let mut pause = pause;
            loop {
                sleep(pause).await;
                let back = matches!(
                    timeout(aside.connect_timeout, TcpStream::connect(address)).await,
                    Ok(Ok(_))
                );
                let Some(replica) = replica.upgrade() else { return };
                match replica.looked_at(back) {
                    Some(next) => pause = next,
                    None => return,
                }
            }
        });
        health.watcher = Some(watcher.abort_handle());
    }

    /// Ends the time aside, or says how long to wait for the next look.
    fn looked_at(&self, back: bool) -> Option<Duration> {
        let mut health = lock(&self.health);
        if !back {
            health.failures = health.failures.saturating_add(1);
            return Some(self.aside.pause(health.failures));
        }
        health.watcher = None;
        let waker = health.waker.take();
        drop(health);
        tracing::info!(replica = %self.endpoint.replica, "replica is back");
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// Whether the replica is in the set. A removed one keeps no connections and is not watched.
    pub(crate) fn set_removed(&self, removed: bool) {
        let mut health = lock(&self.health);
        health.removed = removed;
        health.failures = 0;
        if let Some(watcher) = health.watcher.take() {
            watcher.abort();
        }
        drop(health);
        self.pool.set_open(!removed);
    }

    /// Returns once nothing is in flight.
    pub(crate) async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            // Registered before the look, so that an end between the look and the wait is not missed.
            idle.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }

    pub(crate) fn stats(&self) -> ReplicaStats {
        let health = lock(&self.health);
        ReplicaStats {
            replica: self.endpoint.replica.clone(),
            address: self.endpoint.address,
            in_flight: self.in_flight(),
            requests_total: self.requests_total.load(Ordering::Relaxed),
            aside: health.watcher.is_some(),
            removed: health.removed,
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(watcher) = lock(&self.health).watcher.take() {
            watcher.abort();
        }
    }
}

/// A request's place at a replica: in flight until this is dropped.
pub(crate) struct Lease(Arc<Replica>);

impl Lease {
    pub(crate) fn replica(&self) -> &Arc<Replica> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit() {
        let aside = Aside {
            base: Duration::from_secs(1),
            max: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
        };
        let pauses: Vec<u64> = [1, 2, 3, 4, 5, 100, u32::MAX]
            .iter()
            .map(|&n| aside.pause(n).as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10]);
    }
}
