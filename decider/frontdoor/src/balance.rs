//! Least-loaded balancing with tower: the set of replicas as a `Discover` stream, a replica as a service whose `Load` is
//! its requests in flight, and `p2c::Balance` over them.
//!
//! A call to the balancer does not carry a request. It gives a [`Lease`], which counts as load until it is dropped, and
//! the request's own task does the rest. So a lease can travel with a response body to its end, and a held request
//! costs the balancer nothing.
//!
//! `p2c` compares two replicas picked at random: with two replicas that is the least loaded of all, with more it is
//! close to it without looking at each. Replicas of equal load are picked with equal chance.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::Stream;
use tower::{Service, balance::p2c, discover::Change, load::Load};

use crate::{
    lock,
    options::Endpoint,
    replica::{Aside, Lease, Replica},
};

/// Asks the balancer for a lease.
pub(crate) struct Pick;

pub(crate) type Balance = p2c::Balance<Members, Pick>;

/// A replica as the balancer sees it.
pub(crate) struct ReplicaService(Arc<Replica>);

impl Service<Pick> for ReplicaService {
    type Response = Lease;
    type Error = Infallible;
    type Future = Ready<Result<Lease, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx).map(Ok)
    }

    fn call(&mut self, _: Pick) -> Self::Future {
        ready(Ok(self.0.lease()))
    }
}

impl Load for ReplicaService {
    type Metric = usize;

    fn load(&self) -> usize {
        self.0.in_flight()
    }
}

/// The wanted set of replicas, shared by the handle (which writes it) and the balancer (which follows it).
#[derive(Clone)]
pub(crate) struct Members(Arc<Mutex<Membership>>);

struct Membership {
    wanted: BTreeMap<u64, Arc<Replica>>,
    /// What the balancer has been told. The stream tells the difference to `wanted` when asked, so the work left for it
    /// is bounded by the two sets however often the set changes between two requests.
    told: BTreeSet<u64>,
    in_step: bool,
    /// Removed replicas that were busy when last looked at.
    departed: Vec<Arc<Replica>>,
    next_id: u64,
    aside: Aside,
    waker: Option<Waker>,
}

impl Members {
    pub(crate) fn new(aside: Aside) -> Self {
        Self(Arc::new(Mutex::new(Membership {
            wanted: BTreeMap::new(),
            told: BTreeSet::new(),
            in_step: true,
            departed: Vec::new(),
            next_id: 0,
            aside,
            waker: None,
        })))
    }

    /// Replaces the set. A replica keeps its state while its name and address stay; of several with one name the first
    /// counts.
    pub(crate) fn set(&self, endpoints: Vec<Endpoint>) {
        let mut members = lock(&self.0);
        let mut old = std::mem::take(&mut members.wanted);
        let mut names = BTreeSet::new();
        for endpoint in endpoints {
            if !names.insert(endpoint.replica.clone()) {
                tracing::warn!(replica = %endpoint.replica, "replica given twice, the first one counts");
                continue;
            }
            let replica = if let Some(id) = old.values().find(|r| r.endpoint == endpoint).map(|r| r.id)
                && let Some(replica) = old.remove(&id)
            {
                replica
            } else if let Some(at) = members.departed.iter().position(|r| r.endpoint == endpoint) {
                // Back before its last request has ended: that request still is load.
                let replica = members.departed.swap_remove(at);
                replica.set_removed(false);
                replica
            } else {
                members.next_id += 1;
                Arc::new(Replica::new(members.next_id, endpoint, members.aside))
            };
            members.wanted.insert(replica.id, replica);
        }
        for replica in old.into_values() {
            replica.set_removed(true);
            members.departed.push(replica);
        }
        members.departed.retain(|replica| replica.in_flight() > 0);
        members.in_step = false;
        let waker = members.waker.take();
        drop(members);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// All replicas: those in the set, and removed ones that are still busy.
    pub(crate) fn all(&self) -> Vec<Arc<Replica>> {
        let members = lock(&self.0);
        let busy = members.departed.iter().filter(|replica| replica.in_flight() > 0);
        members.wanted.values().chain(busy).cloned().collect()
    }

    /// Drops connections that are closed or idle for too long, and forgets removed replicas that have become idle.
    pub(crate) fn tidy(&self, max_age: Duration) {
        let mut members = lock(&self.0);
        members.departed.retain(|replica| replica.in_flight() > 0);
        for replica in members.wanted.values() {
            replica.pool.prune(max_age);
        }
    }
}

impl Stream for Members {
    type Item = Result<Change<u64, ReplicaService>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let members = &mut *lock(&self.0);
        if !members.in_step {
            // Removals first, so that nobody is sent to a replica that has left.
            if let Some(id) = members.told.iter().find(|id| !members.wanted.contains_key(id)).copied() {
                members.told.remove(&id);
                return Poll::Ready(Some(Ok(Change::Remove(id))));
            }
            if let Some((id, replica)) = members.wanted.iter().find(|(id, _)| !members.told.contains(id)) {
                members.told.insert(*id);
                return Poll::Ready(Some(Ok(Change::Insert(*id, ReplicaService(replica.clone())))));
            }
            members.in_step = true;
        }
        members.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
