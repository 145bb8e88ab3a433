//! kill -9 of the leading decider in a burst, and an API server that is away for a minute.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use infer_agent::Settings;
use infer_tests::harness::cluster::KubernetesDecider;

use super::{
    NAMESPACE, Stage, agents::Fleet, binding, deployment, faults, open, quick_policy, service::Service, unix_ms,
    until_decided,
};
use crate::{
    Outcome, Setting,
    report::{Figure, Report, Target},
    say,
};

/// Replicas of every target before its burst, and requests that run in each, of eight that the policy wants there.
const REPLICAS: usize = 2;
const RUNNING: u32 = 7;
/// The burst: (14 + 64) / 8 = 10 replicas. Nine are within the tolerance.
const WAITING: u32 = 64;
const RIGHT: u64 = 9;
const MOST: u64 = 10;
/// A burst that has not been answered by then never will be.
const PATIENCE: Duration = Duration::from_secs(40);
/// As quick as an engine can be. The agent is there from the start, as a sidecar is.
const BOOT_S: u32 = 3;
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/bench/leases/infer-decider-shard-0";
const OUTAGE: &str = "outage";

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(setting, report))
}

/// One burst and what came of it.
struct Answer {
    /// To the first accepted write of more replicas.
    first_s: f64,
    /// To the first accepted write of as many as the burst needs.
    right_s: f64,
    /// What was written instead, where patience has ended.
    instead: Option<String>,
}

async fn measure(setting: &Setting, report: &mut Report) -> anyhow::Result<Outcome> {
    let kills = setting.either(20, 1);
    let settle = setting.either(Duration::from_secs(10), Duration::from_secs(3));
    let away = setting.either(Duration::from_secs(60), Duration::from_secs(4));
    let stage = match open(report).await? {
        Ok(stage) => stage,
        Err(skipped) => return Ok(skipped),
    };
    let bursts: Vec<String> = (0..kills).map(|number| format!("burst-{number}")).collect();
    let names = || bursts.iter().map(String::as_str).chain([OUTAGE]);
    let targets = kills + 1;
    let bindings = names().map(|name| binding(name, &quick_policy(), 1, 16));
    let workloads = names().map(|name| deployment(name, REPLICAS, BOOT_S));
    stage.create(workloads.chain(bindings).collect()).await?;
    stage.all_ready(targets * REPLICAS, Duration::from_secs(120)).await?;

    let deciders = [stage.decider("one", false).await?, stage.decider("two", false).await?];
    let backends = deciders
        .iter()
        .map(|decider| Ok(decider.url().trim_start_matches("https://").parse()?));
    let service = Service::start(backends.collect::<anyhow::Result<_>>()?).await?;
    let mut trust = deciders[0].agents(&stage.api, Duration::from_secs(30)).await?;
    trust.decider.clone_from(&service.url);
    let mut agents = Fleet::start(&stage.api, trust, Settings::default(), stage.pods().await?, RUNNING).await?;
    agents.follow();
    let leader = leader(&stage, &deciders).await?;
    until_decided(&deciders[leader], Duration::from_secs(90), |now| {
        now.with_data == targets
    })
    .await?;
    tokio::time::sleep(settle).await;

    let mark = stage.audit.mark()?;
    let mut answers = Vec::new();
    for (number, name) in bursts.iter().enumerate() {
        let answer = kill(&stage, &deciders, &agents, name, targets);
        answers.push(answer.await.with_context(|| format!("kill {}", number + 1))?);
        say(&format!("bench kube-restart: {} of {kills}", number + 1));
    }
    let outage = outage(&stage, &agents, away).await?;
    // What is wrong may come late, when windows have filled.
    tokio::time::sleep(settle).await;

    for instead in answers
        .iter()
        .chain([&outage])
        .filter_map(|answer| answer.instead.as_ref())
    {
        stage.cluster.keep_logs();
        report.note(instead);
    }
    let (mut downs, mut doubles, mut above, mut writes) = (0, 0, 0, 0);
    for (name, scales) in stage.scales(mark)? {
        let (down, double) = faults(REPLICAS as u64, RIGHT, &scales);
        if down + double > 0 {
            stage.cluster.keep_logs();
            let counts: Vec<u64> = scales.iter().map(|scale| scale.replicas).collect();
            report.note(format!("{name} was written {counts:?}"));
        }
        downs += down;
        doubles += double;
        above += scales.iter().filter(|scale| scale.replicas > MOST).count();
        writes += scales.len();
    }
    let of = |part: fn(&Answer) -> f64| answers.iter().map(part).collect::<Vec<_>>();
    report.figure(
        Figure::max(
            "kill to the first right decision accepted",
            "s",
            &of(|answer| answer.first_s),
        )
        .promised(Target::AtMost(5.0))
        .note(
            "the first accepted write of more replicas for the target in the burst, by the decider that was not killed",
        ),
    );
    report.figure(Figure::median(
        "kill to the first right decision accepted",
        "s",
        &of(|answer| answer.first_s),
    ));
    report.figure(
        Figure::max(
            "kill to as many replicas as the burst needs",
            "s",
            &of(|answer| answer.right_s),
        )
        .note("windows of 6 s have to fill before the whole of it is believed"),
    );
    let none =
        |name: &str, unit, count: u64| Figure::total(name, unit, count as f64, &[]).promised(Target::AtMost(0.0));
    report.figure(none("wrong scale-downs", "writes", downs).note(format!(
        "writes of fewer replicas than before and fewer than the load needs, which only rises in the run; {writes} accepted \
         writes of {targets} targets"
    )));
    report.figure(none("double writes", "writes", doubles).note("the same count for a target twice in a row"));
    report.figure(
        Figure::total("writes of more than the burst needs", "writes", above as f64, &[])
            .note("while agents come back, replicas that are not heard yet are taken for as busy as those that are"),
    );
    report.figure(
        Figure::max(
            "API server back to the first right decision accepted",
            "s",
            &[outage.first_s],
        )
        .promised(Target::AtMost(5.0))
        .note(format!(
            "from its /readyz; it was killed and away for {} s, the burst came while it was",
            away.as_secs()
        )),
    );
    report.note(format!(
        "two infer-decider (processes), the one with the Lease is killed with -9 up to 0.3 s after {WAITING} requests \
         appear in the queue of one of the target's engines, and started again when the burst is answered; {targets} \
         targets of {REPLICAS} replicas, each has one burst and keeps its load, stabilization window 0 s; a Pod is ready {BOOT_S} s after it is created"
    ));
    report.note(
        "real kube-apiserver, etcd, kube-controller-manager; kwok's Pods; real agents (library, in this process) over TLS \
         with their Pods' tokens, behind a TCP forwarder that does what the Service does; times by the audit log",
    );
    Ok(Outcome::Measured)
}

/// Which of them has the Lease.
async fn leader(stage: &Stage, deciders: &[KubernetesDecider; 2]) -> anyhow::Result<usize> {
    let held = |lease: &serde_json::Value| {
        lease["spec"]["holderIdentity"]
            .as_str()
            .is_some_and(|who| !who.is_empty())
    };
    let lease = stage
        .api
        .wait_for(LEASE, Duration::from_secs(30), "a holder", held)
        .await?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    // An identity begins with the name that was given.
    let of = |decider: &KubernetesDecider| {
        decider
            .directory()
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let found = deciders
        .iter()
        .position(|decider| of(decider).is_some_and(|name| holder.starts_with(&name)));
    found.with_context(|| format!("the Lease in {NAMESPACE} is held by {holder:?}"))
}

/// A burst, and right after it its decider's end.
async fn kill(
    stage: &Stage,
    deciders: &[KubernetesDecider; 2],
    agents: &Fleet,
    name: &str,
    targets: usize,
) -> anyhow::Result<Answer> {
    let leader = leader(stage, deciders).await?;
    let mark = stage.audit.mark()?;
    burst(agents, name)?;
    tokio::time::sleep(Duration::from_micros(fastrand::u64(0..300_000))).await;
    deciders[leader].kill()?;
    let answer = answered(stage, mark, name, unix_ms()).await?;
    deciders[leader].launch()?;
    deciders[leader].wait_ready().await?;
    // The next kill hits one that has been at work for a while, with a standby that has seen it.
    until_decided(&deciders[1 - leader], PATIENCE, |now| now.with_data == targets).await?;
    tokio::time::sleep(Duration::from_millis(fastrand::u64(3_000..5_000))).await;
    Ok(answer)
}

fn burst(agents: &Fleet, name: &str) -> anyhow::Result<()> {
    let queues = agents.queues(name);
    ensure!(queues.len() == REPLICAS, "{name} has {} agents", queues.len());
    queues[0].set(RUNNING, WAITING);
    Ok(())
}

/// Waits until as many replicas are asked for as the burst needs.
async fn answered(stage: &Stage, mark: u64, name: &str, since_ms: f64) -> anyhow::Result<Answer> {
    loop {
        let scales = stage.scales(mark)?.remove(name).unwrap_or_default();
        let after = scales.iter().filter(|scale| scale.received_ms >= since_ms);
        let since = |answered_ms: f64| (answered_ms - since_ms) / 1e3;
        if let Some(right) = after.clone().find(|scale| scale.replicas >= RIGHT) {
            let first = after.clone().next().unwrap_or(right);
            return Ok(Answer {
                first_s: since(first.answered_ms),
                right_s: since(right.answered_ms),
                instead: None,
            });
        }
        if (unix_ms() - since_ms) / 1e3 > PATIENCE.as_secs_f64() {
            let counts: Vec<u64> = scales.iter().map(|scale| scale.replicas).collect();
            return Ok(Answer {
                first_s: after
                    .clone()
                    .next()
                    .map_or(PATIENCE.as_secs_f64(), |first| since(first.answered_ms)),
                right_s: PATIENCE.as_secs_f64(),
                instead: Some(format!(
                    "{name}: not {RIGHT} replicas in {} s, written {counts:?}",
                    PATIENCE.as_secs()
                )),
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The API server's absence, with a burst in it.
async fn outage(stage: &Stage, agents: &Fleet, away: Duration) -> anyhow::Result<Answer> {
    let mark = stage.audit.mark()?;
    stage.cluster.stop_api_server().await?;
    tokio::time::sleep(away * 3 / 4).await;
    burst(agents, OUTAGE)?;
    tokio::time::sleep(away / 4).await;
    // It may be asked and answer before it says that it is ready.
    let before_ms = unix_ms();
    stage.cluster.start_api_server().await?;
    let ready_ms = unix_ms();
    let answer = answered(stage, mark, OUTAGE, before_ms).await?;
    let took_s = (ready_ms - before_ms) / 1e3;
    Ok(Answer {
        first_s: (answer.first_s - took_s).max(0.0),
        right_s: (answer.right_s - took_s).max(0.0),
        instead: answer.instead,
    })
}
