//! Rings of one-second buckets for what adds up: counters and histograms. Both take late and out-of-order values as
//! long as the ring reaches back to them.

use crate::{histogram::BoundedHistogram, signal::Signal, time::TimeMs};

/// Seconds as an index; one bucket each.
fn second_of(at: TimeMs) -> i64 {
    at.0.div_euclid(1000)
}

/// A ring position that is valid for one second only.
#[derive(Debug, Clone)]
struct Slot<T> {
    second: i64,
    value: T,
}

#[derive(Debug, Clone)]
struct Ring<T> {
    slots: Vec<Slot<T>>,
    newest: Option<i64>,
}

impl<T: Default + Clone> Ring<T> {
    fn new(horizon_s: usize) -> Self {
        let empty = Slot {
            second: i64::MIN,
            value: T::default(),
        };
        Ring {
            slots: vec![empty; horizon_s.max(1)],
            newest: None,
        }
    }

    /// The bucket of `at`, emptied if it held another second; `None` when the ring no longer reaches back to it.
    fn slot(&mut self, at: TimeMs) -> Option<&mut T> {
        let second = second_of(at);
        let len = self.slots.len() as i64;
        if self.newest.is_some_and(|newest| second <= newest - len) {
            return None;
        }
        self.newest = Some(self.newest.map_or(second, |newest| newest.max(second)));
        let slot = &mut self.slots[second.rem_euclid(len) as usize];
        if slot.second != second {
            *slot = Slot {
                second,
                value: T::default(),
            };
        }
        Some(&mut slot.value)
    }

    /// Reaches back at least `horizon_s` seconds from now on, and keeps what there is.
    fn reach_back(&mut self, horizon_s: usize) {
        if horizon_s <= self.slots.len() {
            return;
        }
        let before = std::mem::replace(&mut self.slots, Ring::<T>::new(horizon_s).slots);
        let oldest = self.newest.map_or(i64::MAX, |newest| newest - before.len() as i64 + 1);
        for slot in before.into_iter().filter(|slot| slot.second >= oldest) {
            let place = slot.second.rem_euclid(horizon_s as i64) as usize;
            self.slots[place] = slot;
        }
    }

    /// Buckets with data of the `window_s` seconds up to and including the one of `last`.
    fn over(&self, last: TimeMs, window_s: usize) -> impl Iterator<Item = &T> {
        let len = self.slots.len() as i64;
        let last = second_of(last);
        let first = last - (window_s as i64).min(len) + 1;
        (first..=last).filter_map(move |second| {
            let slot = &self.slots[second.rem_euclid(len) as usize];
            (slot.second == second).then_some(&slot.value)
        })
    }
}

/// Counts per second.
#[derive(Debug, Clone)]
pub struct CounterRing(Ring<u64>);

impl CounterRing {
    /// A ring that reaches back `horizon_s` seconds.
    pub fn new(horizon_s: usize) -> Self {
        CounterRing(Ring::new(horizon_s))
    }

    /// Adds `count` to the second of `at`; `false` when that is too long ago.
    pub fn record(&mut self, at: TimeMs, count: u64) -> bool {
        self.0.slot(at).map(|slot| *slot = slot.saturating_add(count)).is_some()
    }

    /// Reaches back at least `horizon_s` seconds from now on, and keeps what there is.
    pub fn reach_back(&mut self, horizon_s: usize) {
        self.0.reach_back(horizon_s);
    }

    /// Sum over the `window_s` seconds up to and including the one of `last`.
    pub fn sum(&self, last: TimeMs, window_s: usize) -> u64 {
        self.0
            .over(last, window_s)
            .fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// Histograms per second, one per signal.
#[derive(Debug, Clone)]
pub struct HistogramRing(Ring<[Option<Box<BoundedHistogram>>; Signal::ALL.len()]>);

impl HistogramRing {
    /// A ring that reaches back `horizon_s` seconds.
    pub fn new(horizon_s: usize) -> Self {
        HistogramRing(Ring::new(horizon_s))
    }

    /// Adds the observations to the second of `at`; `false` when that is too long ago.
    pub fn record(&mut self, at: TimeMs, signal: Signal, observations: &BoundedHistogram) -> bool {
        match self.0.slot(at) {
            Some(slot) => {
                slot[signal.index()].get_or_insert_default().merge(observations);
                true
            }
            None => false,
        }
    }

    /// Reaches back at least `horizon_s` seconds from now on, and keeps what there is.
    pub fn reach_back(&mut self, horizon_s: usize) {
        self.0.reach_back(horizon_s);
    }

    fn second(&self, second: i64, signal: Signal) -> Option<&BoundedHistogram> {
        let mut one = self.0.over(TimeMs(second.saturating_mul(1000)), 1);
        one.next()?[signal.index()].as_deref()
    }

    /// Everything observed in the `window_s` seconds up to and including the one of `last`.
    pub fn merged(&self, last: TimeMs, window_s: usize, signal: Signal) -> BoundedHistogram {
        let mut all = BoundedHistogram::default();
        for second in self.0.over(last, window_s) {
            if let Some(observations) = &second[signal.index()] {
                all.merge(observations);
            }
        }
        all
    }
}

/// Everything observed of one signal in a window that moves on, at the cost of the seconds that come and go, not of those
/// that stay: a tick looks at two of its sixty.
///
/// Its [`HistogramRing`] must reach back twice the window.
#[derive(Debug, Clone)]
pub struct SlidingHistogram {
    signal: Signal,
    window_s: i64,
    /// The last second inside; `None` before the first look.
    last: Option<i64>,
    merged: BoundedHistogram,
}

impl SlidingHistogram {
    /// A window of at least one second over one signal of a ring.
    pub fn new(signal: Signal, window_s: usize) -> Self {
        SlidingHistogram {
            signal,
            window_s: (window_s as i64).max(1),
            last: None,
            merged: BoundedHistogram::default(),
        }
    }

    /// To be told of everything before the ring takes it: what comes in is at hand then, and a later look needs no search
    /// for it.
    pub fn record(&mut self, ring: &HistogramRing, at: TimeMs, signal: Signal, observations: &BoundedHistogram) {
        let second = second_of(at);
        if signal != self.signal {
            return;
        }
        if self.last.is_some_and(|last| second > last) {
            self.advance(ring, at);
        }
        if self.last.is_some_and(|last| second > last - self.window_s) {
            self.merged.merge(observations);
        }
    }

    /// Moves on to the window that ends with the second of `now`.
    pub fn advance(&mut self, ring: &HistogramRing, now: TimeMs) {
        let second = second_of(now);
        match self.last {
            Some(last) if (0..self.window_s).contains(&(second - last)) => {
                for entering in last + 1..=second {
                    if let Some(leaving) = ring.second(entering - self.window_s, self.signal) {
                        self.merged.remove(leaving);
                    }
                    if let Some(entering) = ring.second(entering, self.signal) {
                        self.merged.merge(entering);
                    }
                }
            }
            _ => self.merged = ring.merged(now, self.window_s as usize, self.signal),
        }
        self.last = Some(second);
    }

    /// What is inside, if this is the window of `window_s` seconds up to `now` over `signal`.
    pub fn of(&self, signal: Signal, window_s: usize, now: TimeMs) -> Option<&BoundedHistogram> {
        let same = self.signal == signal && self.window_s == window_s as i64 && self.last == Some(second_of(now));
        same.then_some(&self.merged)
    }
}
