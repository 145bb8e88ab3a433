//! Requests survive scale-downs: real requests to real engine processes, through endpoints as a Service has them.

use std::{sync::Arc, time::Duration};

use infer_load::{Class, Lengths, Report, Shutdown, rate};
use infer_tests::harness::cluster::{Engines, Front, Load, Runner};
use tokio::task::JoinHandle;

use crate::fleet::{CHAT, Fleet, Options};

const MODEL: &str = "chat";
/// How often up and down.
const ROUNDS: usize = 2;

/// Steady load until it is told to stop.
struct Requests {
    shutdown: Shutdown,
    task: JoinHandle<Report>,
}

impl Requests {
    fn start(front: &Front, rate_rps: f64, output_tokens: f64) -> Requests {
        let mut options = infer_load::Options::new(format!("http://{}", front.address()), MODEL);
        options.timeout = Duration::from_secs(60);
        options.in_flight_max = 24;
        // An endpoint is chosen by connection, and a gateway's requests do not stick to one.
        options.headers = vec![("connection".to_owned(), "close".to_owned())];
        let lengths = Lengths::new(20.0, output_tokens, 0.3).unwrap();
        let curve = rate::Curve::constant(rate_rps, 600.0).unwrap();
        let plan = rate::plan(curve, rate::Process::Gamma { cv: 0.4 }, lengths, 1);
        let shutdown = Shutdown::default();
        let run = infer_load::run(options, plan, |_: &infer_load::Event| {}, shutdown.clone());
        Requests {
            shutdown,
            task: tokio::spawn(async move { run.await.unwrap() }),
        }
    }

    /// The last answer has come, and not one is missing.
    async fn stop(self) {
        self.shutdown.stop();
        let report = self.task.await.unwrap();
        // What was too much at a time was not sent.
        let failed = report.requests.failed - report.failures.get(&Class::InFlightCap).copied().unwrap_or(0);
        assert_eq!(failed, 0, "{:?} {:?}", report.failures, report.errors);
        assert!(report.requests.ok > 0);
    }
}

/// Keeps the endpoints up to date until it is dropped.
struct Endpoints(JoinHandle<()>);

impl Endpoints {
    fn follow(front: &Arc<Front>, runner: &Arc<Runner>) -> Endpoints {
        let (front, runner) = (Arc::clone(front), Arc::clone(runner));
        Endpoints(tokio::spawn(async move {
            loop {
                front.set(runner.endpoints());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }))
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_broken_by_scaling_down() {
    let engine = ["--served-model-name", MODEL, "--speed", "0.25"]
        .map(str::to_owned)
        .to_vec();
    let options = Options {
        max: 3,
        engines: Engines::Simulated(engine),
        ..Options::default()
    };
    let Some(fleet) = Fleet::open("requests", options, Load::default()).await else {
        return;
    };
    let front = Arc::new(Front::listen().await.unwrap());
    let _endpoints = Endpoints::follow(&front, &fleet.runner);
    for _ in 0..ROUNDS {
        // Some that take seven seconds, all the time, so that there is hardly a replica without one; and a burst that
        // needs all replicas.
        let little = Requests::start(&front, 0.4, 200.0);
        let much = Requests::start(&front, 40.0, 60.0);
        fleet.scene.settled(CHAT, 3).await;
        much.stop().await;
        fleet.scene.settled(CHAT, 1).await;
        little.stop().await;
    }
    assert!(fleet.runner.problems().is_empty(), "{:?}", fleet.runner.problems());
}
