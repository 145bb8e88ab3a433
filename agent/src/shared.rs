//! What the sampler and the link share. Locks are short and never held across an await.

use std::sync::{Mutex, MutexGuard, PoisonError};

use infer_proto::v1::{Engine, Sample, Wanted};
use tokio::sync::{Notify, watch};

use crate::{Replay, ReplayLimits, Settings, clock::Clock};

pub(crate) struct Shared {
    pub(crate) clock: Clock,
    /// A new sample is in the buffer, or the last one was. One waiter: the link.
    pub(crate) news: Notify,
    /// Read by the sampler, written by the link.
    pub(crate) settings: watch::Sender<Settings>,
    own_settings: Settings,
    replay_max_bytes: usize,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) replay: Replay,
    /// As last read; None until the engine has been reached once.
    pub(crate) engine: Option<Engine>,
    /// The sampler has pushed its last sample.
    pub(crate) finished: bool,
}

impl Shared {
    pub(crate) fn new(clock: Clock, settings: Settings, replay_max_bytes: usize) -> Self {
        Self {
            clock,
            news: Notify::new(),
            settings: watch::Sender::new(settings),
            own_settings: settings,
            replay_max_bytes,
            state: Mutex::new(State {
                replay: Replay::new(ReplayLimits::for_settings(&settings, replay_max_bytes)),
                engine: None,
                finished: false,
            }),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Buffers a sample and wakes the link. Returns the sequence number.
    pub(crate) fn push(&self, sample: Sample) -> u64 {
        let sequence = self.state().replay.push(sample);
        self.news.notify_one();
        sequence
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
