//! kill -9 of the decider under load, and what the next one knows.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use infer_proto::v1::{
    ExplainRequest, GetStatusRequest, GetWindowsRequest, ListDecisionsRequest, Signal,
    decisions_client::DecisionsClient, explain_request::What,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::{
    Setting,
    fleet::{self, Fleet, NAME, until},
    http::{self, Connection},
    process::is_alive,
    report::{Figure, Report, Target as Promise},
    say,
};

/// As long as the windows reach back; the whole bench is shorter, so that nothing leaves them.
const WINDOW_S: u32 = 600;
const REPLICAS: usize = 4;
/// Requests in flight on each engine: what the policy wants there, so that the fleet stands still.
const IN_FLIGHT: usize = 8;

const POLICY: &str = "  metrics:
    - {type: concurrency, target: 8}
    - {type: ttft, target: 2000, quantile: 0.95}";

type Counts = BTreeMap<&'static str, u64>;

/// One kill and what came after.
struct Restart {
    first_decision_ms: f64,
    full_data_ms: f64,
    replicas_lost: usize,
    /// Counts in the decider's windows minus the engines' own, the largest shortfall and the largest excess.
    lost: u64,
    twice: u64,
    missing: u64,
}

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let repetitions = setting.either(10, 1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (restarts, counted) = runtime.block_on(measure(setting, repetitions))?;
    let of = |part: fn(&Restart) -> f64| restarts.iter().map(part).collect::<Vec<_>>();
    report.figure(
        Figure::max("start to the first decision", "s", &of(|r| r.first_decision_ms / 1000.0))
            .note("from just before the process is started, by the decision's own date; replicas are held until data is there"),
    );
    report.figure(
        Figure::max(
            "start to a decision on fresh data of every replica",
            "s",
            &of(|r| r.full_data_ms / 1000.0),
        )
        .note("agents come back by themselves, 0 to 3 s of absence"),
    );
    let promised =
        |name: &str, unit, part: fn(&Restart) -> f64| Figure::max(name, unit, &of(part)).promised(Promise::AtMost(0.0));
    report.figure(promised("replicas lost", "replicas", |r| r.replicas_lost as f64));
    report.figure(
        promised("counted by engines, not in the windows", "counts", |r| r.lost as f64)
            .note("requests, prompt tokens, generated tokens, first tokens; the largest shortfall of the four"),
    );
    report.figure(promised("in the windows, not counted by engines", "counts", |r| {
        r.twice as f64
    }));
    report.figure(promised("sequence numbers missing", "samples", |r| r.missing as f64));
    report.note(format!(
        "at the end the engines had counted {counted:?}, and the windows are compared with all of it"
    ));
    report.note(format!(
        "real infer-decider (kill -9, 0 to 3 s of absence), {REPLICAS} infersim engines, {IN_FLIGHT} requests in flight on \
         each; load pauses while counts are compared"
    ));
    Ok(())
}

/// Requests on every engine, for as long as wanted.
struct Load {
    tasks: JoinSet<()>,
    paused: Arc<AtomicBool>,
    in_flight: Arc<AtomicU64>,
}

impl Load {
    fn start(engines: &[SocketAddr]) -> Self {
        let (paused, in_flight) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut tasks = JoinSet::new();
        for engine in engines {
            for _ in 0..IN_FLIGHT {
                let (engine, paused, in_flight) = (*engine, Arc::clone(&paused), Arc::clone(&in_flight));
                tasks.spawn(async move {
                    loop {
                        if paused.load(Ordering::SeqCst) {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            continue;
                        }
                        in_flight.fetch_add(1, Ordering::SeqCst);
                        // A replica that goes away is noticed by its process, not here.
                        let _ = one_request(engine).await;
                        in_flight.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        }
        Load {
            tasks,
            paused,
            in_flight,
        }
    }

    /// No new requests; returns when none is under way.
    async fn pause(&self) -> anyhow::Result<()> {
        self.paused.store(true, Ordering::SeqCst);
        let began = Instant::now();
        // A worker may have looked just before: twice none, with a pause, is none.
        let mut idle = 0;
        while idle < 3 {
            idle = if self.in_flight.load(Ordering::SeqCst) == 0 {
                idle + 1
            } else {
                0
            };
            ensure!(
                began.elapsed() < Duration::from_secs(30),
                "requests still under way after 30 s"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }
}

async fn one_request(engine: SocketAddr) -> anyhow::Result<()> {
    let (prompt, output) = (fastrand::usize(20..400), fastrand::u32(10..100));
    let body = format!(r#"{{"prompt":"{}","max_tokens":{output}}}"#, "word ".repeat(prompt));
    Connection::open(engine)
        .await?
        .exchange("POST", "/v1/completions", &body)
        .await?;
    Ok(())
}

async fn measure(setting: &Setting, repetitions: usize) -> anyhow::Result<(Vec<Restart>, Counts)> {
    let mut fleet = Fleet::new(setting, &fleet::documents(POLICY, 8, REPLICAS, ""))?;
    fleet.start()?;
    let mut client = fleet.client().await?;
    let ready = until(
        &mut client,
        "all replicas ready and read",
        Duration::from_secs(60),
        |target| {
            let read = |pod: &&infer_proto::v1::Pod| pod.gauges.is_some();
            fleet::ready(target).iter().filter(|pod| read(pod)).count() == REPLICAS
        },
    )
    .await?;
    let engines = fleet::ready(&ready)
        .into_iter()
        .map(fleet::address)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let pids = fleet.engines();
    ensure!(pids.len() == REPLICAS, "engines at the start: {pids:?}");
    let load = Load::start(&engines);
    let mut restarts = Vec::new();
    let mut counted = Counts::new();
    for number in 1..=repetitions {
        let under_load = setting.either(Duration::from_secs(6), Duration::from_secs(2));
        tokio::time::sleep(under_load + Duration::from_millis(fastrand::u64(0..1000))).await;
        let restart = restart(&mut fleet, &engines, &pids, &load, &mut counted);
        restarts.push(restart.await.with_context(|| format!("restart {number}"))?);
        say(&format!("bench restart: {number} of {repetitions}"));
    }
    drop(load.tasks);
    fleet.stop()?;
    Ok((restarts, counted))
}

async fn restart(
    fleet: &mut Fleet,
    engines: &[SocketAddr],
    pids: &[u32],
    load: &Load,
    counted: &mut Counts,
) -> anyhow::Result<Restart> {
    let mut client = fleet.client().await?;
    let newest = decisions(&mut client).await?.first().map_or(0, |decision| decision.0);
    fleet.kill()?;
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..3000))).await;

    let started_unix_ms = unix_ms();
    let started = fleet.start()?;
    let mut client = fleet.client().await?;
    // The first tick always leaves a numbered decision: the target's mode is new to this process.
    let first_decision_ms = loop {
        if let Some((_, unix_ms)) = decisions(&mut client).await?.iter().rev().find(|(id, _)| *id > newest) {
            break *unix_ms as f64 - started_unix_ms;
        }
        fleet.check()?;
        ensure!(
            started.elapsed() < Duration::from_secs(20),
            "no decision 20 s after the start"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let full_data_ms = loop {
        if let Some(now) = latest_on_full_data(&mut client).await? {
            break now - started_unix_ms;
        }
        if started.elapsed() > Duration::from_secs(30) {
            let target = fleet::target(&mut client).await?;
            bail!("no fresh data of every replica 30 s after the start: {target:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    tokio::time::sleep(Duration::from_secs(2)).await;

    // Compare: everything still, and two more samples of every agent in.
    load.pause().await?;
    tokio::time::sleep(Duration::from_millis(2600)).await;
    *counted = engine_counts(engines).await?;
    let windows = window_counts(&mut client).await?;
    let status = client.get_status(GetStatusRequest {}).await?.into_inner();
    load.resume();
    let pairs = || {
        counted
            .iter()
            .map(|(name, count)| (*count, windows.get(name).copied().unwrap_or(0)))
    };
    let target = fleet::target(&mut client).await?;
    let alive = pids.iter().filter(|pid| is_alive(**pid)).count();
    let kept = fleet::ready(&target).len().min(alive);
    Ok(Restart {
        first_decision_ms,
        full_data_ms,
        replicas_lost: pids.len().saturating_sub(kept),
        lost: pairs()
            .map(|(engine, window)| engine.saturating_sub(window))
            .max()
            .unwrap_or(0),
        twice: pairs()
            .map(|(engine, window)| window.saturating_sub(engine))
            .max()
            .unwrap_or(0),
        missing: status.samples_missing,
    })
}

/// Id and date of the newest decisions, the newest first.
async fn decisions(client: &mut DecisionsClient<Channel>) -> anyhow::Result<Vec<(u64, i64)>> {
    let request = ListDecisionsRequest {
        target: NAME.to_owned(),
        limit: 20,
        before_id: 0,
    };
    let decisions = client.list_decisions(request).await?.into_inner().decisions;
    Ok(decisions
        .iter()
        .map(|decision| (decision.id, decision.unix_ms))
        .collect())
}

/// When the latest tick was, if it had fresh data of every replica.
async fn latest_on_full_data(client: &mut DecisionsClient<Channel>) -> anyhow::Result<Option<f64>> {
    let request = ExplainRequest {
        what: Some(What::Target(NAME.to_owned())),
    };
    let explanation = client.explain(request).await?.into_inner();
    let record: serde_json::Value = serde_json::from_str(&explanation.record_json)?;
    let inputs = &record["inputs"];
    let (expected, fresh) = (inputs["data"]["expected"].as_u64(), inputs["data"]["fresh"].as_u64());
    let full = expected >= Some(REPLICAS as u64) && fresh == expected;
    Ok(inputs["now"].as_f64().filter(|_| full))
}

/// What the engines say of their whole lives.
async fn engine_counts(engines: &[SocketAddr]) -> anyhow::Result<Counts> {
    const FAMILIES: [(&str, &str); 4] = [
        ("requests", "vllm:request_success_total"),
        ("prompt_tokens", "vllm:prompt_tokens_total"),
        ("generation_tokens", "vllm:generation_tokens_total"),
        ("first_tokens", "vllm:time_to_first_token_seconds_count"),
    ];
    let mut counts: Counts = FAMILIES.iter().map(|(name, _)| (*name, 0)).collect();
    for engine in engines {
        let body = String::from_utf8(http::request(*engine, "GET", "/metrics", "").await?)?;
        for (name, family) in FAMILIES {
            let lines = body
                .lines()
                .filter(|line| line.split(['{', ' ']).next() == Some(family));
            let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
            *counts.entry(name).or_default() += values.sum::<f64>() as u64;
        }
    }
    Ok(counts)
}

/// The same from the decider's windows.
async fn window_counts(client: &mut DecisionsClient<Channel>) -> anyhow::Result<Counts> {
    let request = GetWindowsRequest {
        target: NAME.to_owned(),
        window_s: WINDOW_S,
        quantiles: Vec::new(),
    };
    let windows = client.get_windows(request).await?.into_inner();
    let counter = |name: &str| {
        windows
            .counters
            .iter()
            .find(|counter| counter.name == name)
            .map_or(0, |c| c.count)
    };
    let ttft = windows
        .histograms
        .iter()
        .find(|histogram| histogram.signal() == Signal::Ttft);
    Ok(BTreeMap::from([
        ("requests", counter("requests")),
        ("prompt_tokens", counter("prompt_tokens")),
        ("generation_tokens", counter("generation_tokens")),
        ("first_tokens", ttft.map_or(0, |histogram| histogram.count)),
    ]))
}

fn unix_ms() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
        * 1e3
}
