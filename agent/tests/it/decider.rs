//! A decider that writes down what it is told.

use std::{net::SocketAddr, pin::Pin, time::Instant};

use infer_proto::v1::{
    Ack, AgentMessage, DeciderMessage, Goodbye, Hello, Redirect, Sample, Wanted, Welcome, agent_message,
    decider_message,
    telemetry_server::{Telemetry, TelemetryServer},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

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
        let service = TelemetryServer::new(Ears {
            manners,
            heard: heard.clone(),
        });
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(socket).expect("a listener");
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let _ = Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await;
        });
        Self {
            address,
            heard,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
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
}

#[tonic::async_trait]
impl Telemetry for Ears {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<DeciderMessage, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::ReportStream>, Status> {
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
            });
        });
        if self.manners.refuses {
            return Err(Status::invalid_argument("I do not like you"));
        }
        let (answers, stream) = mpsc::channel(16);
        let manners = self.manners.clone();
        let heard = self.heard.clone();
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
            if !manners.acks {
                // One that hangs does not end the stream either.
                std::future::pending::<()>().await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
