//! Waiting times between attempts to reach the decider.

use std::time::Duration;

/// First waiting time. Short, because most disconnections are a decider that has just been replaced.
const BASE_MS: u64 = 100;
/// Longest waiting time: what a healthy decider may at most wait for its agents after a long absence.
const MAX_MS: u64 = 5_000;
/// Longest waiting time of an agent whose token is not accepted: each attempt makes the decider ask the API server.
const MAX_UNAUTHENTICATED_MS: u64 = 60_000;

/// Doubles from 100 ms to 5 s. The upper half of each is random, so that a fleet that lost its decider at one moment
/// does not come back at one moment.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempt: u32,
    unauthenticated: u32,
}

impl Backoff {
    /// The next waiting time.
    pub(crate) fn next(&mut self) -> Duration {
        let full_ms = (BASE_MS << self.attempt.min(10)).min(MAX_MS);
        self.attempt = self.attempt.saturating_add(1);
        jittered(full_ms)
    }

    /// The longest waiting time, for a decider that has refused this agent: asking again soon will not help.
    pub(crate) fn longest(&mut self) -> Duration {
        self.attempt = u32::MAX;
        jittered(MAX_MS)
    }

    /// The waiting time after the decider did not believe who this agent is: doubles from 5 s to 60 s.
    pub(crate) fn unauthenticated(&mut self) -> Duration {
        let full_ms = (MAX_MS << self.unauthenticated.min(10)).min(MAX_UNAUTHENTICATED_MS);
        self.unauthenticated = self.unauthenticated.saturating_add(1);
        self.attempt = u32::MAX;
        jittered(full_ms)
    }

    /// Back to the shortest.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

fn jittered(full_ms: u64) -> Duration {
    Duration::from_millis(full_ms / 2 + fastrand::u64(..=full_ms / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest_and_starts_anew_after_a_reset() {
        let mut backoff = Backoff::default();
        for full_ms in [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000, 5000, 5000, 5000] {
            let ms = backoff.next().as_millis() as u64;
            assert!(
                (full_ms / 2..=full_ms).contains(&ms),
                "{ms} ms is not in the upper half of {full_ms} ms"
            );
        }
        backoff.reset();
        assert!(backoff.next().as_millis() <= 100);
        assert!(backoff.longest().as_millis() >= 2500);
        assert!(
            backoff.next().as_millis() >= 2500,
            "a refused agent stays slow until a Welcome"
        );
        for full_ms in [5_000, 10_000, 20_000, 40_000, 60_000, 60_000] {
            let ms = backoff.unauthenticated().as_millis() as u64;
            assert!((full_ms / 2..=full_ms).contains(&ms), "{ms} ms");
        }
        backoff.reset();
        assert!(backoff.unauthenticated().as_millis() <= 5_000);
    }
}
