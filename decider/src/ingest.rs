//! `Telemetry.Report`: agents' samples into the windows.
//!
//! One task per stream. What it reads it validates and applies at once under the state's lock, so nothing queues here:
//! a stream that is not read is held back by HTTP/2's own window, and memory stays bounded by the number of replicas.

use std::{pin::Pin, sync::Arc};

use infer_core::{
    TimeMs,
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
    auth::bearer,
    decode::decode,
    hooks::Owner,
    link::{Leave, Link, Orders},
    state::{Shared, count},
    stopped,
};

/// Answers not yet taken by the transport. An agent that does not read its acknowledgements stops being read itself.
const ANSWERS: usize = 64;
/// Who opens a stream says who it is, or loses it.
const HELLO_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
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
        let token = bearer(request.metadata().as_ref());
        let stream = AgentStream {
            shared: Arc::clone(&self.shared),
            token,
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
    token: Option<String>,
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
    /// What the service wants the agent to know; closed when another stream speaks for the replica.
    orders: watch::Receiver<Orders>,
    /// What it has been told.
    told: Orders,
}

/// Whether a stream goes on.
enum Next {
    Go,
    End,
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
        let Some(mut speaker) = self.welcome(hello).await? else {
            return Ok(());
        };
        let _connected = Connected::new(&self.shared);
        loop {
            let next = tokio::select! {
                message = self.inbound.next() => match message {
                    Some(message) => self.listen(&speaker, message?).await?,
                    None => Next::End,
                },
                ordered = speaker.orders.changed() => match ordered {
                    Ok(()) => self.obey(&mut speaker).await?,
                    Err(_) => {
                        let pod = &speaker.pod;
                        return Err(Status::already_exists(format!("another stream speaks for replica {pod:?} now")));
                    }
                },
            };
            if let Next::End = next {
                return Ok(());
            }
        }
    }

    async fn listen(&mut self, speaker: &Speaker, message: AgentMessage) -> Result<Next, Status> {
        self.note_clock(message.sent_ms)?;
        match message.body {
            Some(Body::Sample(sample)) => {
                let sequence = sample.sequence;
                self.apply(speaker, message.sent_ms, sample)?;
                self.answer(Answer::Ack(v1::Ack { sequence })).await?;
                Ok(Next::Go)
            }
            Some(Body::Goodbye(goodbye)) => {
                tracing::info!(pod = speaker.pod, reason = goodbye.reason, "agent said goodbye");
                self.answer(Answer::Ack(v1::Ack {
                    sequence: goodbye.newest_sequence,
                }))
                .await?;
                Ok(Next::End)
            }
            Some(Body::Hello(_)) => Err(Status::invalid_argument("a second hello on one stream")),
            None => Err(Status::invalid_argument(
                "a message without a body that this decider knows",
            )),
        }
    }

    /// Passes on what is new in the orders.
    async fn obey(&self, speaker: &mut Speaker) -> Result<Next, Status> {
        let orders = speaker.orders.borrow_and_update().clone();
        match orders.leave {
            Some(Leave::Redirect { endpoint, reason }) => {
                self.redirect(endpoint, reason).await?;
                return Ok(Next::End);
            }
            Some(Leave::Retry { reason }) => return Err(Status::unavailable(reason)),
            None => {}
        }
        if orders.drain != speaker.told.drain {
            self.answer(Answer::Drain(v1::Drain {
                draining: orders.drain.is_some(),
                reason: orders.drain.clone().unwrap_or_default(),
            }))
            .await?;
        }
        if orders.wanted != speaker.told.wanted {
            self.answer(Answer::Wanted(orders.wanted)).await?;
        }
        speaker.told = orders;
        Ok(Next::Go)
    }

    async fn redirect(&self, endpoint: String, reason: String) -> Result<(), Status> {
        count(&self.shared.counters.redirects);
        self.answer(Answer::Redirect(v1::Redirect { endpoint, reason })).await
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

    /// Finds out who speaks and whether he may. `None`: he was sent to another decider.
    async fn welcome(&mut self, hello: v1::Hello) -> Result<Option<Speaker>, Status> {
        let pod = hello
            .pod
            .ok_or_else(|| Status::invalid_argument("hello.pod is missing"))?;
        let boot = hello
            .boot
            .ok_or_else(|| Status::invalid_argument("hello.boot is missing"))?;
        for (field, text, least) in [
            ("hello.pod.name", &pod.name, 1),
            ("hello.pod.namespace", &pod.namespace, 0),
            ("hello.pod.uid", &pod.uid, 0),
            ("hello.pod.target", &pod.target, 0),
            ("hello.boot.id", &boot.id, 1),
        ] {
            if !(least..=NAME_MAX).contains(&text.len()) {
                return Err(Status::invalid_argument(format!(
                    "{field} must have {least} to {NAME_MAX} bytes"
                )));
            }
        }
        let hooks = self.shared.hooks();
        let allowed = hooks.authenticate.agent(self.token.take(), pod.clone()).await;
        allowed.inspect_err(|status| {
            count(&self.shared.counters.unauthenticated);
            tracing::warn!(
                pod = pod.name,
                namespace = pod.namespace,
                reason = status.message(),
                "refused an agent"
            );
        })?;
        match hooks.ownership.of_pod(&pod.namespace, &pod.name) {
            Owner::Mine => {}
            Owner::Other { endpoint } => {
                let reason = format!("another decider owns replica {:?}", pod.name);
                self.redirect(endpoint, reason).await?;
                return Ok(None);
            }
            Owner::Unknown => {
                return Err(Status::unavailable(format!(
                    "who decides on replica {:?} is not known now: try again",
                    pod.name
                )));
            }
        }
        let (mut speaker, resume_after) = self.claim(&pod, &boot, hello.engine)?;
        self.answer(Answer::Welcome(v1::Welcome {
            decider_id: self.shared.decider_id.clone(),
            resume_after,
            wanted: Some(speaker.told.wanted),
        }))
        .await?;
        // Before the first acknowledgement: what was ordered once holds only if it is said again.
        let next = self.obey(&mut speaker).await?;
        Ok(matches!(next, Next::Go).then_some(speaker))
    }

    /// Makes this the stream that speaks for the replica. Also returns the sequence number to go on after.
    fn claim(
        &self,
        pod: &v1::PodIdentity,
        boot: &v1::Boot,
        engine: Option<v1::Engine>,
    ) -> Result<(Speaker, u64), Status> {
        let mut state = self.shared.state();
        let name = match pod.target.as_str() {
            "" => state.target_of(&pod.namespace, &pod.name).ok_or_else(|| {
                let place = if pod.namespace.is_empty() {
                    String::new()
                } else {
                    format!(" of namespace {:?}", pod.namespace)
                };
                Status::unavailable(format!("no target has replica {:?}{place} (yet)", pod.name))
            })?,
            target => target.to_owned(),
        };
        let names = state.names();
        let entity = state.targets.get_mut(&name);
        // Whoever speaks for a Pod of one namespace has no business in another.
        let own = |entity: &&mut crate::state::Entity| {
            entity.spec.namespace.is_empty() || entity.spec.namespace == pod.namespace
        };
        let entity = entity
            .filter(own)
            .ok_or_else(|| Status::not_found(format!("no target {name:?}; targets here: {names}")))?;
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
                let told = Orders {
                    drain: None,
                    wanted: entity.wanted(),
                    leave: None,
                };
                let (link, orders) = Link::new(Orders {
                    drain: entity.drains.get(&pod.name).cloned(),
                    ..told.clone()
                });
                entity.links.insert(pod.name.clone(), link);
                let speaker = Speaker {
                    target: name,
                    pod: pod.name.clone(),
                    boot: boot.id.clone(),
                    orders,
                    told,
                };
                Ok((speaker, resume_after))
            }
            Claim::Superseded { by } => Err(Status::already_exists(format!(
                "replica {:?} is spoken for by a later boot, {by}",
                pod.name
            ))),
            // The backend may not have told of it yet.
            Claim::UnknownPod => Err(Status::unavailable(format!(
                "no replica {:?} in target {name:?} (yet)",
                pod.name
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
