//! From Pods to replicas: a group of Pods that serves together counts once, under its leader's name.

use std::collections::BTreeMap;

use infer_core::TimeMs;

use super::pod::{Class, Pod, PodId, Stage};

const LWS_NAME: &str = "leaderworkerset.sigs.k8s.io/name";
const LWS_GROUP: &str = "leaderworkerset.sigs.k8s.io/group-index";
const LWS_WORKER: &str = "leaderworkerset.sigs.k8s.io/worker-index";
const SERVING_GROUP: &str = "modelserving.volcano.sh/group-name";
const SERVING_ROLE: &str = "modelserving.volcano.sh/role";
const SERVING_ROLE_ID: &str = "modelserving.volcano.sh/role-id";
const SERVING_ENTRY: &str = "modelserving.volcano.sh/entry";
const STATEFUL_ORDINAL: &str = "apps.kubernetes.io/pod-index";

/// One replica.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Replica {
    /// Its leader's name.
    pub(super) name: String,
    /// Its leader's.
    pub(super) uid: String,
    /// `Ready` when all of its Pods are.
    pub(super) stage: Stage,
    /// The lowest of its Pods: the first one that its controller would take.
    pub(super) class: Class,
    /// Since when all of its Pods serve.
    pub(super) ready_since: Option<TimeMs>,
    /// Its place, where its controller takes the last one first.
    pub(super) ordinal: Option<u64>,
    /// Its Pods, the leader first.
    pub(super) members: Vec<PodId>,
    /// The leader's.
    pub(super) node: Option<String>,
    /// The leader's.
    pub(super) ip: Option<String>,
    /// Why it does not serve.
    pub(super) problem: Option<String>,
}

impl Replica {
    /// Whether its controller counts it.
    pub(super) fn is_active(&self) -> bool {
        self.stage.is_active()
    }

    /// Whether one of its Pods carries our mark.
    pub(super) fn is_marked(&self) -> bool {
        self.members.iter().any(|member| member.mark.is_some())
    }
}

/// Puts Pods together. `by_role`: replicas are those of one role, of which a group may have several.
pub(super) fn replicas<'a>(pods: impl Iterator<Item = &'a Pod>, by_role: bool) -> Vec<Replica> {
    let mut single = Vec::new();
    let mut groups: BTreeMap<[&str; 3], Vec<&Pod>> = BTreeMap::new();
    for pod in pods.filter(|pod| pod.stage != Stage::Finished) {
        match group_of(pod, by_role) {
            Some(group) => groups.entry(group).or_default().push(pod),
            None => single.push(one(pod)),
        }
    }
    single.extend(groups.into_values().filter_map(together));
    single.sort_by(|a, b| a.name.cmp(&b.name));
    single
}

fn group_of(pod: &Pod, by_role: bool) -> Option<[&str; 3]> {
    let label = |key: &str| pod.labels.get(key).map(String::as_str);
    if let Some(group) = label(LWS_GROUP) {
        return Some([label(LWS_NAME).unwrap_or(""), group, ""]);
    }
    let group = label(SERVING_GROUP)?;
    Some(if by_role {
        [
            group,
            label(SERVING_ROLE).unwrap_or(""),
            label(SERVING_ROLE_ID).unwrap_or(""),
        ]
    } else {
        [group, "", ""]
    })
}

fn one(pod: &Pod) -> Replica {
    Replica {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        stage: pod.stage,
        class: pod.class,
        ready_since: pod.ready_since,
        ordinal: ordinal(pod),
        members: vec![pod.into()],
        node: pod.node.clone(),
        ip: pod.ip.clone(),
        problem: pod.problem.clone(),
    }
}

fn together(mut pods: Vec<&Pod>) -> Option<Replica> {
    pods.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.name.cmp(&b.name)));
    let leader = *pods.first()?;
    let size = pods.iter().filter_map(|pod| pod.group_size).max().unwrap_or(0) as usize;
    let of_stage = |stage: Stage| pods.iter().find(|pod| pod.stage == stage);
    let about = |pod: &Pod, what: &str| match &pod.problem {
        Some(problem) => Some(format!("{}: {problem}", pod.name)),
        None if what.is_empty() => None,
        None => Some(format!("{}: {what}", pod.name)),
    };
    let (stage, problem) = if leader.stage == Stage::Deleting || leader.stage == Stage::Dead {
        (leader.stage, about(leader, ""))
    } else if let Some(failed) = of_stage(Stage::Crashing).or_else(|| of_stage(Stage::Dead)) {
        (Stage::Crashing, about(failed, "failed"))
    } else if let Some(leaving) = of_stage(Stage::Deleting) {
        (Stage::Starting, about(leaving, "is being deleted"))
    } else if let Some(starting) = of_stage(Stage::Starting) {
        (Stage::Starting, about(starting, ""))
    } else if pods.len() < size {
        (Stage::Starting, Some(format!("{} of {size} Pods exist", pods.len())))
    } else {
        (Stage::Ready, None)
    };
    Some(Replica {
        stage,
        problem,
        class: pods.iter().map(|pod| pod.class).min().unwrap_or(Class::Unassigned),
        ready_since: (stage == Stage::Ready)
            .then(|| pods.iter().filter_map(|pod| pod.ready_since).max())
            .flatten(),
        members: pods.iter().map(|pod| (*pod).into()).collect(),
        ..one(leader)
    })
}

/// A Pod's place in its group: the leader's is 0.
fn place(pod: &Pod) -> u64 {
    let label = |key: &str| pod.labels.get(key);
    match label(LWS_WORKER).map(|index| index.parse().unwrap_or(u64::MAX)) {
        Some(index) => index,
        None => u64::from(label(SERVING_ENTRY).is_none_or(|entry| entry != "true")),
    }
}

fn ordinal(pod: &Pod) -> Option<u64> {
    let label = |key: &str| pod.labels.get(key).map(String::as_str);
    let suffix = |name: &str| name.rsplit_once('-').and_then(|(_, suffix)| suffix.parse().ok());
    if let Some(index) = label(LWS_GROUP) {
        return index.parse().ok();
    }
    if let Some(group) = label(SERVING_GROUP) {
        return suffix(label(SERVING_ROLE_ID).unwrap_or(group));
    }
    label(STATEFUL_ORDINAL).map_or_else(|| suffix(&pod.name), |index| index.parse().ok())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::targets) fn pod(name: &str, stage: Stage) -> Pod {
        Pod {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            labels: BTreeMap::new(),
            stage,
            class: if stage == Stage::Ready {
                Class::Ready
            } else {
                Class::NotReady
            },
            created: None,
            ready_since: (stage == Stage::Ready).then_some(TimeMs(1000)),
            restarted: false,
            node: None,
            ip: None,
            problem: None,
            deletion_cost: None,
            mark: None,
            group_size: None,
        }
    }

    pub(in crate::targets) fn replica(name: &str, stage: Stage) -> Replica {
        one(&pod(name, stage))
    }

    fn lws(group: u32, worker: u32, stage: Stage) -> Pod {
        let name = if worker == 0 {
            format!("x-{group}")
        } else {
            format!("x-{group}-{worker}")
        };
        let labels = [
            (LWS_NAME, "x".to_owned()),
            (LWS_GROUP, group.to_string()),
            (LWS_WORKER, worker.to_string()),
        ];
        Pod {
            labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
            group_size: Some(3),
            ..pod(&name, stage)
        }
    }

    #[track_caller]
    fn check(pods: &[Pod], expected: &[(&str, Stage, usize)]) {
        let found = replicas(pods.iter(), false);
        let found: Vec<_> = found
            .iter()
            .map(|replica| (replica.name.as_str(), replica.stage, replica.members.len()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn pods_of_their_own_are_replicas() {
        check(
            &[
                pod("b", Stage::Starting),
                pod("a", Stage::Ready),
                pod("c", Stage::Finished),
            ],
            &[("a", Stage::Ready, 1), ("b", Stage::Starting, 1)],
        );
    }

    #[test]
    fn a_group_is_ready_when_all_of_its_pods_are_there_and_ready() {
        use Stage::*;
        check(
            &[lws(0, 1, Ready), lws(0, 0, Ready), lws(0, 2, Ready)],
            &[("x-0", Ready, 3)],
        );
        check(&[lws(0, 0, Ready), lws(0, 1, Ready)], &[("x-0", Starting, 2)]);
        check(
            &[lws(0, 0, Ready), lws(0, 1, Starting), lws(0, 2, Ready)],
            &[("x-0", Starting, 3)],
        );
        check(
            &[lws(0, 0, Ready), lws(0, 1, Crashing), lws(0, 2, Ready)],
            &[("x-0", Crashing, 3)],
        );
        check(
            &[lws(0, 0, Deleting), lws(0, 1, Ready), lws(0, 2, Ready)],
            &[("x-0", Deleting, 3)],
        );
        check(
            &[lws(0, 0, Ready), lws(0, 1, Deleting), lws(0, 2, Ready)],
            &[("x-0", Starting, 3)],
        );
        check(
            &[
                lws(10, 0, Ready),
                lws(10, 1, Ready),
                lws(10, 2, Ready),
                lws(9, 0, Starting),
            ],
            &[("x-10", Ready, 3), ("x-9", Starting, 1)],
        );
    }

    #[test]
    fn roles_of_a_serving_group_count_by_role_or_together() {
        let role = |group: &str, role: &str, id: &str, entry: bool| Pod {
            labels: [
                (SERVING_GROUP, group.to_owned()),
                (SERVING_ROLE, role.to_owned()),
                (SERVING_ROLE_ID, id.to_owned()),
                (SERVING_ENTRY, entry.to_string()),
            ]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
            ..pod(&format!("{group}-{id}-{}", u8::from(!entry)), Stage::Ready)
        };
        let pods = [
            role("m-0", "prefill", "prefill-0", false),
            role("m-0", "prefill", "prefill-0", true),
            role("m-0", "prefill", "prefill-1", true),
        ];
        let names = |by_role| -> Vec<(String, usize, Option<u64>)> {
            let found = replicas(pods.iter(), by_role).into_iter();
            found
                .map(|replica| (replica.name, replica.members.len(), replica.ordinal))
                .collect()
        };
        assert_eq!(
            names(true),
            [
                ("m-0-prefill-0-0".to_owned(), 2, Some(0)),
                ("m-0-prefill-1-0".to_owned(), 1, Some(1))
            ]
        );
        assert_eq!(names(false).len(), 1);
    }

    #[test]
    fn ordinals() {
        let labelled = Pod {
            labels: [(STATEFUL_ORDINAL.to_owned(), "12".to_owned())].into(),
            ..pod("web-3", Stage::Ready)
        };
        assert_eq!(ordinal(&labelled), Some(12));
        assert_eq!(ordinal(&pod("web-3", Stage::Ready)), Some(3));
        assert_eq!(ordinal(&pod("chat-7d9f-x2x", Stage::Ready)), None);
        assert_eq!(ordinal(&lws(10, 2, Stage::Ready)), Some(10));
    }
}
