//! Making plans true.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use infer_core::{TimeMs, decision::Plan};
use serde_json::{Value, json};

use super::{
    ApplyError, Problem,
    api::{Failure, PatchRequest},
    kinds::forbidden,
    machine::{Action, Begun, Scaled},
    path::MERGE,
    plan::{Write, is_missing_rule},
    pod::{DELETION_COST, DRAINING, Mark, PodId},
    pods::PartId,
    shared::{Shared, now},
};

/// How often a drain is looked at.
const PACE: Duration = Duration::from_millis(250);
/// First wait before a write is tried again.
const WAIT: Duration = Duration::from_millis(50);
/// Longest.
const WAIT_MAX: Duration = Duration::from_millis(800);
/// A mark that could not be taken back although nobody tracks the target any more is tried this often.
const LAST_TRIES: u32 = 3;

/// How a write has ended.
enum Wrote {
    Done,
    /// The object has changed in between, and is known as it is now.
    Changed,
    Busy(String, Option<u32>),
    Refused(String),
}

impl Shared {
    /// See [`super::Targets::apply`].
    pub(super) async fn apply(self: Arc<Self>, plan: Plan, id: String) -> Result<(), ApplyError> {
        let start = now();
        let latest = start.plus_s(self.options.apply_timeout.as_secs_f64());
        let deadline = plan.expires.min(latest);
        let gate = self.with(|state| {
            state
                .entries
                .get(plan.target.as_str())
                .map(|entry| Arc::clone(&entry.gate))
        });
        let gate = gate.ok_or_else(|| ApplyError::UnknownTarget(plan.target.clone()))?;
        let left = Duration::from_secs_f64(deadline.since_s(start).max(0.0));
        let Ok(_turn) = tokio::time::timeout(left, gate.lock()).await else {
            return Err(ApplyError::Expired(
                "another plan of the target was being applied".to_owned(),
            ));
        };
        let key: Arc<str> = plan.target.as_str().into();
        let loads = self.loads(&key);
        let Some(begun) = self.with(|state| state.begin(&plan, &id, &loads, now()))? else {
            return Ok(());
        };
        let outcome = self.begin(&key, begun, deadline).await;
        let released = self.with(|state| {
            let Some(entry) = state.entries.get_mut(&key) else {
                return Vec::new();
            };
            let released = match &outcome {
                Ok(()) => {
                    entry.machine.begun();
                    entry.machine.set_applied(plan, id);
                    Vec::new()
                }
                Err(_) => entry.machine.cancel(),
            };
            state.touch(&key);
            state.drive(&key);
            released
        });
        self.tell(&key, &released);
        outcome
    }

    async fn begin(self: &Arc<Self>, key: &Arc<str>, begun: Begun, deadline: TimeMs) -> Result<(), ApplyError> {
        let is_drain = |action: &Action| matches!(action, Action::Tell { draining: true, .. });
        let (drains, releases): (Vec<Action>, Vec<Action>) = begun.tells.into_iter().partition(is_drain);
        self.tell(key, &releases);
        // What is missing comes first.
        let ups = begun.ups.iter().filter_map(|action| match action {
            Action::Scale { part, from, to } => Some(self.raise((Arc::clone(key), *part), *from, *to, deadline)),
            _ => None,
        });
        let mut outcome = Ok(());
        for up in join_all(ups).await {
            outcome = outcome.and(up);
        }
        outcome.clone()?;
        let marks = begun.marks.iter().map(|action| self.mark(key, action, deadline));
        for mark in join_all(marks).await {
            outcome = outcome.and(mark);
        }
        if let Err(ApplyError::Backend(why)) = &outcome {
            // Agents have been told nothing yet, but Pods may have been marked: not again at once.
            self.with(|state| {
                let entry = state.entries.get_mut(key);
                entry.map(|entry| entry.machine.refuse(why.clone(), now()))
            });
        }
        outcome?;
        self.tell(key, &drains);
        Ok(())
    }

    /// Asks for more replicas of a part, again and again until the deadline.
    async fn raise(self: &Arc<Self>, id: PartId, from: u32, to: u32, deadline: TimeMs) -> Result<(), ApplyError> {
        let mut wait = WAIT;
        let outcome = loop {
            let write = match self.with(|state| state.write(&id, from, to)) {
                Ok(Some(write)) => write,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            let left = deadline.since_s(now());
            if left <= 0.0 {
                break Err(ApplyError::Expired("nobody has taken it in time".to_owned()));
            }
            let what = write.request.path.clone();
            let (wait_s, why) = match self.write(&write, to, Duration::from_secs_f64(left)).await {
                Wrote::Done => break Ok(()),
                Wrote::Refused(why) => break Err(ApplyError::Backend(why)),
                Wrote::Changed => (0.0, "the object changes all the time".to_owned()),
                Wrote::Busy(why, wait_s) => (wait_s.map_or(0.0, f64::from), why),
            };
            let pause = wait.mul_f64(0.5 + fastrand::f64()).max(Duration::from_secs_f64(wait_s));
            if now().plus_s(pause.as_secs_f64()) >= deadline {
                break Err(ApplyError::Backend(format!("PATCH {what}: {why}")));
            }
            tokio::time::sleep(pause).await;
            wait = (wait * 2).min(WAIT_MAX);
        };
        let how = match &outcome {
            Ok(()) => Scaled::Done,
            Err(error) => Scaled::Refused(error.to_string()),
        };
        self.scaled(&id, to, how);
        outcome
    }

    /// One try at a write.
    async fn write(self: &Arc<Self>, write: &Write, to: u32, limit: Duration) -> Wrote {
        let job = &write.job;
        match self.api.patch(&write.request, limit).await {
            Ok(answer) => {
                self.with(|state| state.written(job, to, &answer));
                Wrote::Done
            }
            Err(Failure::Busy(why, wait_s)) => Wrote::Busy(why, wait_s),
            Err(failure @ (Failure::Conflict(_) | Failure::Invalid(_)))
                if write.is_tested || matches!(failure, Failure::Conflict(_)) =>
            {
                let seen = super::read::read(&self.api, job).await;
                let is_seen = seen.is_ok();
                let follow = self.with(|state| state.take(job, seen, now()));
                self.perform(&job.id.0, follow.actions).await;
                let after = self.with(|state| state.part(&job.id).map(|part| part.version.clone()));
                match failure {
                    // Nothing has changed: it is nonsense after all.
                    Failure::Invalid(why) if is_seen && after.as_ref() == Some(&write.version) => {
                        self.refused(write, &Failure::Invalid(why))
                    }
                    _ => Wrote::Changed,
                }
            }
            Err(failure) => self.refused(write, &failure),
        }
    }

    fn refused(&self, write: &Write, failure: &Failure) -> Wrote {
        let why = format!("PATCH {}: {}", write.request.path, failure.message());
        self.with(|state| state.write_failed(&write.job, failure));
        Wrote::Refused(why)
    }

    /// Marks a victim.
    async fn mark(self: &Arc<Self>, key: &Arc<str>, action: &Action, deadline: TimeMs) -> Result<(), ApplyError> {
        let Action::Mark { part, pod, mark, cost } = action else {
            return Ok(());
        };
        let Some(path) = self.pod_path(key, *part, pod) else {
            return Ok(());
        };
        let cost = cost.map(|cost| cost.to_string());
        let mut annotations = json!({ DRAINING: mark });
        if let Some(cost) = cost {
            annotations[DELETION_COST] = json!(cost);
        }
        let request = PatchRequest {
            path,
            content_type: MERGE,
            // The uid is a condition: another Pod of the same name is not meant.
            body: json!({"metadata": {"uid": pod.uid, "annotations": annotations}}),
        };
        let mut wait = WAIT;
        loop {
            let left = deadline.since_s(now());
            if left <= 0.0 {
                return Err(ApplyError::Expired("victims could not be marked in time".to_owned()));
            }
            match self.api.patch(&request, Duration::from_secs_f64(left)).await {
                // One that is gone needs no mark.
                Ok(_) | Err(Failure::NotFound(_) | Failure::Conflict(_)) => {
                    self.pods_forbidden(key, *part, None);
                    return Ok(());
                }
                Err(Failure::Busy(why, wait_s)) => {
                    let pause = wait.mul_f64(0.5 + fastrand::f64());
                    let pause = pause.max(Duration::from_secs(wait_s.map_or(0, u64::from)));
                    if now().plus_s(pause.as_secs_f64()) >= deadline {
                        return Err(ApplyError::Backend(format!("PATCH {}: {why}", request.path)));
                    }
                    tokio::time::sleep(pause).await;
                    wait = (wait * 2).min(WAIT_MAX);
                }
                Err(failure) => {
                    self.pods_forbidden(key, *part, Some(&failure));
                    return Err(ApplyError::Backend(format!(
                        "PATCH {}: {}",
                        request.path,
                        failure.message()
                    )));
                }
            }
        }
    }

    fn pods_forbidden(&self, key: &Arc<str>, part: usize, failure: Option<&Failure>) {
        let id = (Arc::clone(key), part);
        self.with(|state| {
            let Some(part) = state.part_mut(&id) else { return };
            let namespace = part.namespace().to_owned();
            let about_pods =
                |problem: &Problem| matches!(problem, Problem::Forbidden { resource, .. } if resource == "pods");
            let before = part.write_problem.clone();
            match failure {
                Some(Failure::Forbidden(message)) if is_missing_rule(message) => {
                    part.write_problem = Some(forbidden(part.part.name.clone(), "patch", "pods", "", Some(&namespace)));
                }
                None if before.as_ref().is_some_and(about_pods) => part.write_problem = None,
                _ => {}
            }
            if part.write_problem != before {
                state.changed.insert(Arc::clone(&id.0));
            }
        });
    }

    fn pod_path(&self, key: &Arc<str>, part: usize, pod: &PodId) -> Option<String> {
        let id = (Arc::clone(key), part);
        let namespace = self.with(|state| state.part(&id).map(|part| part.namespace().to_owned()))?;
        Some(format!("/api/v1/namespaces/{namespace}/pods/{}", pod.name))
    }

    /// Takes a mark back, if it is still that one. Failures are met by trying again later.
    async fn unmark(&self, namespace: &str, pod: &PodId) -> Result<(), Failure> {
        match self
            .api
            .patch(&unmark(namespace, pod), self.options.request_timeout)
            .await
        {
            Ok(_) | Err(Failure::NotFound(_)) => Ok(()),
            Err(failure) => {
                tracing::debug!(
                    pod = pod.name,
                    namespace,
                    why = failure.message(),
                    "mark not taken back yet"
                );
                Err(failure)
            }
        }
    }

    /// How a write has ended, for the machine.
    fn scaled(&self, id: &PartId, to: u32, how: Scaled) {
        let released = self.with(|state| {
            let Some(entry) = state.entries.get_mut(&id.0) else {
                return Vec::new();
            };
            let released = entry.machine.scaled(id.1, to, how, fastrand::f64(), now());
            state.touch(&id.0);
            released
        });
        self.tell(&id.0, &released);
    }

    /// Tells agents.
    pub(super) fn tell(&self, key: &str, actions: &[Action]) {
        for action in actions {
            if let Action::Tell { replica, draining } = action {
                self.agents.drain(key, replica, *draining);
            }
        }
    }

    /// What agents say of a target's replicas. Asked outside the lock: agents have a lock of their own.
    fn loads(&self, key: &str) -> HashMap<String, f64> {
        let replicas = self.with(|state| state.replicas(key));
        let names = replicas.into_iter().flatten().map(|replica| replica.name);
        names
            .filter_map(|name| self.agents.load(key, &name).map(|load| (name, load)))
            .collect()
    }

    /// Does what the machine wants.
    pub(super) async fn perform(self: &Arc<Self>, key: &Arc<str>, actions: Vec<Action>) {
        self.tell(key, &actions);
        let writes = actions.into_iter().map(|action| async {
            match action {
                Action::Unmark { part, pod } => {
                    let id = (Arc::clone(key), part);
                    let namespace = self.with(|state| state.part(&id).map(|part| part.namespace().to_owned()));
                    if let Some(namespace) = namespace {
                        let _ = self.unmark(&namespace, &pod).await;
                    }
                }
                Action::Scale { part, from, to } => self.lower((Arc::clone(key), part), from, to).await,
                Action::Mark { .. } | Action::Tell { .. } => {}
            }
        });
        join_all(writes).await;
    }

    /// Asks for fewer replicas, once.
    async fn lower(self: &Arc<Self>, id: PartId, from: u32, to: u32) {
        let how = match self.with(|state| state.write(&id, from, to)) {
            Ok(Some(write)) => match Box::pin(self.write(&write, to, self.options.request_timeout)).await {
                Wrote::Done => Scaled::Done,
                Wrote::Changed | Wrote::Busy(..) => Scaled::Again,
                Wrote::Refused(why) => Scaled::Refused(why),
            },
            Ok(None) => Scaled::Done,
            Err(ApplyError::Stale { .. }) => Scaled::Again,
            Err(error) => Scaled::Refused(error.to_string()),
        };
        self.scaled(&id, to, how);
    }

    /// Looks after a target's drains until there are none.
    pub(super) async fn drive(self: Arc<Self>, key: Arc<str>) {
        loop {
            let loads = self.loads(&key);
            let polled = self.with(|state| state.poll(&key, &loads, now()));
            let Some((actions, wake)) = polled else { return };
            self.perform(&key, actions).await;
            tokio::select! {
                () = tokio::time::sleep(PACE) => {}
                () = wake.notified() => {}
                () = self.cancel.cancelled() => return,
            }
        }
    }

    /// Ends the drain of a target that is not tracked any more.
    pub(super) async fn release(self: Arc<Self>, key: String, namespaces: Vec<String>, actions: Vec<Action>) {
        self.tell(&key, &actions);
        let unmarks = actions.iter().map(|action| async {
            let Action::Unmark { part, pod } = action else { return };
            let Some(namespace) = namespaces.get(*part) else { return };
            for _ in 0..LAST_TRIES {
                match self.unmark(namespace, pod).await {
                    Err(Failure::Busy(..)) => tokio::time::sleep(WAIT_MAX).await,
                    _ => return,
                }
            }
        });
        join_all(unmarks).await;
    }
}

/// The request that takes a mark back.
fn unmark(namespace: &str, pod: &PodId) -> PatchRequest {
    let at = |annotation: &str| format!("/metadata/annotations/{}", annotation.replace('/', "~1"));
    let mark = pod.mark.as_deref().unwrap_or_default();
    let mut steps = vec![
        json!({"op": "test", "path": "/metadata/uid", "value": pod.uid}),
        json!({"op": "test", "path": at(DRAINING), "value": mark}),
        json!({"op": "remove", "path": at(DRAINING)}),
    ];
    match (&pod.deletion_cost, Mark::cost_before(mark)) {
        (_, Some(before)) => steps.push(json!({"op": "add", "path": at(DELETION_COST), "value": before})),
        (Some(_), None) => steps.push(json!({"op": "remove", "path": at(DELETION_COST)})),
        (None, None) => {}
    }
    PatchRequest {
        path: format!("/api/v1/namespaces/{namespace}/pods/{}", pod.name),
        content_type: super::path::JSON,
        body: Value::Array(steps),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cost: Option<&str>, mark: &str) -> PodId {
        PodId {
            name: "a".into(),
            uid: "u".into(),
            deletion_cost: cost.map(str::to_owned),
            mark: Some(mark.to_owned()),
        }
    }

    #[test]
    fn a_mark_is_taken_back_only_as_it_was_seen() {
        let last = |pod: &PodId| unmark("ns", pod).body.as_array().unwrap()[2..].to_vec();
        let mark = r#"{"plan":"1","at":1}"#;
        let request = unmark("ns", &pod(Some("-5"), mark));
        assert_eq!(request.path, "/api/v1/namespaces/ns/pods/a");
        assert_eq!(
            request.body[1],
            json!({"op": "test", "path": "/metadata/annotations/autoscaling.matrixinfer.ai~1draining", "value": mark})
        );
        let cost = "/metadata/annotations/controller.kubernetes.io~1pod-deletion-cost";
        assert_eq!(
            last(&pod(Some("-5"), mark))[1..],
            [json!({"op": "remove", "path": cost})]
        );
        assert_eq!(last(&pod(None, mark)).len(), 1);
        let before = r#"{"plan":"1","at":1,"cost":"7"}"#;
        assert_eq!(
            last(&pod(Some("-5"), before))[1..],
            [json!({"op": "add", "path": cost, "value": "7"})]
        );
    }
}
