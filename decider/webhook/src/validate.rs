//! Policies and bindings: what neither the schema nor CEL can see, because it takes other objects to see it.

use infer_api::{BindingSpec, FieldMistake, PolicySpec, TargetRef, Unresolved};
use serde_json::Value;

use crate::review::{Request, Response};

const GROUP: &str = "autoscaling.matrixinfer.ai";

/// A binding that uses a policy.
#[derive(Debug, Clone)]
pub struct Dependent {
    /// Name of the binding.
    pub name: String,
    /// Its spec.
    pub spec: BindingSpec,
}

/// What is known of the cluster, from watches: answers come from memory and at once, and may be a moment old. Where
/// nothing is known, the answer is that there is nothing.
pub trait Cluster: Send + Sync + 'static {
    /// Who else scales this target: kind and name, such as `HorizontalPodAutoscaler chat`. Asked for the targets of
    /// `binding`, which is not an other.
    fn other_owner(&self, namespace: &str, binding: &str, target: &TargetRef) -> Option<String>;

    /// An AutoscalingPolicy.
    fn policy(&self, namespace: &str, name: &str) -> Option<PolicySpec>;

    /// The bindings that refer to an AutoscalingPolicy, by themselves or in a role.
    fn dependents(&self, namespace: &str, policy: &str) -> Vec<Dependent>;

    /// What the author of a binding should know about a target, and what does not make the binding wrong: that it does
    /// not exist yet, that a permission is missing. One sentence.
    fn target_note(&self, _namespace: &str, _target: &TargetRef) -> Option<String> {
        None
    }
}

/// Judges one request.
pub fn validate(request: &Request, cluster: &dyn Cluster) -> Response {
    let mut response = Response::allow(&request.uid);
    let is_ours = request.kind.group == GROUP;
    if request.sub_resource.as_deref().is_some_and(|name| !name.is_empty()) {
        return response;
    }
    match (is_ours, request.kind.kind.as_str()) {
        (true, "AutoscalingPolicy") => policy(request, cluster, &mut response),
        (true, "AutoscalingPolicyBinding") => binding(request, cluster, &mut response),
        _ => response.warn(&format!(
            "infer-decider: {:?} of {:?} is not validated here; the ValidatingWebhookConfiguration sends too much",
            request.kind.kind, request.kind.group
        )),
    }
    response
}

/// Whether there is nothing in the request to judge: an object that is being deleted, or one whose spec stays. What is
/// wrong in it was there before, and refusing would only keep people from removing finalizers or editing labels.
fn leaves_spec_alone(request: &Request) -> bool {
    let deleted = request.object.pointer("/metadata/deletionTimestamp");
    deleted.is_some_and(|time| !time.is_null())
        || (request.operation == "UPDATE" && request.object.get("spec") == request.old_object.get("spec"))
}

fn spec(object: &Value) -> &Value {
    object.get("spec").unwrap_or(&Value::Null)
}

fn policy(request: &Request, cluster: &dyn Cluster, response: &mut Response) {
    let (namespace, name) = (request.namespace.as_str(), request.name.as_str());
    if request.operation == "DELETE" {
        if let Some(user) = cluster.dependents(namespace, name).first() {
            response.warn(&format!(
                "AutoscalingPolicyBinding {} uses this AutoscalingPolicy and will stop scaling; give it another policy",
                user.name
            ));
        }
        return;
    }
    if leaves_spec_alone(request) {
        return;
    }
    let next = match infer_api::read_policy_spec(spec(&request.object)) {
        Ok(next) => next,
        Err(mistakes) => return refuse_mistakes(response, &mistakes),
    };
    // The policy by itself is right; with a binding that uses it, it may not be.
    let before = infer_api::read_policy_spec(spec(&request.old_object)).ok();
    for user in cluster.dependents(namespace, name) {
        let with = |this: Option<&PolicySpec>| {
            infer_api::resolve(namespace, &user.name, &user.spec, |asked| {
                if asked == name {
                    this.cloned()
                } else {
                    cluster.policy(namespace, asked)
                }
            })
        };
        let Err(Unresolved::Wrong(mistakes)) = with(Some(&next)) else {
            continue;
        };
        // What was wrong without this change is not its fault.
        if matches!(with(before.as_ref()), Err(Unresolved::Wrong(_))) {
            response.warn(&format!(
                "AutoscalingPolicyBinding {} uses this AutoscalingPolicy and stays wrong: {}",
                user.name,
                list(&mistakes)
            ));
            continue;
        }
        let message = format!(
            "AutoscalingPolicyBinding {} uses this AutoscalingPolicy and would be wrong: {}; change the binding first, or \
             give it another policy",
            user.name,
            list(&mistakes)
        );
        *response = Response::refuse(&response.uid, 422, "Invalid", message);
        return;
    }
}

fn binding(request: &Request, cluster: &dyn Cluster, response: &mut Response) {
    if request.operation == "DELETE" || leaves_spec_alone(request) {
        return;
    }
    let namespace = request.namespace.as_str();
    let next = match infer_api::read_binding_spec(spec(&request.object)) {
        Ok(next) => next,
        Err(mistakes) => return refuse_mistakes(response, &mistakes),
    };
    let before = infer_api::read_binding_spec(spec(&request.old_object)).ok();
    let had = |target: &TargetRef| {
        let before = before.iter().flat_map(BindingSpec::target_refs);
        before.into_iter().any(|(_, other)| other.is_same(target))
    };
    for (field, target) in next.target_refs() {
        if let Some(owner) = cluster.other_owner(namespace, &request.name, target) {
            if had(target) {
                // The conflict is there already, and its condition says so. Edits that may end it must go through.
                response.warn(&format!(
                    "{field}: {target} is scaled by {owner}, so this binding does not scale it"
                ));
                continue;
            }
            let message = format!(
                "{field}: {target} is scaled by {owner} already, and a target has one owner; delete {owner}, or name \
                 another target here"
            );
            // Not 409: clients take that for a lost race and try again.
            *response = Response::refuse(&response.uid, 403, "Forbidden", message);
            return;
        }
        if let Some(note) = cluster.target_note(namespace, target) {
            response.warn(&format!("{field}: {note}"));
        }
    }
    match infer_api::resolve(namespace, &request.name, &next, |name| cluster.policy(namespace, name)) {
        Ok(_) => {}
        // Waited for, as the condition will say: objects of one `kubectl apply` come in any order.
        Err(Unresolved::NoPolicy(names)) => response.warn(&format!(
            "there is no AutoscalingPolicy {} in namespace {namespace} yet; nothing is scaled until there is",
            names.join(", ")
        )),
        Err(Unresolved::Wrong(mistakes)) => refuse_mistakes(response, &mistakes),
    }
}

fn refuse_mistakes(response: &mut Response, mistakes: &[FieldMistake]) {
    *response = Response::refuse(&response.uid, 422, "Invalid", list(mistakes));
}

fn list(mistakes: &[FieldMistake]) -> String {
    let mistakes: Vec<String> = mistakes.iter().map(FieldMistake::to_string).collect();
    mistakes.join("; ")
}
