//! Everything that is known, behind one lock that is held for microseconds and never across an await. Synchronous:
//! what happens comes in, what is to be done is left in queues.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use infer_core::TimeMs;

use super::{
    DrainSpec, Fleet, ForeignChange, Options, Part,
    api::Gvk,
    entry::{Entry, PartEntry},
    health::{Health, Stream},
    kinds::{Kind, KindProblem, Meta, RawObject, Resource},
    machine::Action,
    pod::RawPod,
    pods::{PartId, Pods},
    replica::Replica,
};

/// See the module.
#[derive(Default)]
pub(super) struct State {
    pub(super) entries: BTreeMap<Arc<str>, Entry>,
    pub(super) pods: Pods,
    pub(super) kinds: BTreeMap<Gvk, Kind>,
    pub(super) health: Health,
    /// Namespaces whose Pods are all known; `None`: all.
    pods_listed: BTreeSet<Option<String>>,
    /// Why Pods can not be seen.
    pub(super) pods_problem: Option<KindProblem>,
    pub(super) namespaces: Vec<String>,
    manager: String,
    /// Parts by their object.
    by_object: HashMap<(Gvk, String, String), Vec<PartId>>,
    /// Parts whose count is to be read. No more than there are parts.
    pub(super) to_read: BTreeSet<PartId>,
    /// Targets that need somebody to look after drains. No more than there are targets.
    pub(super) to_drive: BTreeSet<Arc<str>>,
    /// Kinds that have come or gone.
    pub(super) kinds_changed: bool,
    /// Targets whose fleet or problems have changed.
    pub(super) changed: BTreeSet<Arc<str>>,
    /// Counts that somebody else has changed.
    pub(super) foreign: Vec<ForeignChange>,
}

impl State {
    pub(super) fn new(options: &Options) -> State {
        State {
            namespaces: options.namespaces.clone(),
            manager: options.field_manager.clone(),
            ..State::default()
        }
    }

    /// What a watch of a namespace's objects is called.
    pub(super) fn scope_of(&self, namespace: &str) -> Option<String> {
        (!self.namespaces.is_empty()).then(|| namespace.to_owned())
    }

    /// Tracks a target. Returns what a drain that ends thereby needs.
    pub(super) fn track(&mut self, key: &str, parts: Vec<Part>, drain: DrainSpec) -> Vec<Action> {
        let is_same = |entry: &Entry| {
            entry.parts.len() == parts.len()
                && entry
                    .parts
                    .iter()
                    .zip(&parts)
                    .all(|(entry, part)| entry.part.target == part.target)
        };
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| is_same(entry)) {
            entry.machine.set_drain(drain);
            let mut is_new = false;
            for (entry, part) in entry.parts.iter_mut().zip(parts) {
                is_new |= entry.part != part;
                entry.part = part;
            }
            if is_new {
                entry.touch();
                self.changed.insert(key.into());
            }
            return Vec::new();
        }
        let released = self.untrack(key);
        let key: Arc<str> = key.into();
        let entry = Entry::new(parts, drain);
        for (index, part) in entry.parts.iter().enumerate() {
            let id = (Arc::clone(&key), index);
            let target = &part.part.target;
            let object = (part.gvk.clone(), target.namespace.clone(), target.name.clone());
            self.by_object.entry(object).or_default().push(id.clone());
            let kind = self.kinds.entry(part.gvk.clone()).or_default();
            kind.users += 1;
            self.kinds_changed = true;
            if kind.resource.is_some() {
                self.to_read.insert(id);
            }
        }
        self.changed.insert(Arc::clone(&key));
        self.entries.insert(key, entry);
        released
    }

    /// Forgets a target. Returns what a drain that ends thereby needs.
    pub(super) fn untrack(&mut self, key: &str) -> Vec<Action> {
        let Some(mut entry) = self.entries.remove(key) else {
            return Vec::new();
        };
        let replicas = entry.replicas(&self.pods).to_vec();
        let released = entry.machine.release(&replicas);
        for (index, part) in entry.parts.iter().enumerate() {
            let id: PartId = (key.into(), index);
            let target = &part.part.target;
            self.pods.select(&target.namespace, &id, None);
            let object = (part.gvk.clone(), target.namespace.clone(), target.name.clone());
            if let Some(ids) = self.by_object.get_mut(&object) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.by_object.remove(&object);
                }
            }
            if let Some(kind) = self.kinds.get_mut(&part.gvk) {
                kind.users = kind.users.saturating_sub(1);
                self.kinds_changed = true;
            }
            self.to_read.remove(&id);
        }
        entry.wake.notify_one();
        self.to_drive.remove(key);
        self.changed.insert(key.into());
        released
    }

    /// Something about a target has changed.
    pub(super) fn touch(&mut self, key: &Arc<str>) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.touch();
            self.changed.insert(Arc::clone(key));
        }
    }

    /// A target needs somebody to look after its drains.
    pub(super) fn drive(&mut self, key: &Arc<str>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.driven {
            entry.wake.notify_one();
        } else {
            entry.driven = true;
            self.to_drive.insert(Arc::clone(key));
        }
    }

    pub(super) fn part(&self, id: &PartId) -> Option<&PartEntry> {
        self.entries.get(&id.0)?.parts.get(id.1)
    }

    pub(super) fn part_mut(&mut self, id: &PartId) -> Option<&mut PartEntry> {
        self.entries.get_mut(&id.0)?.parts.get_mut(id.1)
    }

    /// What there is; `None` until everything is known.
    pub(super) fn fleet(&mut self, key: &str) -> Option<Fleet> {
        let streams = self.streams_of(key)?;
        let is_listed = |stream: &Stream| match stream {
            Stream::Pods(scope) => self.pods_listed.contains(scope),
            Stream::Kind(..) => true,
        };
        if !streams.iter().all(is_listed) {
            return None;
        }
        let stale_since = self.health.stale_since(&streams);
        let mut fleet = self.entries.get_mut(key)?.fleet(&self.pods)?;
        fleet.stale_since = stale_since;
        Some(fleet)
    }

    /// Since when a target's view has not been confirmed.
    pub(super) fn stale_since(&self, key: &str) -> Option<TimeMs> {
        self.health.stale_since(&self.streams_of(key)?)
    }

    fn streams_of(&self, key: &str) -> Option<Vec<Stream>> {
        let parts = &self.entries.get(key)?.parts;
        let streams = parts.iter().flat_map(|part| {
            let scope = self.scope_of(part.namespace());
            [Stream::Pods(scope.clone()), Stream::Kind(part.gvk.clone(), scope)]
        });
        Some(streams.collect())
    }

    /// Replicas of every part; empty for a target that is not there.
    pub(super) fn replicas(&mut self, key: &str) -> Vec<Vec<Replica>> {
        let entry = self.entries.get_mut(key);
        entry
            .map(|entry| entry.replicas(&self.pods).to_vec())
            .unwrap_or_default()
    }

    // ---- what the watches tell ----

    /// These are all Pods of a namespace, or of all.
    pub(super) fn all_pods(&mut self, scope: Option<String>, pods: Vec<RawPod>) {
        let touched = self.pods.replace(scope.as_deref(), pods);
        self.set_pods_problem(None);
        if self.pods_listed.insert(scope) {
            self.changed.extend(self.entries.keys().cloned());
        }
        let touched: BTreeSet<PartId> = touched.into_iter().collect();
        for id in touched {
            self.gather(&id);
        }
    }

    /// A Pod is new or has changed.
    pub(super) fn apply_pod(&mut self, pod: RawPod) {
        let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let touched = self.pods.apply(pod);
        self.moved(&namespace, &name, touched);
    }

    /// A Pod is gone.
    pub(super) fn delete_pod(&mut self, pod: &RawPod) {
        let meta = &pod.metadata;
        let touched = self.pods.delete(&meta.namespace, &meta.name, &meta.uid);
        self.moved(&meta.namespace, &meta.name, touched);
    }

    fn moved(&mut self, namespace: &str, name: &str, touched: Vec<PartId>) {
        for id in touched {
            let known = self.pods.get(namespace, name);
            let is_in = known.is_some_and(|known| known.is_in(&id));
            let is_marked = known.is_some_and(|known| known.pod.mark.is_some());
            let Some(part) = self.part_mut(&id) else { continue };
            if is_in {
                part.pods.insert(name.to_owned());
            } else {
                part.pods.remove(name);
            }
            self.touch(&id.0);
            let is_busy = self.entries.get(&id.0).is_some_and(|entry| entry.machine.is_busy());
            if is_marked || is_busy {
                self.drive(&id.0);
            }
        }
    }

    /// Looks up a part's Pods anew.
    fn gather(&mut self, id: &PartId) {
        let Some(part) = self.part(id) else { return };
        let namespace = part.namespace().to_owned();
        let (mut names, mut is_marked) = (BTreeSet::new(), false);
        for known in self.pods.of_part(&namespace, id) {
            names.insert(known.pod.name.clone());
            is_marked |= known.pod.mark.is_some();
        }
        if let Some(part) = self.part_mut(id) {
            part.pods = names;
        }
        self.touch(&id.0);
        if is_marked {
            self.drive(&id.0);
        }
    }

    /// A part selects these Pods, of them those of one role where it is given.
    pub(super) fn select(&mut self, id: &PartId, text: &str, role: Option<&str>) -> Result<(), String> {
        let mut selector = super::selector::Selector::parse(text)?.with_whole_groups();
        let Some(part) = self.part_mut(id) else { return Ok(()) };
        if part.selector.as_deref() == Some(text) {
            return Ok(());
        }
        part.selector = Some(text.to_owned());
        if let Some(role) = role {
            selector = selector.with_role(role);
        }
        let namespace = part.namespace().to_owned();
        self.pods.select(&namespace, id, Some(selector));
        self.gather(id);
        Ok(())
    }

    /// Discovery has told of a kind; `Err`: why not.
    pub(super) fn resolved(&mut self, gvk: &Gvk, resource: Result<Resource, KindProblem>) {
        let Some(kind) = self.kinds.get_mut(gvk) else { return };
        let (resource, problem) = match resource {
            Ok(resource) if resource.namespaced => (Some(resource), None),
            Ok(_) => (None, Some(KindProblem::ClusterScoped)),
            Err(problem) => (None, Some(problem)),
        };
        let is_news = kind.resource != resource || kind.problem != problem;
        (kind.resource, kind.problem) = (resource, problem);
        let is_known = kind.resource.is_some();
        if !is_known {
            kind.objects.clear();
            kind.listed.clear();
        }
        if is_news {
            for id in self.parts_of(gvk) {
                if is_known {
                    self.to_read.insert(id.clone());
                } else {
                    self.lost(&id);
                }
                self.changed.insert(id.0);
            }
        }
    }

    /// Whether anybody asks for the scale subresource of a kind that has none.
    pub(super) fn lacks_scale(&self, gvk: &Gvk) -> bool {
        let has_none = |kind: &Kind| kind.resource.as_ref().is_some_and(|resource| !resource.has_scale);
        self.kinds.get(gvk).is_some_and(has_none)
            && self
                .parts_of(gvk)
                .iter()
                .any(|id| self.part(id).is_some_and(|part| part.path.is_none()))
    }

    fn parts_of(&self, gvk: &Gvk) -> Vec<PartId> {
        let of_kind = self.by_object.iter().filter(|((of, ..), _)| of == gvk);
        of_kind.flat_map(|(_, ids)| ids.iter().cloned()).collect()
    }

    /// These are all objects of a kind, in one namespace or all.
    pub(super) fn all_objects(&mut self, gvk: &Gvk, scope: Option<String>, objects: Vec<RawObject>) {
        let Some(kind) = self.kinds.get_mut(gvk) else { return };
        let in_scope = |namespace: &String| scope.as_ref().is_none_or(|scope| scope == namespace);
        let listed: BTreeSet<(&str, &str)> = objects
            .iter()
            .map(|object| (object.metadata.namespace.as_str(), object.metadata.name.as_str()))
            .collect();
        let gone: Vec<(String, String)> = kind
            .objects
            .keys()
            .filter(|(namespace, name)| in_scope(namespace) && !listed.contains(&(namespace.as_str(), name.as_str())))
            .cloned()
            .collect();
        kind.problem = None;
        kind.listed.insert(scope);
        for (namespace, name) in gone {
            self.delete_object(gvk, &namespace, &name);
        }
        for object in objects {
            self.apply_object(gvk, object);
        }
        // Of those that are not there, that is known now.
        self.changed.extend(self.parts_of(gvk).into_iter().map(|id| id.0));
    }

    /// An object is new or has changed.
    pub(super) fn apply_object(&mut self, gvk: &Gvk, object: RawObject) {
        let raw = object.metadata;
        let (namespace, name) = (raw.namespace.clone(), raw.name.clone());
        let object = (gvk.clone(), namespace.clone(), name.clone());
        let ids = self.by_object.get(&object).cloned().unwrap_or_default();
        let meta = Meta::of(raw, !ids.is_empty());
        for id in ids {
            let Some(part) = self.part_mut(&id) else { continue };
            if !part.uid.is_empty() && part.uid != meta.uid {
                // Another object of the same name: nothing of what was known holds.
                self.lost(&id);
            }
            let Some(part) = self.part_mut(&id) else { continue };
            if part.generation.as_ref() == Some(&meta.generation) && part.selector.is_some() {
                part.version.clone_from(&meta.version);
            } else {
                self.to_read.insert(id);
            }
        }
        if let Some(kind) = self.kinds.get_mut(gvk) {
            kind.objects.insert((namespace, name), meta);
        }
    }

    /// An object is gone.
    pub(super) fn delete_object(&mut self, gvk: &Gvk, namespace: &str, name: &str) {
        let object = (namespace.to_owned(), name.to_owned());
        if let Some(kind) = self.kinds.get_mut(gvk) {
            kind.objects.remove(&object);
        }
        let ids = self
            .by_object
            .get(&(gvk.clone(), object.0, object.1))
            .cloned()
            .unwrap_or_default();
        for id in ids {
            self.lost(&id);
        }
    }

    /// A part's object is not there any more, or another one.
    fn lost(&mut self, id: &PartId) {
        let Some(entry) = self.entries.get_mut(&id.0) else {
            return;
        };
        if let Some(part) = entry.parts.get_mut(id.1) {
            part.forget();
            part.read_problem = None;
        }
        entry.machine.forget(id.1);
        self.touch(&id.0);
        self.drive(&id.0);
    }

    /// A watch of a kind has failed.
    pub(super) fn kind_failed(&mut self, gvk: &Gvk, problem: Option<KindProblem>) {
        let Some(kind) = self.kinds.get_mut(gvk) else { return };
        if kind.problem != problem {
            kind.problem = problem;
            self.changed.extend(self.parts_of(gvk).into_iter().map(|id| id.0));
        }
    }

    /// Whether Pods can be seen.
    pub(super) fn set_pods_problem(&mut self, problem: Option<KindProblem>) {
        if self.pods_problem != problem {
            self.pods_problem = problem;
            self.changed.extend(self.entries.keys().cloned());
        }
    }

    /// A count was seen. Returns whether somebody else has changed it; a drain ends then.
    pub(super) fn observe_spec(&mut self, id: &PartId, spec: u32, now: TimeMs) -> Vec<Action> {
        let Some(entry) = self.entries.get_mut(&id.0) else {
            return Vec::new();
        };
        let before = entry.machine.spec(id.1);
        let (from, released) = entry.machine.observe_spec(id.1, spec, now);
        let Some(part) = entry.parts.get(id.1) else {
            return released;
        };
        if let Some(from) = from {
            let target = part.part.target.clone();
            let object = (target.namespace.clone(), target.name.clone());
            let meta = self.kinds.get(&part.gvk).and_then(|kind| kind.objects.get(&object));
            let scale = infer_api::parse_replicas_path(".spec.replicas").unwrap_or_default();
            let steps = match &part.path {
                Some(Ok(path)) => path.steps(),
                _ => &scale,
            };
            let manager = meta
                .and_then(|meta| super::managers::owner_of(&meta.managed, steps))
                .unwrap_or_default();
            // Another of us is nobody else.
            if manager != self.manager {
                self.foreign.push(ForeignChange {
                    key: id.0.to_string(),
                    part: part.part.name.clone(),
                    target,
                    from,
                    to: spec,
                    manager: manager.to_owned(),
                    at: now,
                });
            }
        }
        if before != Some(spec) {
            self.touch(&id.0);
        }
        if !released.is_empty() {
            self.drive(&id.0);
        }
        released
    }

    /// A watch is up to date, or is not any more.
    pub(super) fn set_stream(&mut self, stream: &Stream, is_ok: bool, now: TimeMs) {
        let is_news = if is_ok {
            self.health.set_ok(stream, now)
        } else {
            self.health.set_broken(stream, now)
        };
        if is_news {
            self.changed.extend(self.entries.keys().cloned());
        }
    }
}
