//! `Telemetry.Report`: agents' samples into the windows.
//!
//! One task per stream. What it reads it validates and applies at once under the state's lock, so nothing queues here:
//! a stream that is not read is held back by HTTP/2's own window, and memory stays bounded by the number of replicas.

use std::{pin::Pin, sync::Arc};

use infer_core::{
    TimeMs,
    histogram::BoundedHistogram,
    sample::{Counters, Gauges, Sample},
    signal::Signal,
    target::{Boot, Claim, Observed, Phase},
};
use infer_proto::v1::{
    self, AgentMessage, DeciderMessage, agent_message::Body, decider_message::Body as Answer,
    telemetry_server::Telemetry,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    state::{Shared, count},
    stopped,
};

/// Answers not yet taken by the transport. An agent that does not read its acknowledgements stops being read itself.
const ANSWERS: usize = 64;
/// Who opens a stream says who it is, or loses it.
const HELLO_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// No sample covers more than this; a longer one is a malformed message.
const INTERVAL_MS_MAX: u32 = 3_600_000;
/// Gauges above this are not counts of requests.
const GAUGE_MAX: f64 = 1e9;
/// Counts above this, in one sample, are no counts: sums over all replicas and seconds stay far from overflowing.
const COUNT_MAX: u64 = 1 << 44;
/// No clock that counts from its own start has come this far (140 years).
const CLOCK_MS_MAX: u64 = 1 << 42;
/// Bounds on text an agent may send, in bytes: Kubernetes names have at most 253.
const NAME_MAX: usize = 256;
const DETAIL_MAX: usize = 1024;
/// A sample older than this when it comes says nothing about now, s.
const NEWS_S: f64 = 3.0;

/// The service.
pub struct Ingest {
    shared: Arc<Shared>,
    shutdown: watch::Receiver<bool>,
}

impl Ingest {
    /// `shutdown` turning true ends every stream.
    pub fn new(shared: Arc<Shared>, shutdown: watch::Receiver<bool>) -> Self {
        Ingest { shared, shutdown }
    }
}

#[tonic::async_trait]
impl Telemetry for Ingest {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<DeciderMessage, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::ReportStream>, Status> {
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let stream = AgentStream {
            shared: Arc::clone(&self.shared),
            inbound: request.into_inner(),
            answers: answers.clone(),
            offset: None,
        };
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = stream.run() => ended,
                () = stopped(&mut shutdown) => Err(Status::unavailable("the decider is stopping")),
            };
            if let Err(status) = ended {
                // The client may be gone; then nobody wants to know.
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct AgentStream {
    shared: Arc<Shared>,
    inbound: Streaming<AgentMessage>,
    answers: mpsc::Sender<Result<DeciderMessage, Status>>,
    /// The agent's clock against ours.
    offset: Option<Offset>,
}

/// Smallest (arrival − sent) of late: what is above it is time on the way.
///
/// Not the smallest ever: streams live for weeks, clocks drift apart by seconds a day, and one that stood still while
/// its machine was suspended stays behind for good. Samples would look old for ever after.
struct Offset {
    since: TimeMs,
    smallest_ms: i64,
    /// Of the period before.
    before_ms: i64,
}

impl Offset {
    /// Long enough to see a message that was not delayed, short enough for drift not to matter.
    const PERIOD_S: f64 = 30.0;

    fn note(known: Option<Offset>, offset_ms: i64, now: TimeMs) -> Offset {
        match known {
            None => Offset {
                since: now,
                smallest_ms: offset_ms,
                before_ms: offset_ms,
            },
            Some(known) if now.since_s(known.since) >= Offset::PERIOD_S => Offset {
                since: now,
                smallest_ms: offset_ms,
                before_ms: known.smallest_ms,
            },
            Some(known) => Offset {
                smallest_ms: known.smallest_ms.min(offset_ms),
                ..known
            },
        }
    }

    fn ms(&self) -> i64 {
        self.smallest_ms.min(self.before_ms)
    }
}

/// Who speaks on a stream.
struct Speaker {
    target: String,
    pod: String,
    boot: String,
}

/// Counts an open stream for as long as it lives.
struct Connected(Arc<Shared>);

impl Connected {
    fn new(shared: &Arc<Shared>) -> Self {
        count(&shared.counters.agents_connected);
        Connected(Arc::clone(shared))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0
            .counters
            .agents_connected
            .fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl AgentStream {
    async fn run(mut self) -> Result<(), Status> {
        let result = self.converse().await;
        if let Err(status) = &result
            && status.code() == tonic::Code::InvalidArgument
        {
            count(&self.shared.counters.streams_refused);
            tracing::warn!(reason = status.message(), "closed an agent's stream");
        }
        result
    }

    async fn converse(&mut self) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, self.inbound.next()).await;
        let first = first
            .map_err(|_| Status::deadline_exceeded("no hello within 10 s"))?
            .ok_or_else(|| Status::invalid_argument("the stream ended before a hello"))??;
        let Some(Body::Hello(hello)) = first.body else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        self.note_clock(first.sent_ms)?;
        let speaker = self.welcome(hello).await?;
        let _connected = Connected::new(&self.shared);
        while let Some(message) = self.inbound.next().await {
            let message = message?;
            self.note_clock(message.sent_ms)?;
            match message.body {
                Some(Body::Sample(sample)) => {
                    let sequence = sample.sequence;
                    self.apply(&speaker, message.sent_ms, sample)?;
                    self.answer(Answer::Ack(v1::Ack { sequence })).await?;
                }
                Some(Body::Goodbye(goodbye)) => {
                    tracing::info!(pod = speaker.pod, reason = goodbye.reason, "agent said goodbye");
                    self.answer(Answer::Ack(v1::Ack {
                        sequence: goodbye.newest_sequence,
                    }))
                    .await?;
                    return Ok(());
                }
                Some(Body::Hello(_)) => return Err(Status::invalid_argument("a second hello on one stream")),
                None => {
                    return Err(Status::invalid_argument(
                        "a message without a body that this decider knows",
                    ));
                }
            }
        }
        Ok(())
    }

    async fn answer(&self, body: Answer) -> Result<(), Status> {
        let message = DeciderMessage { body: Some(body) };
        self.answers
            .send(Ok(message))
            .await
            .map_err(|_| Status::cancelled("the agent is gone"))
    }

    fn note_clock(&mut self, sent_ms: u64) -> Result<(), Status> {
        let sent = i64::try_from(sent_ms).ok().filter(|_| sent_ms <= CLOCK_MS_MAX);
        let sent = sent.ok_or_else(|| {
            Status::invalid_argument(format!(
                "sent_ms {sent_ms} is more than {CLOCK_MS_MAX}: it counts from the agent's start"
            ))
        })?;
        let now = self.shared.clock.now();
        self.offset = Some(Offset::note(self.offset.take(), now.0.saturating_sub(sent), now));
        Ok(())
    }

    async fn welcome(&mut self, hello: v1::Hello) -> Result<Speaker, Status> {
        let pod = hello
            .pod
            .ok_or_else(|| Status::invalid_argument("hello.pod is missing"))?;
        let boot = hello
            .boot
            .ok_or_else(|| Status::invalid_argument("hello.boot is missing"))?;
        for (field, text) in [
            ("hello.pod.name", &pod.name),
            ("hello.pod.target", &pod.target),
            ("hello.boot.id", &boot.id),
        ] {
            if text.is_empty() || text.len() > NAME_MAX {
                return Err(Status::invalid_argument(format!(
                    "{field} must have 1 to {NAME_MAX} bytes"
                )));
            }
        }
        let (resume_after, wanted) = self.claim(&pod, &boot, hello.engine)?;
        let decider_id = self.shared.decider_id.clone();
        self.answer(Answer::Welcome(v1::Welcome {
            decider_id,
            resume_after,
            wanted: Some(wanted),
        }))
        .await?;
        Ok(Speaker {
            target: pod.target,
            pod: pod.name,
            boot: boot.id,
        })
    }

    fn claim(
        &self,
        pod: &v1::PodIdentity,
        boot: &v1::Boot,
        engine: Option<v1::Engine>,
    ) -> Result<(u64, v1::Wanted), Status> {
        let mut state = self.shared.state();
        let names = state.names();
        let entity = state
            .targets
            .get_mut(&pod.target)
            .ok_or_else(|| Status::not_found(format!("no target {:?}; targets here: {names}", pod.target)))?;
        let claim = entity.target.claim(
            &pod.name,
            &pod.uid,
            Boot {
                id: boot.id.clone(),
                started_unix_ms: boot.started_unix_ms,
            },
            self.shared.clock.now(),
        );
        match claim {
            Claim::Granted { resume_after, replaces } => {
                if let Some(before) = replaces {
                    tracing::warn!(
                        pod = pod.name,
                        boot = boot.id,
                        before,
                        "a later boot speaks for this replica now"
                    );
                }
                if engine.is_some() {
                    entity.notes.entry(pod.name.clone()).or_default().engine = engine;
                }
                let wishes = entity.spec.wishes;
                let wanted = v1::Wanted {
                    interval_ms: wishes.interval_ms,
                    fast_interval_ms: wishes.fast_interval_ms,
                    replay_horizon_ms: u32::try_from(entity.target.horizon_s() * 1000).unwrap_or(u32::MAX),
                    wake_on_waiting_rise: wishes.wake_on_waiting_rise,
                };
                Ok((resume_after, wanted))
            }
            Claim::Superseded { by } => Err(Status::already_exists(format!(
                "replica {:?} is spoken for by a later boot, {by}",
                pod.name
            ))),
            // The backend may not have told of it yet.
            Claim::UnknownPod => Err(Status::unavailable(format!(
                "no replica {:?} in target {:?} (yet)",
                pod.name, pod.target
            ))),
        }
    }

    fn apply(&self, speaker: &Speaker, sent_ms: u64, sample: v1::Sample) -> Result<(), Status> {
        let now = self.shared.clock.now();
        let urgent = sample.urgent;
        let engine = sample.engine.clone();
        let scrape = sample.scrape.clone().unwrap_or_default();
        let gauges = sample.gauges;
        let sample = decode(sample, sent_ms, self.offset.as_ref().map_or(0, Offset::ms), now)
            .map_err(|problem| Status::invalid_argument(format!("sample of {:?}: {problem}", speaker.pod)))?;
        let counters = &self.shared.counters;
        let mut state = self.shared.state();
        let Some(entity) = state.targets.get_mut(&speaker.target) else {
            return Err(Status::not_found(format!("target {:?} is gone", speaker.target)));
        };
        match entity.target.observe(&speaker.pod, &speaker.boot, &sample, now) {
            Observed::Applied { missing, queue_rose } => {
                count(&counters.samples_applied);
                counters
                    .samples_missing
                    .fetch_add(missing, std::sync::atomic::Ordering::Relaxed);
                let serving = entity.target.phase(&speaker.pod) == Some(Phase::Ready);
                let note = entity.notes.entry(speaker.pod.clone()).or_default();
                if engine.is_some() {
                    note.engine = engine;
                }
                let problem = if gauges.is_some() {
                    String::new()
                } else {
                    scrape_problem(&scrape)
                };
                // What is replayed is history, not news.
                let news = now.since_s(sample.end) < NEWS_S;
                if news && note.problem != problem {
                    // That an engine which is starting or stopping cannot be read is no news either.
                    if !serving {
                        tracing::debug!(pod = speaker.pod, problem, "engine cannot be read yet or any more");
                    } else if problem.is_empty() {
                        tracing::info!(pod = speaker.pod, "engine can be read again");
                    } else {
                        tracing::warn!(pod = speaker.pod, problem, "engine cannot be read");
                    }
                    note.problem = problem;
                }
                if gauges.is_some() {
                    note.gauges = gauges;
                }
                if urgent && queue_rose {
                    entity.dirty = true;
                    drop(state);
                    self.shared.wake.notify_one();
                }
                Ok(())
            }
            Observed::Duplicate => {
                count(&counters.samples_duplicate);
                Ok(())
            }
            Observed::Late => {
                count(&counters.samples_late);
                Ok(())
            }
            Observed::Superseded => Err(Status::already_exists(format!(
                "replica {:?} is spoken for by a later boot",
                speaker.pod
            ))),
            Observed::UnknownPod => Err(Status::unavailable(format!("replica {:?} is gone", speaker.pod))),
        }
    }
}

fn scrape_problem(scrape: &v1::Scrape) -> String {
    if scrape.detail.is_empty() {
        format!("{:?}", scrape.outcome()).to_lowercase()
    } else {
        scrape.detail.chars().take(DETAIL_MAX).collect()
    }
}

/// The wire's sample as the core's, dated on our clock; or which field is malformed.
fn decode(sample: v1::Sample, sent_ms: u64, offset_ms: i64, now: TimeMs) -> Result<Sample, String> {
    if sample.sequence == 0 {
        return Err("sequence must be at least 1".to_owned());
    }
    if sample.end_ms > sent_ms {
        return Err(format!("end_ms {} is after it was sent, {sent_ms}", sample.end_ms));
    }
    if sample.interval_ms > INTERVAL_MS_MAX {
        return Err(format!(
            "interval_ms {} is more than {INTERVAL_MS_MAX}",
            sample.interval_ms
        ));
    }
    let end = i64::try_from(sample.end_ms)
        .unwrap_or(i64::MAX)
        .saturating_add(offset_ms);
    let gauges = sample.gauges.map(|gauges| decode_gauges(&gauges)).transpose()?;
    let counters = decode_counters(&sample.counters.unwrap_or_default())?;
    let histograms = sample
        .histograms
        .iter()
        .map(decode_histogram)
        .collect::<Result<_, _>>()?;
    Ok(Sample {
        sequence: sample.sequence,
        end: TimeMs(end.min(now.0)),
        interval_ms: sample.interval_ms,
        gauges,
        counters,
        histograms,
    })
}

fn decode_counters(counters: &v1::Counters) -> Result<Counters, String> {
    let mut unknown = 0;
    let mut position = 0;
    let mut count = |value: Option<u64>| {
        if value.is_none() {
            unknown |= 1 << position;
        }
        position += 1;
        match value.unwrap_or(0) {
            count if count > COUNT_MAX => Err(format!("counters.{} is {count}", Counters::NAMES[position - 1])),
            count => Ok(count),
        }
    };
    // In the order of `Counters::NAMES`.
    let decoded = Counters {
        prompt_tokens: count(counters.prompt_tokens)?,
        prompt_tokens_cached: count(counters.prompt_tokens_cached)?,
        generation_tokens: count(counters.generation_tokens)?,
        requests: count(counters.requests)?,
        requests_failed: count(counters.requests_failed)?,
        requests_rejected: count(counters.requests_rejected)?,
        preemptions: count(counters.preemptions)?,
        unknown: 0,
    };
    Ok(Counters { unknown, ..decoded })
}

fn decode_gauges(gauges: &v1::Gauges) -> Result<Gauges, String> {
    let level = |name: &str, value: Option<f64>| match value {
        Some(value) if !(0.0..=GAUGE_MAX).contains(&value) => Err(format!("gauges.{name} is {value}")),
        value => Ok(value),
    };
    Ok(Gauges {
        running: level("running", gauges.running)?,
        waiting: level("waiting", gauges.waiting)?,
        kv_usage: level("kv_usage", gauges.kv_usage)?,
        asleep: gauges.asleep.unwrap_or(false),
    })
}

fn decode_histogram(delta: &v1::HistogramDelta) -> Result<(Signal, BoundedHistogram), String> {
    let signal = match delta.signal() {
        v1::Signal::Ttft => Signal::Ttft,
        v1::Signal::Itl => Signal::Itl,
        v1::Signal::Tpot => Signal::Tpot,
        v1::Signal::E2e => Signal::E2e,
        v1::Signal::Queue => Signal::Queue,
        v1::Signal::Unspecified => return Err(format!("histogram of unknown signal {}", delta.signal)),
    };
    let histogram = BoundedHistogram::decode(&delta.lower, &delta.upper, delta.sum_ms)
        .map_err(|error| format!("histogram {}: {error}", signal.name()))?;
    if histogram.count() != delta.count {
        let (said, have) = (delta.count, histogram.count());
        return Err(format!(
            "histogram {}: count says {said}, the cells hold {have}",
            signal.name()
        ));
    }
    if delta.count > COUNT_MAX {
        return Err(format!("histogram {}: count is {}", signal.name(), delta.count));
    }
    Ok((signal, histogram))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_offset_follows_drift_and_a_suspended_agent_and_no_delay() {
        let mut offset = None;
        let mut note = |now_s: i64, offset_ms: i64| {
            let noted = Offset::note(offset.take(), offset_ms, TimeMs(now_s * 1000));
            offset.insert(noted).ms()
        };
        assert_eq!(note(0, 1_040), 1_040);
        for second in 1..100 {
            // Every other message is 3 s late.
            assert!(note(second, 1_000 + 3_000 * (second % 2)) <= 1_040);
        }
        // The agent's machine was suspended for a minute: its clock is a minute behind from now on.
        for second in 160..220 {
            note(second, 61_000);
        }
        assert_eq!(note(221, 61_000), 61_000);
        assert_eq!(note(222, 60_500), 60_500);
    }
}
