//! The stream to the decider: hello, replay, live samples, goodbye; and coming back after every failure.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use infer_proto::v1::{
    AgentMessage, Boot, DeciderMessage, Goodbye, Hello, PodIdentity, agent_message, decider_message,
    telemetry_client::TelemetryClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Code, Request, Status, Streaming};

use crate::{
    Credentials, Options, VERSION,
    backoff::Backoff,
    clock::Clock,
    endpoint,
    shared::{Shared, Trouble, stopped},
};

/// From hello to welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages between the buffer and the transport. Enough to keep the transport busy in a replay; everything more waits
/// in the replay buffer, which is bounded by itself and can drop what grows too old.
const OUTGOING_MESSAGES: usize = 8;
/// More redirects than this without one acknowledgement: two deciders point at each other.
const REDIRECTS_IN_A_ROW: u32 = 4;
/// After everything is acknowledged, how long the decider gets to close the stream by itself.
const CLOSE_GRACE: Duration = Duration::from_millis(250);
/// While stopping there is no time for long pauses.
const STOPPING_PAUSE: Duration = Duration::from_millis(200);

/// Keeps a stream to the decider for as long as the agent lives.
pub(crate) struct Link<'a> {
    shared: &'a Shared,
    stop: watch::Receiver<bool>,
    configured: String,
    credentials: Credentials,
    redirected: Option<String>,
    /// Without an acknowledgement between them.
    redirects_in_a_row: u32,
    pod: PodIdentity,
    boot: Boot,
    drain: Duration,
    backoff: Backoff,
    lost_said: u64,
    /// What the log was last told to be wrong.
    problem: Option<String>,
}

/// How one connection ended.
enum End {
    /// All was sent, goodbye said, everything acknowledged.
    Drained,
    /// Connection or stream failed; try again.
    Lost(String),
    /// The decider does not want this agent; trying again soon will not help.
    Refused(String),
    /// The decider does not believe who this agent is.
    Unauthenticated(String),
    Redirected {
        endpoint: String,
        reason: String,
    },
}

impl<'a> Link<'a> {
    pub(crate) fn new(options: &Options, boot: Boot, shared: &'a Shared, stop: watch::Receiver<bool>) -> Self {
        Self {
            shared,
            stop,
            configured: options.decider.clone(),
            credentials: options.credentials.clone(),
            redirected: None,
            redirects_in_a_row: 0,
            pod: options.pod.clone(),
            boot,
            drain: Duration::from_millis(u64::from(options.drain_ms)),
            backoff: Backoff::default(),
            lost_said: 0,
            problem: None,
        }
    }

    /// Connects again and again until the agent stops. Returns whether everything was delivered in time.
    pub(crate) async fn run(&mut self) -> bool {
        let mut stop = self.stop.clone();
        let drain = self.drain;
        let deadline = async move {
            stopped(&mut stop).await;
            sleep(drain).await;
        };
        let drained = tokio::select! {
            drained = self.connect_again_and_again() => drained,
            () = deadline => false,
        };
        let state = self.shared.state();
        let (newest, acked) = (state.replay.newest(), state.replay.acked());
        if acked < newest {
            tracing::warn!(
                unacknowledged = newest - acked,
                "stopped before the decider had everything"
            );
        }
        drained
    }

    async fn connect_again_and_again(&mut self) -> bool {
        loop {
            let endpoint = self.redirected.clone().unwrap_or_else(|| self.configured.clone());
            let end = self.connect(&endpoint).await;
            self.note(&end);
            let pause = match end {
                End::Drained => return true,
                End::Lost(reason) => {
                    self.say(&endpoint, "decider not reached", reason);
                    self.forget_redirect();
                    self.backoff.next()
                }
                End::Refused(reason) => {
                    self.say(&endpoint, "the decider refused this agent", reason);
                    self.forget_redirect();
                    self.backoff.longest()
                }
                End::Unauthenticated(reason) => {
                    let what = match &self.credentials.token_file {
                        Some(_) => "the decider does not accept this agent's token",
                        None => "the decider wants a token, and this agent has none: give --token-file",
                    };
                    self.say(&endpoint, what, reason);
                    self.forget_redirect();
                    self.backoff.unauthenticated()
                }
                End::Redirected { endpoint: to, reason } => {
                    tracing::info!(from = %endpoint, %to, %reason, "redirected to another decider");
                    self.redirected = Some(to);
                    self.redirects_in_a_row += 1;
                    if self.redirects_in_a_row > REDIRECTS_IN_A_ROW {
                        self.backoff.longest()
                    } else {
                        self.backoff.next()
                    }
                }
            };
            if *self.stop.borrow() {
                sleep(pause.min(STOPPING_PAUSE)).await;
            } else {
                tokio::select! {
                    () = sleep(pause) => {}
                    () = stopped(&mut self.stop) => {}
                }
            }
        }
    }

    /// For the metrics, and for what holds only while a decider is there.
    fn note(&self, end: &End) {
        let mut state = self.shared.state();
        state.connected = false;
        state.drain.disconnected(Instant::now());
        let trouble = match end {
            End::Lost(_) => Trouble::Lost,
            End::Refused(_) => Trouble::Refused,
            End::Unauthenticated(_) => Trouble::Unauthenticated,
            End::Drained | End::Redirected { .. } => return,
        };
        state.troubles[trouble as usize] += 1;
    }

    /// Who sent the agent to a decider that has died since knows better soon; and a place where nobody is points nowhere.
    fn forget_redirect(&mut self) {
        if self.redirected.take().is_some() {
            self.redirects_in_a_row = 0;
            tracing::info!(endpoint = %self.configured, "back to the configured decider");
        }
    }

    /// Once per change, not once per attempt.
    fn say(&mut self, endpoint: &str, what: &str, reason: String) {
        let problem = format!("{endpoint} {what}: {reason}");
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(%endpoint, %reason, "{what}");
            self.problem = Some(problem);
        }
    }

    /// One connection, from hello to its end.
    async fn connect(&mut self, endpoint: &str) -> End {
        let (outgoing, messages) = mpsc::channel(OUTGOING_MESSAGES);
        let mut incoming = match self.open(endpoint, &outgoing, messages).await {
            Ok(incoming) => incoming,
            Err(end) => return end,
        };
        let welcome = match timeout(WELCOME_TIMEOUT, incoming.message()).await {
            Err(_) => return End::Lost(format!("no Welcome within {} s", WELCOME_TIMEOUT.as_secs())),
            Ok(Err(status)) => return from_status(&status),
            Ok(Ok(Some(DeciderMessage {
                body: Some(decider_message::Body::Welcome(welcome)),
            }))) => welcome,
            Ok(Ok(Some(DeciderMessage {
                body: Some(decider_message::Body::Redirect(redirect)),
            }))) => {
                return self.redirect(redirect.endpoint, redirect.reason);
            }
            Ok(Ok(Some(_))) => return End::Lost("the first message was not a Welcome".into()),
            Ok(Ok(None)) => return End::Lost("the stream ended before a Welcome".into()),
        };
        if let Some(wanted) = &welcome.wanted {
            self.shared.apply(wanted);
        }
        let (cursor, held, lost) = {
            let mut state = self.shared.state();
            state.connected = true;
            state.connections += 1;
            state.drain.connected();
            let replay = &mut state.replay;
            replay.resume(welcome.resume_after);
            (replay.acked(), replay.len(), replay.lost())
        };
        self.problem = None;
        self.backoff.reset();
        tracing::info!(%endpoint, decider = %welcome.decider_id, resume_after = welcome.resume_after, held, "connected");
        if lost > self.lost_said {
            tracing::warn!(
                lost = lost - self.lost_said,
                "samples had to make room before the decider had them"
            );
            self.lost_said = lost;
        }
        self.report(cursor, outgoing, incoming).await
    }

    /// Connects and says hello.
    async fn open(
        &self,
        endpoint: &str,
        outgoing: &mpsc::Sender<agent_message::Body>,
        messages: mpsc::Receiver<agent_message::Body>,
    ) -> Result<Streaming<DeciderMessage>, End> {
        let channel = endpoint::connect(endpoint, &self.credentials)
            .await
            .map_err(End::Lost)?;
        let bearer = self.credentials.bearer().map_err(End::Lost)?;
        let hello = {
            let state = self.shared.state();
            Hello {
                agent_version: VERSION.into(),
                pod: Some(self.pod.clone()),
                boot: Some(self.boot.clone()),
                engine: state.engine.clone(),
                oldest_sequence: state.replay.oldest(),
                newest_sequence: state.replay.newest(),
            }
        };
        // The channel is fresh and has room.
        let _ = outgoing.try_send(agent_message::Body::Hello(hello));
        let stream = Outgoing {
            messages,
            clock: self.shared.clock,
        };
        let mut request = Request::new(stream);
        if let Some(bearer) = bearer {
            request.metadata_mut().insert("authorization", bearer);
        }
        let mut client = TelemetryClient::new(channel);
        match timeout(WELCOME_TIMEOUT, client.report(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(from_status(&status)),
            Err(_) => Err(End::Lost(format!(
                "no answer to Hello within {} s",
                WELCOME_TIMEOUT.as_secs()
            ))),
        }
    }

    fn redirect(&self, endpoint: String, reason: String) -> End {
        match endpoint::check_redirect(&self.configured, &endpoint, &self.credentials) {
            Ok(()) => End::Redirected { endpoint, reason },
            Err(error) => End::Lost(format!("redirected to nowhere: {error}")),
        }
    }

    /// Sends everything above `cursor`, then new samples as they come, and at the end goodbye.
    async fn report(
        &mut self,
        mut cursor: u64,
        outgoing: mpsc::Sender<agent_message::Body>,
        mut incoming: Streaming<DeciderMessage>,
    ) -> End {
        // Dropped once goodbye is said, or when the transport has gone; then `incoming` tells why.
        let mut outgoing = Some(outgoing);
        let mut said_all = false;
        let mut goodbye: Option<u64> = None;
        let mut close_by: Option<Instant> = None;
        loop {
            if said_all {
                outgoing = None;
            }
            let (ready, leave, acked) = {
                let state = self.shared.state();
                let ready = state.replay.has_after(cursor);
                (ready, state.finished && !ready, state.replay.acked())
            };
            if goodbye.is_some_and(|newest| acked >= newest) && close_by.is_none() {
                close_by = Some(Instant::now() + CLOSE_GRACE);
            }
            let has_message = outgoing.is_some() && (ready || leave);
            tokio::select! {
                biased;
                message = incoming.message() => {
                    if let Some(end) = self.receive(message, goodbye) {
                        return end;
                    }
                }
                permit = reserve(outgoing.as_ref()), if has_message => {
                    let Some(permit) = permit else {
                        said_all = true;
                        continue;
                    };
                    let next = self.shared.state().replay.next_after(cursor);
                    if let Some((sequence, sample)) = next {
                        permit.send(agent_message::Body::Sample(sample));
                        cursor = sequence;
                    } else if leave {
                        let newest_sequence = self.shared.state().replay.newest();
                        let reason = "the agent was asked to stop".into();
                        permit.send(agent_message::Body::Goodbye(Goodbye { reason, newest_sequence }));
                        goodbye = Some(newest_sequence);
                        said_all = true;
                    }
                }
                () = self.shared.news.notified(), if !has_message => {}
                () = sleep_until(close_by.unwrap_or_else(Instant::now)), if close_by.is_some() => return End::Drained,
            }
        }
    }

    /// What the decider said, or how the stream ended; `Some` when this connection is over.
    fn receive(&mut self, message: Result<Option<DeciderMessage>, Status>, goodbye: Option<u64>) -> Option<End> {
        let body = match message {
            Ok(Some(message)) => message.body,
            Ok(None) | Err(_) if goodbye.is_some_and(|newest| self.shared.state().replay.acked() >= newest) => {
                return Some(End::Drained);
            }
            Ok(None) => return Some(End::Lost("the decider ended the stream".into())),
            Err(status) => return Some(from_status(&status)),
        };
        match body {
            Some(decider_message::Body::Ack(ack)) => {
                self.redirects_in_a_row = 0;
                let mut state = self.shared.state();
                state.replay.ack(ack.sequence);
                state.drain.acknowledged();
            }
            Some(decider_message::Body::Wanted(wanted)) => self.shared.apply(&wanted),
            Some(decider_message::Body::Redirect(redirect)) => {
                return Some(self.redirect(redirect.endpoint, redirect.reason));
            }
            Some(decider_message::Body::Drain(drain)) => {
                let reason = drain.draining.then_some(drain.reason);
                self.shared.state().drain.decider_says(reason);
            }
            // A later version's message, or a second Welcome: nothing in it concerns this stream.
            Some(decider_message::Body::Welcome(_)) | None => {}
        }
        None
    }
}

async fn reserve(
    outgoing: Option<&mpsc::Sender<agent_message::Body>>,
) -> Option<mpsc::Permit<'_, agent_message::Body>> {
    outgoing?.reserve().await.ok()
}

fn from_status(status: &Status) -> End {
    let reason = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => End::Unauthenticated(reason),
        Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists | Code::Unimplemented => {
            End::Refused(reason)
        }
        _ => End::Lost(reason),
    }
}

/// Stamps each message at the moment when the transport takes it: what waited in a queue must not look like a slow
/// clock to the decider.
struct Outgoing {
    messages: mpsc::Receiver<agent_message::Body>,
    clock: Clock,
}

impl tokio_stream::Stream for Outgoing {
    type Item = AgentMessage;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AgentMessage>> {
        let clock = self.clock;
        self.messages.poll_recv(cx).map(|body| {
            body.map(|body| AgentMessage {
                sent_ms: clock.now_ms(),
                body: Some(body),
            })
        })
    }
}
