//! Kinds of targets: what the API server calls them, and the metadata of their objects.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;

use super::{
    Problem,
    api::{Failure, Gvk},
    managers::Managed,
};

/// An object's metadata, as far as it is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawObject {
    pub(super) metadata: RawObjectMeta,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawObjectMeta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) generation: Option<i64>,
    pub(super) managed_fields: Option<Vec<Managed>>,
}

/// What is remembered of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Meta {
    pub(super) uid: String,
    pub(super) version: String,
    /// Where objects have none, every change counts as one of the specification.
    pub(super) generation: String,
    /// Only of objects that are part of a target.
    pub(super) managed: Vec<Managed>,
}

impl Meta {
    pub(super) fn of(raw: RawObjectMeta, is_target: bool) -> Meta {
        Meta {
            generation: match raw.generation {
                Some(generation) => generation.to_string(),
                None => raw.resource_version.clone(),
            },
            uid: raw.uid,
            version: raw.resource_version,
            managed: raw.managed_fields.filter(|_| is_target).unwrap_or_default(),
        }
    }
}

/// What discovery tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) plural: String,
    pub(super) namespaced: bool,
    pub(super) has_scale: bool,
}

/// A list of resources, as discovery answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Resources {
    resources: Vec<RawResource>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawResource {
    name: String,
    kind: String,
    namespaced: bool,
}

impl Resources {
    /// The resource of a kind.
    pub(super) fn find(&self, kind: &str) -> Option<Resource> {
        let is_it = |resource: &&RawResource| resource.kind == kind && !resource.name.contains('/');
        let found = self.resources.iter().find(is_it)?;
        let scale = format!("{}/scale", found.name);
        Some(Resource {
            plural: found.name.clone(),
            namespaced: found.namespaced,
            has_scale: self.resources.iter().any(|resource| resource.name == scale),
        })
    }
}

/// Why objects of a kind can not be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KindProblem {
    Unknown,
    ClusterScoped,
    Forbidden { resource: String, scope: Option<String> },
    Failed(String),
}

impl KindProblem {
    pub(super) fn of(failure: &Failure, resource: &str, scope: Option<&str>) -> KindProblem {
        match failure {
            Failure::Forbidden(_) => KindProblem::Forbidden {
                resource: resource.to_owned(),
                scope: scope.map(str::to_owned),
            },
            other => KindProblem::Failed(format!("{resource} can not be watched: {}", other.message())),
        }
    }

    /// As a part's problem.
    pub(super) fn for_part(&self, part: &str, gvk: &Gvk) -> Problem {
        let part = part.to_owned();
        match self {
            KindProblem::Unknown => Problem::UnknownKind {
                part,
                api_version: gvk.api_version(),
                kind: gvk.kind.clone(),
            },
            KindProblem::ClusterScoped => Problem::Failed {
                part,
                message: format!("{} is not in any namespace and can not be scaled", gvk.kind),
            },
            KindProblem::Forbidden { resource, scope } => {
                forbidden(part, "get, list and watch", resource, &gvk.group, scope.as_deref())
            }
            KindProblem::Failed(message) => Problem::Failed {
                part,
                message: message.clone(),
            },
        }
    }
}

/// The rule that is missing, in words.
pub(super) fn forbidden(part: String, verb: &str, resource: &str, group: &str, namespace: Option<&str>) -> Problem {
    Problem::Forbidden {
        part,
        verb: verb.to_owned(),
        resource: resource.to_owned(),
        group: group.to_owned(),
        scope: match namespace {
            Some(namespace) => format!("namespace {namespace}"),
            None => "in all namespaces".to_owned(),
        },
    }
}

/// One kind.
#[derive(Debug, Default)]
pub(super) struct Kind {
    /// Parts of this kind.
    pub(super) users: usize,
    /// What the API server calls it; `None` until discovery has told.
    pub(super) resource: Option<Resource>,
    pub(super) problem: Option<KindProblem>,
    /// By namespace and name.
    pub(super) objects: HashMap<(String, String), Meta>,
    /// Namespaces (or `None` for all) whose objects are all known.
    pub(super) listed: BTreeSet<Option<String>>,
}

impl Kind {
    /// Whether an object that is not in `objects` does not exist.
    pub(super) fn knows(&self, namespace: &str) -> bool {
        self.listed.contains(&None) || self.listed.contains(&Some(namespace.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn discovery() {
        let resources: Resources = serde_json::from_value(json!({"kind": "APIResourceList", "resources": [
            {"name": "deployments", "kind": "Deployment", "namespaced": true, "verbs": ["get"]},
            {"name": "deployments/scale", "kind": "Scale", "namespaced": true},
            {"name": "daemonsets", "kind": "DaemonSet", "namespaced": true},
            {"name": "scales", "kind": "Scale", "namespaced": false}]}))
        .unwrap();
        assert_eq!(
            resources
                .find("Deployment")
                .map(|found| (found.plural, found.has_scale)),
            Some(("deployments".into(), true))
        );
        assert!(!resources.find("DaemonSet").unwrap().has_scale);
        assert_eq!(resources.find("Scale").unwrap().plural, "scales");
        assert_eq!(resources.find("Pod"), None);
    }

    #[test]
    fn the_missing_rule_in_words() {
        let gvk = Gvk::new("apps/v1", "Deployment");
        let problem = KindProblem::of(&Failure::Forbidden(String::new()), "deployments", None).for_part("main", &gvk);
        assert_eq!(
            problem.to_string(),
            "part main: not allowed to get, list and watch deployments in group \"apps\", in all namespaces: the \
             decider's role needs that rule"
        );
    }
}
