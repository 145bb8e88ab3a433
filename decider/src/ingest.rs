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
    target::{Boot, Claim, Observed},
};
use infer_proto::v1::{
    self, AgentMessage, DeciderMessage, agent_message::Body, decider_message::Body as Answer, telemetry_server::Telemetry,
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
/// No sample covers more than this; a longer one is a malformed message.
const INTERVAL_MS_MAX: u32 = 3_600_000;
/// Gauges above this are not counts of requests.
const GAUGE_MAX: f64 = 1e9;
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
            offset_ms: None,
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
    /// Smallest (arrival − sent) seen: the agent's clock against ours.
    offset_ms: Option<i64>,
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
        self.0.counters.agents_connected.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
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
        let first = self.inbound.next().await.ok_or_else(|| Status::invalid_argument("the stream ended before a hello"))??;
        let Some(Body::Hello(hello)) = first.body else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        self.note_clock(first.sent_ms);
        let speaker = self.welcome(hello).await?;
        let _connected = Connected::new(&self.shared);
        while let Some(message) = self.inbound.next().await {
            let message = message?;
            self.note_clock(message.sent_ms);
            match message.body {
                Some(Body::Sample(sample)) => {
                    let sequence = sample.sequence;
                    self.apply(&speaker, message.sent_ms, sample)?;
                    self.answer(Answer::Ack(v1::Ack { sequence })).await?;
                }
                Some(Body::Goodbye(goodbye)) => {
                    tracing::info!(pod = speaker.pod, reason = goodbye.reason, "agent said goodbye");
                    self.answer(Answer::Ack(v1::Ack { sequence: goodbye.newest_sequence })).await?;
                    return Ok(());
                }
                Some(Body::Hello(_)) => return Err(Status::invalid_argument("a second hello on one stream")),
                None => return Err(Status::invalid_argument("a message without a body that this decider knows")),
            }
        }
        Ok(())
    }

    async fn answer(&self, body: Answer) -> Result<(), Status> {
        let message = DeciderMessage { body: Some(body) };
        self.answers.send(Ok(message)).await.map_err(|_| Status::cancelled("the agent is gone"))
    }

    fn note_clock(&mut self, sent_ms: u64) {
        let offset = self.shared.clock.now().0.saturating_sub(i64::try_from(sent_ms).unwrap_or(i64::MAX));
        self.offset_ms = Some(self.offset_ms.map_or(offset, |known| known.min(offset)));
    }

    async fn welcome(&mut self, hello: v1::Hello) -> Result<Speaker, Status> {
        let pod = hello.pod.ok_or_else(|| Status::invalid_argument("hello.pod is missing"))?;
        let boot = hello.boot.ok_or_else(|| Status::invalid_argument("hello.boot is missing"))?;
        for (field, text) in
            [("hello.pod.name", &pod.name), ("hello.pod.target", &pod.target), ("hello.boot.id", &boot.id)]
        {
            if text.is_empty() || text.len() > NAME_MAX {
                return Err(Status::invalid_argument(format!("{field} must have 1 to {NAME_MAX} bytes")));
            }
        }
        let (resume_after, wanted) = self.claim(&pod, &boot, hello.engine)?;
        let decider_id = self.shared.decider_id.clone();
        self.answer(Answer::Welcome(v1::Welcome { decider_id, resume_after, wanted: Some(wanted) })).await?;
        Ok(Speaker { target: pod.target, pod: pod.name, boot: boot.id })
    }

    fn claim(&self, pod: &v1::PodIdentity, boot: &v1::Boot, engine: Option<v1::Engine>) -> Result<(u64, v1::Wanted), Status> {
        let mut state = self.shared.state();
        let names = state.names();
        let entity = state.targets.get_mut(&pod.target).ok_or_else(|| {
            Status::not_found(format!("no target {:?}; targets here: {names}", pod.target))
        })?;
        let claim = entity.target.claim(
            &pod.name,
            &pod.uid,
            Boot { id: boot.id.clone(), started_unix_ms: boot.started_unix_ms },
        );
        match claim {
            Claim::Granted { resume_after, replaces } => {
                if let Some(before) = replaces {
                    tracing::warn!(pod = pod.name, boot = boot.id, before, "a later boot speaks for this replica now");
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
            Claim::Superseded { by } => {
                Err(Status::already_exists(format!("replica {:?} is spoken for by a later boot, {by}", pod.name)))
            }
            // The backend may not have told of it yet.
            Claim::UnknownPod => {
                Err(Status::unavailable(format!("no replica {:?} in target {:?} (yet)", pod.name, pod.target)))
            }
        }
    }

    fn apply(&self, speaker: &Speaker, sent_ms: u64, sample: v1::Sample) -> Result<(), Status> {
        let now = self.shared.clock.now();
        let urgent = sample.urgent;
        let engine = sample.engine.clone();
        let scrape = sample.scrape.clone().unwrap_or_default();
        let gauges = sample.gauges;
        let sample = decode(sample, sent_ms, self.offset_ms.unwrap_or(0), now)
            .map_err(|problem| Status::invalid_argument(format!("sample of {:?}: {problem}", speaker.pod)))?;
        let counters = &self.shared.counters;
        let mut state = self.shared.state();
        let Some(entity) = state.targets.get_mut(&speaker.target) else {
            return Err(Status::not_found(format!("target {:?} is gone", speaker.target)));
        };
        match entity.target.observe(&speaker.pod, &speaker.boot, &sample, now) {
            Observed::Applied { missing, queue_rose } => {
                count(&counters.samples_applied);
                counters.samples_missing.fetch_add(missing, std::sync::atomic::Ordering::Relaxed);
                let note = entity.notes.entry(speaker.pod.clone()).or_default();
                if engine.is_some() {
                    note.engine = engine;
                }
                let problem = if gauges.is_some() { String::new() } else { scrape_problem(&scrape) };
                // What is replayed is history, not news.
                let news = now.since_s(sample.end) < NEWS_S;
                if news && note.problem != problem {
                    if problem.is_empty() {
                        tracing::info!(pod = speaker.pod, "engine can be read again");
                    } else {
                        tracing::warn!(pod = speaker.pod, problem, "engine cannot be read");
                    }
                    note.problem = problem;
                }
                if gauges.is_some() {
                    note.gauges = gauges;
                    note.first_sample.get_or_insert(sample.end);
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
            Observed::Superseded => {
                Err(Status::already_exists(format!("replica {:?} is spoken for by a later boot", speaker.pod)))
            }
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
        return Err(format!("interval_ms {} is more than {INTERVAL_MS_MAX}", sample.interval_ms));
    }
    let end = i64::try_from(sample.end_ms).unwrap_or(i64::MAX).saturating_add(offset_ms);
    let gauges = sample.gauges.map(|gauges| decode_gauges(&gauges)).transpose()?;
    let counters = sample.counters.unwrap_or_default();
    let histograms = sample.histograms.iter().map(decode_histogram).collect::<Result<_, _>>()?;
    Ok(Sample {
        sequence: sample.sequence,
        end: TimeMs(end.min(now.0)),
        interval_ms: sample.interval_ms,
        gauges,
        counters: Counters {
            prompt_tokens: counters.prompt_tokens.unwrap_or(0),
            prompt_tokens_cached: counters.prompt_tokens_cached.unwrap_or(0),
            generation_tokens: counters.generation_tokens.unwrap_or(0),
            requests: counters.requests.unwrap_or(0),
            requests_failed: counters.requests_failed.unwrap_or(0),
            requests_rejected: counters.requests_rejected.unwrap_or(0),
            preemptions: counters.preemptions.unwrap_or(0),
        },
        histograms,
    })
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
        return Err(format!("histogram {}: count says {said}, the cells hold {have}", signal.name()));
    }
    Ok((signal, histogram))
}
