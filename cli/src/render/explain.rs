//! An explanation, as an operator reads it: what, from what, step by step, and whether it happened.

use std::fmt::Write as _;

use serde_json::Value;

use super::table::{clean, number, optional, percent, table};
use super::{change, dash};
use crate::time::relative;
use crate::view::{ExplanationView, StepView};

/// `explain`.
pub(crate) fn explanation(explanation: &ExplanationView, now: i64) -> String {
    let decision = &explanation.decision;
    let verb = match decision.replicas_after.cmp(&decision.replicas_before) {
        std::cmp::Ordering::Greater => "scales up",
        std::cmp::Ordering::Equal => "stays at",
        std::cmp::Ordering::Less => "scales down",
    };
    let mut text = format!(
        "Decision {}: {} {verb} {}, {}.\n{}\n",
        decision.id,
        clean(&decision.target),
        plural(&change(decision), decision.replicas_after),
        relative(decision.unix_ms, now),
        sentence(&decision.reason)
    );
    if let Some(record) = &explanation.record {
        inputs(record, &mut text);
    }
    steps(explanation, &mut text);
    outcome(explanation, &mut text);
    text
}

fn plural(count: &str, replicas: u32) -> String {
    format!(
        "{count} replica{}",
        if replicas == 1 && count == "1" { "" } else { "s" }
    )
}

fn sentence(text: &str) -> String {
    let text = clean(text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => {
            let stop = if text.ends_with(['.', '!', '?']) { "" } else { "." };
            format!("{}{}{stop}", first.to_uppercase(), chars.as_str())
        }
        None => "No reason was given.".to_owned(),
    }
}

/// What the record says of what was known. A record of another version may lack some of it; then so does this.
fn inputs(record: &Value, text: &mut String) {
    let count = |pointer: &str| record.pointer(pointer).and_then(Value::as_u64);
    let float = |pointer: &str| record.pointer(pointer).and_then(Value::as_f64);
    let mut rows: Vec<[String; 2]> = Vec::new();
    if let Some(ready) = count("/inputs/replicas/ready") {
        let mut words = format!(
            "{ready} ready of {} asked for",
            optional(count("/inputs/replicas/spec"))
        );
        for phase in ["starting", "draining", "failed"] {
            if let Some(number @ 1..) = count(&format!("/inputs/replicas/{phase}")) {
                let _ = write!(words, ", {number} {phase}");
            }
        }
        if let (Some(min), Some(max)) = (count("/inputs/bounds/min"), count("/inputs/bounds/max")) {
            let _ = write!(words, "; {min} to {max} allowed");
        }
        rows.push(["replicas".to_owned(), words]);
    }
    if let Some(window) = float("/policy/kpa/stable_window_s") {
        let mut words = format!("{} s stable", number(window));
        if let Some(share) = float("/policy/kpa/panic_window_percent") {
            let _ = write!(words, ", {} s panic", number((window * share / 100.0).round().max(1.0)));
        }
        rows.push(["windows".to_owned(), words]);
    }
    if let Some(completeness) = float("/inputs/data/completeness") {
        let mut words = format!("{} of the stable window", percent(completeness));
        if let (Some(fresh), Some(expected)) = (count("/inputs/data/fresh"), count("/inputs/data/expected")) {
            let _ = write!(words, "; {fresh} of {expected} ready replicas reporting");
        }
        rows.push(["data".to_owned(), words]);
    }
    if let Some(held) = float("/inputs/gateway_waiting") {
        rows.push(["front door".to_owned(), format!("{} requests held", number(held))]);
    }
    if !rows.is_empty() {
        let _ = write!(text, "\nInputs\n{}", indent(&table(&[], rows)));
    }
    let Some(metrics) = record.pointer("/outcome/metrics").and_then(Value::as_array) else {
        return;
    };
    let rows = metrics.iter().map(|metric| {
        let field = |name: &str| optional(metric.get(name).and_then(Value::as_f64).map(number));
        let name = metric.get("name").and_then(Value::as_str).unwrap_or_default();
        [
            dash(name),
            field("target"),
            field("stable"),
            field("wants_stable"),
            field("panic"),
            field("wants_panic"),
        ]
    });
    let header = ["METRIC", "PER REPLICA", "STABLE", "WANTS", "PANIC", "WANTS"];
    if !metrics.is_empty() {
        let _ = write!(text, "\n{}", indent(&table(&header, rows)));
    }
}

fn steps(explanation: &ExplanationView, text: &mut String) {
    if explanation.steps.is_empty() {
        return;
    }
    let rows = explanation.steps.iter().enumerate().map(|(index, step)| {
        let change = if step.before == step.after {
            number(step.after)
        } else {
            format!("{} → {}", number(step.before), number(step.after))
        };
        let bound = if is_binding(explanation, index) { "*" } else { "" };
        [
            format!("{}{bound}", index + 1),
            clean(&step.rule),
            change,
            clean(&step.words),
        ]
    });
    let _ = write!(
        text,
        "\nSteps\n{}",
        indent(&table(&["", "RULE", "REPLICAS", "WHAT IT SAW"], rows))
    );
}

/// Whether this step is the one that bound the outcome. A rule may speak twice; then it is its later word.
fn is_binding(explanation: &ExplanationView, index: usize) -> bool {
    let is_of_rule = |step: &StepView| step.rule == explanation.decision.bound_by;
    explanation.steps.iter().rposition(is_of_rule) == Some(index)
}

fn outcome(explanation: &ExplanationView, text: &mut String) {
    let decision = &explanation.decision;
    let changed = decision.replicas_before != decision.replicas_after;
    let applied = match (decision.applied, changed) {
        (true, true) => "yes".to_owned(),
        (true, false) => "nothing to apply".to_owned(),
        (false, _) if decision.not_applied.is_empty() => "no".to_owned(),
        (false, _) => format!("no: {}", clean(&decision.not_applied)),
    };
    let recomputed = if explanation.recomputed_equal {
        "the record gives the same decision again, bit for bit"
    } else {
        "NO: the record gives a different decision now; keep `--output json` of this for a report"
    };
    let step = (0..explanation.steps.len()).find(|index| is_binding(explanation, *index));
    let bound_by = match step {
        Some(index) => format!("{} (step {})", clean(&decision.bound_by), index + 1),
        None => dash(&decision.bound_by),
    };
    let rows = [
        ["bound by".to_owned(), bound_by],
        ["mode".to_owned(), dash(&decision.mode)],
        ["applied".to_owned(), applied],
        ["recomputed".to_owned(), recomputed.to_owned()],
    ];
    let _ = write!(text, "\nOutcome\n{}", indent(&table(&[], rows)));
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
