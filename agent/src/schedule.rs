//! When to look at the engine: full scrapes on a fixed grid, cheap looks between them.

/// What to do at a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    /// Read everything.
    Full,
    /// Look at the queue only.
    Fast,
}

/// A grid on the agent's clock. It is absolute: a late or long scrape does not shift the later ones, and ticks that
/// passed meanwhile are skipped, never made up for in a bunch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// Full scrapes are at `offset_ms + k * interval_ms`; below `interval_ms`, different on every agent.
    pub(crate) offset_ms: u64,
    /// At least 1.
    pub(crate) interval_ms: u64,
    /// 0: no cheap looks.
    pub(crate) fast_ms: u64,
}

impl Schedule {
    /// The first tick after `now_ms`, as its time and kind.
    pub(crate) fn next(&self, now_ms: u64) -> (u64, Tick) {
        let interval_ms = self.interval_ms.max(1);
        // As if a scrape had been one interval before the first.
        let since_full_ms = (now_ms + interval_ms - self.offset_ms.min(interval_ms)) % interval_ms;
        let next_full_ms = now_ms + interval_ms - since_full_ms;
        if let Some(since_fast_ms) = since_full_ms.checked_rem(self.fast_ms) {
            let next_fast_ms = now_ms + self.fast_ms - since_fast_ms;
            // A cheap look just before a full scrape tells nothing that the scrape does not.
            if next_fast_ms + self.fast_ms / 2 <= next_full_ms {
                return (next_fast_ms, Tick::Fast);
            }
        }
        (next_full_ms, Tick::Full)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(schedule: (u64, u64, u64), now_ms: u64, expected: (u64, Tick)) {
        let (offset_ms, interval_ms, fast_ms) = schedule;
        assert_eq!(
            Schedule {
                offset_ms,
                interval_ms,
                fast_ms
            }
            .next(now_ms),
            expected
        );
    }

    #[test]
    fn ticks() {
        let s = (300, 1000, 250);
        check(s, 0, (50, Tick::Fast));
        check(s, 50, (300, Tick::Full));
        check(s, 299, (300, Tick::Full));
        check(s, 300, (550, Tick::Fast));
        check(s, 550, (800, Tick::Fast));
        check(s, 799, (800, Tick::Fast));
        check(s, 800, (1050, Tick::Fast));
        check(s, 1050, (1300, Tick::Full));
        // Without cheap looks.
        check((300, 1000, 0), 300, (1300, Tick::Full));
        // A look at 700 would be too close to the full scrape at 1000.
        check((0, 1000, 700), 0, (1000, Tick::Full));
        // A scrape that took 2.5 intervals: the passed ticks are gone.
        check(s, 300 + 2500, (300 + 2750, Tick::Fast));
    }

    proptest! {
        #[test]
        fn always_ahead_by_at_most_one_interval_and_full_only_on_the_grid(
            offset_share in 0.0..1.0f64, interval_ms in 1u64..60_000, fast_ms in 0u64..70_000, now_ms in 0u64..10_000_000,
        ) {
            let offset_ms = (offset_share * interval_ms as f64) as u64;
            let (due_ms, tick) = Schedule { offset_ms, interval_ms, fast_ms }.next(now_ms);
            prop_assert!(due_ms > now_ms);
            prop_assert!(due_ms <= now_ms + interval_ms);
            let on_grid = (due_ms + interval_ms - offset_ms).is_multiple_of(interval_ms);
            match tick {
                Tick::Full => prop_assert!(on_grid),
                Tick::Fast => prop_assert!(fast_ms > 0 && !on_grid),
            }
        }
    }
}
