//! Every Pod that is watched, and the parts that each belongs to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use infer_core::TimeMs;

use super::{
    pod::{Pod, RawPod, Stage},
    selector::Selector,
};

/// A part of a target: the target's key and the part's index.
pub(super) type PartId = (Arc<str>, usize);

/// A Pod and what is known of it beyond itself.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) pod: Pod,
    /// Creation to first Ready.
    pub(super) startup_ms: Option<u64>,
    /// Whether its start was seen, so that restarts before it became ready are part of it.
    seen_starting: bool,
    parts: Vec<PartId>,
}

impl Known {
    /// Whether it belongs to a part.
    pub(super) fn is_in(&self, id: &PartId) -> bool {
        self.parts.contains(id)
    }
}

/// The Pods, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_namespace: HashMap<String, BTreeMap<String, Known>>,
    selectors: HashMap<String, Selectors>,
}

/// Selectors of one namespace.
#[derive(Debug, Default)]
struct Selectors {
    all: BTreeMap<PartId, Selector>,
    /// Those that ask for a certain label, by it.
    by_label: HashMap<(String, String), BTreeSet<PartId>>,
    /// The others.
    rest: BTreeSet<PartId>,
}

impl Selectors {
    fn of(&self, labels: &BTreeMap<String, String>) -> Vec<PartId> {
        let by_label = labels
            .iter()
            .filter_map(|(key, value)| self.by_label.get(&(key.clone(), value.clone())))
            .flatten();
        let matches = |id: &&PartId| self.all.get(*id).is_some_and(|selector| selector.matches(labels));
        by_label.chain(&self.rest).filter(matches).cloned().collect()
    }
}

impl Pods {
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&Known> {
        self.by_namespace.get(namespace)?.get(name)
    }

    /// The part that a Pod belongs to; of several the first by key.
    pub(super) fn part_of(&self, namespace: &str, name: &str) -> Option<&PartId> {
        self.get(namespace, name)?.parts.iter().min()
    }

    /// The Pods of a part.
    pub(super) fn of_part(&self, namespace: &str, id: &PartId) -> impl Iterator<Item = &Known> {
        let pods = self.by_namespace.get(namespace).into_iter().flat_map(BTreeMap::values);
        pods.filter(move |known| known.parts.contains(id))
    }

    /// Pods by their names.
    pub(super) fn named<'a>(&'a self, namespace: &str, names: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Known> {
        let pods = self.by_namespace.get(namespace);
        names.iter().filter_map(move |name| pods?.get(name))
    }

    /// Takes a Pod in. Returns the parts that it was or is in.
    pub(super) fn apply(&mut self, raw: RawPod) -> Vec<PartId> {
        let namespace = raw.metadata.namespace.clone();
        let pod = Pod::from(raw);
        let pods = self.by_namespace.entry(namespace.clone()).or_default();
        let before = pods.remove(&pod.name);
        if before.as_ref().is_some_and(|before| before.pod == pod) {
            pods.extend(before.map(|before| (pod.name.clone(), before)));
            return Vec::new();
        }
        let before = before.filter(|before| before.pod.uid == pod.uid);
        let parts = match &before {
            Some(before) if before.pod.labels == pod.labels => before.parts.clone(),
            _ => self
                .selectors
                .get(&namespace)
                .map(|selectors| selectors.of(&pod.labels))
                .unwrap_or_default(),
        };
        let seen_starting = before.as_ref().is_some_and(|before| before.seen_starting) || pod.stage != Stage::Ready;
        let known_ms = before.as_ref().and_then(|before| before.startup_ms);
        let startup_ms = known_ms.or_else(|| startup_ms(&pod).filter(|_| seen_starting || !pod.restarted));
        let mut touched = parts.clone();
        touched.extend(before.into_iter().flat_map(|before| before.parts));
        let known = Known {
            startup_ms,
            seen_starting,
            parts,
            pod,
        };
        pods.insert(known.pod.name.clone(), known);
        touched
    }

    /// A Pod is gone. Returns the parts that it was in.
    pub(super) fn delete(&mut self, namespace: &str, name: &str, uid: &str) -> Vec<PartId> {
        let Some(pods) = self.by_namespace.get_mut(namespace) else {
            return Vec::new();
        };
        if pods.get(name).is_none_or(|known| known.pod.uid != uid) {
            return Vec::new();
        }
        pods.remove(name).map(|known| known.parts).unwrap_or_default()
    }

    /// These are all Pods of a namespace, or of all. Returns the parts that have changed.
    pub(super) fn replace(&mut self, scope: Option<&str>, raw: Vec<RawPod>) -> Vec<PartId> {
        let mut listed: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for pod in &raw {
            listed
                .entry(&pod.metadata.namespace)
                .or_default()
                .insert(&pod.metadata.name);
        }
        let mut touched = Vec::new();
        for (namespace, pods) in &mut self.by_namespace {
            if scope.is_none_or(|scope| scope == namespace) {
                let listed = listed.get(namespace.as_str());
                pods.retain(|name, known| {
                    let is_there = listed.is_some_and(|listed| listed.contains(name.as_str()));
                    if !is_there {
                        touched.append(&mut known.parts);
                    }
                    is_there
                });
            }
        }
        for pod in raw {
            touched.extend(self.apply(pod));
        }
        touched
    }

    /// A part selects these Pods from now on; `None`: no Pods.
    pub(super) fn select(&mut self, namespace: &str, id: &PartId, selector: Option<Selector>) {
        let selectors = self.selectors.entry(namespace.to_owned()).or_default();
        if let Some(before) = selectors.all.remove(id) {
            match before.label() {
                Some((key, value)) => {
                    let label = (key.to_owned(), value.to_owned());
                    if let Some(ids) = selectors.by_label.get_mut(&label) {
                        ids.remove(id);
                        if ids.is_empty() {
                            selectors.by_label.remove(&label);
                        }
                    }
                }
                None => {
                    selectors.rest.remove(id);
                }
            }
        }
        let pods = self
            .by_namespace
            .get_mut(namespace)
            .into_iter()
            .flat_map(BTreeMap::values_mut);
        for known in pods {
            known.parts.retain(|part| part != id);
            if selector
                .as_ref()
                .is_some_and(|selector| selector.matches(&known.pod.labels))
            {
                known.parts.push(id.clone());
            }
        }
        let Some(selector) = selector else {
            if selectors.all.is_empty() {
                self.selectors.remove(namespace);
            }
            return;
        };
        match selector.label() {
            Some((key, value)) => {
                let label = (key.to_owned(), value.to_owned());
                selectors.by_label.entry(label).or_default().insert(id.clone());
            }
            None => {
                selectors.rest.insert(id.clone());
            }
        }
        selectors.all.insert(id.clone(), selector);
    }
}

fn startup_ms(pod: &Pod) -> Option<u64> {
    let (created, ready): (TimeMs, TimeMs) = (pod.created?, pod.ready_since?);
    u64::try_from(ready.0 - created.0).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(name: &str, app: &str, ready_at: Option<&str>, restarts: i64) -> RawPod {
        let conditions = ready_at.map(|at| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]));
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("u-{name}"), "labels": {"app": app},
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Running", "conditions": conditions,
                       "containerStatuses": [{"name": "e", "restartCount": restarts}]}}))
        .unwrap()
    }

    fn id(key: &str) -> PartId {
        (key.into(), 0)
    }

    fn names(pods: &Pods, id: &PartId) -> Vec<String> {
        pods.of_part("ns", id).map(|known| known.pod.name.clone()).collect()
    }

    #[test]
    fn pods_find_their_parts_whichever_comes_first() {
        let mut pods = Pods::default();
        pods.apply(raw("a", "x", None, 0));
        pods.select("ns", &id("k"), Selector::parse("app=x").ok());
        pods.select("ns", &id("other"), Selector::parse("app!=x").ok());
        assert_eq!(pods.apply(raw("b", "x", None, 0)), [id("k")]);
        assert_eq!(names(&pods, &id("k")), ["a", "b"]);
        // Another label takes it out of one part and into the other; both are told.
        assert_eq!(pods.apply(raw("a", "y", None, 0)).len(), 2);
        assert_eq!(
            (names(&pods, &id("k")), names(&pods, &id("other"))),
            (vec!["b".to_owned()], vec!["a".to_owned()])
        );
        assert_eq!(pods.part_of("ns", "a"), Some(&id("other")));
        assert!(pods.apply(raw("a", "y", None, 0)).is_empty(), "nothing has changed");
        pods.select("ns", &id("k"), None);
        assert!(names(&pods, &id("k")).is_empty());
        assert!(pods.delete("ns", "a", "another-uid").is_empty());
        assert_eq!(pods.delete("ns", "a", "u-a"), [id("other")]);
    }

    #[test]
    fn a_list_replaces_what_was_there() {
        let mut pods = Pods::default();
        pods.select("ns", &id("k"), Selector::parse("app=x").ok());
        pods.replace(None, vec![raw("a", "x", None, 0), raw("b", "x", None, 0)]);
        assert_eq!(pods.replace(Some("ns"), vec![raw("b", "x", None, 0)]), [id("k")]);
        assert_eq!(names(&pods, &id("k")), ["b"]);
        assert!(pods.replace(Some("elsewhere"), Vec::new()).is_empty());
        assert_eq!(names(&pods, &id("k")), ["b"]);
    }

    #[test]
    fn startup_is_the_first_one() {
        let startup = |steps: &[RawPod]| {
            let mut pods = Pods::default();
            for step in steps {
                pods.apply(step.clone());
            }
            pods.get("ns", "a").unwrap().startup_ms
        };
        let (at_9, at_50) = (Some("2026-01-01T00:00:09Z"), Some("2026-01-01T00:00:50Z"));
        assert_eq!(startup(&[raw("a", "x", None, 0), raw("a", "x", at_9, 0)]), Some(9000));
        assert_eq!(
            startup(&[raw("a", "x", at_9, 0), raw("a", "x", None, 1), raw("a", "x", at_50, 1)]),
            Some(9000)
        );
        // It has been restarted before anyone looked: nobody knows.
        assert_eq!(startup(&[raw("a", "x", at_50, 1)]), None);
        assert_eq!(
            startup(&[raw("a", "x", None, 1), raw("a", "x", at_50, 1)]),
            Some(50_000)
        );
    }
}
