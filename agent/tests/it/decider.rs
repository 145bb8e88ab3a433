//! A decider that writes down what it is told.

use std::{net::SocketAddr, pin::Pin, time::Instant};

use infer_proto::v1::{
    Ack, AgentMessage, DeciderMessage, Drain, Goodbye, Hello, Redirect, Sample, Wanted, Welcome, agent_message,
    decider_message,
    telemetry_server::{Telemetry, TelemetryServer},
};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Identity, Server, ServerTlsConfig},
};

use crate::PATIENCE;

/// How it answers.
#[derive(Debug, Clone)]
pub(crate) struct Manners {
    pub(crate) resume_after: u64,
    pub(crate) acks: bool,
    pub(crate) wanted: Option<Wanted>,
    /// Its wish after the first sample.
    pub(crate) wanted_later: Option<Wanted>,
    /// Closes every stream with INVALID_ARGUMENT instead of a welcome.
    pub(crate) refuses: bool,
    /// Sends everybody there instead of a welcome.
    pub(crate) redirects_to: Option<String>,
    /// Its certificate; without one it speaks plain HTTP.
    pub(crate) tls: Option<Identity>,
    /// Closes every stream without this token with UNAUTHENTICATED.
    pub(crate) token: Option<&'static str>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            resume_after: 0,
            acks: true,
            wanted: None,
            wanted_later: None,
            refuses: false,
            redirects_to: None,
            tls: None,
            token: None,
        }
    }
}

/// What came in over one stream.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) at: Instant,
    pub(crate) hello: Hello,
    pub(crate) samples: Vec<Sample>,
    /// As stamped by the agent, of every message.
    pub(crate) sent_ms: Vec<u64>,
    pub(crate) goodbye: Option<Goodbye>,
    pub(crate) authorization: Option<String>,
}

impl Connection {
    pub(crate) fn sequences(&self) -> Vec<u64> {
        self.samples.iter().map(|sample| sample.sequence).collect()
    }

    pub(crate) fn newest(&self) -> u64 {
        self.samples.last().map_or(0, |sample| sample.sequence)
    }
}

/// On a runtime of its own, so that killing it closes its sockets as the end of a process does.
pub(crate) struct Decider {
    address: SocketAddr,
    heard: watch::Sender<Vec<Connection>>,
    orders: broadcast::Sender<decider_message::Body>,
    scheme: &'static str,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Decider {
    pub(crate) fn start(manners: Manners) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), manners)
    }

    pub(crate) fn start_at(address: SocketAddr, manners: Manners) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let heard = watch::Sender::new(Vec::new());
        let socket = std::net::TcpListener::bind(address).expect("a free port");
        socket.set_nonblocking(true).expect("nonblocking");
        let address = socket.local_addr().expect("bound");
        let orders = broadcast::Sender::new(16);
        let mut server = Server::builder();
        let mut scheme = "http";
        if let Some(identity) = &manners.tls {
            let tls = ServerTlsConfig::new().identity(identity.clone());
            server = server.tls_config(tls).expect("a certificate");
            scheme = "https";
        }
        let service = TelemetryServer::new(Ears {
            manners,
            heard: heard.clone(),
            orders: orders.clone(),
        });
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(socket).expect("a listener");
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let _ = server.add_service(service).serve_with_incoming(incoming).await;
        });
        Self {
            address,
            heard,
            orders,
            scheme,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Tells every agent that is connected.
    pub(crate) fn drain(&self, draining: bool) {
        let reason = "3 replicas are enough".into();
        let drain = decider_message::Body::Drain(Drain { draining, reason });
        self.orders.send(drain).expect("an agent is connected");
    }

    /// Waits until what was heard is as wanted, and returns it.
    #[track_caller]
    pub(crate) fn until(
        &self,
        what: &'static str,
        wanted: impl Fn(&[Connection]) -> bool,
    ) -> impl Future<Output = Vec<Connection>> {
        let mut heard = self.heard.subscribe();
        async move {
            match tokio::time::timeout(PATIENCE, heard.wait_for(|heard| wanted(heard))).await {
                Ok(heard) => heard.expect("the sender lives").clone(),
                Err(_) => panic!("waited in vain for {what}"),
            }
        }
    }

    pub(crate) fn heard(&self) -> Vec<Connection> {
        self.heard.borrow().clone()
    }

    /// The process ends. Returns its address, which is free at once.
    pub(crate) fn kill(mut self) -> SocketAddr {
        let runtime = self.runtime.take().expect("runs");
        // Waits until its tasks, and with them the sockets, are gone; not allowed on a thread of a runtime.
        std::thread::spawn(move || drop(runtime)).join().expect("no panic");
        self.address
    }
}

impl Drop for Decider {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Ears {
    manners: Manners,
    heard: watch::Sender<Vec<Connection>>,
    orders: broadcast::Sender<decider_message::Body>,
}

#[tonic::async_trait]
impl Telemetry for Ears {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<DeciderMessage, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::ReportStream>, Status> {
        let authorization = request.metadata().get("authorization").cloned();
        let mut messages = request.into_inner();
        let first = messages
            .next()
            .await
            .ok_or_else(|| Status::invalid_argument("nothing came"))??;
        let Some(agent_message::Body::Hello(hello)) = first.body else {
            return Err(Status::invalid_argument("the first message is not a Hello"));
        };
        let index = self.heard.borrow().len();
        self.heard.send_modify(|heard| {
            heard.push(Connection {
                at: Instant::now(),
                hello,
                samples: Vec::new(),
                sent_ms: vec![first.sent_ms],
                goodbye: None,
                authorization: authorization
                    .as_ref()
                    .map(|value| value.to_str().expect("ASCII").to_owned()),
            });
        });
        if let Some(token) = self.manners.token
            && authorization.is_none_or(|value| value != format!("Bearer {token}"))
        {
            return Err(Status::unauthenticated("who are you?"));
        }
        if self.manners.refuses {
            return Err(Status::invalid_argument("I do not like you"));
        }
        let (answers, stream) = mpsc::channel(16);
        let manners = self.manners.clone();
        let heard = self.heard.clone();
        let mut orders = self.orders.subscribe();
        let said = answers.clone();
        let say = |body| Ok(DeciderMessage { body: Some(body) });
        tokio::spawn(async move {
            if let Some(endpoint) = manners.redirects_to {
                let redirect = Redirect {
                    endpoint,
                    reason: "another decider owns it".into(),
                };
                let _ = answers.send(say(decider_message::Body::Redirect(redirect))).await;
                return;
            }
            let welcome = Welcome {
                decider_id: "fake".into(),
                resume_after: manners.resume_after,
                wanted: manners.wanted,
            };
            let _ = answers.send(say(decider_message::Body::Welcome(welcome))).await;
            let relay = tokio::spawn(async move {
                while let Ok(order) = orders.recv().await {
                    let _ = said.send(say(order)).await;
                }
            });
            while let Some(Ok(message)) = messages.next().await {
                let mut ack = None;
                heard.send_modify(|heard| {
                    let connection = &mut heard[index];
                    connection.sent_ms.push(message.sent_ms);
                    match message.body {
                        Some(agent_message::Body::Sample(sample)) => {
                            ack = manners.acks.then_some(sample.sequence);
                            connection.samples.push(sample);
                        }
                        Some(agent_message::Body::Goodbye(goodbye)) => connection.goodbye = Some(goodbye),
                        Some(agent_message::Body::Hello(_)) | None => panic!("{message:?}"),
                    }
                });
                if let Some(wanted) = manners.wanted_later.filter(|_| ack == Some(1)) {
                    let _ = answers.send(say(decider_message::Body::Wanted(wanted))).await;
                }
                if let Some(sequence) = ack {
                    let _ = answers.send(say(decider_message::Body::Ack(Ack { sequence }))).await;
                }
            }
            relay.abort();
            if !manners.acks {
                // One that hangs does not end the stream either.
                std::future::pending::<()>().await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
