//! Reading a part's count: only when its object's specification has changed.

use std::{sync::Arc, time::Duration};

use infer_core::TimeMs;
use serde_json::Value;

use super::{
    Problem, TargetRef,
    api::{Api, Failure, Gvk, collection, is_plain},
    entry::PartEntry,
    kinds::{Resource, forbidden},
    machine::Action,
    path::{Located, ReplicasPath},
    pods::PartId,
    state::State,
};

/// First and longest wait after a failed reading.
const WAIT_S: f64 = 0.5;
const WAIT_S_MAX: f64 = 30.0;
/// What a role without a count stands for: the convention of all kinds that have roles.
const DEFAULT_REPLICAS: u32 = 1;

/// A count to be read.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) id: PartId,
    epoch: u64,
    generation: Option<String>,
    target: TargetRef,
    gvk: Gvk,
    resource: Resource,
    path: Option<ReplicasPath>,
    /// Whether the scale subresource is asked which Pods belong to the part.
    asks_selector: bool,
}

impl Job {
    /// The object's path at the API server.
    pub(super) fn object(&self) -> String {
        let target = &self.target;
        let all = collection(&self.gvk.root(), &self.resource.plural, Some(&target.namespace));
        format!("{all}/{}", target.name)
    }

    /// The rule that is missing.
    pub(super) fn forbidden(&self, part: String, verb: &str) -> Problem {
        forbidden(
            part,
            verb,
            &self.resource_name(),
            &self.gvk.group,
            Some(&self.target.namespace),
        )
    }

    /// What is read: `deployments/scale`, or `rolesets`.
    fn resource_name(&self) -> String {
        match self.path {
            Some(_) => self.resource.plural.clone(),
            None => format!("{}/scale", self.resource.plural),
        }
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) spec: u32,
    uid: String,
    version: String,
    located: Option<Located>,
    selector: Option<String>,
}

/// Why nothing was.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Unseen {
    Failed(Failure),
    /// Reading the selector has failed: of another resource.
    Selector(Failure),
    /// The path leads nowhere.
    Path(String),
}

impl Seen {
    /// From a Scale.
    pub(super) fn of_scale(scale: &Value) -> Seen {
        let text = |pointer: &str| {
            scale
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let count = scale.pointer("/spec/replicas").and_then(Value::as_u64);
        Seen {
            // The API server leaves a 0 out.
            spec: count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
            uid: text("/metadata/uid"),
            version: text("/metadata/resourceVersion"),
            located: None,
            selector: Some(text("/status/selector")).filter(|selector| !selector.is_empty()),
        }
    }

    /// What it says of the object, after a write.
    pub(super) fn refresh(self, part: &mut PartEntry) {
        part.version = self.version;
        if self.located.is_some() {
            part.located = self.located;
        }
    }

    /// From an object and a path into it.
    pub(super) fn of_object(object: &Value, path: &ReplicasPath) -> Result<Seen, String> {
        let located = path.locate(object)?;
        Ok(Seen {
            spec: located.replicas.unwrap_or(DEFAULT_REPLICAS),
            located: Some(located),
            selector: None,
            ..Seen::of_scale(object)
        })
    }
}

/// Reads.
pub(super) async fn read(api: &Api, job: &Job) -> Result<Seen, Unseen> {
    let object = job.object();
    let Some(path) = &job.path else {
        let scale = api.value(&format!("{object}/scale")).await.map_err(Unseen::Failed)?;
        return Ok(Seen::of_scale(&scale));
    };
    let whole = api.value(&object).await.map_err(Unseen::Failed)?;
    let mut seen = Seen::of_object(&whole, path).map_err(Unseen::Path)?;
    if job.asks_selector {
        let scale = api.value(&format!("{object}/scale")).await.map_err(Unseen::Selector)?;
        seen.selector = Seen::of_scale(&scale).selector;
    }
    Ok(seen)
}

/// What follows from a reading.
#[derive(Debug, Default)]
pub(super) struct Follow {
    /// For agents and Pods: a drain has ended.
    pub(super) actions: Vec<Action>,
    /// Read again after this time.
    pub(super) retry: Option<Duration>,
}

impl State {
    /// The next part whose count is to be read now.
    pub(super) fn next_read(&mut self) -> Option<Job> {
        while let Some(id) = self.to_read.pop_first() {
            let job = self.job(&id);
            let Some(part) = self.part_mut(&id) else { continue };
            if part.reading {
                part.again = true;
            } else if job.is_some() {
                part.reading = true;
                return job;
            }
        }
        None
    }

    /// How a part's count is read; `None` while that can not be.
    pub(super) fn job(&self, id: &PartId) -> Option<Job> {
        let part = self.part(id)?;
        let target = &part.part.target;
        let kind = self.kinds.get(&part.gvk)?;
        let resource = kind.resource.clone()?;
        let object = (target.namespace.clone(), target.name.clone());
        let meta = kind.objects.get(&object);
        let path = match &part.path {
            None if !resource.has_scale => return None,
            None => None,
            Some(path) => Some(path.clone().ok()?),
        };
        let is_sane = is_plain(&target.namespace) && is_plain(&target.name);
        // Before all objects are listed, nobody knows which generation would be read.
        let is_there = meta.is_some() && kind.knows(&target.namespace);
        (is_sane && is_there).then(|| Job {
            id: id.clone(),
            epoch: part.epoch,
            generation: meta.map(|meta| meta.generation.clone()),
            target: target.clone(),
            gvk: part.gvk.clone(),
            asks_selector: path.is_some()
                && part.selector.is_none()
                && target.pod_selector.is_none()
                && own_selector(target, path.as_ref()).is_none()
                && resource.has_scale,
            resource,
            path,
        })
    }

    /// A reading (by [`State::next_read`]) has ended.
    pub(super) fn read(&mut self, job: &Job, seen: Result<Seen, Unseen>, now: TimeMs) -> Follow {
        let Some(part) = self.part_mut(&job.id) else {
            return Follow::default();
        };
        part.reading = false;
        let again = std::mem::take(&mut part.again);
        let follow = self.take(job, seen, now);
        if again {
            self.to_read.insert(job.id.clone());
        }
        follow
    }

    /// Takes what was read.
    pub(super) fn take(&mut self, job: &Job, seen: Result<Seen, Unseen>, now: TimeMs) -> Follow {
        let Some(part) = self.part_mut(&job.id) else {
            return Follow::default();
        };
        if part.part.target != job.target {
            return Follow::default();
        }
        if part.epoch != job.epoch {
            // Written since: what was read may be older than that.
            self.to_read.insert(job.id.clone());
            return Follow::default();
        }
        let name = part.part.name.clone();
        let seen = match seen {
            Ok(seen) => seen,
            Err(unseen) => return self.not_seen(job, name, unseen),
        };
        part.failures = 0;
        part.uid.clone_from(&seen.uid);
        part.version.clone_from(&seen.version);
        part.generation.clone_from(&job.generation);
        part.located.clone_from(&seen.located);
        let actions = self.observe_spec(&job.id, seen.spec, now);
        let selector = job
            .target
            .pod_selector
            .clone()
            .or_else(|| own_selector(&job.target, job.path.as_ref()))
            .or(seen.selector)
            .or_else(|| self.part(&job.id)?.selector.clone());
        // The scale subresource names the Pods of all roles.
        let is_of_all = job.target.pod_selector.is_none() && own_selector(&job.target, job.path.as_ref()).is_none();
        let role = job.path.as_ref().and_then(ReplicasPath::role).filter(|_| is_of_all);
        let selected = match selector {
            Some(text) => self.select(&job.id, &text, role),
            None => Err("its scale subresource names none (status.selector is empty)".to_owned()),
        };
        let problem = selected.err().map(|why| Problem::NoSelector {
            part: name,
            target: job.target.to_string(),
            why,
        });
        self.set_read_problem(&job.id, problem);
        Follow { actions, retry: None }
    }

    fn not_seen(&mut self, job: &Job, part: String, unseen: Unseen) -> Follow {
        let (group, namespace) = (&job.gvk.group, &job.target.namespace);
        let failed = |failure: Failure, resource: &str| match failure {
            Failure::Forbidden(_) => forbidden(part.clone(), "get", resource, group, Some(namespace)),
            Failure::NotFound(_) => Problem::NotFound {
                part: part.clone(),
                target: job.target.to_string(),
            },
            other => Problem::Failed {
                part: part.clone(),
                message: format!("{resource} of {} can not be read: {}", job.target, other.message()),
            },
        };
        let problem = match unseen {
            Unseen::Failed(failure) => failed(failure, &job.resource_name()),
            Unseen::Selector(failure) => failed(failure, &format!("{}/scale", job.resource.plural)),
            Unseen::Path(why) => Problem::BadPath {
                part: part.clone(),
                path: job.path.as_ref().map(|path| path.text().to_owned()).unwrap_or_default(),
                target: job.target.to_string(),
                why,
            },
        };
        // Where only a change of the object can help, its watch tells.
        let waits = matches!(problem, Problem::NotFound { .. } | Problem::BadPath { .. });
        let is_path = matches!(problem, Problem::BadPath { .. });
        self.set_read_problem(&job.id, Some(problem));
        let Some(part) = self.part_mut(&job.id) else {
            return Follow::default();
        };
        if is_path {
            part.generation.clone_from(&job.generation);
        }
        part.failures = part.failures.saturating_add(1);
        let wait_s = (WAIT_S * f64::from(1_u32 << part.failures.min(7))).min(WAIT_S_MAX);
        Follow {
            actions: Vec::new(),
            retry: (!waits).then(|| Duration::from_secs_f64(wait_s * (0.5 + fastrand::f64()))),
        }
    }

    fn set_read_problem(&mut self, id: &PartId, problem: Option<Problem>) {
        let Some(part) = self.part_mut(id) else { return };
        if part.read_problem != problem {
            part.read_problem = problem;
            self.changed.insert(Arc::clone(&id.0));
        }
    }
}

/// The Pods of kinds that are known to label them.
fn own_selector(target: &TargetRef, path: Option<&ReplicasPath>) -> Option<String> {
    let role = path?.role()?;
    (target.kind == "ModelServing").then(|| {
        format!(
            "modelserving.volcano.sh/name={},modelserving.volcano.sh/role={role}",
            target.name
        )
    })
}
