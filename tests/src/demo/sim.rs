//! `infer-demo run`: stand-in engines through calm, rise, burst, fall and silence, and back from zero.

use std::time::Duration;

use anyhow::Context as _;
use infer_api::Documents;
use infer_load::{Arrival, Lengths, Plan, rate};
use infer_proto::v1::Target;

use super::{
    Common,
    claims::{Claim, claim, panic_never_shrank},
    closing::{Ended, close},
    fleet::{self, Prepared},
    recording::Recording,
    stage::{Setting, Stage},
};

const TEMPLATE: &str = include_str!("../../../deploy/local/demo.yaml");
/// A request takes about a second on the demo's engines, so that requests per second are also requests in flight.
const INPUT_TOKENS: f64 = 200.0;
const OUTPUT_TOKENS: f64 = 50.0;
const SIGMA: f64 = 0.3;
/// Steadier than independent users: what is to be seen is the fleet's doing, not chance.
const ARRIVALS: rate::Process = rate::Process::Gamma { cv: 0.4 };
const SEED: u64 = 7;
/// Three quarters of a replica's worth.
const CALM_RPS: f64 = 3.0;
const CALM_REPLICAS: u32 = 1;
/// The top of the rise: 2.75 replicas' worth, so 3 replicas.
const RISEN_RPS: f64 = 11.0;
/// After the burst: 1.5 replicas' worth.
const FALLEN_RPS: f64 = 6.0;
const FALLEN_REPLICAS: u32 = 2;
/// No fall takes longer: panic, stabilisation and the way down.
const FALL_MAX_S: f64 = 60.0;
const START_WITHIN: Duration = Duration::from_secs(20);
const ZERO_WITHIN: Duration = Duration::from_secs(40);
/// A request held for this long has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Lengths of the parts, s, and what else differs between the forms.
struct Shape {
    calm_s: f64,
    rise_s: f64,
    plateau_s: f64,
    burst_s: f64,
    burst_rps: f64,
    /// How long the fleet is watched in its new size.
    settled_s: f64,
    /// How long zero is watched.
    zero_s: f64,
}

const FULL: Shape = Shape {
    calm_s: 6.0,
    rise_s: 12.0,
    plateau_s: 4.0,
    burst_s: 6.0,
    burst_rps: 40.0,
    settled_s: 4.0,
    zero_s: 2.0,
};
const SHORT: Shape = Shape {
    calm_s: 2.0,
    rise_s: 4.0,
    plateau_s: 1.0,
    burst_s: 3.0,
    burst_rps: 44.0,
    settled_s: 1.0,
    zero_s: 0.5,
};

/// The document's windows for the short form: the shortest there are.
fn shorten(documents: &mut Documents) {
    for policy in &mut documents.policies {
        let spec = &mut policy.spec;
        spec.stable_window_seconds = 6;
        spec.panic.window_percent = 34.0;
        spec.scale_to_zero_grace_seconds = 0;
        spec.behavior.scale_down.stabilization_window_seconds = 1;
    }
    for fleet in &mut documents.fleets {
        let command = &mut fleet.spec.engine.command;
        if let Some(delay) = command.iter().position(|argument| argument == "--startup-delay-s")
            && let Some(seconds) = command.get_mut(delay + 1)
        {
            "1".clone_into(seconds);
        }
    }
}

/// The fleet has this many replicas, all ready, none coming or going.
pub(crate) fn settled_at(replicas: u32) -> impl FnMut(&Target) -> bool {
    move |target: &Target| {
        let now = target.replicas.unwrap_or_default();
        (now.ready, now.desired, now.spec) == (replicas, replicas, replicas)
            && now.starting + now.draining == 0
            && (replicas > 0 || target.pods.is_empty())
    }
}

/// A plan of parts, each of a length and two rates.
fn stages(parts: &[(f64, f64, f64)], part: u64) -> anyhow::Result<Plan> {
    let mut start_s = 0.0;
    let stages: Vec<_> = parts
        .iter()
        .map(|&(length_s, from_rps, to_rps)| {
            let stage = rate::Stage {
                start_s,
                end_s: start_s + length_s,
                from_rps,
                to_rps,
            };
            start_s += length_s;
            stage
        })
        .collect();
    let lengths = Lengths::new(INPUT_TOKENS, OUTPUT_TOKENS, SIGMA)?;
    Ok(rate::plan(
        rate::Curve::stages(&stages)?,
        ARRIVALS,
        lengths,
        SEED + part,
    ))
}

/// Real time.
pub(crate) async fn sleep_s(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

/// Plays it all.
pub(crate) async fn run(common: &Common, short: bool) -> anyhow::Result<Ended> {
    let shape = if short { SHORT } else { FULL };
    let edit = |documents: &mut Documents| {
        if short {
            shorten(documents);
        }
    };
    let prepared = fleet::prepare("deploy/local/demo.yaml", TEMPLATE, edit)?;
    let Prepared {
        per_replica, initial, ..
    } = prepared;
    let setting = Setting {
        directory: common.directory("demo")?,
        documents: prepared.yaml,
        target: prepared.target,
        model: prepared.model,
        url: prepared.url,
        line_every_s: 1.0,
    };
    let stage = Stage::set(setting).await?;
    play(&stage, &shape, initial).await?;
    let about = format!(
        "A decider, its agents and stand-in engines as real processes on one machine. Wanted: {per_replica} requests in \
         flight per replica, 0 to 6 replicas. Load: {CALM_RPS} requests/s, a rise to {RISEN_RPS}, a burst of {}, a fall \
         to {FALLEN_RPS}, silence, and one request that finds no replica.",
        shape.burst_rps
    );
    let explain = |decision: &infer_proto::v1::Decision| {
        decision.mode == "panic" && decision.replicas_after > decision.replicas_before
    };
    close(stage, ("stand-in engines", about, per_replica), story, explain).await
}

async fn play(stage: &Stage, shape: &Shape, initial: u32) -> anyhow::Result<()> {
    stage.phase("start", "the decider starts its first engines");
    let ready = stage
        .wait(START_WITHIN, "the first replicas", settled_at(initial))
        .await;
    ready.with_context(|| {
        format!(
            "the fleet did not start; the decider's log ends with\n{}",
            stage.decider.log_tail(10)
        )
    })?;
    let options = |options: &mut infer_load::Options| options.timeout = REQUEST_TIMEOUT;

    stage.phase("calm", &format!("{CALM_RPS} requests/s"));
    let parts = [
        (shape.calm_s, CALM_RPS, CALM_RPS),
        (shape.rise_s, CALM_RPS, RISEN_RPS),
        (shape.plateau_s, RISEN_RPS, RISEN_RPS),
        (shape.burst_s, shape.burst_rps, shape.burst_rps),
    ];
    // What is in flight at the end of the burst goes on while the next load begins.
    let climb = stage.load(stages(&parts, 0)?, options);
    sleep_s(shape.calm_s).await;
    stage.phase("rise", &format!("to {RISEN_RPS} requests/s"));
    sleep_s(shape.rise_s + shape.plateau_s).await;
    stage.phase("burst", &format!("{} requests/s", shape.burst_rps));
    sleep_s(shape.burst_s).await;

    stage.phase("fall", &format!("{FALLEN_RPS} requests/s"));
    let low = stage.load(stages(&[(FALL_MAX_S, FALLEN_RPS, FALLEN_RPS)], 1)?, options);
    let within = Duration::from_secs_f64(FALL_MAX_S);
    stage
        .wait(within, "the fleet's way down", settled_at(FALLEN_REPLICAS))
        .await;
    sleep_s(shape.settled_s).await;
    low.stop();
    climb.report().await?;
    low.report().await?;

    stage.phase("silence", "until there is no replica");
    stage.wait(ZERO_WITHIN, "scaling to zero", settled_at(0)).await;
    sleep_s(shape.zero_s).await;

    stage.phase("wake", "one request to a fleet of none");
    let only = Arrival {
        at_s: 0.0,
        input_tokens: INPUT_TOKENS as u32,
        output_tokens: OUTPUT_TOKENS as u32,
    };
    stage.load(Plan::from_arrivals(vec![only]), options).report().await?;
    Ok(())
}

/// What should have happened, part by part.
fn story(recording: &Recording) -> Vec<Claim> {
    let mut claims = vec![followed(recording)];
    claims.extend(panic_never_shrank(recording));
    claims.push(fell(recording));
    claims.push(to_zero(recording));
    claims.push(woke(recording));
    claims
}

/// The most ready replicas between two times.
fn most_ready(recording: &Recording, (from_s, to_s): (f64, f64)) -> u32 {
    let points = recording
        .points
        .iter()
        .filter(|point| (from_s..to_s).contains(&point.at_s));
    points.map(|point| point.ready).max().unwrap_or(0)
}

fn followed(recording: &Recording) -> Claim {
    let span = |name| recording.phase_span(name).unwrap_or_default();
    let calm = most_ready(recording, span("calm"));
    let ((rise_s, burst_s), (_, fall_s)) = (span("rise"), span("burst"));
    let wanted = recording.decisions.iter().map(|decision| decision.replicas_after);
    let most = most_ready(recording, (burst_s, fall_s + 20.0));
    // The rise asks for one more; whether it is ready before the burst depends on the windows.
    let risen = recording
        .points
        .iter()
        .filter(|point| (rise_s..burst_s).contains(&point.at_s))
        .map(|point| point.desired)
        .max()
        .unwrap_or(0);
    let seen = format!(
        "{calm} ready in the calm, {risen} wanted in the rise, {} wanted and {most} ready with the burst",
        wanted.max().unwrap_or(0)
    );
    claim(
        "the fleet followed the rise",
        calm == CALM_REPLICAS && risen > calm && most > calm,
        seen,
    )
}

fn fell(recording: &Recording) -> Claim {
    let (_, silence_s) = recording.phase_span("fall").unwrap_or_default();
    let last = recording.points.iter().rfind(|point| point.at_s < silence_s);
    let ready = last.map_or(0, |point| point.ready);
    let seen = format!(
        "{ready} ready for {:.0} requests in flight",
        last.map_or(0.0, |point| point.load())
    );
    claim(
        format!("{FALLEN_REPLICAS} replicas after the fall"),
        ready == FALLEN_REPLICAS,
        seen,
    )
}

fn to_zero(recording: &Recording) -> Claim {
    let (silence_s, wake_s) = recording.phase_span("silence").unwrap_or_default();
    let none = |point: &&super::recording::Point| {
        (silence_s..wake_s).contains(&point.at_s) && point.ready + point.starting + point.draining + point.desired == 0
    };
    let seen = match recording.points.iter().find(none) {
        Some(point) => format!("no replica {:.1} s after the load ended", point.at_s - silence_s),
        None => "there always was a replica".to_owned(),
    };
    claim(
        "silence scaled it to zero",
        recording.points.iter().any(|point| none(&point)),
        seen,
    )
}

fn woke(recording: &Recording) -> Claim {
    let words = "a request to a fleet of none was held and answered";
    let (wake_s, _) = recording.phase_span("wake").unwrap_or_default();
    let Some(answer) = recording.answers.iter().find(|answer| answer.sent_s >= wake_s) else {
        return claim(words, false, "it never came back");
    };
    let at_zero = recording
        .points
        .iter()
        .rfind(|point| point.at_s < wake_s)
        .is_some_and(|point| point.ready == 0);
    let woken = recording
        .decisions
        .iter()
        .any(|decision| decision.replicas_before == 0 && decision.replicas_after > 0 && decision.applied);
    let seen = match &answer.failure {
        Some(why) => why.clone(),
        None => format!("first token after {:.1} s", answer.ttft_ms.unwrap_or(f64::NAN) / 1e3),
    };
    claim(words, at_zero && woken && answer.failure.is_none(), seen)
}
