//! Agents into Pods that are being created.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock, atomic::Ordering::Relaxed},
};

use infer_inject::{Error, INJECT_LABEL, Options, Wish};
use serde_json::Value;

use crate::{
    Counters, Skip,
    review::{Request, Response},
};

/// What was done about a Pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It gets an agent.
    Injected {
        /// JSON patch (RFC 6902) that puts it there.
        patch: Value,
        /// The engine's container and port, for the audit log.
        engine: String,
        /// What its owner should know.
        notes: Vec<String>,
    },
    /// It stays as it is, and that is right.
    Skipped {
        /// Why, for the counters.
        reason: Skip,
        /// What its owner should know.
        notes: Vec<String>,
    },
    /// It stays as it is, and it should not: why, and what would help.
    Failed(String),
}

/// Decides what a Pod gets. The API server asks only about Pods that the webhook configuration selects: those labelled
/// `inject: enabled` themselves, and those in a namespace that is.
pub trait Injector: Send + Sync + 'static {
    /// What is done about a Pod. Has no side effects, so that `dryRun` needs no care.
    fn inject(&self, pod: &Value) -> Verdict;
}

/// The injector that `inferctl inject` agrees with. Cheap to clone; clones share their options.
#[derive(Clone)]
pub struct AgentInjector(Arc<RwLock<Arc<Options>>>);

impl AgentInjector {
    /// Injects agents with these options.
    pub fn new(options: Options) -> Self {
        AgentInjector(Arc::new(RwLock::new(Arc::new(options))))
    }

    /// The options now.
    pub fn options(&self) -> Arc<Options> {
        // Nothing panics while it is held.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the options for Pods created from now on, for example after a rotation of the CA.
    pub fn set_options(&self, options: Options) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
    }
}

impl fmt::Debug for AgentInjector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AgentInjector").field(&self.options()).finish()
    }
}

impl Injector for AgentInjector {
    fn inject(&self, pod: &Value) -> Verdict {
        let skipped = |reason, notes| Verdict::Skipped { reason, notes };
        // That the API server asks means that the namespace says yes, unless the Pod says so itself.
        let namespace = BTreeMap::from([(INJECT_LABEL.to_owned(), "enabled".to_owned())]);
        match infer_inject::wanted(&namespace, pod) {
            Wish::Yes => {}
            Wish::No => return skipped(Skip::Disabled, Vec::new()),
            Wish::Unclear { value } => {
                let note = format!("{INJECT_LABEL}: {value:?} means nothing, so no agent; allowed: enabled, disabled");
                return skipped(Skip::Disabled, vec![note]);
            }
        }
        if infer_inject::is_injected(pod) {
            return skipped(Skip::AlreadyInjected, Vec::new());
        }
        let mut after = pod.clone();
        match infer_inject::inject(&mut after, &self.options()) {
            Ok(injected) if injected.changed => {
                let engine = injected
                    .engine
                    .map(|engine| format!("{}:{}", engine.container, engine.port));
                Verdict::Injected {
                    patch: infer_inject::json_patch(pod, &after),
                    engine: engine.unwrap_or_default(),
                    notes: injected.notes,
                }
            }
            // Workers of a group, Pods that run to their end: nothing that anybody has to be told.
            Ok(_) => skipped(Skip::NoEngine, Vec::new()),
            // In a namespace full of engines there are routers and databases as well.
            Err(error @ Error::NoEngine { .. }) if !asks_for_itself(pod) => {
                skipped(Skip::NoEngine, vec![error.to_string()])
            }
            Err(error) => Verdict::Failed(error.to_string()),
        }
    }
}

/// Whether it is the Pod that asks, and not only its namespace.
fn asks_for_itself(pod: &Value) -> bool {
    let says_yes = |kind: &str| pod["metadata"][kind][INJECT_LABEL] == "enabled";
    says_yes("labels") || says_yes("annotations")
}

/// Answers one request: always allowed.
pub fn mutate(request: &Request, injector: &dyn Injector, counters: &Counters) -> Response {
    let mut response = Response::allow(&request.uid);
    // Nothing comes of a dry run, so it is not counted as if it had.
    let counted = !request.dry_run;
    let skip = |reason| {
        if counted {
            counters.skip(reason);
        }
    };
    let is_pod = request.kind.group.is_empty() && request.kind.kind == "Pod";
    let is_sub = request.sub_resource.as_deref().is_some_and(|name| !name.is_empty());
    // A Pod that exists can get no more containers.
    if !is_pod || is_sub || request.operation != "CREATE" {
        skip(Skip::NotANewPod);
        return response;
    }
    match injector.inject(&request.object) {
        Verdict::Injected { patch, engine, notes } => {
            response.patch(&patch);
            response.audit_annotations.insert("injected", engine);
            notes
                .iter()
                .for_each(|note| response.warn(&format!("infer-agent: {note}")));
            if counted {
                counters.injected.fetch_add(1, Relaxed);
            }
        }
        Verdict::Skipped { reason, notes } => {
            notes
                .iter()
                .for_each(|note| response.warn(&format!("infer-agent: {note}")));
            skip(reason);
        }
        Verdict::Failed(problem) => {
            response.warn(&format!("infer-agent was not injected: {problem}"));
            response.audit_annotations.insert("failed", problem.clone());
            if counted {
                counters.failed.fetch_add(1, Relaxed);
                // The owner of a Pod made by a controller sees no warning, so it is said here as well.
                let name = pod_name(request);
                tracing::warn!(namespace = request.namespace, name, problem, "Pod without its agent");
            }
        }
    }
    response
}

/// The Pod's name, or what its name will begin with.
fn pod_name(request: &Request) -> &str {
    let generated = request.object.pointer("/metadata/generateName").and_then(Value::as_str);
    if request.name.is_empty() {
        generated.unwrap_or_default()
    } else {
        &request.name
    }
}
