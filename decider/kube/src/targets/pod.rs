//! What of a Pod matters here, and where in its life it is.

use std::collections::BTreeMap;

use infer_core::TimeMs;
use serde::{Deserialize, Serialize};

/// Set by the ReplicaSet controller's rules: of Pods that are alike otherwise, those with less go first.
pub(super) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// On a Pod that is being emptied; see [`Mark`].
pub(super) const DRAINING: &str = "autoscaling.matrixinfer.ai/draining";

/// A Pod as the API server sends it, as far as it is read. Fields that are not named here are skipped while parsing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawPod {
    pub(super) metadata: RawMeta,
    spec: RawSpec,
    status: RawStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawMeta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<RawAnnotations>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct RawAnnotations {
    #[serde(rename = "controller.kubernetes.io/pod-deletion-cost")]
    deletion_cost: Option<String>,
    #[serde(rename = "autoscaling.matrixinfer.ai/draining")]
    draining: Option<String>,
    #[serde(rename = "leaderworkerset.sigs.k8s.io/size")]
    group_size: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawSpec {
    node_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawStatus {
    phase: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<RawCondition>>,
    init_container_statuses: Option<Vec<RawContainer>>,
    container_statuses: Option<Vec<RawContainer>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
    last_transition_time: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawContainer {
    name: String,
    restart_count: i64,
    state: Option<RawContainerState>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawContainerState {
    waiting: Option<RawWaiting>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawWaiting {
    reason: Option<String>,
    message: Option<String>,
}

/// Where a Pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Created, not serving.
    Starting,
    /// Serving.
    Ready,
    /// On its way out: it has a deletion timestamp.
    Deleting,
    /// It does not start, again and again.
    Crashing,
    /// It has failed for good; its controller makes another one.
    Dead,
    /// It has ended well: no replica of anything any more.
    Finished,
}

impl Stage {
    /// Whether a controller counts the Pod among those it has.
    pub(super) fn is_active(self) -> bool {
        matches!(self, Stage::Starting | Stage::Ready | Stage::Crashing)
    }
}

/// In which order the ReplicaSet controller deletes Pods, whatever their deletion cost is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// On no node.
    Unassigned,
    /// On a node, nothing runs.
    Pending,
    /// Something runs, not ready.
    NotReady,
    /// Ready.
    Ready,
}

/// A Pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) stage: Stage,
    pub(super) class: Class,
    pub(super) created: Option<TimeMs>,
    pub(super) ready_since: Option<TimeMs>,
    /// Whether any container was restarted: its first start can not be told any more.
    pub(super) restarted: bool,
    pub(super) node: Option<String>,
    pub(super) ip: Option<String>,
    pub(super) problem: Option<String>,
    pub(super) deletion_cost: Option<String>,
    /// Our annotation, as it stands.
    pub(super) mark: Option<String>,
    /// Pods in its group, where its controller says so.
    pub(super) group_size: Option<u32>,
}

/// Reasons for which a container waits that do not go away by waiting a little.
const CRASH_REASONS: [&str; 9] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PostStartHookError",
];

/// Longer problems are cut: they end in a status.
const PROBLEM_CHARS_MAX: usize = 240;

impl From<RawPod> for Pod {
    fn from(raw: RawPod) -> Self {
        let RawPod { metadata, spec, status } = raw;
        let annotations = metadata.annotations.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let condition = |kind: &str| conditions.iter().find(|condition| condition.kind == kind);
        let ready = condition("Ready");
        let is_ready = ready.is_some_and(|ready| ready.status == "True");
        let containers: Vec<&RawContainer> = status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten())
            .collect();
        let crash = containers.iter().find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref()?;
            CRASH_REASONS.contains(&reason).then(|| {
                told(
                    &format!("container {}: {reason}", container.name),
                    waiting.message.as_deref(),
                )
            })
        });
        let phase = status.phase.as_deref().unwrap_or("Pending");
        let lost = status.reason.as_deref() == Some("NodeLost");
        let stage = match phase {
            "Succeeded" => Stage::Finished,
            "Failed" => Stage::Dead,
            _ if metadata.deletion_timestamp.is_some() => Stage::Deleting,
            _ if is_ready => Stage::Ready,
            _ if crash.is_some() || lost => Stage::Crashing,
            _ => Stage::Starting,
        };
        let class = match (is_ready, phase, &spec.node_name) {
            (true, ..) => Class::Ready,
            (_, _, None) => Class::Unassigned,
            (_, "Pending", _) => Class::Pending,
            _ => Class::NotReady,
        };
        let unscheduled = || {
            let scheduled = condition("PodScheduled").filter(|scheduled| scheduled.status == "False")?;
            Some(told(scheduled.reason.as_deref()?, scheduled.message.as_deref()))
        };
        let problem = match stage {
            Stage::Dead | Stage::Crashing if crash.is_none() => {
                let reason = status.reason.as_deref().unwrap_or("Failed");
                Some(told(reason, status.message.as_deref()))
            }
            Stage::Crashing => crash,
            Stage::Starting => unscheduled().or_else(|| {
                status
                    .reason
                    .as_deref()
                    .map(|reason| told(reason, status.message.as_deref()))
            }),
            Stage::Ready | Stage::Deleting | Stage::Dead | Stage::Finished => None,
        };
        Pod {
            name: metadata.name,
            uid: metadata.uid,
            labels: metadata.labels.unwrap_or_default(),
            stage,
            class,
            created: metadata.creation_timestamp.as_deref().and_then(time_of),
            ready_since: ready
                .filter(|_| is_ready)
                .and_then(|ready| ready.last_transition_time.as_deref())
                .and_then(time_of),
            restarted: containers.iter().any(|container| container.restart_count > 0),
            node: spec.node_name,
            ip: status.pod_ip,
            problem,
            deletion_cost: annotations.deletion_cost,
            mark: annotations.draining,
            group_size: annotations.group_size.and_then(|size| size.parse().ok()),
        }
    }
}

/// "reason: message", cut to a length.
fn told(reason: &str, message: Option<&str>) -> String {
    let text = match message {
        Some(message) if !message.is_empty() => format!("{reason}: {message}"),
        _ => reason.to_owned(),
    };
    match text.char_indices().nth(PROBLEM_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// An RFC 3339 time.
fn time_of(text: &str) -> Option<TimeMs> {
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(TimeMs(time.as_millisecond()))
}

/// What our annotation says: whoever finds it can take it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The plan for which the Pod goes.
    pub(super) plan: String,
    /// Since when, Unix ms: no two marks are the same.
    pub(super) at: i64,
    /// The deletion cost that somebody else had given it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cost: Option<String>,
}

impl Mark {
    /// The mark for a Pod, which may have been marked before.
    pub(super) fn new(plan: &str, at: TimeMs, pod: &PodId) -> Mark {
        Mark {
            plan: plan.to_owned(),
            at: at.0,
            cost: match &pod.mark {
                Some(before) => Mark::cost_before(before),
                None => pod.deletion_cost.clone(),
            },
        }
    }

    /// As an annotation.
    pub(super) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The deletion cost from before a mark; `None` too for one that somebody has broken.
    pub(super) fn cost_before(text: &str) -> Option<String> {
        serde_json::from_str::<Mark>(text).ok()?.cost
    }
}

/// A Pod to be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodId {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) deletion_cost: Option<String>,
    pub(super) mark: Option<String>,
}

impl From<&Pod> for PodId {
    fn from(pod: &Pod) -> Self {
        PodId {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            deletion_cost: pod.deletion_cost.clone(),
            mark: pod.mark.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value::<RawPod>(value).unwrap().into()
    }

    fn ready(status: &str) -> serde_json::Value {
        json!({"type": "Ready", "status": status, "lastTransitionTime": "2026-01-02T03:04:15Z"})
    }

    #[track_caller]
    fn check(value: serde_json::Value, stage: Stage, class: Class, problem: Option<&str>) {
        let pod = pod(value);
        assert_eq!((pod.stage, pod.class, pod.problem.as_deref()), (stage, class, problem));
    }

    #[test]
    fn tells_stages_apart() {
        let on_node = json!({"nodeName": "n1"});
        let waiting = |reason: &str, message: &str| {
            json!({"phase": "Running", "conditions": [ready("False")],
                   "containerStatuses": [{"name": "engine", "restartCount": 3,
                                          "state": {"waiting": {"reason": reason, "message": message}}}]})
        };
        check(json!({}), Stage::Starting, Class::Unassigned, None);
        check(
            json!({"status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}]}}),
            Stage::Starting,
            Class::Unassigned,
            Some("Unschedulable: 0/3 nodes are available"),
        );
        check(
            json!({"spec": on_node, "status": {"phase": "Pending"}}),
            Stage::Starting,
            Class::Pending,
            None,
        );
        check(
            json!({"spec": on_node, "status": waiting("ContainerCreating", "")}),
            Stage::Starting,
            Class::NotReady,
            None,
        );
        check(
            json!({"spec": on_node, "status": waiting("CrashLoopBackOff", "back-off 40s")}),
            Stage::Crashing,
            Class::NotReady,
            Some("container engine: CrashLoopBackOff: back-off 40s"),
        );
        check(
            json!({"spec": on_node, "status": {"phase": "Running", "conditions": [ready("True")]}}),
            Stage::Ready,
            Class::Ready,
            None,
        );
        check(
            json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}, "spec": on_node,
                   "status": {"phase": "Running", "conditions": [ready("True")]}}),
            Stage::Deleting,
            Class::Ready,
            None,
        );
        check(
            json!({"spec": on_node, "status": {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}}),
            Stage::Dead,
            Class::NotReady,
            Some("Evicted: low on memory"),
        );
        check(
            json!({"spec": on_node, "status": {"phase": "Succeeded"}}),
            Stage::Finished,
            Class::NotReady,
            None,
        );
    }

    #[test]
    fn a_crash_of_the_sidecar_counts_and_a_long_message_is_cut() {
        let long = "x".repeat(1000);
        let pod = pod(
            json!({"spec": {"nodeName": "n"}, "status": {"phase": "Pending", "initContainerStatuses": [
            {"name": "infer-agent", "state": {"waiting": {"reason": "ImagePullBackOff", "message": long}}}]}}),
        );
        assert_eq!(pod.stage, Stage::Crashing);
        let problem = pod.problem.unwrap();
        assert!(
            problem.starts_with("container infer-agent: ImagePullBackOff: xxx"),
            "{problem}"
        );
        assert!(problem.chars().count() <= PROBLEM_CHARS_MAX + 1);
    }

    #[test]
    fn a_crash_that_has_passed_is_no_problem_of_a_ready_pod() {
        let pod = pod(
            json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": [ready("True")],
            "containerStatuses": [{"name": "engine", "restartCount": 2, "state": {"running": {}}}]}}),
        );
        assert_eq!(
            (pod.stage, pod.problem.clone(), pod.restarted),
            (Stage::Ready, None, true)
        );
        assert_eq!(pod.ready_since.unwrap().since_s(pod.created.unwrap()), 10.0);
    }

    #[test]
    fn a_mark_remembers_the_cost_that_was_there_before_the_first_mark() {
        let mut id = PodId {
            name: "a".into(),
            uid: "u".into(),
            deletion_cost: Some("7".into()),
            mark: None,
        };
        let first = Mark::new("p1", TimeMs(1), &id);
        assert_eq!(Mark::cost_before(&first.to_text()).as_deref(), Some("7"));
        id.mark = Some(first.to_text());
        id.deletion_cost = Some("-1000000000".into());
        assert_eq!(Mark::new("p2", TimeMs(2), &id).cost.as_deref(), Some("7"));
        assert_eq!(Mark::cost_before("{broken"), None);
    }

    #[test]
    fn times_that_nobody_can_read_are_unknown() {
        let pod = pod(json!({"metadata": {"creationTimestamp": "yesterday"}}));
        assert_eq!(pod.created, None);
    }
}
