//! A thousand agents on one decider: what that costs, and whether every sample arrives once.

use std::{
    collections::HashMap,
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use infer_agent::{Agent, FetchError, Options, Path, Settings, Source, Summary};
use infer_core::{
    decision::{Control, Plan},
    policy::Bounds,
};
use infer_decider::{
    actuate::{self, Actuator, BoxFuture, Fleet},
    clock::Clock,
    ingest::Ingest,
    journal::Journal,
    query::Queries,
    state::{Shared, TargetSpec, Wishes},
    tick,
};
use infer_proto::v1::{
    GetStatusRequest, PodIdentity, Status, decisions_client::DecisionsClient, decisions_server::DecisionsServer,
    telemetry_server::TelemetryServer,
};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};

use crate::{
    Setting,
    body::Captures,
    fleet,
    helper::{asked_to_end, say_address},
    process::{CpuTime, HelperProcess, Memory},
    report::{Figure, Report, Target},
    say, workload,
};

const PODS: usize = 10;

/// A decider whose fleets stand still.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Standing {
    /// Targets, each with ten replicas.
    #[arg(long)]
    targets: usize,
}

fn target_name(index: usize) -> String {
    format!("fleet-{index}")
}

/// The backend of fleets that stand still.
struct Still(HashMap<String, Fleet>);

impl Actuator for Still {
    fn fleet(&self, target: &str) -> Option<Fleet> {
        self.0.get(target).cloned()
    }

    fn apply(&self, _: Plan, _: String) -> BoxFuture<Result<(), actuate::Error>> {
        Box::pin(async { Ok(()) })
    }

    fn changed(&self) -> BoxFuture<Vec<String>> {
        Box::pin(pending())
    }
}

/// The helper: everything of a decider but the processes it would supervise. Its gRPC server is set up as
/// `infer_decider::service` does.
pub(crate) async fn decider(listener: TcpListener, standing: Standing) -> anyhow::Result<serde_json::Value> {
    let scratch = tempfile::tempdir()?;
    let (journal, recovered) = Journal::open(scratch.path())?;
    let names: Vec<String> = (0..standing.targets).map(target_name).collect();
    let bounds = Bounds {
        min: PODS as u32,
        max: PODS as u32,
    };
    let spec = |name: &String| TargetSpec {
        name: name.clone(),
        namespace: String::new(),
        binding: name.clone(),
        policy_name: "bench".to_owned(),
        policy: workload::policy(),
        bounds,
        control: Control::Auto,
        wishes: Wishes::default(),
        coupling: None,
    };
    let clock = Clock::start();
    let shared = Shared::new(clock, "bench", names.iter().map(spec).collect(), journal, recovered);
    let view = workload::fleet(PODS, clock.now());
    let fleet = Fleet {
        view,
        details: Vec::new(),
        gateway_waiting: None,
    };
    let backend = Arc::new(Still(names.into_iter().map(|name| (name, fleet.clone())).collect()));
    let (stop, stopped) = watch::channel(false);
    let ticks = tokio::spawn(tick::run(Arc::clone(&shared), backend, stopped.clone()));
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(32)
        .tcp_nodelay(true)
        .add_service(TelemetryServer::new(Ingest::new(Arc::clone(&shared), stopped.clone())))
        .add_service(DecisionsServer::new(Queries::new(Arc::clone(&shared), stopped)));
    // The first tick tells the targets of their replicas; an agent that comes before is told to come again.
    tokio::time::sleep(Duration::from_millis(200)).await;
    say_address(&listener)?;
    tokio::select! {
        served = server.serve_with_incoming(TcpListenerStream::new(listener)) => served?,
        ended = asked_to_end() => ended?,
    }
    let _ = stop.send(true);
    ticks.await?;
    let ticks = shared.counters.ticks.load(std::sync::atomic::Ordering::Relaxed);
    Ok(json!({ "ticks": ticks }))
}

/// Bodies of an engine that goes on and on, from memory.
struct Prepared {
    bodies: Arc<Vec<Vec<u8>>>,
    next: usize,
}

impl Source for Prepared {
    async fn fetch(&mut self, _: Path) -> Result<&[u8], FetchError> {
        // An engine that stops counting once the bodies are used up; runs are shorter.
        let at = self.next.min(self.bodies.len() - 1);
        self.next += 1;
        Ok(&self.bodies[at])
    }
}

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    // The agents' own runtime; two threads carry a thousand of them.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let captures = Captures::of_stand_in(setting).await?;
        let moving = captures.moving();
        let steady = setting.either(Duration::from_secs(60), Duration::from_secs(2));
        let steps = 40 + 2 * steady.as_secs() as u32;
        let bodies = Arc::new((0..steps).map(|step| moving.at(step).into_bytes()).collect::<Vec<_>>());
        for agents in setting.either(vec![10, 100, 1000], vec![10, 20]) {
            say(&format!("bench ingest: {agents} agents for {} s", steady.as_secs()));
            stage(agents, steady, &bodies, report)
                .await
                .with_context(|| format!("{agents} agents"))?;
        }
        report.note(format!(
            "each agent reads its own {} byte body once a second ({})",
            captures.after.len(),
            captures.of
        ));
        report.note(
            "real agents (library, in this process) over gRPC on loopback, one connection each, into the decider's \
             ingest, windows, tick and journal in a process of its own, built as the real one; its backend is a fleet \
             that stands still (10 replicas a target, policy of three metrics)",
        );
        report.note("RSS grows until the windows reach back their 600 s; the run is shorter, see the growth figure");
        anyhow::Ok(())
    })
}

async fn stage(agents: usize, steady: Duration, bodies: &Arc<Vec<Vec<u8>>>, report: &mut Report) -> anyhow::Result<()> {
    let targets = agents.div_ceil(PODS);
    let helper = HelperProcess::start(&["decider", "--targets", &targets.to_string()])?;
    let decider = format!("http://{}", helper.address);
    let (stop, _) = watch::channel(false);
    let mut running = JoinSet::new();
    for index in 0..agents {
        let options = Options {
            decider: decider.clone(),
            pod: PodIdentity {
                name: workload::pod_name(index % PODS),
                uid: format!("uid-{}", index % PODS),
                target: target_name(index / PODS),
                ..PodIdentity::default()
            },
            // Looks at the queue cost the agent and its engine, not the decider.
            settings: Settings {
                fast_interval_ms: 0,
                ..Settings::default()
            },
            ..Options::default()
        };
        let source = Prepared {
            bodies: Arc::clone(bodies),
            next: fastrand::usize(0..20),
        };
        let mut stop = stop.subscribe();
        running.spawn(async move {
            let stopped = async move {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            Agent::new(options).run_with(source, stopped).await
        });
    }
    let mut client = fleet::connect(&decider).await?;
    let began = Instant::now();
    while status(&mut client).await?.agents_connected < agents as u32 {
        ensure!(
            began.elapsed() < Duration::from_secs(60),
            "not all agents were connected after 60 s"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let connect_s = began.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(2)).await;

    let mut rss_mib = Vec::new();
    let mut slices_percent = Vec::new();
    let (began, at_first) = (CpuTime::of(helper.pid())?, Instant::now());
    let mut slice_began = began;
    let applied_before = status(&mut client).await?.samples_applied;
    let mut second = 0;
    while at_first.elapsed() < steady {
        second += 1;
        tokio::time::sleep_until((at_first + Duration::from_secs(second)).into()).await;
        rss_mib.push(Memory::of(helper.pid())?.rss_mib);
        if second % 10 == 0 {
            let now = CpuTime::of(helper.pid())?;
            slices_percent.push(now.percent_since(&slice_began));
            slice_began = now;
        }
    }
    let ended = CpuTime::of(helper.pid())?;
    let applied = status(&mut client).await?.samples_applied - applied_before;
    let rate = applied as f64 / at_first.elapsed().as_secs_f64();

    let _ = stop.send(true);
    let mut sent = Summary {
        samples: 0,
        acked: 0,
        lost: 0,
        connections: 0,
        drained: true,
    };
    while let Some(summary) = running.join_next().await {
        let summary = summary??;
        sent.samples += summary.samples;
        sent.acked += summary.acked;
        sent.lost += summary.lost;
        sent.connections += summary.connections;
        sent.drained &= summary.drained;
    }
    let end = status(&mut client).await?;
    let per_sample_us = 1e4 * ended.percent_since(&began) / rate;
    let figure = |name: &str| format!("{agents} agents: {name}");
    report.figure(
        Figure::total(
            figure("decider's CPU"),
            "% of a core",
            ended.percent_since(&began),
            &slices_percent,
        )
        .note("scheduler's ns over all threads; min, median and max are of 10 s slices"),
    );
    report.figure(Figure::total(figure("CPU per sample"), "µs", per_sample_us, &[]));
    report.figure(Figure::total(figure("samples applied"), "1/s", rate, &[]));
    report.figure(Figure::max(figure("decider's RSS"), "MiB", &rss_mib));
    if let (Some(first), Some(last)) = (rss_mib.first(), rss_mib.last()) {
        let per_minute = (last - first) * 60.0 / (rss_mib.len().saturating_sub(1).max(1)) as f64;
        report.figure(Figure::total(
            figure("RSS growth while windows fill"),
            "MiB/min",
            per_minute,
            &[],
        ));
    }
    report.figure(Figure::total(figure("all connected after"), "s", connect_s, &[]));
    let lost = (sent.samples as f64 - end.samples_applied as f64).max(end.samples_missing as f64);
    let duplicate = end.samples_duplicate + end.samples_applied.saturating_sub(sent.samples);
    report.figure(
        Figure::total(figure("samples lost"), "samples", lost.max(sent.lost as f64), &[])
            .promised(Target::AtMost(0.0))
            .note(format!(
                "{} made by agents, {} applied, {} late",
                sent.samples, end.samples_applied, end.samples_late
            )),
    );
    report.figure(
        Figure::total(figure("samples counted twice"), "samples", duplicate as f64, &[])
            .promised(Target::AtMost(0.0))
            .note(format!(
                "{} connections, every goodbye acknowledged: {}",
                sent.connections, sent.drained
            )),
    );
    helper.finish()?;
    Ok(())
}

async fn status(client: &mut DecisionsClient<Channel>) -> anyhow::Result<Status> {
    Ok(client.get_status(GetStatusRequest {}).await?.into_inner())
}
