//! Objects with Pods in them: Deployments and whatever else has Pod templates, and lists of those.

use serde_json::Value;

use crate::{Error, INJECT_LABEL, Injected, Options, Wish, inject, uninject, wanted};

/// What was done to one Pod template of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Where the template is: `spec.template`, or nothing for a Pod itself.
    pub path: String,
    /// What was done to it.
    pub injected: Injected,
}

/// Puts the agent into an object: a Pod, anything with Pod templates (any field whose name ends in `template` and that
/// has `spec.containers`: Deployment, StatefulSet, DaemonSet, Job, CronJob, LeaderWorkerSet, ModelServing, …), or a List of
/// those. Templates of workers and those labelled as disabled are left alone. Nothing for an object without Pods.
///
/// # Errors
/// The path of the template that could not be injected, and why; the object is then as it was.
pub fn inject_object(object: &mut Value, options: &Options) -> Result<Vec<Outcome>, (String, Error)> {
    let mut next = object.clone();
    let mut outcomes = Vec::new();
    for site in sites(object) {
        let Some(template) = next.pointer_mut(&site.pointer) else {
            continue;
        };
        let injected = match (&site.role, wanted_here(template)) {
            (_, Some(note)) => Ok(unchanged(note)),
            (Role::Serves, None) => inject(template, options),
            (Role::Worker, None) => Ok(unchanged("left alone: it is the template of workers".into())),
            (Role::LeaderAndWorkers { size }, None) => Err(Error::SharedTemplate { size: *size }),
        };
        let injected = injected.map_err(|error| (site.path.clone(), error))?;
        outcomes.push(Outcome {
            path: site.path,
            injected,
        });
    }
    *object = next;
    Ok(outcomes)
}

/// Takes the agent out of every Pod of an object, see [`inject_object`]. Answers the paths of those that had one.
///
/// # Errors
/// The path of the template with a field of the wrong type; the object is then as it was.
pub fn uninject_object(object: &mut Value) -> Result<Vec<String>, (String, Error)> {
    let mut next = object.clone();
    let mut changed = Vec::new();
    for site in sites(object) {
        let Some(template) = next.pointer_mut(&site.pointer) else {
            continue;
        };
        if uninject(template).map_err(|error| (site.path.clone(), error))? {
            changed.push(site.path);
        }
    }
    *object = next;
    Ok(changed)
}

fn unchanged(note: String) -> Injected {
    Injected {
        changed: false,
        engine: None,
        notes: vec![note],
    }
}

/// Why a template opts out. Being given to injection is asking for it, so saying nothing is no reason.
fn wanted_here(template: &Value) -> Option<String> {
    let is_said = ["labels", "annotations"]
        .iter()
        .any(|kind| !template["metadata"][kind][INJECT_LABEL].is_null());
    match wanted(&Default::default(), template) {
        Wish::Yes => None,
        Wish::No => is_said.then(|| format!("left alone: {INJECT_LABEL} is disabled")),
        Wish::Unclear { value } => Some(format!(
            "left alone: {INJECT_LABEL} is {value:?}, which is neither enabled nor disabled"
        )),
    }
}

/// A Pod or Pod template in an object.
struct Site {
    pointer: String,
    path: String,
    role: Role,
}

enum Role {
    Serves,
    Worker,
    LeaderAndWorkers { size: u64 },
}

fn sites(object: &Value) -> Vec<Site> {
    let mut sites = Vec::new();
    walk_object(object, "", "", &mut sites);
    sites
}

fn walk_object(object: &Value, pointer: &str, path: &str, sites: &mut Vec<Site>) {
    let kind = object["kind"].as_str().unwrap_or_default();
    if let (true, Some(items)) = (kind.ends_with("List"), object["items"].as_array()) {
        for (index, item) in items.iter().enumerate() {
            walk_object(
                item,
                &format!("{pointer}/items/{index}"),
                &join(path, &format!("items[{index}]")),
                sites,
            );
        }
    } else if kind == "Pod" {
        sites.push(Site {
            pointer: pointer.to_owned(),
            path: path.to_owned(),
            role: Role::Serves,
        });
    } else if kind != "CustomResourceDefinition" {
        walk(object, pointer, path, sites);
    }
}

fn walk(value: &Value, pointer: &str, path: &str, sites: &mut Vec<Site>) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let pointer = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
                let path = join(path, key);
                if is_template(key, inner) {
                    let role = role(key, value);
                    sites.push(Site { pointer, path, role });
                } else if key != "metadata" && key != "status" {
                    walk(inner, &pointer, &path, sites);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, &format!("{pointer}/{index}"), &format!("{path}[{index}]"), sites);
            }
        }
        _ => {}
    }
}

fn is_template(key: &str, value: &Value) -> bool {
    key.to_ascii_lowercase().ends_with("template") && value["spec"]["containers"].is_array()
}

/// Which Pods come from the template under `key` of `parent`.
fn role(key: &str, parent: &Value) -> Role {
    if !key.starts_with("worker") {
        return Role::Serves;
    }
    let is_leaders = |(key, value): (&String, &Value)| !key.starts_with("worker") && is_template(key, value);
    if parent.as_object().is_some_and(|fields| fields.iter().any(is_leaders)) {
        return Role::Worker;
    }
    match parent["size"].as_u64() {
        None | Some(0 | 1) => Role::Serves,
        Some(size) => Role::LeaderAndWorkers { size },
    }
}

fn join(path: &str, step: &str) -> String {
    if path.is_empty() {
        step.to_owned()
    } else {
        format!("{path}.{step}")
    }
}
