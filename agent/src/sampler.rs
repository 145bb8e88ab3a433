//! Reads the engine on schedule and turns every reading into a sample.

use std::{future::Future, time::Duration};

use infer_proto::v1::{Gauges, Sample, Scrape, scrape::Outcome};
use infer_reader::{FastBody, FastPath, Reader, ReaderOptions};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    FetchError, Options, Path, Settings, Source,
    drain::{LOOK_MS, Seen},
    schedule::{Schedule, Tick},
    shared::{Shared, stopped},
};

/// However long the interval, a scrape that takes longer than this is of no use to a decision.
const SCRAPE_TIMEOUT_MS: u32 = 5_000;

/// Details are for people; a hostile or broken engine must not fill the buffer with them.
const MAX_DETAIL_CHARS: usize = 200;

pub(crate) struct Sampler<'a, S> {
    source: S,
    reader: Reader,
    shared: &'a Shared,
    settings: watch::Receiver<Settings>,
    /// How many wait for the engine to run dry.
    watchers: watch::Receiver<usize>,
    stop: watch::Receiver<bool>,
    /// Where in the interval this agent's full scrapes are, 0 to 1: random, so that a fleet does not scrape in step.
    phase: f64,
    scrape_timeout_ms: Option<u32>,
    drain_ms: u32,
    /// End of the newest sample.
    last_end_ms: u64,
    /// The queue as the newest sample with gauges said it.
    last_queue: Option<Queue>,
    /// The engine has turned out not to have the cheap path; asked again when it restarts or changes.
    fast_missing: bool,
    /// The engine says how many requests its HTTP server holds, which no cheap look does.
    in_flight_known: bool,
    /// The engine has been in a sample.
    engine_said: bool,
    problem: Problem,
}

/// Requests in the engine, as far as gauges tell.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Queue {
    waiting: Option<f64>,
    /// Running and waiting: rises even while nothing has to wait yet.
    held: Option<f64>,
}

impl Queue {
    fn of(gauges: &Gauges) -> Self {
        let held = match (gauges.running, gauges.waiting) {
            (Some(running), Some(waiting)) => Some(running + waiting),
            _ => None,
        };
        Self {
            waiting: gauges.waiting,
            held,
        }
    }

    /// Whether either number has risen by at least `rise`. What is absent has not risen.
    fn has_risen_by(&self, rise: u32, since: &Self) -> bool {
        let risen = |now: Option<f64>, then: Option<f64>| {
            now.zip(then).is_some_and(|(now, then)| now - then >= f64::from(rise))
        };
        rise > 0 && (risen(self.waiting, since.waiting) || risen(self.held, since.held))
    }
}

/// The failure that the log was last told, and how many samples it has lasted.
#[derive(Debug, Default)]
struct Problem {
    kind: Option<(Outcome, u32)>,
    samples: u64,
}

impl Problem {
    /// Logs changes only: an engine that loads its model for ten minutes is one line, not six hundred.
    fn note(&mut self, scrape: &Scrape) {
        let kind = (scrape.outcome(), scrape.http_status);
        if kind.0 == Outcome::Ok {
            if self.kind.take().is_some() {
                tracing::info!(failed_samples = self.samples, "the engine can be read again");
            }
            self.samples = 0;
            return;
        }
        self.samples += 1;
        if self.kind != Some(kind) {
            tracing::warn!(outcome = kind.0.as_str_name(), detail = %scrape.detail, "cannot read the engine");
            self.kind = Some(kind);
        }
    }
}

impl<'a, S: Source> Sampler<'a, S> {
    pub(crate) fn new(source: S, options: &Options, shared: &'a Shared, stop: watch::Receiver<bool>) -> Self {
        Self {
            source,
            reader: Reader::new(ReaderOptions {
                mapping: options.mapping.clone(),
            }),
            shared,
            settings: shared.settings.subscribe(),
            watchers: shared.watchers.subscribe(),
            stop,
            phase: fastrand::f64(),
            scrape_timeout_ms: options.scrape_timeout_ms,
            drain_ms: options.drain_ms,
            last_end_ms: 0,
            last_queue: None,
            fast_missing: false,
            in_flight_known: false,
            engine_said: false,
            problem: Problem::default(),
        }
    }

    /// Samples until the agent stops, and once more then.
    pub(crate) async fn run(mut self) {
        let mut stop = self.stop.clone();
        let mut last_tick_ms = 0;
        // At once, whatever the grid: an engine that is not up yet now counts from nothing, and all of it is ours to tell.
        let settings = *self.settings.borrow();
        if unless(stopped(&mut stop), self.scrape(self.scrape_timeout(&settings))).await {
            self.shared.finish();
            return;
        }
        loop {
            let settings = *self.settings.borrow_and_update();
            let pace = self.pace(settings);
            // Not only after now: a timer may fire within the millisecond before its tick.
            let (due_ms, tick) = self.schedule(&pace).next(self.shared.clock.now_ms().max(last_tick_ms));
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                // The senders live as long as `shared`.
                _ = self.settings.changed() => continue,
                _ = self.watchers.changed() => continue,
                () = sleep_until(self.shared.clock.at(due_ms)) => {}
            }
            last_tick_ms = due_ms;
            let stopping = match tick {
                Tick::Full => unless(stopped(&mut stop), self.scrape(self.scrape_timeout(&settings))).await,
                Tick::Fast => unless(stopped(&mut stop), self.look(&pace)).await,
            };
            if stopping {
                break;
            }
        }
        // What happened since the last tick. The drain time has to do for sending it as well.
        let settings = *self.settings.borrow();
        let half_drain = Duration::from_millis(u64::from(self.drain_ms / 2));
        self.scrape(self.scrape_timeout(&settings).min(half_drain)).await;
        self.shared.finish();
    }

    /// The settings, made faster while somebody waits for the engine to run dry, whatever was wished: by cheap looks
    /// where they show all there is to know, or else by full scrapes.
    fn pace(&mut self, settings: Settings) -> Settings {
        if *self.watchers.borrow_and_update() == 0 {
            return settings;
        }
        if self.fast_path().is_some() && !self.in_flight_known {
            let fast_interval_ms = match settings.fast_interval_ms {
                0 => LOOK_MS,
                wished => wished.min(LOOK_MS),
            };
            return Settings {
                fast_interval_ms,
                ..settings
            };
        }
        Settings {
            interval_ms: settings.interval_ms.min(LOOK_MS),
            fast_interval_ms: 0,
            ..settings
        }
    }

    fn schedule(&self, settings: &Settings) -> Schedule {
        let interval_ms = u64::from(settings.interval_ms.max(1));
        Schedule {
            offset_ms: (self.phase * interval_ms as f64) as u64,
            interval_ms,
            fast_ms: u64::from(settings.fast_interval_ms),
        }
    }

    fn scrape_timeout(&self, settings: &Settings) -> Duration {
        let of_interval_ms = settings.interval_ms / 5 * 4;
        let ms = self
            .scrape_timeout_ms
            .unwrap_or(of_interval_ms.clamp(1, SCRAPE_TIMEOUT_MS));
        Duration::from_millis(u64::from(ms))
    }

    /// Reads everything and makes a sample of it, whatever comes.
    async fn scrape(&mut self, time: Duration) {
        let started_ms = self.shared.clock.now_ms();
        let begun = Instant::now();
        let fetched = timeout(time, self.source.fetch(Path::Full)).await;
        let end_ms = self.shared.clock.now_ms();
        let mut sample = next_sample(&mut self.last_end_ms, end_ms);
        let mut scrape = Scrape {
            duration_ms: to_u32(end_ms - started_ms),
            ..Scrape::default()
        };
        let reading = match fetched {
            Ok(Ok(body)) => self.reader.advance(body).map_err(|error| reading_error(&error)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(FetchError::new(
                Outcome::Timeout,
                format!("no answer within {} ms", time.as_millis()),
            )),
        };
        match reading {
            Ok(advance) => {
                scrape.outcome = Outcome::Ok.into();
                scrape.engine_restarted = advance.engine_restarted;
                scrape.layout_changes = advance.layout_changes;
                scrape.skipped = advance.skipped;
                if advance.engine_changed || advance.engine_restarted {
                    self.fast_missing = false;
                }
                if advance.engine_changed || !self.engine_said {
                    self.engine_said = true;
                    sample.engine = self.reader.engine().cloned();
                    self.say_engine(sample.engine.as_ref());
                }
                if advance.engine_restarted {
                    tracing::info!("the engine was restarted");
                    self.shared.state().drain.engine_restarted();
                }
                self.in_flight_known = advance.gauges.in_flight.is_some();
                self.shared.see(begun, Seen::in_gauges(&advance.gauges));
                self.last_queue = Some(Queue::of(&advance.gauges));
                sample.gauges = Some(advance.gauges);
                sample.counters = Some(advance.counters);
                sample.histograms = advance.histograms;
            }
            Err(error) => {
                self.note_process(&error);
                self.shared.see(begun, Seen::in_failure(error.outcome));
                scrape.outcome = error.outcome.into();
                scrape.http_status = error.http_status;
                scrape.detail = error.detail.chars().take(MAX_DETAIL_CHARS).collect();
            }
        }
        self.problem.note(&scrape);
        sample.scrape = Some(scrape);
        self.shared.push(sample);
    }

    /// Looks at the queue; makes a sample only when it has jumped. Failures are left to the next full scrape to report.
    async fn look(&mut self, settings: &Settings) {
        let Some(path) = self.fast_path() else { return };
        // Over before the next tick is due: a look that hangs must not make the schedule pass over the full scrape, which
        // is what tells of the hanging.
        let time = Duration::from_millis(u64::from(settings.fast_interval_ms / 5 * 4).max(1));
        let time = time.min(self.scrape_timeout(settings));
        let started_ms = self.shared.clock.now_ms();
        let begun = Instant::now();
        let gauges = match timeout(time, self.source.fetch(path)).await {
            Ok(Ok(body)) => {
                let body = match path {
                    Path::SglangLoads => FastBody::SglangLoads(body),
                    Path::VllmFilter => FastBody::VllmFiltered(body),
                    Path::Full => FastBody::Full(body),
                };
                match self.reader.advance_fast(body) {
                    Ok(Some(gauges)) => gauges,
                    Ok(None) | Err(_) => {
                        self.fast_missing = true;
                        tracing::debug!(?path, "the engine has no cheap path");
                        return;
                    }
                }
            }
            Ok(Err(error)) => {
                self.note_process(&error);
                self.shared.see(begun, Seen::in_failure(error.outcome));
                self.fast_missing |= error.outcome == Outcome::HttpStatus && error.http_status / 100 == 4;
                return;
            }
            Err(_) => return,
        };
        self.shared.see(begun, Seen::in_gauges(&gauges));
        let queue = Queue::of(&gauges);
        let Some(last_queue) = &self.last_queue else { return };
        if !queue.has_risen_by(settings.wake_on_waiting_rise, last_queue) {
            return;
        }
        self.last_queue = Some(queue);
        let end_ms = self.shared.clock.now_ms();
        let sample = Sample {
            scrape: Some(Scrape {
                outcome: Outcome::Ok.into(),
                duration_ms: to_u32(end_ms - started_ms),
                ..Scrape::default()
            }),
            gauges: Some(gauges),
            urgent: true,
            ..next_sample(&mut self.last_end_ms, end_ms)
        };
        self.shared.push(sample);
    }

    fn fast_path(&self) -> Option<Path> {
        if self.fast_missing {
            return None;
        }
        match self.reader.fast_path()? {
            FastPath::VllmFilter => Some(Path::VllmFilter),
            FastPath::SglangLoads => Some(Path::SglangLoads),
            FastPath::FullBody => Some(Path::Full),
        }
    }

    fn note_process(&mut self, error: &FetchError) {
        if error.process_gone {
            self.reader.expect_restart();
        }
    }

    fn say_engine(&self, engine: Option<&infer_proto::v1::Engine>) {
        if let Some(engine) = engine {
            tracing::info!(
                name = %engine.name,
                version = %engine.version,
                model = %engine.model,
                engines = engine.engines,
                "reading the engine"
            );
            self.shared.state().engine = Some(engine.clone());
        }
    }
}

/// An empty sample from the end of the last one, which moves, to `end_ms`.
fn next_sample(last_end_ms: &mut u64, end_ms: u64) -> Sample {
    let interval_ms = to_u32(end_ms - *last_end_ms);
    *last_end_ms = end_ms;
    Sample {
        end_ms,
        interval_ms,
        ..Sample::default()
    }
}

/// Runs `work` to its end unless `stop` comes first. Returns whether it did.
async fn unless(stop: impl Future<Output = ()>, work: impl Future<Output = ()>) -> bool {
    tokio::select! {
        biased;
        () = stop => true,
        () = work => false,
    }
}

fn reading_error(error: &infer_reader::Error) -> FetchError {
    FetchError::new(error.outcome(), error.to_string())
}

fn to_u32(ms: u64) -> u32 {
    u32::try_from(ms).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
