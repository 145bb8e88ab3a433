//! What the actor writes: status and Events.

use std::{sync::Arc, time::Duration};

use infer_api::{BindingStatus, PolicyStatus, ResolvedBound};
use infer_core::decision::Control;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use serde::Serialize;
use serde_json::json;

use super::Actor;
use crate::{
    bindings::{
        events::Happened,
        index::{Id, State},
        status::{self, View, rfc3339},
        types::Report,
        watch::{Kind, resource_of},
    },
    failure::{Failure, within},
    lease::is_older,
};

/// An object whose status cannot be written is tried again after this: rules and definitions change slowly.
const REFUSED_AGAIN: Duration = Duration::from_secs(30);
const FAILED_AGAIN: Duration = Duration::from_secs(2);

/// An object whose status is ours to write.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Written {
    Policy(Id),
    Binding(Id),
}

impl Written {
    pub(super) fn id(&self) -> &Id {
        match self {
            Written::Policy(id) | Written::Binding(id) => id,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Written::Policy(_) => Kind::Policy,
            Written::Binding(_) => Kind::Binding,
        }
    }
}

/// What was written to an object last.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Status {
    Policy(PolicyStatus),
    Binding(Box<BindingStatus>),
}

/// How a write ended: the object, what was written, and its version then.
pub(super) type Outcome = (Written, Status, Result<String, Failure>);

impl Actor {
    pub(super) fn mark(&mut self, object: Written, is_urgent: bool) {
        let now = self.now();
        self.pace.mark(&object, is_urgent, now);
    }

    pub(super) fn write_due(&mut self) {
        let now = self.now();
        for object in self.pace.due(now) {
            let (namespace, name) = object.id();
            let shard = self.inner.shards.shard_of(namespace, name);
            if !self.inner.shards.may_act(shard) {
                // The lease could not be renewed in time. It may be yet, and is looked at again soon.
                let again_in = self.inner.shards.is_held(shard).then_some(FAILED_AGAIN);
                self.pace.done(&object, again_in, now);
                continue;
            }
            match self.owed(&object) {
                Some((status, version)) => self.start_write(object, status, version),
                None => self.pace.unneeded(&object),
            }
        }
    }

    /// What the status is to be and the version it is about; `None` where it is so already.
    fn owed(&self, object: &Written) -> Option<(Status, String)> {
        let inner = Arc::clone(&self.inner);
        let now = rfc3339(jiff::Timestamp::now());
        let index = inner.read();
        let known = self.written.get(object);
        // Newer than what we wrote: what stands there now counts, whoever it is from.
        let ours = |version: &str| known.filter(|(_, written)| !is_older(written, version));
        let (new, before, found) = match object {
            Written::Policy(id) => {
                let policy = index.policy(id)?;
                let bound_by = index.dependents(&id.0, &id.1).count();
                let before = match ours(&policy.meta.version) {
                    Some((Status::Policy(written), _)) => written,
                    _ => &policy.status,
                };
                let new = status::of_policy(policy, bound_by, before, &now);
                (Status::Policy(new), Status::Policy(before.clone()), &policy.meta)
            }
            Written::Binding(id) => {
                let binding = index.binding(id)?;
                let before = match ours(&binding.meta.version) {
                    Some((Status::Binding(written), _)) => written,
                    _ => &binding.status,
                };
                let bounds: &[ResolvedBound] = match &binding.state {
                    State::Active(bounds) => bounds,
                    _ => &[],
                };
                let views: Vec<View<'_>> = bounds
                    .iter()
                    .map(|bound| View {
                        bound,
                        fleet: inner.targets.fleet(&bound.key),
                        problems: inner.targets.problems(&bound.key),
                        latest: self.latest.get(&bound.key),
                    })
                    .collect();
                let new = status::of_binding(binding, &views, before, &now);
                let before = Status::Binding(Box::new(before.clone()));
                (Status::Binding(Box::new(new)), before, &binding.meta)
            }
        };
        if new == before || found.is_going {
            return None;
        }
        let version = match known {
            Some((_, version)) if is_older(&found.version, version) => version.clone(),
            _ => found.version.clone(),
        };
        Some((new, version))
    }

    fn start_write(&mut self, object: Written, status: Status, version: String) {
        if let (Written::Binding(id), Status::Binding(status)) = (&object, &status) {
            self.tell_of_conflict(id, status);
        }
        let client = self.client.clone();
        let limit = self.request_timeout;
        self.writes.spawn(async move {
            let result = match &status {
                Status::Policy(status) => write(client, limit, &object, status, &version).await,
                Status::Binding(status) => write(client, limit, &object, status.as_ref(), &version).await,
            };
            (object, status, result)
        });
    }

    /// An Event when the condition comes true, or names another.
    fn tell_of_conflict(&self, id: &Id, new: &BindingStatus) {
        let conflict = |status: &BindingStatus| {
            let conditions = status.conditions.iter();
            let found = conditions
                .clone()
                .find(|condition| condition.kind == status::CONFLICT)?;
            (found.status == infer_api::ConditionStatus::True).then(|| found.message.clone())
        };
        let before = match self.written.get(&Written::Binding(id.clone())) {
            Some((Status::Binding(written), _)) => conflict(written),
            _ => self
                .inner
                .read()
                .binding(id)
                .and_then(|binding| conflict(&binding.status)),
        };
        if let Some(message) = conflict(new).filter(|message| Some(message) != before.as_ref()) {
            self.happened(id, true, "Resolve", status::CONFLICT, message);
        }
    }

    pub(super) fn wrote(&mut self, (object, status, result): Outcome) {
        let now = self.now();
        let again_in = match result {
            Ok(version) => {
                let (namespace, name) = object.id();
                if self.inner.shards.is_held(self.inner.shards.shard_of(namespace, name)) {
                    self.written.insert(object.clone(), (status, version));
                }
                None
            }
            // Changed in between: the watch tells of it, and then it is written again, with what it says by then.
            Err(Failure::Api(refused)) if refused.is_conflict() => Some(Duration::ZERO),
            Err(Failure::Api(refused)) if refused.is_not_found() => None,
            Err(failure) => {
                let (namespace, name) = object.id();
                let kind = object.kind().name();
                tracing::warn!(kind, namespace, name, %failure, "the status was not written, it is tried again");
                Some(if failure.is_final() {
                    REFUSED_AGAIN
                } else {
                    FAILED_AGAIN
                })
            }
        };
        self.pace.done(&object, again_in, now);
    }

    pub(super) fn tell_of_decision(&self, id: &Id, report: &Report) {
        let (Some((number, _)), Some((from, to))) = (report.decision, report.changed) else {
            return;
        };
        let what = match report.key.splitn(3, '/').nth(2) {
            Some(role) => format!("{role}: from {from} to {to} replicas"),
            None => format!("from {from} to {to} replicas"),
        };
        let because = format!("{} (decision {number})", report.reason);
        let (is_warning, reason, note) = match (&report.not_applied, report.applied) {
            (_, true) => (false, "Scaled", format!("{what}: {because}")),
            (None, false) => (false, "Advised", format!("would go {what}: {because}")),
            (Some(why), false) if !matches!(report.control, Control::Auto) => {
                (false, "Advised", format!("would go {what}: {because}; {why}"))
            }
            (Some(why), false) => (true, "NotScaled", format!("{what} was not done: {why}")),
        };
        self.happened(id, is_warning, "Scale", reason, note);
    }

    pub(super) fn happened(&self, id: &Id, is_warning: bool, action: &'static str, reason: &'static str, note: String) {
        let uid = self.inner.read().binding(id).map(|binding| binding.meta.uid.clone());
        self.events.tell(Happened {
            id: id.clone(),
            uid: uid.unwrap_or_default(),
            is_warning,
            action,
            reason,
            note,
        });
    }
}

/// Server-side apply of the whole status: fields that are left out are taken back. It is about one version and no
/// other, so what a decider sends that is not the owner any more does not undo what the new one has written.
async fn write(
    client: Client,
    limit: Duration,
    object: &Written,
    status: &impl Serialize,
    version: &str,
) -> Result<String, Failure> {
    let (namespace, name) = object.id();
    let resource = resource_of(object.kind());
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": version},
        "status": status,
    });
    let params = PatchParams::apply(crate::FIELD_MANAGER).force();
    let written = within(limit, api.patch_status(name, &params, &Patch::Apply(&patch))).await?;
    Ok(written.metadata.resource_version.unwrap_or_default())
}
