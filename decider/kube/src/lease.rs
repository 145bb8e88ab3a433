//! Who owns a shard: a lease as a pure state machine.
//!
//! The rules are those of client-go's leader election, and the reasons are these:
//!
//! * Clocks of different machines are never compared. A lease of somebody else has run out when its record has not
//!   changed for its duration **as seen from here**, by a clock that only goes forward. `renewTime` is for people.
//! * A write takes effect only if the record is still the one that was seen (`resourceVersion`), so of two that want a
//!   lease one gets it, and one that was away cannot come back with what it knew then.
//! * The owner counts from the moment it **sent** the renewal that succeeded, and stops a margin before the duration is
//!   over. Whoever takes the lease counts from when it saw that renewal, which is later, and waits the whole duration.
//!   So there is never a moment with two owners, whatever is delayed or paused, while clocks run within 5 % of each
//!   other ([`Timing::default`]).
//!
//! What this cannot give: an owner that is paused between asking [`Lease::is_mine`] and acting on it. Acts are therefore
//! guarded a second time, by the `resourceVersion` of what they change.

use std::time::Duration;

/// Time since a moment of this process's own choice, by a clock that never goes back.
pub type Now = Duration;

/// Pace of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait before they take it, whole seconds.
    pub duration: Duration,
    /// From one renewal to the next.
    pub renew: Duration,
    /// So much earlier than the duration the owner stops.
    pub margin: Duration,
    /// From a failed try to the next.
    pub retry: Duration,
}

impl Default for Timing {
    /// A killed owner is followed after 2 to 3 s, so that with agents coming back and a tick the first decision is made
    /// within 5 s. An API server that is slower than 1.5 s makes the owner stop for a moment, no more: nobody can
    /// take the lease of it then either.
    fn default() -> Self {
        Timing {
            duration: Duration::from_secs(3),
            renew: Duration::from_secs(1),
            margin: Duration::from_millis(500),
            retry: Duration::from_millis(250),
        }
    }
}

/// What a Lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who; empty: nobody.
    pub holder: String,
    /// Where the holder is reached.
    pub endpoint: String,
    /// How long others have to wait.
    pub duration: Duration,
    /// How often it has gone from one to another.
    pub transitions: u32,
    /// `resourceVersion`; empty in a record yet to be written.
    pub version: String,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Get the record and call [`Lease::observe`].
    Read,
    /// Write it and call [`Lease::wrote`].
    Write(Write),
    /// Nothing before then, or before something is observed.
    Wait(Now),
}

/// A write to be made: create when `expect` is `None`, else replace that version and no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// What to write.
    pub record: Record,
    /// The version that it takes the place of.
    pub expect: Option<String>,
    /// When it was asked for.
    pub started: Now,
    /// Whether the holder changes with it.
    pub takes: bool,
}

/// What came of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrote {
    /// It took effect, and this is the version now.
    Done(String),
    /// There is another version.
    Conflict,
    /// Nobody knows: no answer, or an error of the server.
    Failed,
}

#[derive(Debug, Clone)]
struct Seen {
    /// `None`: there is no such Lease.
    record: Option<Record>,
    /// When it was first seen as it is.
    since: Now,
    /// No record, where there was one: its holder may not know yet that somebody has deleted it.
    was_deleted: bool,
}

/// One lease, from one candidate's point of view.
#[derive(Debug, Clone)]
pub struct Lease {
    timing: Timing,
    me: String,
    endpoint: String,
    seen: Option<Seen>,
    /// Own until then, by own clock.
    mine_until: Option<Now>,
    /// Start of the renewal that counts.
    renewed_at: Now,
    /// No requests before then.
    quiet_until: Now,
    /// Failures in a row.
    failures: u32,
    /// What was seen is known to be old.
    stale: bool,
    released: bool,
}

impl Lease {
    /// A lease that nothing is known of. `me` must be unique among all processes there ever are.
    pub fn new(timing: Timing, me: &str, endpoint: &str) -> Self {
        Lease {
            timing,
            me: me.to_owned(),
            endpoint: endpoint.to_owned(),
            seen: None,
            mine_until: None,
            renewed_at: Duration::ZERO,
            quiet_until: Duration::ZERO,
            failures: 0,
            stale: false,
            released: false,
        }
    }

    /// Whether this candidate is the owner at `now`.
    pub fn is_mine(&self, now: Now) -> bool {
        self.mine_until.is_some_and(|until| now < until)
    }

    /// Until when it is the owner if nothing more is heard.
    pub fn mine_until(&self) -> Option<Now> {
        self.mine_until
    }

    /// The last record seen.
    pub fn record(&self) -> Option<&Record> {
        self.seen.as_ref()?.record.as_ref()
    }

    /// Whether anything has been seen.
    pub fn is_seen(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether it was given up.
    pub fn is_released(&self) -> bool {
        self.released
    }

    /// Whether the last record seen names this candidate.
    pub fn is_named(&self) -> bool {
        self.record().is_some_and(|record| record.holder == self.me)
    }

    /// Whether the last record seen names somebody else whose time is not over at `now`.
    pub fn is_others(&self, now: Now) -> bool {
        self.seen.as_ref().is_some_and(|seen| {
            seen.record.as_ref().is_some_and(|record| {
                !record.holder.is_empty() && record.holder != self.me && now < self.runs_out(seen.since, record)
            })
        })
    }

    /// A record was read or told by a watch; `None`: there is none.
    pub fn observe(&mut self, now: Now, record: Option<Record>) {
        let known = self.seen.as_ref().and_then(|seen| seen.record.as_ref());
        if let (Some(new), Some(known)) = (&record, known)
            && is_older(&new.version, &known.version)
        {
            return;
        }
        self.stale = false;
        self.failures = 0;
        let is_new = self.seen.as_ref().is_none_or(|seen| seen.record != record);
        if !is_new {
            return;
        }
        if record.as_ref().is_none_or(|record| record.holder != self.me) {
            self.mine_until = None;
        }
        let was_deleted = record.is_none() && known.is_some();
        self.seen = Some(Seen {
            record,
            since: now,
            was_deleted,
        });
    }

    /// What to do now. `hesitation` is how long a lease that is free is left to others.
    pub fn step(&self, now: Now, hesitation: Duration) -> Step {
        if self.released {
            return Step::Wait(Now::MAX);
        }
        if now < self.quiet_until {
            return Step::Wait(self.quiet_until);
        }
        let Some(seen) = self.seen.as_ref().filter(|_| !self.stale) else {
            return Step::Read;
        };
        let Some(record) = &seen.record else {
            let pause = if seen.was_deleted {
                self.timing.duration
            } else {
                hesitation
            };
            return match seen.since.saturating_add(pause) {
                due if now < due => Step::Wait(due),
                _ => self.write(now, None, 0, true),
            };
        };
        let version = Some(record.version.clone());
        if record.holder == self.me {
            let due = match self.mine_until {
                Some(_) => self.renewed_at.saturating_add(self.timing.renew),
                None => now,
            };
            return match now < due {
                true => Step::Wait(due),
                false => self.write(now, version, record.transitions, false),
            };
        }
        let due = match record.holder.is_empty() {
            true => seen.since.saturating_add(hesitation),
            false => self.runs_out(seen.since, record),
        };
        match now < due {
            true => Step::Wait(due),
            false => self.write(now, version, record.transitions.saturating_add(1), true),
        }
    }

    /// What came of `write`.
    pub fn wrote(&mut self, now: Now, write: &Write, result: Wrote) {
        match result {
            Wrote::Done(version) => {
                self.failures = 0;
                let known = self.record().map(|record| record.version.clone());
                if known.is_some_and(|known| is_older(&version, &known)) {
                    return;
                }
                let record = Record {
                    version,
                    ..write.record.clone()
                };
                let is_me = record.holder == self.me && !self.released;
                self.seen = Some(Seen {
                    record: Some(record),
                    since: now,
                    was_deleted: false,
                });
                self.stale = false;
                self.renewed_at = write.started;
                let until = write
                    .started
                    .saturating_add(self.timing.duration.saturating_sub(self.timing.margin));
                self.mine_until = is_me.then_some(until);
            }
            Wrote::Conflict => self.stale = true,
            // It may have taken effect. If so the next try finds another version, and reads.
            Wrote::Failed => self.failed(now),
        }
    }

    /// Reading failed.
    pub fn failed_to_read(&mut self, now: Now) {
        self.failed(now);
    }

    /// The first tries come fast, as there is a lease to lose; then every eight times as long.
    fn failed(&mut self, now: Now) {
        let pause = self.timing.retry.saturating_mul(1 << self.failures.min(3));
        self.failures = self.failures.saturating_add(1);
        self.quiet_until = now.saturating_add(pause);
    }

    /// Stops being the owner, for good, and says what to write so that nobody has to wait.
    pub fn release(&mut self, now: Now) -> Option<Write> {
        self.released = true;
        self.mine_until = None;
        let record = self.record().filter(|record| record.holder == self.me)?;
        let mut write = self.as_write(now, Some(record.version.clone()), record.transitions, true);
        write.record.holder.clear();
        write.record.endpoint.clear();
        write.record.duration = Duration::from_secs(1);
        Some(write)
    }

    fn write(&self, now: Now, expect: Option<String>, transitions: u32, takes: bool) -> Step {
        Step::Write(self.as_write(now, expect, transitions, takes))
    }

    fn as_write(&self, now: Now, expect: Option<String>, transitions: u32, takes: bool) -> Write {
        Write {
            record: Record {
                holder: self.me.clone(),
                endpoint: self.endpoint.clone(),
                duration: self.timing.duration,
                transitions,
                version: String::new(),
            },
            expect,
            started: now,
            takes,
        }
    }

    /// The longer of the two durations: its holder may think it has the one, and we would have the other.
    fn runs_out(&self, since: Now, record: &Record) -> Now {
        since.saturating_add(record.duration.max(self.timing.duration))
    }
}

/// `resourceVersion`s of one object grow. Texts that are no numbers are taken as new.
pub(crate) fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
