//! What a binding's status says: made of what is known, and nothing that is not.

use std::borrow::Cow;

use infer_api::{
    BindingSpec, BindingStatus, Condition, ConditionStatus, LastDecision, PolicyStatus, ResolvedBound, TargetStatus,
};
use infer_core::decision::{Control, Memory};

use super::{
    conflict::Rival,
    index::{Binding, Policy, State},
    types::Report,
};
use crate::targets::{Fleet, PartState, Problem};

pub(super) const CONFLICT: &str = "Conflict";
/// Reason of [`CONFLICT`] where somebody else has the target. Read back: see `Binding::rank`.
pub(super) const YIELDS: &str = "TargetTaken";

/// As the custom resource definition limits it.
const MEMORY_BYTES_MAX: usize = 65_536;

/// The last that was reported about a key.
#[derive(Debug, Clone)]
pub(super) struct Latest {
    pub(super) report: Report,
    pub(super) last: Option<LastDecision>,
    /// What was remembered after the last decision that changed something.
    pub(super) memory: Option<String>,
}

/// A load domain as far as it is known.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) bound: &'a ResolvedBound,
    pub(super) fleet: Option<Fleet>,
    pub(super) problems: Vec<Problem>,
    pub(super) latest: Option<&'a Latest>,
}

/// One answer, before it is known since when it holds.
struct Answer {
    status: ConditionStatus,
    reason: Cow<'static, str>,
    message: String,
}

fn answer(status: ConditionStatus, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Answer {
    Answer {
        status,
        reason: reason.into(),
        message: message.into(),
    }
}

use ConditionStatus::{False, True, Unknown};

/// The status of a binding. `before` is what stands there now: what has not changed since keeps its time, and what is
/// not known anew (after a take-over) is kept.
pub(super) fn of_binding(binding: &Binding, views: &[View<'_>], before: &BindingStatus, now: &str) -> BindingStatus {
    let generation = binding.meta.generation;
    let spec = binding.spec.as_ref().ok();
    let answers = match &binding.state {
        State::Active(_) => of_active(binding, spec, views, before),
        idle => of_idle(idle),
    };
    let conditions = answers.into_iter().map(|(kind, answer)| {
        let known = before.conditions.iter().find(|condition| condition.kind == kind);
        let since = known.filter(|known| known.status == answer.status);
        Condition {
            kind: kind.to_owned(),
            status: answer.status,
            reason: answer.reason.into_owned(),
            message: answer.message,
            last_transition_time: since.map_or(now, |known| &known.last_transition_time).to_owned(),
            observed_generation: Some(generation),
        }
    });
    let mut status = BindingStatus {
        observed_generation: Some(generation),
        conditions: conditions.collect(),
        target: spec.map(BindingSpec::target_summary),
        mode: spec.map(|spec| mode_of(spec, views)),
        ..BindingStatus::default()
    };
    if !matches!(binding.state, State::Active(_)) {
        return status;
    }
    status.targets = views.iter().flat_map(|view| targets_of(view, before)).collect();
    let sum = |count: &dyn Fn(&TargetStatus) -> Option<i32>| {
        let counts: Option<Vec<i32>> = status.targets.iter().map(count).collect();
        counts.map(|counts| counts.into_iter().fold(0, i32::saturating_add))
    };
    status.replicas = sum(&|target| target.spec);
    status.ready_replicas = sum(&|target| target.ready);
    status.desired_replicas = sum(&|target| target.desired);
    let bounds = |limit: &dyn Fn(&View<'_>) -> u32| {
        let limits = views.iter().map(|view| signed(limit(view)));
        Some(limits.fold(0, i32::saturating_add))
    };
    status.min_replicas = bounds(&|view| view.bound.bounds.min);
    status.max_replicas = bounds(&|view| view.bound.bounds.max);
    status
}

/// Conditions in the order in which people read them.
type Answers = Vec<(&'static str, Answer)>;

fn of_idle(state: &State) -> Answers {
    let (reason, message, conflict) = match state {
        State::Wrong(problem) => ("InvalidSpec", problem.clone(), no_conflict(Unknown)),
        State::NoPolicy(names) => {
            let message = format!("waits for AutoscalingPolicy {} in this namespace", names.join(", "));
            ("PolicyNotFound", message, no_conflict(False))
        }
        State::Yields(rival) => (YIELDS, taken(rival), answer(True, YIELDS, taken(rival))),
        State::Active(_) => ("Active", String::new(), no_conflict(False)),
    };
    let idle = "nothing is decided for this binding";
    vec![
        ("Ready", answer(False, reason, message.clone())),
        ("TargetsResolved", answer(Unknown, reason, idle)),
        ("MetricsAvailable", answer(Unknown, reason, idle)),
        ("ScalingActive", answer(False, reason, message)),
        ("Limited", answer(Unknown, reason, idle)),
        (CONFLICT, conflict),
    ]
}

fn taken(rival: &Rival) -> String {
    format!(
        "{} has {} and keeps it; this binding does nothing until that one is gone or has another target",
        rival.who, rival.target
    )
}

fn no_conflict(status: ConditionStatus) -> Answer {
    match status {
        Unknown => answer(Unknown, "InvalidSpec", "the targets cannot be read"),
        _ => answer(
            False,
            "NoConflict",
            "nobody else is known to scale a target of this binding",
        ),
    }
}

/// Reasons that tell what came of deciding. Others tell why nothing was decided, and hold only while that is so.
const OUTCOMES: [&str; 9] = [
    "Found",
    "FreshSamples",
    "NoFreshSamples",
    "NoReplicas",
    "Stable",
    "Panic",
    "NoData",
    "Limited",
    "WithinLimits",
];

fn of_active(binding: &Binding, spec: Option<&BindingSpec>, views: &[View<'_>], before: &BindingStatus) -> Answers {
    // What is not known yet after a take-over stays as the owner before left it, if it was about this spec.
    let kept = |kind: &str| {
        let known = before.conditions.iter().find(|condition| condition.kind == kind)?;
        let is_same_spec = known.observed_generation == Some(binding.meta.generation);
        (is_same_spec && OUTCOMES.contains(&known.reason.as_str()))
            .then(|| answer(known.status, known.reason.clone(), known.message.clone()))
    };
    let or_kept = |kind: &str, new: Answer, is_known: bool| {
        if is_known { new } else { kept(kind).unwrap_or(new) }
    };
    let is_seen = views
        .iter()
        .all(|view| view.fleet.is_some() || !view.problems.is_empty());
    let is_reported = views.iter().all(|view| view.latest.is_some());
    let resolved = or_kept("TargetsResolved", resolved(views), is_seen);
    let metrics = or_kept("MetricsAvailable", metrics(views), is_reported);
    let active = or_kept(
        "ScalingActive",
        active(spec, views, &resolved),
        is_reported || resolved.status == False,
    );
    let limited = or_kept("Limited", limited(views), is_reported);
    let conflict = match &binding.disturbed_by {
        Some(rival) => answer(
            True,
            "DisturbedByOther",
            format!(
                "{} also sets {}, which this binding has; delete one of the two",
                rival.who, rival.target
            ),
        ),
        None => no_conflict(False),
    };
    let is_wanted_so = matches!(active.reason.as_ref(), "Advisory" | "Paused" | "Override");
    let first_wrong = [&resolved, &metrics, &active]
        .into_iter()
        .find(|answer| match answer.status {
            True => false,
            False => !(std::ptr::eq(*answer, &active) && is_wanted_so),
            Unknown => answer.reason != "NoReplicas",
        });
    let ready = match first_wrong {
        Some(wrong) => answer(
            if wrong.status == Unknown { Unknown } else { False },
            wrong.reason.clone(),
            wrong.message.clone(),
        ),
        None => answer(True, "Deciding", "targets are known, decisions are made"),
    };
    vec![
        ("Ready", ready),
        ("TargetsResolved", resolved),
        ("MetricsAvailable", metrics),
        ("ScalingActive", active),
        ("Limited", limited),
        (CONFLICT, conflict),
    ]
}

fn resolved(views: &[View<'_>]) -> Answer {
    let mut problems = views.iter().flat_map(|view| &view.problems);
    if let Some(first) = problems.next() {
        let mut message = first.to_string();
        for problem in problems {
            message = format!("{message}; {problem}");
        }
        return answer(False, first.reason(), message);
    }
    match views.iter().all(|view| view.fleet.is_some()) {
        true => answer(True, "Found", "every target and its Pods are known"),
        false => answer(Unknown, "Looking", "the targets are being looked at"),
    }
}

/// Names of those it is true of, for a message; nothing where the binding has one load domain.
fn whose(views: &[View<'_>], is: impl Fn(&View<'_>) -> bool) -> Option<String> {
    let names: Vec<&str> = views
        .iter()
        .filter(|view| is(view))
        .map(|view| view.bound.role.as_deref().unwrap_or_default())
        .collect();
    match names.as_slice() {
        [] => None,
        [""] => Some(String::new()),
        names => Some(format!(" of {}", names.join(", "))),
    }
}

fn metrics(views: &[View<'_>]) -> Answer {
    let is_empty = |view: &View<'_>| {
        let parts = view.fleet.as_ref().map(|fleet| &fleet.parts);
        parts.is_some_and(|parts| parts.iter().all(|part| part.spec == 0 && part.ready == 0))
    };
    let is_missing = |view: &View<'_>| view.latest.is_some_and(|latest| !latest.report.metrics_available);
    if views.iter().any(|view| view.latest.is_none()) {
        return answer(Unknown, "NoDecisionYet", "no decision has been made yet");
    }
    if let Some(whose) = whose(views, |view| is_missing(view) && !is_empty(view)) {
        let message = format!("no agent{whose} has sent fresh samples; nothing shrinks until one does");
        return answer(False, "NoFreshSamples", message);
    }
    match views.iter().any(|view| is_missing(view) && is_empty(view)) {
        true => answer(Unknown, "NoReplicas", "there is no replica that could be measured"),
        false => answer(True, "FreshSamples", "agents send samples"),
    }
}

fn active(spec: Option<&BindingSpec>, views: &[View<'_>], resolved: &Answer) -> Answer {
    let reports = || views.iter().filter_map(|view| view.latest.map(|latest| &latest.report));
    let controls = |is: fn(Control) -> bool| reports().any(|report| is(report.control));
    if resolved.status == False {
        return answer(False, resolved.reason.clone(), resolved.message.clone());
    }
    let mode = spec.map(|spec| spec.mode.control());
    if mode == Some(Control::Paused) || controls(|control| control == Control::Paused) {
        return answer(False, "Paused", "a person has paused it; replicas stay as they are");
    }
    if controls(|control| matches!(control, Control::Override(_))) {
        return answer(False, "Override", "a person has set the number of replicas");
    }
    if mode == Some(Control::Advisory) || controls(|control| control == Control::Advisory) {
        return answer(False, "Advisory", "decisions are told and not applied");
    }
    if reports().count() < views.len() {
        return answer(Unknown, "NoDecisionYet", "no decision has been made yet");
    }
    if let Some(why) = reports().find_map(|report| report.not_applied.clone()) {
        return answer(False, "NotApplied", why);
    }
    if let Some(whose) = whose(views, |view| mode_is(view, "panic")) {
        let message = format!("the load{whose} jumped: the short window decides, nothing shrinks");
        return answer(True, "Panic", message);
    }
    if let Some(whose) = whose(views, |view| mode_is(view, "unknown")) {
        return answer(
            False,
            "NoData",
            format!("the load{whose} is not known; nothing changes"),
        );
    }
    answer(True, "Stable", "the policy decides")
}

fn mode_is(view: &View<'_>, mode: &str) -> bool {
    view.latest.is_some_and(|latest| latest.report.mode == mode)
}

fn limited(views: &[View<'_>]) -> Answer {
    if views.iter().any(|view| view.latest.is_none()) {
        return answer(Unknown, "NoDecisionYet", "no decision has been made yet");
    }
    let limits: Vec<String> = views
        .iter()
        .filter_map(|view| {
            let limit = view.latest?.report.limited.clone()?;
            Some(match &view.bound.role {
                Some(role) => format!("{role}: {limit}"),
                None => limit,
            })
        })
        .collect();
    match limits.is_empty() {
        true => answer(False, "WithinLimits", "the number wanted is the number there is to be"),
        false => answer(True, "Limited", limits.join("; ")),
    }
}

fn mode_of(spec: &BindingSpec, views: &[View<'_>]) -> String {
    let controls = views
        .iter()
        .filter_map(|view| view.latest.map(|latest| latest.report.control));
    let words = |control| match control {
        Control::Auto => "auto",
        Control::Advisory => "advisory",
        Control::Paused => "paused",
        Control::Override(_) => "override",
    };
    let spoken = controls
        .filter(|control| *control != spec.mode.control())
        .map(words)
        .next();
    spoken.unwrap_or(spec.mode.as_str()).to_owned()
}

fn targets_of(view: &View<'_>, before: &BindingStatus) -> Vec<TargetStatus> {
    let bound = view.bound;
    let is_only = bound.parts.len() == 1;
    let is_lost = !view.problems.is_empty();
    let parts = bound.parts.iter().enumerate().map(|(index, part)| {
        let known = before.targets.iter().find(|target| target.name == part.name);
        let state = view
            .fleet
            .as_ref()
            .and_then(|fleet| fleet.parts.iter().find(|state| state.name == part.name));
        let kept = known.filter(|_| view.fleet.is_none() && !is_lost);
        let count = |of: fn(&PartState) -> u32, old: fn(&TargetStatus) -> Option<i32>| {
            state.map(|state| signed(of(state))).or_else(|| old(kept?))
        };
        let wanted = view
            .latest
            .filter(|_| is_only)
            .map(|latest| signed(latest.report.desired));
        let is_first = index == 0;
        let latest = view.latest.filter(|_| is_first);
        let known = known.filter(|_| is_first);
        TargetStatus {
            name: part.name.clone(),
            kind: Some(part.kind.clone()),
            target_name: Some(part.target_name.clone()),
            desired: wanted.or_else(|| count(|state| state.desired, |old| old.desired)),
            spec: count(|state| state.spec, |old| old.spec),
            ready: count(|state| state.ready, |old| old.ready),
            starting: count(|state| state.starting, |old| old.starting),
            draining: count(|state| state.draining, |old| old.draining),
            failed: count(|state| state.failed, |old| old.failed),
            last_decision: latest
                .and_then(|latest| latest.last.clone())
                .or_else(|| known?.last_decision.clone()),
            memory: latest
                .and_then(|latest| latest.memory.clone())
                .or_else(|| known?.memory.clone()),
        }
    });
    parts.collect()
}

fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The status of a policy that `bound_by` bindings refer to.
pub(super) fn of_policy(policy: &Policy, bound_by: usize, before: &PolicyStatus, now: &str) -> PolicyStatus {
    let (answer, metrics) = match &policy.spec {
        Ok(spec) => {
            let metrics = spec.metrics.iter().map(|metric| {
                let name = metric.metric.name();
                match metric.quantile {
                    Some(quantile) => format!("{name} p{} {} ms", quantile * 100.0, metric.target),
                    None => format!("{name} {}", metric.target),
                }
            });
            let metrics: Vec<String> = metrics.collect();
            (
                answer(True, "Valid", "the policy can be used"),
                Some(metrics.join(", ")),
            )
        }
        Err(problem) => (answer(False, "InvalidSpec", problem.clone()), None),
    };
    let known = before.conditions.iter().find(|condition| condition.kind == "Ready");
    let since = known.filter(|known| known.status == answer.status);
    PolicyStatus {
        observed_generation: Some(policy.meta.generation),
        conditions: vec![Condition {
            kind: "Ready".to_owned(),
            status: answer.status,
            reason: answer.reason.into_owned(),
            message: answer.message,
            last_transition_time: since.map_or(now, |known| &known.last_transition_time).to_owned(),
            observed_generation: Some(policy.meta.generation),
        }],
        metrics,
        bound_by: Some(i32::try_from(bound_by).unwrap_or(i32::MAX)),
    }
}

impl Latest {
    pub(super) fn new(report: Report) -> Self {
        let mut latest = Latest {
            memory: None,
            last: None,
            report,
        };
        latest.memory = remembered(&latest.report.memory);
        latest.note_change();
        latest
    }

    /// Takes over a newer report; whether it shows in the status.
    pub(super) fn take(&mut self, report: Report) -> bool {
        let old = std::mem::replace(&mut self.report, report);
        let new = &self.report;
        let is_other_mode = new.mode != old.mode;
        let is_change = new.changed.is_some() && new.decision != old.decision;
        if is_change || is_other_mode {
            self.memory = remembered(&new.memory);
        }
        let is_visible = is_change
            || is_other_mode
            || new.desired != old.desired
            || new.control != old.control
            || new.not_applied != old.not_applied
            || new.limited != old.limited
            || new.metrics_available != old.metrics_available;
        self.note_change();
        is_visible
    }

    fn note_change(&mut self) {
        let report = &self.report;
        if let (Some((id, at_ms)), Some((from, to))) = (report.decision, report.changed) {
            let time = jiff::Timestamp::from_millisecond(at_ms).unwrap_or_default();
            self.last = Some(LastDecision {
                id: i64::try_from(id).unwrap_or(i64::MAX),
                time: rfc3339(time),
                reason: report.reason.clone(),
                from: signed(from),
                to: signed(to),
            });
        }
    }
}

/// To the second, as everything in Kubernetes.
pub(super) fn rfc3339(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A memory as text, without the wishes that cannot matter any more: the windows look for the largest and the smallest
/// of the last seconds, so one that is followed by one as large and by one as small is in nobody's way.
fn remembered(memory: &Memory) -> Option<String> {
    let mut memory = memory.clone();
    let (mut largest, mut smallest) = (None, None);
    memory.recommendations.sort_by_key(|wish| std::cmp::Reverse(wish.at));
    memory.recommendations.retain(|wish| {
        let is_largest = largest.is_none_or(|largest| wish.replicas > largest);
        let is_smallest = smallest.is_none_or(|smallest| wish.replicas < smallest);
        if is_largest {
            largest = Some(wish.replicas);
        }
        if is_smallest {
            smallest = Some(wish.replicas);
        }
        is_largest || is_smallest
    });
    memory.recommendations.reverse();
    let text = serde_json::to_string(&memory).ok()?;
    // Longer than may be written: the next owner starts without, which only makes it more cautious.
    (text.len() <= MEMORY_BYTES_MAX).then_some(text)
}

/// What the owner before remembered of a load domain.
pub(super) fn memory_of(status: &BindingStatus, bound: &ResolvedBound) -> Option<Memory> {
    let first = &bound.parts.first()?.name;
    let target = status.targets.iter().find(|target| target.name == *first)?;
    serde_json::from_str(target.memory.as_ref()?).ok()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
