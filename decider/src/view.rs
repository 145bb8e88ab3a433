//! What the service knows, in the wire's terms.

use std::sync::atomic::Ordering;

use infer_core::{
    TimeMs,
    decision::{Control, MetricOutcome, Record, Replicas},
    evaluate::evaluate,
    sample::Counters,
    signal::Signal,
    target::PodState,
};
use infer_proto::v1;

use crate::{
    journal::Decision,
    state::{Entity, Shared},
};

/// Share of quantiles that a person sees first.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.95, 0.99];

/// Health of the service: problems in words; empty when all is well.
pub fn problems(shared: &Shared) -> Vec<String> {
    let journal = shared.journal.health();
    let mut problems = Vec::new();
    if let Some(problem) = journal.problem() {
        problems.push(format!("journal: {problem}"));
    }
    let state = shared.state();
    for (name, entity) in &state.targets {
        let Some(record) = &entity.latest else {
            problems.push(format!("target {name}: the backend does not know it yet"));
            continue;
        };
        let data = record.inputs.data;
        if data.fresh < data.expected {
            problems.push(format!(
                "target {name}: fresh data of {} of {} ready replicas",
                data.fresh, data.expected
            ));
        }
    }
    problems
}

/// `GetStatus`.
pub fn status(shared: &Shared) -> v1::Status {
    let problems = problems(shared);
    let state = shared.state();
    let counters = &shared.counters;
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    v1::Status {
        decider_id: shared.decider_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_ms: shared.clock.started().0,
        health: if problems.is_empty() { "ok" } else { "degraded" }.to_owned(),
        problems,
        targets: state.targets.len() as u32,
        agents_connected: load(&counters.agents_connected) as u32,
        samples_applied: load(&counters.samples_applied),
        samples_duplicate: load(&counters.samples_duplicate),
        samples_late: load(&counters.samples_late),
        samples_missing: load(&counters.samples_missing),
        decisions: state.decisions.len() as u64,
        backend: shared.backend.to_owned(),
    }
}

/// A target as it is at `now`.
pub fn target(entity: &Entity, now: TimeMs) -> v1::Target {
    let record = entity.latest.as_deref();
    let inputs = record.map(|record| &record.inputs);
    let control = entity.control();
    let replicas = inputs.map_or_else(Replicas::default, |inputs| inputs.replicas);
    v1::Target {
        name: entity.spec.name.clone(),
        binding: entity.spec.binding.clone(),
        policy: entity.spec.policy_name.clone(),
        replicas: Some(v1::Replicas {
            desired: record.map_or(replicas.spec, |record| record.outcome.desired),
            spec: replicas.spec,
            ready: replicas.ready,
            starting: replicas.starting,
            draining: replicas.draining,
            failed: replicas.failed,
            min: entity.spec.bounds.min,
            max: entity.spec.bounds.max,
        }),
        mode: record.map_or("unknown", |record| record.outcome.mode.name()).to_owned(),
        control: control_name(control).to_owned(),
        override_replicas: match control {
            Control::Override(replicas) => Some(replicas),
            _ => None,
        },
        control_expires_unix_ms: entity.word.as_ref().and_then(|word| word.expires).map(|end| end.0),
        last_decision_id: entity.last_change.0,
        last_decision_unix_ms: entity.last_change.1,
        reason: record.map_or_else(
            || "the backend has not told of this target yet".to_owned(),
            |record| record.outcome.reason.clone(),
        ),
        metrics: record.map_or_else(Vec::new, |record| record.outcome.metrics.iter().map(metric).collect()),
        pods: entity.target.pods().map(|state| pod(entity, state, now)).collect(),
        gateway_waiting: entity.target.gateway_waiting(),
    }
}

fn control_name(control: Control) -> &'static str {
    match control {
        Control::Auto => "auto",
        Control::Advisory => "advisory",
        Control::Paused => "paused",
        Control::Override(_) => "override",
    }
}

fn metric(outcome: &MetricOutcome) -> v1::MetricState {
    let replicas = |wants: Option<f64>| wants.map(|wants| wants.ceil().clamp(0.0, f64::from(u32::MAX)) as u32);
    v1::MetricState {
        name: outcome.name.to_string(),
        target_per_replica: outcome.target,
        load_stable: outcome.stable,
        load_panic: outcome.panic,
        desired_stable: replicas(outcome.wants_stable),
        desired_panic: replicas(outcome.wants_panic),
    }
}

fn pod(entity: &Entity, state: &PodState, now: TimeMs) -> v1::Pod {
    let name = &state.view.name;
    let note = entity.notes.get(name).cloned().unwrap_or_default();
    let detail = entity.details.get(name).cloned().unwrap_or_default();
    v1::Pod {
        name: name.clone(),
        phase: state.view.phase.name().to_owned(),
        sample_age_ms: state.last_sample.map(|last| now.0.saturating_sub(last.0).max(0) as u64),
        engine: note.engine,
        gauges: note.gauges,
        problem: if note.problem.is_empty() {
            detail.problem.unwrap_or_default()
        } else {
            note.problem
        },
        startup_ms: detail.startup_ms,
        endpoint: detail.endpoint.unwrap_or_default(),
    }
}

/// A decision's headline.
pub fn decision(decision: &Decision) -> v1::Decision {
    let record = &decision.record;
    v1::Decision {
        id: decision.id,
        target: record.target.clone(),
        unix_ms: decision.unix_ms,
        replicas_before: record.inputs.replicas.spec,
        replicas_after: record.outcome.desired,
        mode: record.outcome.mode.name().to_owned(),
        bound_by: record.outcome.bound_by.name().to_owned(),
        reason: record.outcome.reason.clone(),
        applied: decision.applied,
        not_applied: decision.not_applied.clone().unwrap_or_default(),
    }
}

/// A tick's record as a decision without a number: nothing changed, so it was not kept.
pub fn unnumbered(record: &Record) -> Decision {
    let applied = record.outcome.desired == record.inputs.replicas.spec;
    Decision {
        id: 0,
        unix_ms: record.inputs.now.0,
        applied,
        not_applied: (!applied).then(|| "see the target's last decision".to_owned()),
        record: record.clone(),
    }
}

/// A decision in full. Recomputes it.
pub fn explanation(of: &Decision) -> v1::Explanation {
    let record = &of.record;
    let (memory, outcome) = evaluate(&record.policy, &record.memory, &record.inputs);
    let steps = record.outcome.steps.iter().map(|step| v1::Step {
        rule: step.rule.name().to_owned(),
        before: step.before,
        after: step.after,
        words: step.words.clone(),
    });
    v1::Explanation {
        decision: Some(decision(of)),
        steps: steps.collect(),
        record_json: serde_json::to_string(record).unwrap_or_default(),
        recomputed_equal: memory == record.memory_after && outcome == record.outcome,
    }
}

/// `GetWindows`. `window_s` of 0 is the policy's stable window; no quantiles are the usual ones.
pub fn windows(entity: &Entity, now: TimeMs, window_s: u32, quantiles: &[f64]) -> v1::Windows {
    let target = &entity.target;
    let stable_s = target.policy().kpa.stable_window_s as usize;
    let window_s = if window_s == 0 {
        stable_s
    } else {
        (window_s as usize).min(target.horizon_s())
    };
    let quantiles = if quantiles.is_empty() {
        &QUANTILES[..]
    } else {
        quantiles
    };
    let gauges = target.gauges(now, window_s as f64).into_iter();
    let counters = Counters::NAMES
        .iter()
        .enumerate()
        .map(|(index, name)| v1::CounterWindow {
            name: (*name).to_owned(),
            count: target.count(now, window_s, index),
            per_second: target.counter(now, window_s, index).1,
        });
    let histograms = Signal::ALL.iter().map(|signal| {
        let histogram = target.histogram(now, window_s, *signal);
        let quantile = |q: &f64| {
            histogram.quantile(*q).map(|bounds| v1::Quantile {
                q: *q,
                low_ms: bounds.low_ms,
                high_ms: bounds.high_ms,
                estimate_ms: bounds.estimate_ms,
            })
        };
        v1::HistogramWindow {
            signal: wire_signal(*signal).into(),
            count: histogram.count(),
            mean_ms: histogram.mean_ms(),
            quantiles: quantiles.iter().filter_map(quantile).collect(),
        }
    });
    v1::Windows {
        target: entity.spec.name.clone(),
        window_s: window_s as u32,
        completeness: target.completeness(now, window_s as f64),
        gauges: gauges
            .map(|(name, average, latest)| v1::GaugeWindow {
                name: name.to_owned(),
                average,
                latest,
            })
            .collect(),
        counters: counters.collect(),
        histograms: histograms.filter(|window| window.count > 0).collect(),
    }
}

fn wire_signal(signal: Signal) -> v1::Signal {
    match signal {
        Signal::Ttft => v1::Signal::Ttft,
        Signal::Itl => v1::Signal::Itl,
        Signal::Tpot => v1::Signal::Tpot,
        Signal::E2e => v1::Signal::E2e,
        Signal::Queue => v1::Signal::Queue,
    }
}
