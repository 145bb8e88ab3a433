//! A decider for the tests, to be killed: `fake_decider <state_dir> <first port> <last port> <replicas> <engine command…>`
//! supervises the fleet "chat" until it gets SIGTERM, which leaves the engines running.
#![allow(clippy::expect_used)]

use std::sync::Arc;

use infer_local::{Agent, FleetSpec, Options, Shutdown, StateDir, Supervisor};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect("an argument");
    let state_dir = Arc::new(StateDir::lock(next()).expect("the state directory"));
    let mut number = || next().parse::<u16>().expect("a number");
    let (first, last, replicas) = (number(), number(), number());
    let mut spec = FleetSpec::new("chat", arguments.collect(), first..=last);
    spec.agent = Agent::Command(vec!["sleep".into(), "1000".into()]);
    let supervisor = Supervisor::new(Options::new(spec, state_dir)).expect("a good specification");
    supervisor
        .handle()
        .scale("chat", u32::from(replicas), "test")
        .expect("a count within the ports");
    let mut terminate = signal(SignalKind::terminate()).expect("a signal handler");
    let shutdown = async move {
        terminate.recv().await;
        Shutdown::Leave
    };
    supervisor.run(shutdown).await.expect("a readable registry");
}
