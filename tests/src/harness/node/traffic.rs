//! Open-loop load from outside the cluster, through a Service.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use infer_load::{Class, Event, Lengths, Report, Shutdown, rate};
use tokio::task::JoinHandle;

use crate::harness::{Error, until};

/// Longer than any test; it is told to stop.
const LENGTH_S: f64 = 3600.0;
/// Prompt, tokens.
const INPUT_TOKENS: f64 = 20.0;

/// Requests that keep coming until they are told to stop.
#[derive(Debug)]
pub struct Traffic {
    answered: Arc<AtomicU64>,
    shutdown: Shutdown,
    task: JoinHandle<Result<Report, infer_load::Error>>,
}

impl Traffic {
    /// Starts so many requests a second of about so many tokens, each with a connection of its own: a Service spreads
    /// connections, not requests.
    ///
    /// # Errors
    /// Numbers that make no sense.
    pub fn start(url: &str, model: &str, rate_rps: f64, output_tokens: u32, seed: u64) -> Result<Self, String> {
        let mut options = infer_load::Options::new(url, model);
        options.timeout = Duration::from_secs(120);
        options.drain = options.timeout;
        options.headers = vec![("connection".to_owned(), "close".to_owned())];
        let lengths = Lengths::new(INPUT_TOKENS, f64::from(output_tokens), 0.3).map_err(|error| error.to_string())?;
        let curve = rate::Curve::constant(rate_rps, LENGTH_S).map_err(|error| error.to_string())?;
        let plan = rate::plan(curve, rate::Process::Gamma { cv: 0.4 }, lengths, seed);
        let (answered, shutdown) = (Arc::new(AtomicU64::new(0)), Shutdown::default());
        let count = Arc::clone(&answered);
        let observer = move |event: &Event| {
            if let Event::Finished(outcome) = event
                && outcome.is_ok()
            {
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let run = infer_load::run(options, plan, observer, shutdown.clone());
        Ok(Traffic {
            answered,
            shutdown,
            task: tokio::spawn(run),
        })
    }

    /// Waits until so many more requests have been answered in full.
    ///
    /// # Errors
    /// [`Error::TooLate`].
    pub async fn answered(&self, more: u64, within: Duration) -> Result<(), Error> {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        until(within, &format!("{more} more answers"), || async {
            let have = self.answered.load(Ordering::Relaxed);
            if have >= wanted {
                Ok(())
            } else {
                Err(format!("{have} of {wanted}"))
            }
        })
        .await
    }

    /// Sends no more and waits for the last answer.
    ///
    /// # Errors
    /// Load that could not be sent at all.
    pub async fn stop(self) -> Result<Report, String> {
        self.shutdown.stop();
        let report = self.task.await.map_err(|error| error.to_string())?;
        report.map_err(|error| error.to_string())
    }
}

/// Requests that were sent and not answered in full.
pub fn failed(report: &Report) -> u64 {
    report.requests.failed - report.failures.get(&Class::InFlightCap).copied().unwrap_or(0)
}
