//! One replica: what the backend says of it, who speaks for it, what it last said.

use serde::{Deserialize, Serialize};

use crate::{
    TimeMs,
    sample::{Gauges, Sample},
    target::Observed,
};

/// A sample is fresh for this many of its own intervals…
const FRESH_INTERVALS: i64 = 3;
/// … and for at least this long, so that one lost second of a fast reporter is not an alarm.
const FRESH_MS_MIN: i64 = 3000;
/// … and never longer: a sample that covers a long outage says no more about the present than any other.
const FRESH_MS_MAX: i64 = 15_000;

/// Where a replica is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Created, not serving yet.
    Starting,
    /// Serving.
    Ready,
    /// No new requests; finishing the last ones.
    Draining,
    /// Crashed, waiting to be started again.
    Failed,
}

impl Phase {
    /// "starting", "ready", "draining" or "failed".
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
            Phase::Failed => "failed",
        }
    }
}

/// A replica as its backend sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Unique within the target at any time.
    pub name: String,
    /// Unique for good.
    pub uid: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when it serves.
    pub ready_since: Option<TimeMs>,
}

/// One run of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Random.
    pub id: String,
    /// Wall clock of the agent; only compared between boots of one replica.
    pub started_unix_ms: i64,
}

/// Answer to an agent that says it speaks for a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It does; send samples after this sequence number.
    Granted {
        /// Last one applied of this boot.
        resume_after: u64,
        /// The boot that it takes the place of, where that is another one.
        replaces: Option<String>,
    },
    /// A later boot speaks for it.
    Superseded {
        /// That boot.
        by: String,
    },
    /// No such replica (any more, or yet).
    UnknownPod,
}

/// The last good look at a replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Latest {
    /// End of the sample.
    pub at: TimeMs,
    /// Its length.
    pub interval_ms: u32,
    /// What it said.
    pub gauges: Gauges,
}

/// State of one replica.
#[derive(Debug, Clone)]
pub struct PodState {
    /// What the backend says.
    pub view: PodView,
    /// The last sample with gauges.
    pub latest: Option<Latest>,
    /// End of the last sample, good or not.
    pub last_sample: Option<TimeMs>,
    boot: Option<Boot>,
    last_sequence: u64,
    /// Whether the last sample was a good one.
    good: bool,
}

impl PodState {
    pub(super) fn new(view: PodView) -> Self {
        PodState { view, latest: None, last_sample: None, boot: None, last_sequence: 0, good: false }
    }

    pub(super) fn claim(&mut self, boot: Boot) -> Claim {
        match &self.boot {
            Some(known) if known.id == boot.id => {
                Claim::Granted { resume_after: self.last_sequence, replaces: None }
            }
            Some(known) if known.started_unix_ms > boot.started_unix_ms => {
                Claim::Superseded { by: known.id.clone() }
            }
            _ => {
                let replaces = self.boot.replace(boot).map(|known| known.id);
                self.last_sequence = 0;
                Claim::Granted { resume_after: 0, replaces }
            }
        }
    }

    pub(super) fn admit(&mut self, boot_id: &str, sample: &Sample) -> Observed {
        if self.boot.as_ref().is_none_or(|boot| boot.id != boot_id) {
            return Observed::Superseded;
        }
        if sample.sequence <= self.last_sequence {
            return Observed::Duplicate;
        }
        // The first sample of a boot may have any number: what came before it was dropped by the agent as too old.
        let missing = if self.last_sequence == 0 { 0 } else { sample.sequence - self.last_sequence - 1 };
        self.last_sequence = sample.sequence;
        let mut queue_rose = false;
        if self.last_sample.is_none_or(|last| sample.end >= last) {
            self.last_sample = Some(sample.end);
            self.good = sample.gauges.is_some();
            if let Some(gauges) = sample.gauges {
                let before = self.latest.as_ref().and_then(|latest| latest.gauges.waiting).unwrap_or(0.0);
                queue_rose = gauges.waiting.is_some_and(|waiting| waiting > before);
                self.latest = Some(Latest { at: sample.end, interval_ms: sample.interval_ms, gauges });
            }
        }
        Observed::Applied { missing, queue_rose }
    }

    /// Whether its last sample is a good one and young enough.
    pub fn is_fresh(&self, now: TimeMs) -> bool {
        let Some(latest) = self.latest.as_ref().filter(|_| self.good) else { return false };
        let lifetime_ms = (FRESH_INTERVALS * i64::from(latest.interval_ms)).clamp(FRESH_MS_MIN, FRESH_MS_MAX);
        now.0 - latest.at.0 <= lifetime_ms
    }

    /// Whether it began to serve so lately that its first sample may be on its way.
    pub fn is_new(&self, now: TimeMs) -> bool {
        let young = self.view.ready_since.is_some_and(|since| now.0 - since.0 < FRESH_MS_MIN);
        self.latest.is_none() && young
    }

    /// The boot that speaks for it.
    pub fn boot(&self) -> Option<&Boot> {
        self.boot.as_ref()
    }
}
