//! `infer-demo vllm`: one real vLLM process, two under load, and one again, without a failed request.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use infer_load::{Lengths, Plan, rate};
use infer_proto::v1::Target;

use super::{
    Common,
    claims::{Claim, claim, panic_never_shrank},
    closing::{Ended, close},
    fleet::{self, Prepared},
    recording::{Answer, Point, Recording},
    sim::{settled_at, sleep_s},
    stage::{Load, Setting, Stage},
};

const FILE: &str = "deploy/local/vllm.yaml";
const TEMPLATE: &str = include_str!("../../../deploy/local/vllm.yaml");
/// The lab's place in the template.
const LAB: &str = ".cache/vllm";
/// What the lab holds.
const PROGRAM: &str = "venv-032/bin/vllm";
const MODEL: &str = "models/tiny/config.json";
/// A tiny model makes a token in some milliseconds: long answers, so that a few requests overlap.
const INPUT_WORDS: f64 = 32.0;
const OUTPUT_TOKENS: f64 = 500.0;
const SIGMA: f64 = 0.2;
const ARRIVALS: rate::Process = rate::Process::Gamma { cv: 0.4 };
const LOW_RPS: f64 = 0.3;
const HIGH_RPS: f64 = 1.6;
/// So many times more load is added where one time is too little.
const RISES_MAX: u64 = 5;
const RISE_WITHIN: Duration = Duration::from_secs(40);
const CALM_S: f64 = 15.0;
/// How long both engines serve.
const BOTH_S: f64 = 20.0;
/// How long the one left is watched.
const SETTLED_S: f64 = 5.0;
/// Two cores start an engine in 90 s when nobody else wants them.
const READY_WITHIN: Duration = Duration::from_secs(600);
const FALL_WITHIN: Duration = Duration::from_secs(180);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(180);

/// Plays it all.
pub(crate) async fn run(common: &Common, lab: &Path) -> anyhow::Result<Ended> {
    let complete = [PROGRAM, MODEL].iter().all(|file| lab.join(file).is_file());
    anyhow::ensure!(
        complete,
        "{} is no lab: make one with tests/real-engines/setup-vllm.sh {}",
        lab.display(),
        lab.display()
    );
    let lab = lab
        .canonicalize()
        .with_context(|| format!("finding {}", lab.display()))?;
    let template = TEMPLATE.replace(LAB, &lab.display().to_string());
    let prepared = fleet::prepare(FILE, &template, |_| ())?;
    let Prepared {
        per_replica, initial, ..
    } = prepared;
    let setting = Setting {
        directory: common.directory("vllm")?,
        documents: prepared.yaml,
        target: prepared.target,
        model: prepared.model,
        url: prepared.url,
        line_every_s: 5.0,
    };
    let stage = Stage::set(setting).await?;
    stage
        .seen
        .display()
        .say("real engines take a minute or two to start, twice: four to six minutes in all");
    play(&stage, initial).await?;
    let about = format!(
        "Real vLLM processes with a tiny random model on the CPU. Wanted: {per_replica} requests in flight per replica, \
         1 to 2 replicas. Load: {LOW_RPS} requests/s, then {HIGH_RPS} and more until a second engine has started and both have \
         served for {BOTH_S} s, then {LOW_RPS} again while the second is drained and stopped."
    );
    let explain = |decision: &infer_proto::v1::Decision| decision.replicas_after > decision.replicas_before;
    close(stage, ("real vLLM", about, per_replica), story, explain).await
}

/// An endless plan; it is stopped when it has done its work.
fn plan(rate_rps: f64, part: u64) -> anyhow::Result<Plan> {
    const ENDLESS_S: f64 = 3600.0;
    let lengths = Lengths::new(INPUT_WORDS, OUTPUT_TOKENS, SIGMA)?;
    Ok(rate::plan(
        rate::Curve::constant(rate_rps, ENDLESS_S)?,
        ARRIVALS,
        lengths,
        part,
    ))
}

async fn play(stage: &Stage, initial: u32) -> anyhow::Result<()> {
    let options = |options: &mut infer_load::Options| {
        options.timeout = REQUEST_TIMEOUT;
        options.drain = REQUEST_TIMEOUT;
    };
    stage.phase("start", "the first engine loads");
    let ready = stage.wait(READY_WITHIN, "the first engine", settled_at(initial)).await;
    ready.with_context(|| format!("no engine; the logs are in {}/logs", stage.setting.directory.display()))?;

    stage.phase("calm", &format!("{LOW_RPS} requests/s"));
    let calm = stage.load(plan(LOW_RPS, 1)?, options);
    sleep_s(CALM_S).await;
    calm.stop();
    let why = stage
        .seen
        .recording()
        .answers
        .iter()
        .find_map(|answer| answer.failure.clone());
    anyhow::ensure!(
        why.is_none(),
        "the first engine does not serve: {}",
        why.unwrap_or_default()
    );

    stage.phase(
        "rise",
        &format!("{HIGH_RPS} requests/s and more, until a second engine is ready"),
    );
    let mut high = Vec::new();
    for part in 0..RISES_MAX {
        // How many requests per second overlap enough depends on the machine.
        high.push(stage.load(plan(HIGH_RPS, 10 + part)?, options));
        let wanted = |target: &Target| target.replicas.unwrap_or_default().desired == 2;
        if stage
            .wait(RISE_WITHIN, "the decision for a second engine", wanted)
            .await
            .is_some()
        {
            break;
        }
    }
    stage
        .wait(READY_WITHIN, "the second engine", |target| {
            target.replicas.unwrap_or_default().ready == 2
        })
        .await;
    stage.phase("both", "as many requests for two engines");
    sleep_s(BOTH_S).await;
    high.iter().for_each(Load::stop);

    stage.phase("fall", &format!("{LOW_RPS} requests/s through the drain"));
    let low = stage.load(plan(LOW_RPS, 3)?, options);
    stage.wait(FALL_WITHIN, "one engine again", settled_at(1)).await;
    sleep_s(SETTLED_S).await;
    low.stop();
    for load in high.into_iter().chain([calm, low]) {
        load.report().await?;
    }
    Ok(())
}

fn story(recording: &Recording) -> Vec<Claim> {
    let mut claims = vec![
        identified(recording),
        grew(recording),
        both_served(recording),
        shrank(recording),
    ];
    if recording.decisions.iter().any(|decision| decision.mode == "panic") {
        claims.extend(panic_never_shrank(recording).pop());
    }
    claims
}

/// Points of a part of the scenario.
fn points<'a>(recording: &'a Recording, phase: &str) -> impl Iterator<Item = &'a Point> {
    let (from_s, to_s) = recording.phase_span(phase).unwrap_or_default();
    recording
        .points
        .iter()
        .filter(move |point| (from_s..to_s).contains(&point.at_s))
}

fn identified(recording: &Recording) -> Claim {
    // vLLM does not say its version; the families it exposes tell from which one on.
    const WANTED: [&str; 2] = ["vllm 0.32", "vllm >=0.32"];
    let engines: Vec<_> = recording
        .replicas
        .values()
        .map(|replica| replica.engine.as_str())
        .collect();
    let right = |engine: &&str| {
        WANTED.iter().any(|wanted| engine.starts_with(wanted)) && engine.ends_with("(python front end)")
    };
    let held = !engines.is_empty() && engines.iter().all(right);
    claim(
        "the agents found out that it is vLLM 0.32 with its Python front end",
        held,
        engines.join(", "),
    )
}

fn grew(recording: &Recording) -> Claim {
    let calm = points(recording, "calm").map(|point| point.ready).max().unwrap_or(0);
    let both = points(recording, "both").map(|point| point.ready).max().unwrap_or(0);
    let grown = recording.decisions.iter().find(|decision| decision.replicas_after == 2);
    let started = recording.replicas.values().filter_map(|replica| replica.startup_ms);
    let seen = match (grown, started.max()) {
        (Some(decision), Some(ms)) => {
            format!(
                "{calm} ready, decision #{} for 2, {both} ready; it took {:.0} s to start",
                decision.id,
                ms as f64 / 1e3
            )
        }
        _ => format!("{calm} ready in the calm, {both} at the end of the rise"),
    };
    claim(
        "load made it start a second engine",
        calm == 1 && both == 2 && grown.is_some(),
        seen,
    )
}

fn both_served(recording: &Recording) -> Claim {
    let (from_s, to_s) = recording.phase_span("both").unwrap_or_default();
    let mut served = std::collections::BTreeMap::<&str, u32>::new();
    let in_time = |answer: &&Answer| (from_s..to_s).contains(&(answer.sent_s + answer.e2e_ms / 1e3));
    for answer in recording.answers.iter().filter(in_time) {
        *served.entry(answer.replica.as_deref().unwrap_or("none")).or_default() += 1;
    }
    let seen: Vec<_> = served
        .iter()
        .map(|(replica, count)| format!("{replica} {count}"))
        .collect();
    claim(
        "both engines served",
        served.len() == 2 && !served.contains_key("none"),
        seen.join(", "),
    )
}

fn shrank(recording: &Recording) -> Claim {
    let last = recording.points.last();
    let alone = last.is_some_and(|point| point.ready == 1 && point.draining + point.starting == 0);
    let drained: Vec<_> = points(recording, "fall").filter(|point| point.draining > 0).collect();
    let (from_s, to_s) = (
        drained.first().map_or(0.0, |point| point.at_s),
        drained.last().map_or(0.0, |point| point.at_s),
    );
    let fallen = points(recording, "fall")
        .next()
        .map_or(f64::INFINITY, |point| point.at_s);
    let through = recording.answers.iter().filter(|answer| answer.sent_s >= fallen);
    let (mut requests, mut failed) = (0, 0);
    for answer in through {
        requests += 1;
        failed += u32::from(answer.failure.is_some());
    }
    let seen = format!(
        "drained for {:.1} s, then {} ready; {failed} of {requests} requests of the fall failed",
        to_s - from_s,
        last.map_or(0, |point| point.ready)
    );
    claim(
        "the second engine was drained and stopped under load",
        alone && requests > 0 && failed == 0,
        seen,
    )
}
