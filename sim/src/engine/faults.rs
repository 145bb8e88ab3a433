//! Failures on demand, by flag or by `POST /sim/failure`.

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The process ends at once with exit code 1.
    Crash,
    /// Connections are accepted, nothing is answered, the engine makes no progress.
    Hang,
    /// Every request is answered with 503; the engine goes on.
    Unavailable,
    /// `/metrics` answers late.
    SlowMetrics,
    /// `/metrics` does not answer.
    HangMetrics,
    /// Ends all failures.
    None,
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "crash" => Kind::Crash,
            "hang" => Kind::Hang,
            "unavailable" => Kind::Unavailable,
            "slow_metrics" => Kind::SlowMetrics,
            "hang_metrics" => Kind::HangMetrics,
            "none" => Kind::None,
            _ => {
                return Err(format!(
                    "unknown failure {text:?}: one of crash, hang, unavailable, slow_metrics, hang_metrics, none"
                ));
            }
        })
    }
}

/// One failure to inject, the body of `POST /sim/failure`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What.
    pub kind: Kind,
    /// How long, s; without it until further notice.
    #[serde(default)]
    pub for_s: Option<f64>,
    /// For `slow_metrics`: how late, ms.
    #[serde(default = "default_delay_ms")]
    pub delay_ms: u64,
}

fn default_delay_ms() -> u64 {
    2_000
}

/// A failure of the command line: `KIND@SECONDS` or `KIND@SECONDS+FOR_SECONDS`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scheduled {
    /// When, s after the engine came up.
    pub at_s: f64,
    /// What.
    pub failure: Failure,
}

impl std::str::FromStr for Scheduled {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("{text:?} is not KIND@SECONDS or KIND@SECONDS+FOR_SECONDS, for example hang@30+5");
        let (kind, times) = text.split_once('@').ok_or_else(shape)?;
        let (at, duration) = match times.split_once('+') {
            Some((at, duration)) => (at, Some(duration)),
            None => (times, None),
        };
        let seconds = |text: &str| {
            text.parse::<f64>()
                .ok()
                .filter(|s| (0.0..1e9).contains(s))
                .ok_or_else(shape)
        };
        Ok(Self {
            at_s: seconds(at)?,
            failure: Failure {
                kind: kind.parse()?,
                for_s: duration.map(seconds).transpose()?,
                delay_ms: default_delay_ms(),
            },
        })
    }
}

/// The failures in force.
#[derive(Debug, Clone, Copy, Default)]
pub struct Active {
    /// The process is to end.
    pub crashed: bool,
    hang_until: Option<Instant>,
    unavailable_until: Option<Instant>,
    slow_metrics_until: Option<Instant>,
    hang_metrics_until: Option<Instant>,
    delay: Duration,
}

/// Holds the failures in force; cheap to clone.
#[derive(Debug, Clone)]
pub struct Faults {
    active: watch::Sender<Active>,
}

/// "Until further notice": far beyond any run, and within what timers can hold.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Default for Faults {
    fn default() -> Self {
        Self {
            active: watch::Sender::new(Active::default()),
        }
    }
}

impl Faults {
    /// Puts a failure in force. Returns when a hang ends, for the engine to stall until then.
    pub fn inject(&self, failure: Failure) -> Option<Instant> {
        let duration = failure
            .for_s
            .and_then(|s| Duration::try_from_secs_f64(s).ok())
            .unwrap_or(FOREVER)
            .min(FOREVER);
        let until = Instant::now() + duration;
        self.active.send_modify(|active| match failure.kind {
            Kind::Crash => active.crashed = true,
            Kind::Hang => active.hang_until = Some(until),
            Kind::Unavailable => active.unavailable_until = Some(until),
            Kind::SlowMetrics => {
                active.slow_metrics_until = Some(until);
                active.delay = Duration::from_millis(failure.delay_ms);
            }
            Kind::HangMetrics => active.hang_metrics_until = Some(until),
            Kind::None => *active = Active::default(),
        });
        match failure.kind {
            Kind::Hang => Some(until),
            Kind::None => Some(Instant::now()),
            _ => None,
        }
    }

    /// Resolves when a crash was injected.
    pub async fn crashed(&self) {
        let mut receiver = self.active.subscribe();
        // The sender is alive as long as `self` is, so this does not end in an error.
        let _ = receiver.wait_for(|active| active.crashed).await;
    }

    /// Waits while nothing is answered at all.
    pub async fn wait_out_hang(&self) {
        self.wait_out(|active| active.hang_until).await;
    }

    /// Waits while `/metrics` is hung, then as long as it is slow.
    pub async fn wait_out_metrics(&self) {
        self.wait_out(|active| active.hang_metrics_until).await;
        let active = *self.active.borrow();
        if active.slow_metrics_until.is_some_and(|until| Instant::now() < until) {
            tokio::time::sleep(active.delay).await;
        }
    }

    /// Whether requests are refused with 503.
    pub fn is_unavailable(&self) -> bool {
        self.active
            .borrow()
            .unavailable_until
            .is_some_and(|until| Instant::now() < until)
    }

    async fn wait_out(&self, deadline: impl Fn(&Active) -> Option<Instant>) {
        let mut receiver = self.active.subscribe();
        loop {
            let until = deadline(&receiver.borrow_and_update());
            let Some(until) = until.filter(|until| Instant::now() < *until) else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                _ = receiver.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_command_line() {
        let hang: Scheduled = "hang@30+5".parse().unwrap();
        assert_eq!(
            (hang.at_s, hang.failure.kind, hang.failure.for_s),
            (30.0, Kind::Hang, Some(5.0))
        );
        let crash: Scheduled = "crash@0.5".parse().unwrap();
        assert_eq!(
            (crash.at_s, crash.failure.kind, crash.failure.for_s),
            (0.5, Kind::Crash, None)
        );
        for wrong in ["crash", "crash@", "crash@x", "crash@-1", "hang@1+", "explode@3"] {
            assert!(wrong.parse::<Scheduled>().is_err(), "{wrong}");
        }
        assert!("explode@3".parse::<Scheduled>().unwrap_err().contains("hang_metrics"));
    }

    #[tokio::test(start_paused = true)]
    async fn hangs_end_by_time_or_by_word() {
        let faults = Faults::default();
        let start = Instant::now();
        let failure = |kind, for_s| Failure {
            kind,
            for_s,
            delay_ms: 700,
        };
        faults.inject(failure(Kind::Hang, Some(3.0)));
        faults.wait_out_hang().await;
        assert_eq!(start.elapsed().as_secs(), 3);
        faults.inject(failure(Kind::HangMetrics, None));
        let waiting = tokio::spawn({
            let faults = faults.clone();
            async move { faults.wait_out_metrics().await }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        faults.inject(failure(Kind::None, None));
        waiting.await.unwrap();
        faults.inject(failure(Kind::SlowMetrics, Some(10.0)));
        let before = Instant::now();
        faults.wait_out_metrics().await;
        assert_eq!(before.elapsed().as_millis(), 700);
        assert!(!faults.is_unavailable());
        faults.inject(failure(Kind::Unavailable, Some(1.0)));
        assert!(faults.is_unavailable());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!faults.is_unavailable());
        faults.inject(failure(Kind::Crash, None));
        faults.crashed().await;
    }
}
