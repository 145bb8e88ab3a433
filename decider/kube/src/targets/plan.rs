//! Plans and what is known: may a plan begin, what is to be written, what follows from an answer.

use std::{collections::HashMap, sync::Arc};

use infer_core::{TimeMs, decision::Plan};
use serde_json::{Value, json};

use super::{
    ApplyError, Problem,
    api::{Failure, PatchRequest},
    entry::PartEntry,
    machine::{Action, Begun, Scaled},
    path::MERGE,
    pods::PartId,
    read::{Job, Seen},
    shared::now,
    spread::spread,
    state::State,
};

/// A write of a count.
pub(super) struct Write {
    pub(super) job: Job,
    pub(super) request: PatchRequest,
    /// Of the object as it was when the request was made.
    pub(super) version: String,
    /// Whether a `test` can fail, which the API server answers like nonsense.
    pub(super) is_tested: bool,
}

/// Whether a 403 comes from a missing rule; admission and quotas answer 403 too.
pub(super) fn is_missing_rule(message: &str) -> bool {
    message.contains(" cannot ")
}

impl State {
    /// Begins a plan; `None` when it has been applied.
    pub(super) fn begin(
        &mut self,
        plan: &Plan,
        id: &str,
        loads: &HashMap<String, f64>,
        now: TimeMs,
    ) -> Result<Option<Begun>, ApplyError> {
        let unknown = || ApplyError::UnknownTarget(plan.target.clone());
        let entry = self.entries.get(plan.target.as_str()).ok_or_else(unknown)?;
        if entry.machine.has_applied(plan, id) {
            return Ok(None);
        }
        if now > plan.expires {
            let late_s = now.since_s(plan.expires);
            return Err(ApplyError::Expired(format!("{late_s} s ago")));
        }
        self.fleet(&plan.target).ok_or_else(unknown)?;
        let stale_since = self.stale_since(&plan.target);
        let entry = self.entries.get_mut(plan.target.as_str()).ok_or_else(unknown)?;
        let counts = entry.desired().ok_or_else(unknown)?;
        let spec: u32 = counts.iter().sum();
        if spec != plan.from {
            return Err(ApplyError::Stale { from: plan.from, spec });
        }
        if plan.to < plan.from {
            if let Some(since) = stale_since {
                let stale_s = now.since_s(since);
                return Err(ApplyError::Backend(format!(
                    "nothing shrinks: the API server has not confirmed what there is for {stale_s} s"
                )));
            }
            if let Some(why) = entry.machine.refusal(now) {
                return Err(ApplyError::Backend(why));
            }
        }
        let parts: Vec<_> = entry.parts.iter().map(|part| &part.part).collect();
        let wanted = spread(plan.to, &parts, &counts);
        let orders: Vec<_> = entry.parts.iter().map(|part| part.order).collect();
        let replicas = entry.replicas(&self.pods).to_vec();
        let load = |name: &str| loads.get(name).copied();
        let begun = entry.machine.begin(id, &wanted, &replicas, &orders, &load, now);
        entry.touch();
        self.changed.insert(plan.target.as_str().into());
        Ok(Some(begun))
    }

    /// What is to be done about a target's drains; `None` when nobody has to look after them any more.
    pub(super) fn poll(
        &mut self,
        key: &Arc<str>,
        loads: &HashMap<String, f64>,
        now: TimeMs,
    ) -> Option<(Vec<Action>, Arc<tokio::sync::Notify>)> {
        let stale_s = self.stale_since(key).map(|since| now.since_s(since));
        let entry = self.entries.get_mut(key)?;
        let replicas = entry.replicas(&self.pods).to_vec();
        let load = |name: &str| loads.get(name).copied();
        let actions = entry.machine.poll(&replicas, &load, stale_s, now);
        if actions.is_empty() && !entry.machine.is_busy() {
            entry.driven = false;
            return None;
        }
        let wake = Arc::clone(&entry.wake);
        if !actions.is_empty() {
            self.touch(key);
        }
        Some((actions, wake))
    }

    /// The write of a count; `None` where it is so already.
    pub(super) fn write(&self, id: &PartId, from: u32, to: u32) -> Result<Option<Write>, ApplyError> {
        let unknown = || ApplyError::UnknownTarget(id.0.to_string());
        let entry = self.entries.get(&id.0).ok_or_else(unknown)?;
        let part: &PartEntry = entry.parts.get(id.1).ok_or_else(unknown)?;
        let job = self.job(id).ok_or_else(unknown)?;
        match entry.machine.spec(id.1) {
            Some(spec) if spec == to => return Ok(None),
            Some(spec) if spec == from => {}
            spec => {
                return Err(ApplyError::Stale {
                    from,
                    spec: spec.unwrap_or(0),
                });
            }
        }
        let object = job.object();
        let (request, is_tested) = match (&part.path, &part.located) {
            (Some(Ok(path)), Some(located)) => {
                let patch = path.patch(located, &part.version, to);
                let is_tested = patch.content_type == super::path::JSON;
                let request = PatchRequest {
                    path: object,
                    content_type: patch.content_type,
                    body: patch.body,
                };
                (request, is_tested)
            }
            (Some(_), _) => return Err(unknown()),
            (None, _) => {
                let request = PatchRequest {
                    path: format!("{object}/scale"),
                    content_type: MERGE,
                    body: json!({"metadata": {"resourceVersion": part.version}, "spec": {"replicas": to}}),
                };
                (request, false)
            }
        };
        Ok(Some(Write {
            job,
            request,
            version: part.version.clone(),
            is_tested,
        }))
    }

    /// A write has been accepted.
    pub(super) fn written(&mut self, job: &Job, to: u32, answer: &Value) {
        let Some(part) = self.part_mut(&job.id) else { return };
        part.epoch += 1;
        part.write_problem = None;
        let seen = match &part.path {
            Some(Ok(path)) => Seen::of_object(answer, path).ok(),
            _ => Some(Seen::of_scale(answer)),
        };
        if let Some(seen) = seen {
            seen.refresh(part);
        }
        if let Some(entry) = self.entries.get_mut(&job.id.0) {
            entry.machine.scaled(job.id.1, to, Scaled::Done, 0.0, now());
        }
        self.touch(&job.id.0);
    }

    /// A write has been refused.
    pub(super) fn write_failed(&mut self, job: &Job, failure: &Failure) {
        let Some(part) = self.part_mut(&job.id) else { return };
        let name = part.part.name.clone();
        part.write_problem = Some(match failure {
            Failure::Forbidden(message) if is_missing_rule(message) => job.forbidden(name, "patch"),
            other => Problem::Failed {
                part: name,
                message: format!("the API server refuses another count: {}", other.message()),
            },
        });
        self.changed.insert(Arc::clone(&job.id.0));
    }
}
