//! Everything that is in a cluster, by name: to see what an installation leaves behind.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::cluster::{Api, Error};

/// Names of objects, as paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Lists every kind that the API server can list, but no Events.
    ///
    /// # Errors
    /// What the API server says. A kind that goes away meanwhile is none.
    pub async fn take(api: &Api) -> Result<Self, Error> {
        let mut roots = vec!["/api/v1".to_owned()];
        let groups = api.get("/apis").await?;
        let versions = array(&groups["groups"]).filter_map(|group| group["preferredVersion"]["groupVersion"].as_str());
        roots.extend(versions.map(|version| format!("/apis/{version}")));
        let mut names = BTreeSet::new();
        for root in roots {
            let resources = match api.get(&root).await {
                Err(error) if error.is("NotFound") => continue,
                other => other?,
            };
            for resource in array(&resources["resources"]) {
                let name = resource["name"].as_str().unwrap_or_default();
                let is_listed = array(&resource["verbs"]).any(|verb| verb == "list");
                if !is_listed || name.contains('/') || name == "events" || name == "componentstatuses" {
                    continue;
                }
                let items = match api.list(&format!("{root}/{name}")).await {
                    Err(error) if error.is("NotFound") => continue,
                    other => other?,
                };
                names.extend(items.iter().map(|item| path(name, item)));
            }
        }
        Ok(Inventory(names))
    }

    /// What is here and not there, apart from everything in some namespaces, and from the Leases of Kubernetes itself.
    pub fn beyond(&self, other: &Inventory, apart_from: &[&str]) -> Vec<String> {
        let is_apart = |path: &&String| {
            let mut parts = path.split(' ');
            let (kind, namespace) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            apart_from.contains(&namespace) || (kind == "leases" && namespace.starts_with("kube-"))
        };
        self.0
            .difference(&other.0)
            .filter(|path| !is_apart(path))
            .cloned()
            .collect()
    }
}

/// "KIND NAMESPACE NAME"; "-" for no namespace.
fn path(kind: &str, item: &Value) -> String {
    let metadata = &item["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    format!("{kind} {} {}", text(&metadata["namespace"]), text(&metadata["name"]))
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
