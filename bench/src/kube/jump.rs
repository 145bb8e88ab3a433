//! From a queue that jumps to the API server's word that there will be more replicas.

use std::time::Duration;

use anyhow::Context as _;
use infer_agent::Settings;

use super::{agents::Fleet, binding, deployment, open, quick_policy, unix_ms, until_decided};
use crate::{
    Outcome, Setting,
    report::{Figure, Report, Target},
    say,
};

/// Requests that appear at once: eight times what one replica should bear, on top of a full batch. As in `jump`.
const RUNNING: u32 = 8;
const WAITING: u32 = 64;
/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(setting, report))
}

async fn measure(setting: &Setting, report: &mut Report) -> anyhow::Result<Outcome> {
    let jumps = setting.either(100, 4);
    let stage = match open(report).await? {
        Ok(stage) => stage,
        Err(skipped) => return Ok(skipped),
    };
    let names: Vec<String> = (0..jumps).map(|number| format!("jump-{number}")).collect();
    let workloads = names.iter().map(|name| deployment(name, 1, 0));
    let bindings = names.iter().map(|name| binding(name, &quick_policy(), 1, 4));
    stage.create(workloads.chain(bindings).collect()).await?;
    stage.all_ready(jumps, Duration::from_secs(120)).await?;
    let decider = stage.decider("jump", false).await?;
    let trust = decider.agents(&stage.api, Duration::from_secs(30)).await?;
    let pods = stage.pods().await?;
    let agents = Fleet::start(&stage.api, trust, Settings::default(), pods, 0).await?;
    until_decided(&decider, Duration::from_secs(90), |now| now.with_data == jumps).await?;
    // Windows are full, and every status is written.
    tokio::time::sleep(setting.either(Duration::from_secs(15), Duration::from_secs(4))).await;

    let mark = stage.audit.mark()?;
    let mut began = Vec::new();
    for (number, name) in names.iter().enumerate() {
        // Anywhere within an agent's second and the decider's.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(500_000..1_500_000))).await;
        let queue = agents
            .queues(name)
            .pop()
            .with_context(|| format!("no agent of {name}"))?;
        began.push((name, unix_ms(), std::sync::Arc::clone(&queue)));
        queue.set(RUNNING, WAITING);
        if (number + 1) % 20 == 0 {
            say(&format!("bench kube-jump: {} of {jumps}", number + 1));
        }
    }
    // A jump that has had no effect by then never will.
    tokio::time::sleep(setting.either(Duration::from_secs(15), Duration::from_secs(5))).await;

    let scales = stage.scales(mark)?;
    let (mut from_jump_s, mut from_sample_s, mut server_ms) = (Vec::new(), Vec::new(), Vec::new());
    let (mut early, mut without) = (0, 0);
    for (name, began_ms, queue) in &began {
        let read_ms = queue
            .first_read_ms()
            .with_context(|| format!("{name}: a jump nobody read"))?;
        let Some(first) = scales.get(*name).and_then(|scales| scales.first()) else {
            without += 1;
            continue;
        };
        early += u32::from(first.received_ms < *began_ms);
        from_jump_s.push((first.answered_ms - began_ms) / 1e3);
        from_sample_s.push((first.answered_ms - read_ms) / 1e3);
        server_ms.push(first.answered_ms - first.received_ms);
    }
    anyhow::ensure!(
        early == 0 && without == 0,
        "{early} targets were scaled before their jump, {without} never; the decider's log: {}",
        decider.log().display()
    );
    let (jump, sample) = (
        "queue jump to PATCH accepted",
        "jump read by the agent to PATCH accepted",
    );
    let note = "from the instant at which the engine's queue is longer; an agent's look at the queue comes after it";
    report.figure(
        Figure::p99(jump, "s", &from_jump_s)
            .promised(Target::AtMost(1.2))
            .note(note),
    );
    report.figure(Figure::median(jump, "s", &from_jump_s));
    let note = "from the look that sees it, with which the sample is sent";
    report.figure(
        Figure::p99(sample, "s", &from_sample_s)
            .promised(Target::AtMost(1.2))
            .note(note),
    );
    report.figure(Figure::median(sample, "s", &from_sample_s));
    report.figure(Figure::median("of it in the API server", "ms", &server_ms));
    report.figure(Figure::p99("of it in the API server", "ms", &server_ms));
    report.note(format!(
        "accepted: stageTimestamp in the API server's audit log of the first accepted write of that target's scale; \
         {jumps} Deployments with one kwok Pod each, one jump each, 0.5 to 1.5 s apart"
    ));
    report.note(format!(
        "real kube-apiserver, etcd, kube-controller-manager and infer-decider, each a process; real agents (library, in \
         this process) over TLS with their Pods' tokens; {RUNNING} requests run and {WAITING} wait at once at a target of \
         8; windows of 6 s; agents look at the queue every 250 ms as by default"
    ));
    Ok(Outcome::Measured)
}
