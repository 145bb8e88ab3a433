//! One replica: what the backend says of it, who speaks for it, what it last said.

use serde::{Deserialize, Serialize};

use crate::{
    TimeMs,
    sample::{Counters, Gauges, Sample},
    target::Observed,
};

/// A sample is fresh for this many of its own intervals…
const FRESH_INTERVALS: i64 = 3;
/// … and for at least this long, so that one lost second of a fast reporter is not an alarm.
const FRESH_MS_MIN: i64 = 3000;
/// … and never longer, unless the reporter's pace is slower: a sample that covers a long outage says no more about the
/// present than any other.
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
    /// When that boot first spoke for it.
    claimed: Option<TimeMs>,
    last_sequence: u64,
    /// Length of the shorter of the last two good samples: an outage makes one long, a slow reporter both.
    pace_ms: i64,
    /// Whether the last sample was a good one.
    good: bool,
    /// When each gauge (running, waiting, KV usage) was last told.
    gauges_told: [Option<TimeMs>; 3],
    /// When each counter was last told, in the order of [`Counters::NAMES`].
    counters_told: [Option<TimeMs>; Counters::NAMES.len()],
}

impl PodState {
    pub(super) fn new(view: PodView) -> Self {
        PodState {
            view,
            latest: None,
            last_sample: None,
            boot: None,
            claimed: None,
            last_sequence: 0,
            pace_ms: 0,
            good: false,
            gauges_told: [None; 3],
            counters_told: [None; Counters::NAMES.len()],
        }
    }

    pub(super) fn claim(&mut self, boot: Boot, now: TimeMs) -> Claim {
        // A boot that has gone silent gives way to any other: a replica must not stay unread because the clock was set
        // back, or because the later of two agents has died for good.
        let heard = self.last_sample.max(self.claimed);
        let alive = heard.is_some_and(|heard| now.0 - heard.0 <= FRESH_MS_MAX);
        match &self.boot {
            Some(known) if known.id == boot.id => Claim::Granted {
                resume_after: self.last_sequence,
                replaces: None,
            },
            Some(known) if alive && known.started_unix_ms > boot.started_unix_ms => {
                Claim::Superseded { by: known.id.clone() }
            }
            _ => {
                let replaces = self.boot.replace(boot).map(|known| known.id);
                self.claimed = Some(now);
                self.last_sequence = 0;
                Claim::Granted {
                    resume_after: 0,
                    replaces,
                }
            }
        }
    }

    pub(super) fn admit(&mut self, boot_id: &str, sample: &Sample) -> Observed {
        match &self.boot {
            // Another replica has the name now: nobody speaks for that one yet.
            None => return Observed::UnknownPod,
            Some(boot) if boot.id != boot_id => return Observed::Superseded,
            Some(_) => {}
        }
        if sample.sequence <= self.last_sequence {
            return Observed::Duplicate;
        }
        // The first sample of a boot may have any number: what came before it was dropped by the agent as too old.
        let missing = if self.last_sequence == 0 {
            0
        } else {
            sample.sequence - self.last_sequence - 1
        };
        self.last_sequence = sample.sequence;
        let mut queue_rose = false;
        // Numbers ascend within a boot, so this is the newest, whatever a corrected clock offset makes of its time.
        self.last_sample = Some(sample.end);
        self.good = sample.gauges.is_some();
        for (counter, told) in self.counters_told.iter_mut().enumerate() {
            if self.good && sample.counters.is_known(counter) {
                *told = Some(sample.end);
            }
        }
        if let Some(gauges) = sample.gauges {
            let before = self
                .latest
                .as_ref()
                .and_then(|latest| latest.gauges.waiting)
                .unwrap_or(0.0);
            queue_rose = gauges.waiting.is_some_and(|waiting| waiting > before);
            let interval_before_ms = self.latest.as_ref().map_or(0, |latest| latest.interval_ms);
            self.pace_ms = i64::from(interval_before_ms.min(sample.interval_ms));
            let gauges = self.complete(gauges, sample.end);
            self.latest = Some(Latest {
                at: sample.end,
                interval_ms: sample.interval_ms,
                gauges,
            });
        }
        Observed::Applied { missing, queue_rose }
    }

    /// A cheap look tells some gauges only; the others are what they were last, for as long as that says anything.
    fn complete(&mut self, mut gauges: Gauges, end: TimeMs) -> Gauges {
        let last = self.latest.as_ref().map(|latest| latest.gauges).unwrap_or_default();
        let oldest_ms = self.oldest_ms();
        let parts = [
            (&mut gauges.running, last.running),
            (&mut gauges.waiting, last.waiting),
            (&mut gauges.kv_usage, last.kv_usage),
        ];
        for ((gauge, last), told) in parts.into_iter().zip(&mut self.gauges_told) {
            if gauge.is_some() {
                *told = Some(end);
            } else if told.is_some_and(|told| end.0.saturating_sub(told.0) <= oldest_ms) {
                *gauge = last;
            }
        }
        gauges
    }

    /// When it last told the counter at this position in [`Counters::NAMES`]; `None` when that is too long ago.
    pub(super) fn counter_told(&self, counter: usize, now: TimeMs) -> Option<TimeMs> {
        self.counters_told[counter].filter(|told| now.0.saturating_sub(told.0) <= self.oldest_ms())
    }

    /// What was told longer ago says nothing about the present: the reporter is overdue by far.
    fn oldest_ms(&self) -> i64 {
        FRESH_MS_MAX.max(self.pace_ms + self.pace_ms / 4)
    }

    /// Whether its last sample says anything about `at`, a time before it.
    pub(super) fn covers(&self, at: TimeMs) -> bool {
        self.latest.as_ref().is_some_and(|latest| {
            latest
                .at
                .0
                .saturating_sub(i64::from(latest.interval_ms).max(FRESH_MS_MIN))
                < at.0
        })
    }

    /// Whether its last sample is a good one and young enough.
    pub fn is_fresh(&self, now: TimeMs) -> bool {
        let Some(latest) = self.latest.as_ref().filter(|_| self.good) else {
            return false;
        };
        let lifetime_ms = (FRESH_INTERVALS * i64::from(latest.interval_ms)).clamp(FRESH_MS_MIN, self.oldest_ms());
        now.0.saturating_sub(latest.at.0) <= lifetime_ms
    }

    /// The boot that speaks for it.
    pub(super) fn boot(&self) -> Option<&Boot> {
        self.boot.as_ref()
    }

    /// Whether it began to serve so lately that its first sample may be on its way.
    pub fn is_new(&self, now: TimeMs) -> bool {
        // A backend's clock may be off; far in the future is not lately.
        let lately = |since: TimeMs| now.0.abs_diff(since.0) < FRESH_MS_MIN.unsigned_abs();
        self.latest.is_none() && self.view.ready_since.is_some_and(lately)
    }
}
