//! The agent against a real gRPC server and a real HTTP engine on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod cli;
mod decider;
mod drain;
mod engine;
mod failures;
mod goodbye;
mod replay;
mod sampling;
mod tls;

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use infer_agent::{Agent, Error, Options, Settings, Summary};
use infer_proto::v1::PodIdentity;
use tokio::{sync::oneshot, task::JoinHandle};

/// How long a test waits for something that should come at once. Long, for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent in a task of its own.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Summary, Error>>,
}

impl Running {
    fn start(options: Options) -> Self {
        Self::run(Agent::new(options))
    }

    /// One that serves HTTP, and where.
    fn start_with_http(options: Options) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        (Self::run(Agent::new(options).with_http(listener)), address)
    }

    fn run(agent: Agent) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(agent.run(async {
            let _ = stopped.await;
        }));
        Self { stop, task }
    }

    async fn stop(self) -> Summary {
        self.stop.send(()).expect("the agent runs");
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("in time")
            .expect("no panic")
            .expect("good options")
    }
}

/// An agent between these two, at 50 Hz and without cheap looks.
fn options(engine: &engine::Engine, decider: &decider::Decider) -> Options {
    Options {
        engine_url: engine.url(),
        decider: decider.url(),
        pod: PodIdentity {
            namespace: "models".into(),
            name: "chat-0".into(),
            uid: "uid-0".into(),
            target: "chat".into(),
        },
        settings: Settings {
            interval_ms: 20,
            fast_interval_ms: 0,
            ..Settings::default()
        },
        // A busy machine must not look like a slow engine.
        scrape_timeout_ms: Some(5_000),
        ..Options::default()
    }
}
