//! From the wanted count to what is started, drained and taken back.

use std::cmp::Reverse;

use tokio::time::Instant;

use crate::{
    EventKind,
    slot::{Slot, Stage, Then},
    state::unix_ms,
    supervisor::Fleet,
};

/// A replica that could be given up.
#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    index: u32,
    rank: Rank,
    busy: f64,
    started_unix_ms: u64,
}

/// Cheapest to give up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Failed,
    Starting,
    Ready,
}

/// Which to give up: failed ones, then starting ones (newest first), then ready ones with the fewest requests (newest
/// first among equals).
fn victims(mut candidates: Vec<Candidate>, count: usize) -> Vec<u32> {
    candidates.sort_by(|a, b| {
        let newest = |c: &Candidate| Reverse((c.started_unix_ms, c.index));
        a.rank
            .cmp(&b.rank)
            .then(a.busy.total_cmp(&b.busy))
            .then(newest(a).cmp(&newest(b)))
    });
    candidates.iter().take(count).map(|candidate| candidate.index).collect()
}

impl Fleet {
    /// Compares the live replicas with the wanted count and begins what makes up the difference.
    pub(crate) fn reconcile(&mut self, now: Instant) {
        let wanted = match (self.stopping, self.wanted) {
            (true, _) => 0,
            (false, Some(wanted)) => wanted as usize,
            // Nobody said a count: what was taken over is kept as it is.
            (false, None) => return,
        };
        let live = self.slots.values().filter(|slot| slot.is_live()).count();
        if live < wanted {
            let restored = self.cancel_drains(wanted - live);
            for _ in restored..wanted - live {
                let index = (0..=u32::MAX)
                    .find(|index| !self.slots.contains_key(index))
                    .unwrap_or(u32::MAX);
                self.slots.insert(index, Slot::new(&self.spec.name, index, now));
            }
        } else if live > wanted {
            for index in victims(self.candidates(), live - wanted) {
                self.give_up(index, now);
            }
        }
    }

    /// Takes back up to `count` drains, the latest begun first; says how many.
    fn cancel_drains(&mut self, count: usize) -> usize {
        let mut draining: Vec<_> = self
            .slots
            .values()
            .filter_map(|slot| match slot.stage {
                Stage::Draining { deadline, .. } => Some((Reverse(deadline), slot.index)),
                _ => None,
            })
            .collect();
        draining.sort_unstable();
        draining.truncate(count);
        for (_, index) in &draining {
            if let Some(slot) = self.slots.get_mut(index) {
                slot.stage = Stage::Ready;
                let name = slot.name.clone();
                self.counters.drains_cancelled += 1;
                self.event(
                    Some(&name),
                    EventKind::DrainCancelled,
                    "drain taken back: wanted again".into(),
                );
            }
        }
        draining.len()
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.slots
            .values()
            .filter(|slot| slot.is_live())
            .map(|slot| Candidate {
                index: slot.index,
                rank: match slot.stage {
                    Stage::Ready => Rank::Ready,
                    Stage::Pending | Stage::Starting => Rank::Starting,
                    _ => Rank::Failed,
                },
                busy: if slot.stage == Stage::Ready {
                    self.busy(&slot.name)
                } else {
                    0.0
                },
                started_unix_ms: slot.started_unix_ms,
            })
            .collect()
    }

    /// Requests at a replica: the larger of the sender's count and the engine's own.
    pub(crate) fn busy(&self, replica: &str) -> f64 {
        let sent = self.traffic.in_flight(replica) as f64;
        let running = self
            .running
            .as_ref()
            .and_then(|running| running.of(replica))
            .unwrap_or(0.0);
        // `max` leaves out a NaN.
        sent.max(running)
    }

    fn give_up(&mut self, index: u32, now: Instant) {
        let Some(slot) = self.slots.get_mut(&index) else { return };
        match &mut slot.stage {
            Stage::Pending | Stage::Failed { .. } => {
                self.slots.remove(&index);
            }
            // Nothing was sent to it yet.
            Stage::Starting => self.terminate(index, Then::Remove, now),
            Stage::Terminating { then, .. } => *then = Then::Remove,
            Stage::Ready => {
                let longest = self.spec.drain.timeout;
                let longest = if self.stopping {
                    longest.min(self.stop_drain)
                } else {
                    longest
                };
                let until_unix_ms = unix_ms().saturating_add(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX));
                slot.stage = Stage::Draining {
                    deadline: now + longest,
                    until_unix_ms,
                    idle_since: None,
                };
                let name = slot.name.clone();
                self.counters.drains += 1;
                let text = format!("draining, {} requests under way", self.busy(&name));
                self.event(Some(&name), EventKind::Draining, text);
            }
            Stage::Draining { .. } => {}
        }
    }

    /// Ends the drains that are done or out of time.
    pub(crate) fn advance_drains(&mut self, now: Instant) {
        let draining: Vec<u32> = self
            .slots
            .values()
            .filter(|s| s.phase() == crate::Phase::Draining)
            .map(|s| s.index)
            .collect();
        for index in draining {
            let Some(slot) = self.slots.get(&index) else { continue };
            let name = slot.name.clone();
            let busy = self.busy(&name);
            let settle = self.spec.drain.settle;
            let Some(Slot {
                stage: Stage::Draining {
                    deadline, idle_since, ..
                },
                ..
            }) = self.slots.get_mut(&index)
            else {
                continue;
            };
            if busy <= 0.0 {
                let since = *idle_since.get_or_insert(now);
                if now.saturating_duration_since(since) >= settle {
                    self.terminate(index, Then::Remove, now);
                    continue;
                }
            } else {
                *idle_since = None;
            }
            if now >= *deadline {
                // An idle engine whose deadline falls into its settling time has lost nothing.
                if busy > 0.0 {
                    self.counters.drain_timeouts += 1;
                    let text = format!("drain out of time with {busy} requests under way; they are lost");
                    self.event(Some(&name), EventKind::DrainTimedOut, text);
                }
                self.terminate(index, Then::Remove, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_to_lose_goes_first() {
        let make = |index, rank, busy, started_unix_ms| Candidate {
            index,
            rank,
            busy,
            started_unix_ms,
        };
        let fleet = vec![
            make(0, Rank::Ready, 0.0, 10),
            make(1, Rank::Ready, 5.0, 40),
            make(2, Rank::Ready, 0.0, 20),
            make(3, Rank::Starting, 0.0, 30),
            make(4, Rank::Starting, 0.0, 50),
            make(5, Rank::Failed, 0.0, 1),
            make(6, Rank::Ready, 0.0, 20),
        ];
        for (count, expected) in [
            (0, vec![]),
            (1, vec![5]),
            (3, vec![5, 4, 3]),
            (6, vec![5, 4, 3, 6, 2, 0]),
            (9, vec![5, 4, 3, 6, 2, 0, 1]),
        ] {
            assert_eq!(victims(fleet.clone(), count), expected);
        }
    }
}
