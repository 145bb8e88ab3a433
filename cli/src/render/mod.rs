//! What people see. Every function returns text that ends with a line break.

mod explain;
mod table;

use std::fmt::Write as _;

pub(crate) use explain::explanation;
use table::{clean, number, optional, percent, table};

use crate::commands::policy::CheckView;
use crate::time::{relative, rfc3339, span};
use crate::view::{DecisionView, PodView, StatusView, TargetView, WindowsView};

/// `status`.
pub(crate) fn status(status: &StatusView, url: &str, now: i64) -> String {
    let up = relative(status.started_unix_ms, now);
    let mut text = format!(
        "infer-decider {} at {url} is {}, started {up} ({})\n",
        clean(&status.version),
        clean(&status.health),
        status.started_time
    );
    for problem in &status.problems {
        let _ = writeln!(text, "  problem: {}", clean(problem));
    }
    let samples = format!(
        "{} applied, {} duplicate, {} late, {} missing",
        status.samples_applied, status.samples_duplicate, status.samples_late, status.samples_missing
    );
    let rows = [
        ["targets".to_owned(), status.targets.to_string()],
        ["agents".to_owned(), format!("{} connected", status.agents_connected)],
        ["samples".to_owned(), samples],
        ["decisions".to_owned(), status.decisions.to_string()],
        ["backend".to_owned(), dash(&status.backend)],
        ["decider id".to_owned(), dash(&status.decider_id)],
    ];
    text + &table(&[], rows)
}

/// `targets`.
pub(crate) fn targets(targets: &[TargetView], now: i64) -> String {
    if targets.is_empty() {
        return "no targets: nothing is bound to a policy, or another decider has it\n".to_owned();
    }
    let header = [
        "TARGET",
        "MODE",
        "CONTROL",
        "DESIRED",
        "READY",
        "STARTING",
        "DRAINING",
        "FAILED",
        "LIMITS",
        "WAITING",
        "LAST CHANGE",
    ];
    let rows = targets.iter().map(|target| {
        let replicas = &target.replicas;
        [
            clean(&target.name),
            clean(&target.mode),
            control(target, now),
            replicas.desired.to_string(),
            format!("{}/{}", replicas.ready, replicas.spec),
            replicas.starting.to_string(),
            replicas.draining.to_string(),
            replicas.failed.to_string(),
            format!("{} to {}", replicas.min, replicas.max),
            optional(waiting(target).map(number)),
            optional(target.last_decision_unix_ms.map(|time| relative(time, now))),
        ]
    });
    table(&header, rows)
}

/// Requests waiting anywhere, as far as anybody says: inside the engines and before them.
fn waiting(target: &TargetView) -> Option<f64> {
    let inside = target.pods.iter().filter_map(|pod| pod.gauges.as_ref()?.waiting);
    inside.chain(target.gateway_waiting).reduce(|a, b| a + b)
}

/// "auto", "paused for 9 min", "override to 5 for 9 min".
fn control(target: &TargetView, now: i64) -> String {
    let mut text = clean(&target.control);
    if let Some(replicas) = target.override_replicas {
        let _ = write!(text, " to {replicas}");
    }
    if let Some(expires) = target.control_expires_unix_ms {
        let left = u64::try_from(expires.saturating_sub(now)).unwrap_or(0);
        let _ = write!(text, " for {}", span(left));
    }
    text
}

/// `targets NAME`, and a target's part of `watch`.
pub(crate) fn target(target: &TargetView, now: i64) -> String {
    let replicas = &target.replicas;
    let mut text = format!(
        "{}: {} of {} replicas ready, {} desired ({} to {} allowed), mode {}, control {}\n",
        clean(&target.name),
        replicas.ready,
        replicas.spec,
        replicas.desired,
        replicas.min,
        replicas.max,
        clean(&target.mode),
        control(target, now)
    );
    if !target.reason.is_empty() {
        let _ = writeln!(text, "  why: {}", clean(&target.reason));
    }
    if let (Some(id), Some(time)) = (target.last_decision_id, target.last_decision_unix_ms) {
        let _ = writeln!(
            text,
            "  last change: decision {id}, {} (inferctl explain {id})",
            relative(time, now)
        );
    }
    let _ = writeln!(
        text,
        "  binding {}, policy {}",
        clean(&target.binding),
        clean(&target.policy)
    );
    if let Some(held) = target.gateway_waiting {
        let _ = writeln!(text, "  front door: {} requests held", number(held));
    }
    if !target.metrics.is_empty() {
        let header = [
            "  METRIC",
            "PER REPLICA",
            "STABLE LOAD",
            "STABLE WANTS",
            "PANIC LOAD",
            "PANIC WANTS",
        ];
        let rows = target.metrics.iter().map(|metric| {
            [
                format!("  {}", clean(&metric.name)),
                number(metric.target_per_replica),
                optional(metric.load_stable.map(number)),
                optional(metric.desired_stable),
                optional(metric.load_panic.map(number)),
                optional(metric.desired_panic),
            ]
        });
        text.push('\n');
        text.push_str(&table(&header, rows));
    }
    if !target.pods.is_empty() {
        let header = [
            "  REPLICA",
            "PHASE",
            "SAMPLE",
            "RUNNING",
            "WAITING",
            "KV CACHE",
            "ENGINE",
            "ENDPOINT",
            "STARTED IN",
            "PROBLEM",
        ];
        text.push('\n');
        text.push_str(&table(&header, target.pods.iter().map(pod)));
    }
    text
}

fn pod(pod: &PodView) -> [String; 10] {
    let gauges = pod.gauges.as_ref();
    let engine = pod
        .engine
        .as_ref()
        .map(|engine| format!("{} {}", clean(&engine.name), clean(&engine.version)));
    let phase = match gauges.and_then(|gauges| gauges.asleep) {
        Some(true) => format!("{}, asleep", clean(&pod.phase)),
        _ => clean(&pod.phase),
    };
    [
        format!("  {}", clean(&pod.name)),
        phase,
        optional(pod.sample_age_ms.map(|age| format!("{} ago", span(age)))),
        optional(gauges.and_then(|gauges| gauges.running).map(number)),
        optional(gauges.and_then(|gauges| gauges.waiting).map(number)),
        optional(gauges.and_then(|gauges| gauges.kv_usage).map(percent)),
        optional(engine.map(|engine| engine.trim_end().to_owned())),
        dash(&pod.endpoint),
        optional(pod.startup_ms.map(span)),
        dash(&pod.problem),
    ]
}

/// A change of a target, in one line.
pub(crate) fn target_line(target: &TargetView, now: i64) -> String {
    let replicas = &target.replicas;
    let mut text = format!(
        "{} {}: {} desired, {}/{} ready, {} starting, {} draining, {} failed, mode {}, control {}",
        rfc3339(now),
        clean(&target.name),
        replicas.desired,
        replicas.ready,
        replicas.spec,
        replicas.starting,
        replicas.draining,
        replicas.failed,
        clean(&target.mode),
        control(target, now)
    );
    if let Some(waiting) = waiting(target) {
        let _ = write!(text, ", {} waiting", number(waiting));
    }
    if !target.reason.is_empty() {
        let _ = write!(text, ": {}", clean(&target.reason));
    }
    text + "\n"
}

/// What came of `pause`, `resume` or `override`.
pub(crate) fn control_sentence(target: &TargetView, now: i64) -> String {
    let name = clean(&target.name);
    let until = match (target.control_expires_unix_ms, &target.control_expires_time) {
        (Some(expires), Some(time)) => {
            let left = u64::try_from(expires.saturating_sub(now)).unwrap_or(0);
            format!("for {}, until {time}", span(left))
        }
        _ => format!("until inferctl resume {name}"),
    };
    let replicas = &target.replicas;
    let now_there = format!("{} of {} replicas are ready", replicas.ready, replicas.spec);
    match (target.control.as_str(), target.override_replicas) {
        ("paused", _) => format!("{name} is paused {until}; {now_there}\n"),
        ("override", Some(fixed)) => format!("{name} is fixed at {fixed} replicas {until}; {now_there}\n"),
        ("auto", _) => format!("{name} is scaled by its policy; {now_there}\n"),
        (control, _) => format!("{name} is in {} mode; {now_there}\n", clean(control)),
    }
}

/// `decisions`.
pub(crate) fn decisions(decisions: &[DecisionView], now: i64) -> String {
    if decisions.is_empty() {
        return "no decisions\n".to_owned();
    }
    let header = [
        "ID", "WHEN", "TARGET", "REPLICAS", "MODE", "BOUND BY", "APPLIED", "REASON",
    ];
    let rows = decisions.iter().map(|decision| {
        [
            decision.id.to_string(),
            relative(decision.unix_ms, now),
            clean(&decision.target),
            change(decision),
            clean(&decision.mode),
            dash(&decision.bound_by),
            applied(decision),
            clean(&decision.reason),
        ]
    });
    table(&header, rows)
}

/// A decision in one line.
pub(crate) fn decision_line(decision: &DecisionView) -> String {
    let mut text = format!(
        "{} #{} {}: {} ({}, {}): {}",
        decision.time,
        decision.id,
        clean(&decision.target),
        change(decision),
        clean(&decision.mode),
        dash(&decision.bound_by),
        clean(&decision.reason)
    );
    if !decision.applied {
        let _ = write!(text, " [not applied: {}]", dash(&decision.not_applied));
    }
    text + "\n"
}

/// "3 → 5", or "3" when nothing changed.
fn change(decision: &DecisionView) -> String {
    match (decision.replicas_before, decision.replicas_after) {
        (before, after) if before == after => after.to_string(),
        (before, after) => format!("{before} → {after}"),
    }
}

fn applied(decision: &DecisionView) -> String {
    match (decision.applied, decision.not_applied.as_str()) {
        (true, _) => "yes".to_owned(),
        (false, "") => "no".to_owned(),
        (false, why) => format!("no: {}", clean(why)),
    }
}

/// `windows`.
pub(crate) fn windows(windows: &WindowsView) -> String {
    let mut text = format!(
        "{}, the last {} s, {} of the data there\n",
        clean(&windows.target),
        windows.window_s,
        percent(windows.completeness)
    );
    if !windows.gauges.is_empty() {
        let rows = windows.gauges.iter().map(|gauge| {
            [
                clean(&gauge.name),
                optional(gauge.average.map(number)),
                optional(gauge.latest.map(number)),
            ]
        });
        text.push('\n');
        text.push_str(&table(&["GAUGE, ALL REPLICAS", "AVERAGE", "LATEST"], rows));
    }
    if !windows.counters.is_empty() {
        let rows = windows.counters.iter().map(|counter| {
            [
                clean(&counter.name),
                counter.count.to_string(),
                number(counter.per_second),
            ]
        });
        text.push('\n');
        text.push_str(&table(&["COUNTER", "COUNT", "PER SECOND"], rows));
    }
    if !windows.histograms.is_empty() {
        text.push('\n');
        text.push_str(&latencies(windows));
        text.push_str("\nA percentile lies within the bounds in brackets; the number before them is linear between bucket bounds.\n");
    }
    text
}

fn latencies(windows: &WindowsView) -> String {
    let mut quantiles: Vec<f64> = Vec::new();
    for quantile in windows.histograms.iter().flat_map(|histogram| &histogram.quantiles) {
        if !quantiles.contains(&quantile.q) {
            quantiles.push(quantile.q);
        }
    }
    let mut header = vec!["LATENCY (ms)".to_owned(), "COUNT".to_owned(), "MEAN".to_owned()];
    header.extend(quantiles.iter().map(|q| format!("P{}", number(q * 100.0))));
    let rows = windows.histograms.iter().map(|histogram| {
        let mut row = vec![
            histogram.signal.to_owned(),
            histogram.count.to_string(),
            optional(histogram.mean_ms.map(number)),
        ];
        row.extend(quantiles.iter().map(|q| {
            let quantile = histogram.quantiles.iter().find(|quantile| quantile.q == *q);
            optional(quantile.map(|quantile| {
                let (estimate, low) = (number(quantile.estimate_ms), number(quantile.low_ms));
                match quantile.high_ms {
                    Some(high) => format!("{estimate} [{low} to {}]", number(high)),
                    None => format!("{estimate} [{low} or more]"),
                }
            }))
        }));
        row
    });
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    table(&header, rows)
}

/// `policy check`, when everything is right.
pub(crate) fn check(check: &CheckView) -> String {
    let (policies, bindings) = (list(&check.policies), list(&check.bindings));
    let documents = format!("AutoscalingPolicy {policies}, AutoscalingPolicyBinding {bindings}");
    let mut text = match check.cluster {
        true => format!("valid for a cluster: {documents}\n"),
        false => format!("valid: {documents}, LocalFleet {}\n", list(&check.fleets)),
    };
    if !check.targets.is_empty() {
        let rows = check.targets.iter().map(|target| {
            [
                clean(&target.name),
                clean(&target.binding),
                clean(&target.policy),
                target.mode.clone(),
                format!("{} to {}", target.min, target.max),
            ]
        });
        text.push('\n');
        text.push_str(&table(&["TARGET", "BINDING", "POLICY", "MODE", "REPLICAS"], rows));
    }
    text
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "-".to_owned()
    } else {
        clean(&names.join(", "))
    }
}

/// `-` for an empty text.
fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { clean(text) }
}
