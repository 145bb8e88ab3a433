//! From requests piling up in an engine to the process of the next one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use infer_proto::v1::{
    ListDecisionsRequest, OverrideRequest, ResumeRequest, Target, decisions_client::DecisionsClient,
};
use tonic::transport::Channel;

use crate::{
    Setting,
    fleet::{self, Fleet, NAME, until},
    http,
    report::{Figure, Report, Target as Promise},
    say,
};

/// The panic window is as long as with the defaults (6 s of 60 s), so that a jump has to fill as much of it; the stable
/// one is as short, so that the next jump need not wait a minute. Scaling down is a person's word here.
const POLICY: &str = "  metrics:
    - {type: concurrency, target: 8}
  stableWindowSeconds: 6
  panic: {windowPercent: 100, thresholdPercent: 200}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 0}";

/// Requests that appear in the queue at once: eight times what one replica should bear, on top of a full batch.
const WAITING: u32 = 64;
/// A jump that has had no effect by then never will.
const PATIENCE: Duration = Duration::from_secs(15);

/// One jump.
struct Jump {
    /// To the new engine's process, as /proc shows it.
    process_ms: f64,
    /// To the decision, by its own date.
    decision_ms: f64,
}

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let jumps = setting.either(50, 2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let measured = runtime.block_on(async {
        let mut fleet = Fleet::new(setting, &fleet::documents(POLICY, 4, 1, r#", --max-num-seqs, "8""#))?;
        fleet.start()?;
        let mut client = fleet.client().await?;
        let mut measured = Vec::new();
        for number in 1..=jumps {
            let jump = jump(&mut fleet, &mut client)
                .await
                .with_context(|| format!("jump {number}"))?;
            if number % 10 == 0 {
                say(&format!("bench jump: {number} of {jumps}"));
            }
            measured.push(jump);
        }
        fleet.stop()?;
        anyhow::Ok(measured)
    })?;
    let of = |part: fn(&Jump) -> f64| measured.iter().map(part).collect::<Vec<_>>();
    let process = of(|jump| jump.process_ms / 1000.0);
    report.figure(
        Figure::p99("queue jump to the new engine's process", "s", &process)
            .promised(Promise::AtMost(1.2))
            .note("from just before the POST is sent until /proc shows the process, looked at every 2 ms"),
    );
    report.figure(Figure::median("queue jump to the new engine's process", "s", &process));
    report.figure(Figure::median(
        "queue jump to the decision",
        "ms",
        &of(|jump| jump.decision_ms),
    ));
    report.figure(Figure::p99(
        "queue jump to the decision",
        "ms",
        &of(|jump| jump.decision_ms),
    ));
    report.figure(Figure::median(
        "decision to the process",
        "ms",
        &of(|jump| jump.process_ms - jump.decision_ms),
    ));
    report.note(
        "a jump acts at once when its share of the panic window already asks for twice the replicas: here 72 requests at a \
         target of 8, a sixth of which is one second of the six; a smaller jump has to last until the window's average does",
    );
    report.note(format!(
        "real infer-decider, infer-agent and infersim; {WAITING} requests appear in the queue of one engine with a batch \
         of 8; panic window 6 s as by default; agents look at the queue every 250 ms as by default; each jump at a \
         random time within the second"
    ));
    Ok(())
}

fn calm(target: &Target) -> bool {
    let no_load = |load: Option<f64>| load.is_some_and(|load| load < 0.5);
    target
        .metrics
        .iter()
        .all(|metric| no_load(metric.load_stable) && no_load(metric.load_panic))
}

fn alone(target: &Target) -> bool {
    target
        .replicas
        .is_some_and(|replicas| replicas.spec == 1 && replicas.ready == 1)
        && target.pods.len() == 1
}

async fn jump(fleet: &mut Fleet, client: &mut DecisionsClient<Channel>) -> anyhow::Result<Jump> {
    let fresh = |target: &Target| {
        target
            .pods
            .iter()
            .all(|pod| pod.sample_age_ms.is_some_and(|age| age < 1500))
    };
    let start = until(client, "one calm replica", Duration::from_secs(60), |target| {
        alone(target) && calm(target) && fresh(target) && target.control == "auto" && target.mode == "stable"
    })
    .await?;
    let engine = fleet::address(&start.pods[0])?;
    let before = fleet.engines();
    ensure!(before.len() == 1, "engines before a jump: {before:?}");
    tokio::time::sleep(Duration::from_micros(fastrand::u64(0..1_000_000))).await;

    let (began, began_unix_ms) = (Instant::now(), unix_ms());
    let fill = tokio::spawn(async move {
        let body = format!(r#"{{"waiting":{WAITING},"for_s":2.0}}"#);
        http::request(engine, "POST", "/sim/queue", &body).await
    });
    let process_ms = loop {
        if fleet.engines().iter().any(|pid| !before.contains(pid)) {
            break began.elapsed().as_secs_f64() * 1e3;
        }
        fleet.check()?;
        ensure!(
            began.elapsed() < PATIENCE,
            "no second engine {} s after the jump",
            PATIENCE.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    fill.await??;
    // A plan becomes a listed decision when the backend has taken it, which may be after the process is there.
    let decision = loop {
        let request = ListDecisionsRequest {
            target: NAME.to_owned(),
            limit: 20,
            before_id: 0,
        };
        let decisions = client.list_decisions(request).await?.into_inner().decisions;
        let grown = decisions.into_iter().rev().find(|decision| {
            decision.unix_ms as f64 >= began_unix_ms && decision.replicas_after > decision.replicas_before
        });
        if let Some(decision) = grown {
            break decision;
        }
        ensure!(began.elapsed() < PATIENCE, "a new engine without a decision");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };

    // Back to one, and on only when nothing of this jump is left in any window.
    let reason = "between two jumps".to_owned();
    client
        .r#override(OverrideRequest {
            target: NAME.to_owned(),
            replicas: 1,
            for_s: 600,
            reason,
        })
        .await?;
    until(client, "back to one replica", Duration::from_secs(60), |target| {
        alone(target) && calm(target)
    })
    .await?;
    client
        .resume(ResumeRequest {
            target: NAME.to_owned(),
        })
        .await?;
    Ok(Jump {
        process_ms,
        decision_ms: decision.unix_ms as f64 - began_unix_ms,
    })
}

/// The wall clock, which is the decider's as well.
fn unix_ms() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
        * 1e3
}
