//! When what is written: each object seldom, all together not too often, nothing for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Time since a moment of the caller's choice.
pub(super) type Now = Duration;

/// Pace of writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Between two writes of one object.
    pub(super) interval: Duration,
    /// Writes in all, on average.
    pub(super) per_s: f64,
    /// Writes in all, at once.
    pub(super) burst: f64,
    /// Writes under way at a time.
    pub(super) at_once: usize,
}

#[derive(Debug, Default)]
struct Entry {
    /// To be written, since then.
    dirty_since: Option<Now>,
    is_urgent: bool,
    not_before: Now,
    is_under_way: bool,
    /// Nobody is interested in how the write under way ends.
    is_forgotten: bool,
}

/// Which objects wait to be written. Purely a matter of names and times.
#[derive(Debug)]
pub(super) struct Pace<K> {
    limits: Limits,
    entries: BTreeMap<K, Entry>,
    /// Those that are dirty and not under way: all that has to be looked at.
    waiting: BTreeSet<K>,
    under_way: usize,
    tokens: f64,
    filled_at: Now,
}

impl<K: Clone + Ord> Pace<K> {
    pub(super) fn new(limits: Limits) -> Self {
        Pace {
            tokens: limits.burst,
            limits,
            entries: BTreeMap::new(),
            waiting: BTreeSet::new(),
            under_way: 0,
            filled_at: Duration::ZERO,
        }
    }

    /// The object is to be written. An urgent one goes before those that are not.
    pub(super) fn mark(&mut self, key: &K, is_urgent: bool, now: Now) {
        let entry = self.entries.entry(key.clone()).or_default();
        entry.dirty_since.get_or_insert(now);
        entry.is_urgent |= is_urgent;
        entry.is_forgotten = false;
        if !entry.is_under_way {
            self.waiting.insert(key.clone());
        }
    }

    /// The object is of no interest any more. A write under way ends as it will.
    pub(super) fn forget(&mut self, key: &K) {
        self.waiting.remove(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.dirty_since = None;
            entry.is_forgotten = true;
            if !entry.is_under_way {
                self.entries.remove(key);
            }
        }
    }

    /// What to write now; each must be answered by [`Pace::done`].
    pub(super) fn due(&mut self, now: Now) -> Vec<K> {
        let elapsed = now.saturating_sub(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.limits.per_s).min(self.limits.burst);
        self.filled_at = now;
        let mut ready: Vec<(bool, Now, &K)> = self
            .waiting
            .iter()
            .filter_map(|key| {
                let entry = self.entries.get(key)?;
                let since = entry.dirty_since.filter(|_| entry.not_before <= now)?;
                Some((!entry.is_urgent, since, key))
            })
            .collect();
        ready.sort();
        // A little more than whole: what floating point has lost must not cost a token.
        let allowed = (self.tokens + 1e-6) as usize;
        let room = self.limits.at_once.saturating_sub(self.under_way).min(allowed);
        let chosen: Vec<K> = ready.into_iter().take(room).map(|(.., key)| key.clone()).collect();
        for key in &chosen {
            self.waiting.remove(key);
            if let Some(entry) = self.entries.get_mut(key) {
                entry.dirty_since = None;
                entry.is_urgent = false;
                entry.is_under_way = true;
                entry.not_before = now + self.limits.interval;
            }
        }
        self.under_way += chosen.len();
        self.tokens -= chosen.len() as f64;
        chosen
    }

    /// A write has ended. `again_in`: it has failed, and is to be tried again after this time.
    pub(super) fn done(&mut self, key: &K, again_in: Option<Duration>, now: Now) {
        self.under_way = self.under_way.saturating_sub(1);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.is_under_way = false;
        if entry.is_forgotten {
            self.entries.remove(key);
            return;
        }
        if let Some(pause) = again_in {
            entry.dirty_since.get_or_insert(now);
            entry.not_before = entry.not_before.max(now + pause);
        }
        if entry.dirty_since.is_some() {
            self.waiting.insert(key.clone());
        }
    }

    /// When [`Pace::due`] has something to say, if nothing happens before.
    pub(super) fn next_at(&self, now: Now) -> Option<Now> {
        if self.under_way >= self.limits.at_once {
            return None;
        }
        let entries = self.waiting.iter().filter_map(|key| self.entries.get(key));
        let first = entries.map(|entry| entry.not_before).min()?;
        let missing = (1.0 - self.tokens).max(0.0) / self.limits.per_s.max(1e-3);
        Some(first.max(now).max(self.filled_at + Duration::from_secs_f64(missing)))
    }

    /// Nothing had to be written after all: as if it had not been chosen.
    pub(super) fn unneeded(&mut self, key: &K) {
        self.under_way = self.under_way.saturating_sub(1);
        self.tokens += 1.0;
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.is_under_way = false;
        entry.not_before = Duration::ZERO;
        if entry.dirty_since.is_some() {
            self.waiting.insert(key.clone());
        }
    }

    /// Whether anything waits or is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.under_way == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        interval: Duration::from_secs(1),
        per_s: 10.0,
        burst: 5.0,
        at_once: 3,
    };

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn changes_within_the_interval_are_one_write() {
        let mut pace = Pace::new(LIMITS);
        pace.mark(&"a", false, ms(0));
        assert_eq!(pace.due(ms(0)), ["a"]);
        for at in [10, 200, 700] {
            pace.mark(&"a", false, ms(at));
            assert!(pace.due(ms(at)).is_empty(), "under way");
        }
        pace.done(&"a", None, ms(800));
        assert_eq!(pace.next_at(ms(800)), Some(ms(1000)));
        assert!(pace.due(ms(999)).is_empty());
        assert_eq!(pace.due(ms(1000)), ["a"]);
        pace.done(&"a", None, ms(1100));
        assert!(pace.is_idle());
        assert_eq!(pace.next_at(ms(1100)), None);
    }

    #[test]
    fn decisions_go_first_and_the_rest_in_the_order_of_their_waiting() {
        let mut pace = Pace::new(Limits { at_once: 2, ..LIMITS });
        for (at, key, is_urgent) in [(0, "a", false), (1, "b", false), (2, "c", true)] {
            pace.mark(&key, is_urgent, ms(at));
        }
        assert_eq!(pace.due(ms(3)), ["c", "a"]);
        assert_eq!(pace.due(ms(3)), Vec::<&str>::new(), "two at once");
    }

    #[test]
    fn what_failed_is_tried_again_and_what_is_forgotten_is_not() {
        let mut pace = Pace::new(LIMITS);
        for key in ["a", "b"] {
            pace.mark(&key, false, ms(0));
        }
        assert_eq!(pace.due(ms(0)), ["a", "b"]);
        pace.done(&"a", Some(ms(5000)), ms(10));
        pace.forget(&"b");
        pace.done(&"b", Some(ms(5000)), ms(10));
        assert_eq!(pace.next_at(ms(10)), Some(ms(5010)));
        assert_eq!(pace.due(ms(5010)), ["a"]);
    }

    proptest! {
        /// Of any row of changes: no object more than once per interval, never more at once, never more in all than the
        /// bucket gives, and in the end everything that was marked is written after its last mark.
        #[test]
        fn keeps_its_pace_and_loses_nothing(
            marks in prop::collection::vec((0_u64..400, 0_usize..8, any::<bool>()), 1..120),
            write_ms in 1_u64..1500,
        ) {
            let mut pace = Pace::new(LIMITS);
            let mut marked = [None; 8];
            let mut written: [Option<u64>; 8] = [None; 8];
            let mut ends: Vec<(u64, usize)> = Vec::new();
            let mut starts: Vec<u64> = Vec::new();
            let mut marks = marks.into_iter();
            let mut next_mark = marks.next();
            let mut now = 0;
            let mut at_mark = next_mark.map_or(0, |(gap, ..)| gap);
            loop {
                while let Some(end) = ends.iter().position(|(at, _)| *at <= now) {
                    let (_, key) = ends.swap_remove(end);
                    pace.done(&key, None, ms(now));
                }
                if let Some((_, key, is_urgent)) = next_mark.filter(|_| at_mark <= now) {
                    pace.mark(&key, is_urgent, ms(now));
                    marked[key] = Some(now);
                    next_mark = marks.next();
                    at_mark = now + next_mark.map_or(0, |(gap, ..)| gap);
                }
                for key in pace.due(ms(now)) {
                    if let Some(before) = written[key] {
                        prop_assert!(now - before >= 1000);
                    }
                    written[key] = Some(now);
                    starts.push(now);
                    ends.push((now + write_ms, key));
                }
                prop_assert!(ends.len() <= 3);
                if next_mark.is_none() && pace.is_idle() {
                    break;
                }
                let next = [
                    pace.next_at(ms(now)).map(|at| u64::try_from(at.as_micros().div_ceil(1000)).unwrap()),
                    ends.iter().map(|(at, _)| *at).min(),
                    next_mark.map(|_| at_mark),
                ];
                let next = next.into_iter().flatten().min();
                prop_assert!(next.is_some(), "something waits and nothing is to come");
                now = next.unwrap_or(now).max(now);
                prop_assert!(now < 1_000_000);
            }
            for (marked, written) in marked.iter().zip(&written) {
                prop_assert!(marked.is_none_or(|marked| written.is_some_and(|written| written >= marked)));
            }
            for (index, start) in starts.iter().enumerate() {
                for (more, end) in starts[index..].iter().enumerate() {
                    let allowed = 5.0 + (end - start) as f64 / 100.0 + 0.01;
                    prop_assert!((more + 1) as f64 <= allowed);
                }
            }
        }
    }
}
