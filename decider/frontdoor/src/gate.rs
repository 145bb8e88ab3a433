//! Where a request gets its lease on a replica, or is held until there is one.
//!
//! Balancer and queue stand under one lock, which is only ever held for a poll. The balancer is polled from the tasks of
//! requests (when nobody is held) and from the release task (when somebody is), always with the release task's waker: so
//! whatever makes a replica ready wakes the release task, and no wake-up can be lost to a task that has gone.

use std::{
    future::{Future, poll_fn},
    sync::Mutex,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tower::Service;

use crate::{
    balance::{Balance, Members, Pick},
    lock,
    options::Endpoint,
    queue::HoldQueue,
    replica::Lease,
    stats::{Refusal, Stats},
};

struct Core {
    balance: Balance,
    queue: HoldQueue<oneshot::Sender<Lease>>,
    /// The release task's.
    waker: Waker,
    closed: bool,
}

impl Core {
    /// A lease on the least-loaded ready replica. Chosen and taken in one step, as a choice kept would grow old.
    fn pick(&mut self) -> Option<Lease> {
        let mut cx = Context::from_waker(&self.waker);
        match Service::<Pick>::poll_ready(&mut self.balance, &mut cx) {
            // The replica's answer to a pick is there at once and cannot fail.
            Poll::Ready(Ok(())) => self.balance.call(Pick).now_or_never().and_then(Result::ok),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// Gives those who are held their leases, first come first, while a replica is ready.
    fn release(&mut self) {
        while !self.queue.is_empty() {
            let Some(lease) = self.pick() else { return };
            if let Some(sender) = self.queue.pop() {
                // A request that has gone gives its lease back by dropping it.
                drop(sender.send(lease));
            }
        }
    }
}

pub(crate) struct Gate {
    core: Mutex<Core>,
    pub(crate) members: Members,
    queue_timeout: Duration,
    held: watch::Sender<u64>,
}

impl Gate {
    pub(crate) fn new(
        members: Members,
        max_held_requests: usize,
        max_held_bytes: usize,
        queue_timeout: Duration,
    ) -> Self {
        Self {
            core: Mutex::new(Core {
                balance: Balance::new(members.clone()),
                queue: HoldQueue::new(max_held_requests, max_held_bytes),
                waker: Waker::noop().clone(),
                closed: false,
            }),
            members,
            queue_timeout,
            held: watch::Sender::new(0),
        }
    }

    /// A lease on a replica: at once where one is ready; otherwise, with `hold`, as soon as one is.
    ///
    /// `order` is the request's place in the line and `bytes` the room it takes there.
    pub(crate) async fn acquire(&self, order: u64, bytes: usize, hold: bool) -> Result<Lease, Refusal> {
        let (mut lease, _place) = {
            let mut core = lock(&self.core);
            // Nobody who can be held overtakes those who are.
            core.release();
            if (core.queue.is_empty() || !hold)
                && let Some(lease) = core.pick()
            {
                return Ok(lease);
            }
            if !hold {
                return Err(Refusal::NoReplica);
            }
            if core.closed {
                return Err(Refusal::ShuttingDown);
            }
            let (sender, lease) = oneshot::channel();
            core.queue.push(order, bytes, sender).map_err(|_| Refusal::QueueFull)?;
            (lease, Place { gate: self, order })
        };
        self.held.send_modify(|held| *held += 1);
        match timeout(self.queue_timeout, &mut lease).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(_)) => Err(Refusal::ShuttingDown),
            // Perhaps it came at the last moment.
            Err(_) => lease.try_recv().map_err(|_| Refusal::QueueTimeout),
        }
    }

    /// Gives held requests their leases, for as long as it is polled. To be run by one task.
    pub(crate) fn release(&self) -> impl Future<Output = ()> {
        poll_fn(|cx| {
            let mut core = lock(&self.core);
            if !core.waker.will_wake(cx.waker()) {
                core.waker = cx.waker().clone();
            }
            core.release();
            Poll::Pending
        })
    }

    /// Replaces the replicas. On return, no request is sent to a removed one that has not been given its lease.
    pub(crate) fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        let _core = lock(&self.core);
        self.members.set(endpoints);
    }

    /// Refuses those who are held, and holds nobody from here on.
    pub(crate) fn close(&self) {
        let mut core = lock(&self.core);
        core.closed = true;
        core.queue.clear();
    }

    pub(crate) fn waiting(&self) -> usize {
        lock(&self.core).queue.len()
    }

    pub(crate) fn held(&self) -> watch::Receiver<u64> {
        self.held.subscribe()
    }

    pub(crate) fn fill(&self, stats: &mut Stats) {
        let core = lock(&self.core);
        stats.waiting = core.queue.len();
        stats.waiting_bytes = core.queue.bytes();
        stats.held_max = core.queue.len_max();
        stats.held_total = core.queue.pushed_total();
    }
}

/// A place in the queue, given up when dropped: a client that goes frees its room at once.
struct Place<'a> {
    gate: &'a Gate,
    order: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.gate.core).queue.remove(self.order);
    }
}
