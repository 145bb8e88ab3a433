//! What the sampler and the link share. Locks are short and never held across an await.

use std::sync::{Mutex, MutexGuard, PoisonError};

use infer_proto::v1::{Engine, Sample, Wanted, scrape::Outcome};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    Replay, ReplayLimits, Settings,
    clock::Clock,
    drain::{Drain, Look, Seen},
};

pub(crate) struct Shared {
    pub(crate) clock: Clock,
    /// A new sample is in the buffer, or the last one was. One waiter: the link.
    pub(crate) news: Notify,
    /// Read by the sampler, written by the link.
    pub(crate) settings: watch::Sender<Settings>,
    own_settings: Settings,
    replay_max_bytes: usize,
    /// How many wait for the engine to run dry: while there are any, the sampler looks often.
    pub(crate) watchers: watch::Sender<usize>,
    /// The newest look at the engine, full or cheap.
    pub(crate) looks: watch::Sender<Option<Look>>,
    /// A request for `/drain` has come or gone.
    pub(crate) drains: watch::Sender<()>,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) replay: Replay,
    /// As last read; None until the engine has been reached once.
    pub(crate) engine: Option<Engine>,
    /// The sampler has pushed its last sample.
    pub(crate) finished: bool,
    pub(crate) drain: Drain,
    /// Samples by [`Outcome`].
    pub(crate) scrapes: [u64; OUTCOMES],
    /// A decider has answered `Welcome`, and the stream is open.
    pub(crate) connected: bool,
    /// Times a decider answered `Welcome`.
    pub(crate) connections: u64,
    /// Connections that failed or ended, by [`Trouble`].
    pub(crate) troubles: [u64; 3],
}

/// [`Outcome`]s there are.
pub(crate) const OUTCOMES: usize = Outcome::NoEngine as usize + 1;

/// Why there is no stream to a decider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Lost,
    Refused,
    Unauthenticated,
}

impl Trouble {
    pub(crate) const ALL: [Self; 3] = [Self::Lost, Self::Refused, Self::Unauthenticated];

    /// As in the metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

impl Shared {
    pub(crate) fn new(clock: Clock, settings: Settings, replay_max_bytes: usize) -> Self {
        Self {
            clock,
            news: Notify::new(),
            settings: watch::Sender::new(settings),
            own_settings: settings,
            replay_max_bytes,
            watchers: watch::Sender::new(0),
            looks: watch::Sender::new(None),
            drains: watch::Sender::new(()),
            state: Mutex::new(State {
                replay: Replay::new(ReplayLimits::for_settings(&settings, replay_max_bytes)),
                engine: None,
                finished: false,
                drain: Drain::default(),
                scrapes: [0; OUTCOMES],
                connected: false,
                connections: 0,
                troubles: [0; 3],
            }),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Buffers a sample and wakes the link. Returns the sequence number.
    pub(crate) fn push(&self, sample: Sample) -> u64 {
        let outcome = sample.scrape.as_ref().map_or(0, |scrape| scrape.outcome as usize);
        let sequence = {
            let mut state = self.state();
            if let Some(count) = state.scrapes.get_mut(outcome) {
                *count += 1;
            }
            state.replay.push(sample)
        };
        self.news.notify_one();
        sequence
    }

    /// Tells those who wait for the engine to run dry what a look at it showed that began then.
    pub(crate) fn see(&self, begun: Instant, seen: Seen) {
        self.looks.send_replace(Some(Look { begun, seen }));
    }

    /// No more samples will come.
    pub(crate) fn finish(&self) {
        self.state().finished = true;
        self.news.notify_one();
    }

    /// Takes the decider's wishes, within limits.
    pub(crate) fn apply(&self, wanted: &Wanted) {
        let wished = self.own_settings.wished(wanted);
        let changed = self
            .settings
            .send_if_modified(|settings| std::mem::replace(settings, wished) != wished);
        if changed {
            self.state()
                .replay
                .set_limits(ReplayLimits::for_settings(&wished, self.replay_max_bytes));
            tracing::info!(
                interval_ms = wished.interval_ms,
                fast_interval_ms = wished.fast_interval_ms,
                replay_horizon_ms = wished.replay_horizon_ms,
                wake_on_waiting_rise = wished.wake_on_waiting_rise,
                "sampling as the decider wishes"
            );
        }
    }
}

/// Waits until `stop` is true, or forever when nobody can set it any more.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
