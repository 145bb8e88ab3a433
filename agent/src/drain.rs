//! Whether this replica is to get no new requests, and when it has run dry.
//!
//! Two may ask for it. The decider does before it scales down, over the stream, and takes it back when the load returns.
//! The Pod does when it ends: the engine's preStop hook asks for `/drain`, and its container is not stopped before the
//! answer.

use std::{sync::Arc, time::Duration};

use infer_proto::v1::{Gauges, scrape::Outcome};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::shared::Shared;

/// Between two looks at the engine while somebody waits for it to run dry.
pub(crate) const LOOK_MS: u32 = 250;
/// Idle so many times in a row is dry. Once is not enough: a request that has been accepted but not yet queued, or answered
/// but not yet sent, is in no gauge.
const IDLE_LOOKS: u32 = 2;
/// Unreachable so many times in a row is gone.
const GONE_LOOKS: u32 = 4;
/// The engine needs some time for its own end, between the answer to `/drain` and the end of the grace period.
const RESERVE: Duration = Duration::from_secs(5);
/// A decider's word to drain holds for so long after the stream to it has ended. A standby takes over in a few seconds and
/// says it again; a decider that is gone must not keep a Pod out of service.
const LAPSES_AFTER: Duration = Duration::from_secs(60);
/// In a Pod whose agent is an ordinary container, SIGTERM comes at the same time as the engine's preStop hook runs: so long
/// the agent waits for `/drain` while the engine is there.
const PRE_STOP_WITHIN: Duration = Duration::from_secs(2);

/// What one look at the engine showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Neither running nor waiting requests.
    Idle,
    Busy,
    /// Nobody listens there.
    Gone,
    /// No answer, or one that does not tell.
    Unknown,
}

impl Seen {
    pub(crate) fn in_gauges(gauges: &Gauges) -> Self {
        let numbers = [gauges.running, gauges.waiting, gauges.in_flight];
        if numbers.iter().flatten().any(|&number| number > 0.0) {
            Self::Busy
        } else if (gauges.running.is_some() && gauges.waiting.is_some()) || gauges.in_flight.is_some() {
            Self::Idle
        } else {
            Self::Unknown
        }
    }

    pub(crate) fn in_failure(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Unreachable => Self::Gone,
            _ => Self::Unknown,
        }
    }
}

/// The newest look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) begun: Instant,
    pub(crate) seen: Seen,
}

/// Who wants this replica drained.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    /// The decider, and its reason.
    decider: Option<String>,
    /// Said on this connection. A decider says it again after each Welcome, before its first Ack.
    confirmed: bool,
    /// Since when no decider is connected.
    alone_since: Option<Instant>,
    /// The Pod, until its grace period is over.
    pod_until: Option<Instant>,
    /// Requests for `/drain` without an answer yet.
    waiting: usize,
    /// Requests for `/drain` answered, by [`Answer`].
    pub(crate) answered: [u64; 3],
}

impl Drain {
    /// Why this replica is to get no new requests; `None` when it may.
    pub(crate) fn reason(&self, now: Instant) -> Option<&str> {
        if self.pod_until.is_some_and(|until| now < until) {
            return Some("the Pod is being stopped");
        }
        let lapsed = self.alone_since.is_some_and(|since| now - since >= LAPSES_AFTER);
        self.decider.as_deref().filter(|_| !lapsed)
    }

    /// The decider's word; `None`: the replica is to stay.
    pub(crate) fn decider_says(&mut self, reason: Option<String>) {
        self.confirmed = true;
        match (&self.decider, &reason) {
            (None, Some(reason)) => tracing::info!(%reason, "draining: the decider wishes it"),
            (Some(_), None) => tracing::info!("not draining any more: the decider wishes it"),
            _ => {}
        }
        self.decider = reason;
    }

    pub(crate) fn connected(&mut self) {
        self.confirmed = false;
        self.alone_since = None;
    }

    pub(crate) fn disconnected(&mut self, now: Instant) {
        self.alone_since.get_or_insert(now);
    }

    /// What the decider had to say before its first acknowledgement has been said: what it has not, no longer holds.
    pub(crate) fn acknowledged(&mut self) {
        if !std::mem::replace(&mut self.confirmed, true) && self.decider.take().is_some() {
            tracing::info!("not draining any more: the decider does not know of it");
        }
    }

    /// A preStop hook runs also before a container is restarted in a Pod that stays.
    pub(crate) fn engine_restarted(&mut self) {
        if self.pod_until.take().is_some() {
            tracing::info!("not draining any more: the engine has been started again");
        }
    }
}

/// How a wait for the engine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Dry,
    Gone,
    /// The grace period is nearly over.
    OutOfTime,
}

impl Answer {
    pub(crate) const ALL: [Self; 3] = [Self::Dry, Self::Gone, Self::OutOfTime];

    /// As in the metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dry => "dry",
            Self::Gone => "gone",
            Self::OutOfTime => "out_of_time",
        }
    }
}

/// Makes the sampler look often for as long as it lives.
pub(crate) struct Watching(Arc<Shared>);

impl Watching {
    pub(crate) fn begin(shared: &Arc<Shared>) -> Self {
        shared.watchers.send_modify(|watchers| *watchers += 1);
        Self(shared.clone())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watchers.send_modify(|watchers| *watchers -= 1);
    }
}

/// One request for `/drain`, from its arrival to its answer or its cancellation.
struct Waiting(Arc<Shared>);

impl Waiting {
    fn begin(shared: &Arc<Shared>, until: Instant) -> Self {
        let drain = &mut shared.state().drain;
        drain.waiting += 1;
        drain.pod_until = drain.pod_until.max(Some(until));
        Self(shared.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.state().drain.waiting -= 1;
        self.0.drains.send_modify(|()| {});
    }
}

/// Marks the Pod as draining and waits until the engine has run dry, or until shortly before `grace` is over.
///
/// `settle` must have passed before an idle engine is believed: until then the Pod may still be somebody's endpoint.
pub(crate) async fn run_dry(shared: &Arc<Shared>, grace: Duration, settle: Duration) -> Answer {
    let begun = Instant::now();
    let _waiting = Waiting::begin(shared, begun + grace);
    let _watching = Watching::begin(shared);
    shared.drains.send_modify(|()| {});
    tracing::info!(grace_s = grace.as_secs(), "draining: the Pod is being stopped");
    let until = begun + (grace - RESERVE.min(grace / 2));
    let answer = look_until_dry(shared, begun + settle, until).await;
    tracing::info!(
        answer = answer.name(),
        waited_ms = begun.elapsed().as_millis() as u64,
        "drained"
    );
    shared.state().drain.answered[answer as usize] += 1;
    answer
}

async fn look_until_dry(shared: &Shared, believed_from: Instant, until: Instant) -> Answer {
    let mut looks = shared.looks.subscribe();
    let (mut idle, mut gone) = (0, 0);
    loop {
        match timeout_at(until, looks.changed()).await {
            Ok(Ok(())) => {}
            // Also when nobody looks any more.
            Ok(Err(_)) | Err(_) => return Answer::OutOfTime,
        }
        let Some(Look { begun, seen }) = *looks.borrow_and_update() else {
            continue;
        };
        gone = if seen == Seen::Gone { gone + 1 } else { 0 };
        idle = if seen == Seen::Idle && begun >= believed_from {
            idle + 1
        } else {
            0
        };
        if gone >= GONE_LOOKS {
            return Answer::Gone;
        }
        if idle >= IDLE_LOOKS {
            return Answer::Dry;
        }
    }
}

/// Between SIGTERM and the goodbye: until nobody needs this agent any more.
///
/// As a native sidecar it is told to stop after the engine has ended: at once. As an ordinary container it is told
/// together with the engine, whose preStop hook is about to ask for `/drain`, or has: not before that is answered.
pub(crate) async fn linger(shared: &Arc<Shared>) {
    let told = Instant::now();
    let _watching = Watching::begin(shared);
    let mut looks = shared.looks.subscribe();
    let mut drains = shared.drains.subscribe();
    let mut asked = false;
    loop {
        drains.borrow_and_update();
        if shared.state().drain.waiting > 0 {
            if !asked {
                tracing::info!("asked to stop in the middle of a drain: that comes first");
            }
            asked = true;
            // The sender is in `shared`.
            let _ = drains.changed().await;
            continue;
        }
        let is_gone = looks
            .borrow_and_update()
            .is_some_and(|look| look.begun >= told && look.seen == Seen::Gone);
        if asked || is_gone {
            return;
        }
        tokio::select! {
            _ = looks.changed() => {}
            _ = drains.changed() => {}
            () = sleep_until(told + PRE_STOP_WITHIN) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deciders_word_holds_until_it_is_taken_back_or_not_repeated_or_lapses() {
        let start = Instant::now();
        let later = |s| start + Duration::from_secs(s);
        let mut drain = Drain::default();
        drain.connected();
        drain.acknowledged();
        assert_eq!(drain.reason(start), None);
        drain.decider_says(Some("3 → 2".into()));
        drain.acknowledged();
        assert_eq!(drain.reason(later(900)), Some("3 → 2"));

        drain.disconnected(later(10));
        drain.disconnected(later(50));
        assert_eq!(
            drain.reason(later(69)),
            Some("3 → 2"),
            "a standby has time to take over"
        );
        assert_eq!(drain.reason(later(70)), None, "a decider that is gone keeps nobody out");

        drain.connected();
        assert_eq!(drain.reason(later(71)), Some("3 → 2"), "nothing said yet");
        drain.decider_says(Some("still".into()));
        drain.acknowledged();
        assert_eq!(drain.reason(later(72)), Some("still"));

        drain.connected();
        drain.acknowledged();
        assert_eq!(drain.reason(later(73)), None, "the new one does not know of it");
        drain.decider_says(Some("again".into()));
        drain.decider_says(None);
        assert_eq!(drain.reason(later(74)), None);
    }

    #[test]
    fn what_is_not_known_is_not_idle() {
        let gauges = |running, waiting, in_flight| Gauges {
            running,
            waiting,
            in_flight,
            ..Gauges::default()
        };
        for (gauges, seen) in [
            (gauges(Some(0.0), Some(0.0), None), Seen::Idle),
            (gauges(Some(1.0), Some(0.0), None), Seen::Busy),
            (gauges(Some(0.0), Some(2.0), None), Seen::Busy),
            (gauges(Some(0.0), Some(0.0), Some(1.0)), Seen::Busy),
            (gauges(None, None, Some(0.0)), Seen::Idle),
            (gauges(Some(0.0), None, None), Seen::Unknown),
            (gauges(None, Some(0.0), None), Seen::Unknown),
            (gauges(None, None, None), Seen::Unknown),
        ] {
            assert_eq!(Seen::in_gauges(&gauges), seen, "{gauges:?}");
        }
        assert_eq!(Seen::in_failure(Outcome::Unreachable), Seen::Gone);
        for outcome in [Outcome::Timeout, Outcome::HttpStatus, Outcome::NoEngine] {
            assert_eq!(Seen::in_failure(outcome), Seen::Unknown, "{outcome:?}");
        }
    }
}
