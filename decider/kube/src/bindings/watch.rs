//! Watches that no object can stop: everything is read as JSON and understood one by one.

use std::{collections::HashSet, time::Duration};

use futures_util::StreamExt as _;
use kube::{
    Api, Client,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
    runtime::watcher::{self, watcher},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    conflict::{Claim, Count},
    index::Meta,
};
use crate::{BINDINGS, GROUP, failure::Failure};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Policy,
    Binding,
    /// Somebody else's autoscaler: place in [`FOREIGN`].
    Foreign(usize),
}

/// Autoscalers of others: group, kind.
pub(super) const FOREIGN: [(&str, &str); 4] = [
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("keda.sh", "ScaledObject"),
    ("autoscaling.internal.knative.dev", "PodAutoscaler"),
    ("workload.serving.volcano.sh", "AutoscalingPolicyBinding"),
];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Policy => "AutoscalingPolicy",
            Kind::Binding => "AutoscalingPolicyBinding",
            Kind::Foreign(index) => FOREIGN.get(index).map_or("", |(_, kind)| kind),
        }
    }
}

/// Where: a kind in all namespaces or in one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) namespace: Option<String>,
}

/// An object as far as it matters.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) meta: Meta,
    pub(super) spec: Value,
    pub(super) status: Value,
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Told {
    /// The objects that follow are all there are.
    Begins,
    /// One of them, or a change of one.
    Is(Box<Object>),
    /// All have been told.
    Complete,
    Gone {
        namespace: String,
        name: String,
    },
    /// It does not work now and is tried again. Said once per row of failures.
    Fails(String),
}

#[derive(Debug)]
pub(super) enum Input {
    Watch(Source, Told),
    /// Kinds of [`FOREIGN`] that the API server has.
    Discovered(HashSet<usize>),
}

/// The resource of one of our own kinds.
pub(super) fn resource_of(kind: Kind) -> ApiResource {
    let plural = if kind == Kind::Policy {
        crate::POLICIES
    } else {
        BINDINGS
    };
    let gvk = GroupVersionKind::gvk(GROUP, "v1alpha1", kind.name());
    ApiResource::from_gvk_with_plural(&gvk, plural)
}

/// Tells of all objects of a source until nobody listens, or until the kind is unknown where `ends_when_unknown`.
pub(super) async fn run(
    client: Client,
    resource: ApiResource,
    source: Source,
    ends_when_unknown: bool,
    tell: mpsc::Sender<Input>,
) {
    let api: Api<DynamicObject> = match &source.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    // A connection that died without a word is noticed after this and 5 s.
    let config = watcher::Config::default().timeout(120);
    let mut stream = std::pin::pin!(watcher(api, config));
    let mut failures: u32 = 0;
    while let Some(event) = stream.next().await {
        let told = match event {
            Ok(watcher::Event::Init) => Told::Begins,
            Ok(watcher::Event::InitDone) => {
                failures = 0;
                Told::Complete
            }
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                failures = 0;
                Told::Is(Box::new(object_of(source.kind, object)))
            }
            Ok(watcher::Event::Delete(object)) => Told::Gone {
                namespace: object.metadata.namespace.unwrap_or_default(),
                name: object.metadata.name.unwrap_or_default(),
            },
            Err(error) => {
                let (problem, refused) = problem_of(error);
                if refused == Some(404) && ends_when_unknown {
                    for told in [Told::Begins, Told::Complete] {
                        tell.send(Input::Watch(source.clone(), told)).await.ok();
                    }
                    return;
                }
                failures = failures.saturating_add(1);
                if failures == 1
                    && tell
                        .send(Input::Watch(source.clone(), Told::Fails(problem)))
                        .await
                        .is_err()
                {
                    return;
                }
                // What was refused will be refused again until an administrator has done something.
                let most = if refused.is_some() { 5 } else { 2 };
                crate::backoff(failures, Duration::from_secs(most)).await;
                continue;
            }
        };
        if tell.send(Input::Watch(source.clone(), told)).await.is_err() {
            return;
        }
    }
}

/// What went wrong, and the status where the API server refused.
fn problem_of(error: watcher::Error) -> (String, Option<u16>) {
    let failure = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Failure::from(error),
        watcher::Error::WatchError(status) => Failure::Api(status),
        other => Failure::Other(other.to_string()),
    };
    let refused = match &failure {
        Failure::Api(status) if matches!(status.code, 401 | 403 | 404) => Some(status.code),
        _ => None,
    };
    (failure.to_string(), refused)
}

fn object_of(kind: Kind, mut object: DynamicObject) -> Object {
    let metadata = object.metadata;
    let mut take = |field: &str| object.data.get_mut(field).map(Value::take).unwrap_or_default();
    let spec = take("spec");
    Object {
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        meta: Meta {
            uid: metadata.uid.unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            created_ms: metadata
                .creation_timestamp
                .map_or(i64::MAX, |time| time.0.as_millisecond()),
            version: metadata.resource_version.unwrap_or_default(),
            is_going: metadata.deletion_timestamp.is_some(),
        },
        spec,
        status: if matches!(kind, Kind::Foreign(_)) {
            Value::Null
        } else {
            take("status")
        },
    }
}

/// What somebody else's autoscaler scales: whatever it refers to as its target.
pub(super) fn foreign_claims(spec: &Value) -> Vec<Claim> {
    let mut claims = Vec::new();
    collect(spec, &mut claims, 0);
    claims
}

fn collect(value: &Value, claims: &mut Vec<Claim>, depth: u32) {
    // Targets stand at most four deep in any of the kinds.
    if depth > 8 {
        return;
    }
    let Value::Object(fields) = value else {
        if let Value::Array(items) = value {
            items.iter().for_each(|item| collect(item, claims, depth + 1));
        }
        return;
    };
    for (field, inner) in fields {
        if matches!(field.as_str(), "scaleTargetRef" | "targetRef") {
            let text = |name: &str| inner.get(name).and_then(Value::as_str).map(str::to_owned);
            let Some(name) = text("name") else { continue };
            let role = fields
                .get("subTargets")
                .and_then(|sub| sub.get("name"))
                .and_then(Value::as_str);
            let group = text("apiVersion").map(|version| {
                version
                    .split_once('/')
                    .map_or(String::new(), |(group, _)| group.to_owned())
            });
            let (group, kind) = match text("kind") {
                Some(kind) => (group, kind),
                // KEDA's default.
                None => (Some("apps".to_owned()), "Deployment".to_owned()),
            };
            claims.push(Claim {
                group,
                kind,
                name,
                count: role.map_or(Count::Whole, |role| Count::Role(role.to_owned())),
            });
        } else {
            collect(inner, claims, depth + 1);
        }
    }
}

/// Looks for autoscalers of others, and watches them once they are there.
pub(super) async fn discover(client: Client, namespaces: Vec<Option<String>>, tell: mpsc::Sender<Input>) {
    let mut running: HashSet<usize> = HashSet::new();
    let (ended, mut ends) = mpsc::channel(FOREIGN.len());
    let mut failures = 0;
    loop {
        while let Ok(index) = ends.try_recv() {
            running.remove(&index);
        }
        match found(&client).await {
            Ok(resources) => {
                failures = 0;
                let kinds = resources.iter().map(|(index, _)| *index).collect();
                if tell.send(Input::Discovered(kinds)).await.is_err() {
                    return;
                }
                for (index, resource) in resources {
                    if running.insert(index) {
                        spawn(&client, index, &resource, &namespaces, &tell, &ended);
                    }
                }
                // Whoever installs an autoscaler is younger than what is there: nothing is urgent.
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(60)) => {}
                    () = tell.closed() => return,
                }
            }
            Err(failure) => {
                if failures == 0 {
                    tracing::warn!(%failure, "discovery of other autoscalers has failed, it is tried again");
                }
                failures += 1;
                crate::backoff(failures, Duration::from_secs(5)).await;
            }
        }
    }
}

fn spawn(
    client: &Client,
    index: usize,
    resource: &ApiResource,
    namespaces: &[Option<String>],
    tell: &mpsc::Sender<Input>,
    ended: &mpsc::Sender<usize>,
) {
    let watches: Vec<_> = namespaces
        .iter()
        .map(|namespace| {
            let source = Source {
                kind: Kind::Foreign(index),
                namespace: namespace.clone(),
            };
            run(client.clone(), resource.clone(), source, true, tell.clone())
        })
        .collect();
    let ended = ended.clone();
    tokio::spawn(async move {
        futures_util::future::join_all(watches).await;
        ended.send(index).await.ok();
    });
}

async fn found(client: &Client) -> Result<Vec<(usize, ApiResource)>, Failure> {
    let groups = crate::failure::in_time(client.list_api_groups()).await?.groups;
    let mut found = Vec::new();
    for (index, (group, kind)) in FOREIGN.iter().enumerate() {
        let Some(group) = groups.iter().find(|known| known.name == *group) else {
            continue;
        };
        let preferred = group.preferred_version.as_ref().or(group.versions.first());
        let Some(version) = preferred else { continue };
        let resources = crate::failure::in_time(client.list_api_group_resources(&version.group_version)).await?;
        let resource = resources
            .resources
            .into_iter()
            .find(|resource| resource.kind == *kind && !resource.name.contains('/'));
        if let Some(resource) = resource {
            let gvk = GroupVersionKind::gvk(&group.name, &version.version, kind);
            found.push((index, ApiResource::from_gvk_with_plural(&gvk, &resource.name)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(spec: &Value, expected: &[(Option<&str>, &str, &str, Option<&str>)]) {
        let expected: Vec<Claim> = expected
            .iter()
            .map(|(group, kind, name, role)| Claim {
                group: group.map(str::to_owned),
                kind: (*kind).to_owned(),
                name: (*name).to_owned(),
                count: role.map_or(Count::Whole, |role| Count::Role(role.to_owned())),
            })
            .collect();
        assert_eq!(foreign_claims(spec), expected);
    }

    #[test]
    fn understands_what_others_scale() {
        let hpa = json!({"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}});
        check(&hpa, &[(Some("apps"), "Deployment", "chat", None)]);
        let core = json!({"scaleTargetRef": {"apiVersion": "v1", "kind": "ReplicationController", "name": "old"}});
        check(&core, &[(Some(""), "ReplicationController", "old", None)]);
        let keda = json!({"scaleTargetRef": {"name": "chat"}, "triggers": [{"type": "cron"}]});
        check(&keda, &[(Some("apps"), "Deployment", "chat", None)]);
        let role = json!({"homogeneousTarget": {"minReplicas": 1, "target": {
            "targetRef": {"kind": "ModelServing", "name": "m"}, "subTargets": {"kind": "Role", "name": "prefill"}}}});
        check(&role, &[(None, "ModelServing", "m", Some("prefill"))]);
        let several = json!({"heterogeneousTarget": {"params": [
            {"target": {"targetRef": {"kind": "ModelServing", "name": "h100"}}, "cost": 3},
            {"target": {"targetRef": {"kind": "ModelServing", "name": "a100"}}, "cost": 1}]}});
        check(
            &several,
            &[
                (None, "ModelServing", "h100", None),
                (None, "ModelServing", "a100", None),
            ],
        );
        check(&json!({"scaleTargetRef": 5, "other": [null, "x"]}), &[]);
        check(&Value::Null, &[]);
    }
}
