use std::time::Duration;

use crate::spec::Restart;

/// Counts failures in a row and says how long to wait before the next try.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) failures: u32,
}

impl Backoff {
    /// One more failure, of a process that had been well for `well`: the wait before the next try.
    pub(crate) fn fail(&mut self, restart: &Restart, well: Duration) -> Duration {
        if well >= restart.reset_after {
            self.failures = 0;
        }
        // Beyond 2^20 times the first wait the maximum has long been reached.
        let doublings = self.failures.min(20);
        self.failures = self.failures.saturating_add(1);
        let wait = restart
            .initial_backoff
            .saturating_mul(1 << doublings)
            .min(restart.max_backoff);
        // A quarter either way, so that replicas that fell together do not come back together.
        wait.mul_f64(0.75 + 0.5 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_maximum_and_starts_over_after_a_good_run() {
        let restart = Restart::default();
        let mut backoff = Backoff::default();
        for expected_ms in [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000] {
            let wait = backoff.fail(&restart, Duration::ZERO).as_secs_f64() * 1000.0;
            let expected = f64::from(expected_ms);
            assert!(
                (0.75 * expected..=1.25 * expected).contains(&wait),
                "{wait} ms, expected about {expected}"
            );
        }
        assert!(backoff.fail(&restart, restart.reset_after) <= Duration::from_millis(625));
        assert_eq!(backoff.failures, 1);
    }
}
