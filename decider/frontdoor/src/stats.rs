//! What a front door counts. Every request ends in exactly one outcome; the totals are kept under one lock, so any
//! snapshot obeys `requests_total = open + completed + client_disconnected + rejected + failed`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde::Serialize;

use crate::lock;

/// Requests refused by the front door itself, by cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The hold queue had no room, by number or by bytes.
    pub queue_full: u64,
    /// Held for the whole queue time without a replica.
    pub queue_timeout: u64,
    /// Not a POST, so not held, and no replica was ready.
    pub no_replica: u64,
    /// The request body was over the limit.
    pub body_too_large: u64,
    /// The request body was not read in time, or was malformed.
    pub body_bad: u64,
    /// All request bodies together were over the limit.
    pub buffers_full: u64,
    /// The front door was shutting down.
    pub shutting_down: u64,
    /// A method this proxy does not forward (CONNECT).
    pub method: u64,
}

/// Requests that failed at a replica, by cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// No connection, at every attempt.
    pub connect: u64,
    /// The connection ended before any byte of the response, at every attempt.
    pub reset: u64,
    /// The response's head was malformed or broken off.
    pub bad_response: u64,
    /// No response head in time.
    pub header_timeout: u64,
    /// The response broke off after its head.
    pub body_broken: u64,
    /// The response paused for too long.
    pub body_idle: u64,
    /// Cut off at the end of the drain time.
    pub cut_off: u64,
}

/// Attempts that failed and were followed by another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Retried {
    /// No connection.
    pub connect: u64,
    /// A fresh connection ended before any byte of the response.
    pub reset: u64,
    /// A kept connection had been closed by the replica in the meantime.
    pub stale: u64,
}

/// One replica as the front door sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaStats {
    /// The replica's name.
    pub replica: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Requests whose response has not ended.
    pub in_flight: usize,
    /// Requests ever sent to it, counting every attempt.
    pub requests_total: u64,
    /// Put aside after a failure, until it accepts connections again.
    pub aside: bool,
    /// No longer in the set, but still busy.
    pub removed: bool,
}

/// A snapshot of a front door's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests held now, as no replica is ready.
    pub waiting: usize,
    /// Bytes of the bodies held now.
    pub waiting_bytes: usize,
    /// Most requests ever held at a time.
    pub held_max: usize,
    /// Requests ever held.
    pub held_total: u64,
    /// Requests at replicas now, over all replicas.
    pub in_flight_total: usize,
    /// Bytes of all request bodies in memory now.
    pub buffered_bytes: usize,
    /// Client connections now.
    pub connections: usize,
    /// Requests that came in, without those to the front door's own endpoints.
    pub requests_total: u64,
    /// Requests that have had no outcome yet.
    pub open: u64,
    /// Responses passed on to their end, whatever their status.
    pub completed: u64,
    /// Requests the client gave up.
    pub client_disconnected: u64,
    /// Requests refused here.
    pub rejected: Rejected,
    /// Requests failed at a replica.
    pub failed: Failed,
    /// Failed attempts followed by another one.
    pub retried: Retried,
    /// The replicas, with removed ones that are still busy.
    pub replicas: Vec<ReplicaStats>,
}

impl Stats {
    /// Requests refused here, over all causes.
    #[must_use]
    pub fn rejected_total(&self) -> u64 {
        let r = &self.rejected;
        r.queue_full
            + r.queue_timeout
            + r.no_replica
            + r.body_too_large
            + r.body_bad
            + r.buffers_full
            + r.shutting_down
            + r.method
    }

    /// Requests failed at a replica, over all causes.
    #[must_use]
    pub fn failed_total(&self) -> u64 {
        let f = &self.failed;
        f.connect + f.reset + f.bad_response + f.header_timeout + f.body_broken + f.body_idle + f.cut_off
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    Rejected(Refusal),
    Failed(Failure),
}

/// Why a request was refused here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    QueueFull,
    QueueTimeout,
    NoReplica,
    BodyTooLarge,
    BodyTimeout,
    BodyMalformed,
    BuffersFull,
    ShuttingDown,
    Method,
}

/// Why a request failed at a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Connect,
    Reset,
    BadResponse,
    HeaderTimeout,
    BodyBroken,
    BodyIdle,
}

/// Which attempt was followed by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    Connect,
    Reset,
    Stale,
}

#[derive(Default)]
struct Totals {
    /// Only the fields of `Stats` that are sums over requests are kept here; the rest is filled in on reading.
    stats: Stats,
    cutting_off: bool,
}

/// The counters, shared by everything that handles requests.
#[derive(Clone, Default)]
pub(crate) struct Counters(Arc<Mutex<Totals>>);

impl Counters {
    /// Counts a request in.
    pub(crate) fn open(&self) -> Account {
        let mut totals = lock(&self.0);
        totals.stats.requests_total += 1;
        totals.stats.open += 1;
        Account {
            counters: self.clone(),
            order: totals.stats.requests_total,
            settled: false,
        }
    }

    pub(crate) fn retried(&self, retry: Retry) {
        let mut totals = lock(&self.0);
        let retried = &mut totals.stats.retried;
        *match retry {
            Retry::Connect => &mut retried.connect,
            Retry::Reset => &mut retried.reset,
            Retry::Stale => &mut retried.stale,
        } += 1;
    }

    /// From here on, a request dropped without an outcome was cut off by us and not given up by its client.
    pub(crate) fn cut_off(&self) {
        lock(&self.0).cutting_off = true;
    }

    pub(crate) fn snapshot(&self) -> Stats {
        lock(&self.0).stats.clone()
    }

    fn settle(&self, outcome: Option<Outcome>) {
        let mut totals = lock(&self.0);
        let cutting_off = totals.cutting_off;
        let stats = &mut totals.stats;
        stats.open -= 1;
        let Stats { rejected, failed, .. } = stats;
        *match outcome {
            Some(Outcome::Completed) => &mut stats.completed,
            Some(Outcome::Rejected(refusal)) => match refusal {
                Refusal::QueueFull => &mut rejected.queue_full,
                Refusal::QueueTimeout => &mut rejected.queue_timeout,
                Refusal::NoReplica => &mut rejected.no_replica,
                Refusal::BodyTooLarge => &mut rejected.body_too_large,
                Refusal::BodyTimeout | Refusal::BodyMalformed => &mut rejected.body_bad,
                Refusal::BuffersFull => &mut rejected.buffers_full,
                Refusal::ShuttingDown => &mut rejected.shutting_down,
                Refusal::Method => &mut rejected.method,
            },
            Some(Outcome::Failed(failure)) => match failure {
                Failure::Connect => &mut failed.connect,
                Failure::Reset => &mut failed.reset,
                Failure::BadResponse => &mut failed.bad_response,
                Failure::HeaderTimeout => &mut failed.header_timeout,
                Failure::BodyBroken => &mut failed.body_broken,
                Failure::BodyIdle => &mut failed.body_idle,
            },
            None if cutting_off => &mut failed.cut_off,
            None => &mut stats.client_disconnected,
        } += 1;
    }
}

/// One request's entry in the counters. Dropped without an outcome, its client has gone: hyper drops a request's
/// future and body when the client's connection ends.
pub(crate) struct Account {
    counters: Counters,
    order: u64,
    settled: bool,
}

impl Account {
    /// The request's place in the order of arrival.
    pub(crate) fn order(&self) -> u64 {
        self.order
    }

    pub(crate) fn settle(mut self, outcome: Outcome) {
        self.settled = true;
        self.counters.settle(Some(outcome));
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.settled {
            self.counters.settle(None);
        }
    }
}
