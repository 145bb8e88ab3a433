//! Sending a plan.

use crate::client::{Client, Sample, Target};
use crate::event::{Class, Event, Failure, Outcome};
use crate::histogram::Percentiles;
use crate::plan::{Arrival, Plan};
use crate::prompt::{Api, Bodies, Prompt};
use crate::report::{Report, Slo, Tally};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

/// The furthest a plan can reach, in seconds: thirty years, well inside what the clock can add.
const FAR_S: f64 = 1e9;

/// Where and how to send. Start from [`Options::new`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Base URL, `http://host:port`; a path before `/v1` is kept.
    pub url: String,
    /// The model to ask for.
    pub model: String,
    /// Which API.
    pub api: Api,
    /// What prompts are made of.
    pub prompt: Prompt,
    /// Time compression: 10 plays ten seconds of the plan in one. Above zero.
    pub time_scale: f64,
    /// The most requests at once, a safety for the client's memory and sockets. A request that would exceed it is not
    /// sent and counts as failed. At least 1.
    pub in_flight_max: usize,
    /// The longest a request may take, from start to end mark.
    pub timeout: Duration,
    /// How long requests in flight are waited for after an interruption.
    pub drain: Duration,
    /// How often [`Event::Progress`] comes.
    pub progress_interval: Duration,
    /// Seed of the prompts.
    pub seed: u64,
    /// Sampling temperature.
    pub temperature: f64,
    /// Whether to ask the engine to go on to the full length whatever it generates. Without it a request that the model
    /// ends earlier is not a failure.
    pub ignore_eos: bool,
    /// Further request headers, such as `Authorization`.
    pub headers: Vec<(String, String)>,
    /// Objectives to report attainment of.
    pub slo: Slo,
}

impl Options {
    /// Completions of word prompts in real time, with a timeout of ten minutes.
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            model: model.into(),
            api: Api::default(),
            prompt: Prompt::default(),
            time_scale: 1.0,
            in_flight_max: 4096,
            timeout: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            progress_interval: Duration::from_secs(2),
            seed: 0,
            temperature: 0.0,
            ignore_eos: true,
            headers: Vec::new(),
            slo: Slo::default(),
        }
    }
}

/// An option that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL.
    #[error("url {0}")]
    Url(String),
    /// A header.
    #[error("header {name:?}: {problem}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Another option.
    #[error("{option} {value}: expected {expected}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it is.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
}

/// Ends a run early. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    stop: CancellationToken,
    abandon: CancellationToken,
}

impl Shutdown {
    /// Sends nothing more and waits for requests in flight, up to [`Options::drain`].
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Sends nothing more and gives up what is in flight.
    pub fn abandon(&self) {
        self.stop.cancel();
        self.abandon.cancel();
    }
}

/// Sends the plan and waits for every answer. The observer is called on the sending task: it must not block.
///
/// Dropping the future ends all requests.
///
/// # Errors
/// Only an option that cannot be. Failed requests are in the report.
pub async fn run(
    options: Options,
    plan: Plan,
    mut observer: impl FnMut(&Event),
    shutdown: Shutdown,
) -> Result<Report, Error> {
    let sender = Arc::new(Sender::new(&options, shutdown.abandon.child_token())?);
    let plan = plan.scale(options.time_scale);
    let mut tally = Tally::new(options.slo, plan.duration_s());
    let mut plan = (0_u64..).zip(plan);
    let mut next = plan.next();
    let start = sender.start;
    let mut tasks: JoinSet<Outcome> = JoinSet::new();
    let mut ticks = interval_at(start + options.progress_interval, options.progress_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut interrupted = false;
    let mut give_up_at: Option<Instant> = None;
    let mut end_told = false;
    loop {
        if next.is_none() && !end_told {
            end_told = true;
            tally.sending_ended(start.elapsed());
            observer(&Event::SendingEnded { interrupted });
        }
        if next.is_none() && tasks.is_empty() {
            break;
        }
        let due = next.as_ref().map_or(start, |(_, arrival)| after(start, arrival.at_s));
        let finished = tokio::select! {
            () = shutdown.stop.cancelled(), if !interrupted => {
                interrupted = true;
                tally.interrupted();
                next = None;
                give_up_at = Some(Instant::now() + options.drain);
                None
            }
            () = sleep_until(due), if next.is_some() => {
                let Some((index, arrival)) = next.take() else { continue };
                next = plan.next();
                tally.planned(&arrival);
                if tasks.len() < options.in_flight_max {
                    tally.sent(tasks.len() as u64 + 1);
                    observer(&Event::Started { index, arrival });
                    tasks.spawn(Arc::clone(&sender).request(index, arrival));
                    None
                } else {
                    let message = format!("not sent: {} requests in flight", options.in_flight_max);
                    let failure = Failure::new(Class::InFlightCap, message);
                    Some(sender.outcome(index, &arrival, Instant::now(), Sample::default(), Err(failure)))
                }
            }
            Some(joined) = tasks.join_next(), if !tasks.is_empty() => match joined {
                Ok(outcome) => Some(outcome),
                Err(error) => {
                    tally.internal(error.to_string());
                    None
                }
            },
            () = sleep_until(give_up_at.unwrap_or(start)), if give_up_at.is_some() => {
                give_up_at = None;
                sender.abandon.cancel();
                None
            }
            _ = ticks.tick() => {
                let progress = tally.progress(start.elapsed(), tasks.len() as u64, sender.take_begun());
                observer(&Event::Progress(progress));
                None
            }
        };
        if let Some(outcome) = finished {
            tally.finished(&outcome);
            observer(&Event::Finished(outcome));
        }
    }
    Ok(tally.report(start.elapsed()))
}

fn after(start: Instant, seconds: f64) -> Instant {
    // A negative time, which no plan of ours has, counts as now.
    start + Duration::try_from_secs_f64(seconds.min(FAR_S)).unwrap_or_default()
}

/// What the tasks of a run share.
struct Sender {
    client: Client,
    bodies: Bodies,
    timeout: Duration,
    abandon: CancellationToken,
    start: Instant,
}

impl Sender {
    fn new(options: &Options, abandon: CancellationToken) -> Result<Self, Error> {
        let refuse = |option, value: String, expected| {
            Err(Error::Option {
                option,
                value,
                expected,
            })
        };
        if !(options.time_scale > 0.0 && options.time_scale <= 1e6) {
            return refuse(
                "time scale",
                options.time_scale.to_string(),
                "a number above 0, at most 1000000",
            );
        }
        if options.in_flight_max == 0 {
            return refuse("in-flight cap", "0".into(), "at least 1");
        }
        if options.progress_interval.is_zero() {
            return refuse("progress interval", "0".into(), "more than 0 seconds");
        }
        if options.timeout.is_zero() || options.timeout.as_secs_f64() > FAR_S || options.drain.as_secs_f64() > FAR_S {
            return refuse(
                "timeout",
                format!("{:?}", options.timeout),
                "from more than 0 to 1000000000 seconds",
            );
        }
        if options.api == Api::Chat && options.prompt == Prompt::Ids {
            return refuse(
                "prompt",
                "ids".into(),
                "words with the chat API, which takes no token ids",
            );
        }
        let target = Target::new(&options.url).map_err(|error| Error::Url(error.to_string()))?;
        let headers = headers(&options.headers)?;
        // A connection for every request that can be in flight, so that bursts do not reconnect.
        let client = Client::new(
            target,
            options.api.path(),
            headers,
            options.in_flight_max,
            !options.ignore_eos,
        );
        let bodies = Bodies {
            model: options.model.clone(),
            api: options.api,
            prompt: options.prompt,
            temperature: options.temperature,
            ignore_eos: options.ignore_eos,
            seed: options.seed,
        };
        Ok(Self {
            client,
            bodies,
            timeout: options.timeout,
            abandon,
            start: Instant::now(),
        })
    }

    /// TTFT of the streams that began since the last call.
    fn take_begun(&self) -> Percentiles {
        let mut begun = self.client.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let ttft = begun.percentiles();
        begun.clear();
        ttft
    }

    /// One request from its body to its outcome.
    async fn request(self: Arc<Self>, index: u64, arrival: Arrival) -> Outcome {
        let body = self.bodies.make(index, &arrival);
        let started = Instant::now();
        let mut sample = Sample::default();
        let result = match body {
            Err(error) => Err(Failure::new(Class::Internal, error.to_string())),
            Ok(body) => tokio::select! {
                () = self.abandon.cancelled() => Err(Failure::new(Class::Abandoned, "in flight when the run was ended")),
                result = timeout_at(
                    started + self.timeout,
                    self.client.complete(body, arrival.output_tokens, started, &mut sample),
                ) => result.unwrap_or_else(|_| {
                    Err(Failure::new(Class::Timeout, format!("not done after {} s", self.timeout.as_secs_f64())))
                }),
            },
        };
        self.outcome(index, &arrival, started, sample, result)
    }

    fn outcome(
        &self,
        index: u64,
        arrival: &Arrival,
        started: Instant,
        sample: Sample,
        result: Result<(), Failure>,
    ) -> Outcome {
        let ms = |instant: Instant| (instant - started).as_secs_f64() * 1e3;
        Outcome {
            index,
            planned_s: arrival.at_s,
            start_s: (started - self.start).as_secs_f64(),
            input_tokens: arrival.input_tokens,
            output_tokens: arrival.output_tokens,
            completion_tokens: sample.completion_tokens(),
            status: sample.status,
            ttft_ms: sample.token_at.first().map(|first| ms(*first)),
            token_ms: sample.token_at.iter().map(|at| ms(*at) as f32).collect(),
            e2e_ms: ms(Instant::now()),
            prompt_tokens: sample.prompt_tokens,
            replica: sample.replica,
            failure: result.err(),
        }
    }
}

fn headers(given: &[(String, String)]) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let refuse = |problem: String| Error::Header {
            name: name.clone(),
            problem,
        };
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|error| refuse(error.to_string()))?;
        let value =
            HeaderValue::from_str(value).map_err(|_| refuse("its value has a character no header can have".into()))?;
        headers.append(header, value);
    }
    Ok(headers)
}
