//! What an agent is told at its start, and what it makes of the decider's wishes.

use infer_proto::v1::{PodIdentity, Wanted};
use infer_reader::Mapping;

use crate::Credentials;

/// What the sampler goes by; the decider may wish for other values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Between full scrapes.
    pub interval_ms: u32,
    /// Between cheap looks at the queue; 0 for none.
    pub fast_interval_ms: u32,
    /// How long samples are kept for a decider that starts again.
    pub replay_horizon_ms: u32,
    /// A sample goes out at once when the queue has risen by this many requests since the last one; 0 for never.
    pub wake_on_waiting_rise: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval_ms: 1_000,
            fast_interval_ms: 250,
            replay_horizon_ms: 600_000,
            wake_on_waiting_rise: 4,
        }
    }
}

/// A full scrape costs a Python engine 7 ms of its event loop: five a second is the most a decider may ask for.
const INTERVAL_MS: (u32, u32) = (200, 60_000);
/// A cheap look costs it 1 ms.
const FAST_INTERVAL_MS: (u32, u32) = (50, 60_000);
const REPLAY_HORIZON_MS: (u32, u32) = (10_000, 3_600_000);

impl Settings {
    /// These settings changed by the decider's wishes, within the agent's own limits. 0 means "no wish", except for the
    /// fast interval and the rise, where it means "none". Cheap looks switched off at the start stay off.
    pub fn wished(&self, wanted: &Wanted) -> Self {
        let or_own = |wish: u32, own: u32, (low, high): (u32, u32)| if wish == 0 { own } else { wish.clamp(low, high) };
        let interval_ms = or_own(wanted.interval_ms, self.interval_ms, INTERVAL_MS);
        let fast_interval_ms = if self.fast_interval_ms == 0 || wanted.fast_interval_ms == 0 {
            0
        } else {
            wanted.fast_interval_ms.clamp(FAST_INTERVAL_MS.0, FAST_INTERVAL_MS.1)
        };
        Self {
            interval_ms,
            fast_interval_ms,
            replay_horizon_ms: or_own(wanted.replay_horizon_ms, self.replay_horizon_ms, REPLAY_HORIZON_MS),
            wake_on_waiting_rise: wanted.wake_on_waiting_rise,
        }
    }
}

/// Everything an agent is told at its start. `Default` fits an engine on port 8000 of this machine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Scheme, host and port of the engine, `http://127.0.0.1:8000`.
    pub engine_url: String,
    /// Path of its metrics. None: the mapping's, or `/metrics`.
    pub metrics_path: Option<String>,
    /// The decider's gRPC endpoint, `http://127.0.0.1:9400`, or `https://…` with a CA in `credentials`.
    pub decider: String,
    /// What the decider is trusted by, and what it is shown.
    pub credentials: Credentials,
    /// Who this agent speaks for.
    pub pod: PodIdentity,
    /// Sampling, until the decider wishes otherwise.
    pub settings: Settings,
    /// Longest time for one scrape. None: four fifths of the interval, at most 5 s.
    pub scrape_timeout_ms: Option<u32>,
    /// Larger bodies are cut off and not used.
    pub max_body_bytes: usize,
    /// Bound of the replay buffer, all of it together.
    pub replay_max_bytes: usize,
    /// Longest time for saying goodbye.
    pub drain_ms: u32,
    /// How long an idle engine is not believed to stay idle after a request for `/drain`: until then new requests may
    /// still be on their way to this Pod.
    pub drain_settle_ms: u32,
    /// How to read an engine that the agent does not know.
    pub mapping: Option<Mapping>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine_url: "http://127.0.0.1:8000".into(),
            metrics_path: None,
            decider: "http://127.0.0.1:9400".into(),
            credentials: Credentials::default(),
            pod: PodIdentity::default(),
            settings: Settings::default(),
            scrape_timeout_ms: None,
            max_body_bytes: 16 << 20,
            // 600 s at 1 Hz of a busy engine, see `ReplayLimits::for_settings`.
            replay_max_bytes: 1 << 20,
            drain_ms: 3_000,
            drain_settle_ms: 2_000,
            mapping: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_taken_within_limits() {
        let own = Settings::default();
        let wanted = |interval_ms, fast_interval_ms, replay_horizon_ms, wake_on_waiting_rise| Wanted {
            interval_ms,
            fast_interval_ms,
            replay_horizon_ms,
            wake_on_waiting_rise,
        };
        let settings = |interval_ms, fast_interval_ms, replay_horizon_ms, wake_on_waiting_rise| Settings {
            interval_ms,
            fast_interval_ms,
            replay_horizon_ms,
            wake_on_waiting_rise,
        };
        assert_eq!(
            own.wished(&wanted(2_000, 500, 60_000, 2)),
            settings(2_000, 500, 60_000, 2)
        );
        assert_eq!(own.wished(&wanted(1, 1, 1, 1)), settings(200, 50, 10_000, 1));
        assert_eq!(
            own.wished(&wanted(u32::MAX, 0, u32::MAX, 0)),
            settings(60_000, 0, 3_600_000, 0)
        );
        assert_eq!(own.wished(&wanted(0, 0, 0, 0)), settings(1_000, 0, 600_000, 0));
        let without_fast = Settings {
            fast_interval_ms: 0,
            ..own
        };
        assert_eq!(without_fast.wished(&wanted(1_000, 250, 0, 4)).fast_interval_ms, 0);
    }
}
