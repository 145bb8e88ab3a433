//! The custom resource definitions, made from the very schemas that check documents in files.

mod rules;
mod structural;

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::schema;
use crate::status::{BindingStatus, PolicyStatus};

/// Group of the resources.
pub const GROUP: &str = "autoscaling.matrixinfer.ai";
/// Version of the resources.
pub const VERSION: &str = "v1alpha1";
/// Plural of AutoscalingPolicy, as in addresses and RBAC rules.
pub const POLICIES: &str = "autoscalingpolicies";
/// Plural of AutoscalingPolicyBinding, as in addresses and RBAC rules.
pub const BINDINGS: &str = "autoscalingpolicybindings";

/// Both CustomResourceDefinitions (apiextensions.k8s.io/v1), the policy's first.
pub fn all() -> [&'static Value; 2] {
    static ALL: LazyLock<[Value; 2]> = LazyLock::new(|| [policy(), binding()]);
    let [policy, binding] = &*ALL;
    [policy, binding]
}

/// The definition of a kind; `None` for kinds that are no custom resources.
pub fn of(kind: &str) -> Option<&'static Value> {
    all().into_iter().find(|crd| crd["spec"]["names"]["kind"] == kind)
}

fn policy() -> Value {
    let columns = [
        column(
            "Metrics",
            "string",
            ".status.metrics",
            0,
            "What is scaled on, and what one replica should bear",
        ),
        column(
            "Bound",
            "integer",
            ".status.boundBy",
            0,
            "Number of bindings that refer to it",
        ),
        column("Ready", "string", READY, 0, "Whether the policy makes sense"),
        column("Window", "integer", ".spec.stableWindowSeconds", 1, "Stable window, s"),
        column("Age", "date", AGE, 0, "Since when it exists"),
    ];
    definition(
        "AutoscalingPolicy",
        POLICIES,
        "asp",
        &schema::generate::<PolicyStatus>(),
        &columns,
    )
}

fn binding() -> Value {
    let reason = r#".status.conditions[?(@.type=="Ready")].reason"#;
    let message = r#".status.conditions[?(@.type=="Ready")].message"#;
    let columns = [
        column("Target", "string", ".status.target", 0, "What is scaled"),
        column("Mode", "string", ".status.mode", 0, "What is done with decisions"),
        column("Desired", "integer", ".status.desiredReplicas", 0, "Replicas wanted"),
        column("Replicas", "integer", ".status.readyReplicas", 0, "Replicas that serve"),
        column("Ready", "string", READY, 0, "Whether the binding does its work"),
        column("Reason", "string", reason, 0, "Why"),
        column("Min", "integer", ".status.minReplicas", 1, "The least in force"),
        column("Max", "integer", ".status.maxReplicas", 1, "The most in force"),
        column(
            "Policy",
            "string",
            ".spec.policyRef.name",
            1,
            "The policy, where it is not written in place",
        ),
        column("Message", "string", message, 1, "Why, in words"),
        column("Age", "date", AGE, 0, "Since when it exists"),
    ];
    let status = schema::generate::<BindingStatus>();
    definition("AutoscalingPolicyBinding", BINDINGS, "aspb", &status, &columns)
}

const READY: &str = r#".status.conditions[?(@.type=="Ready")].status"#;
const AGE: &str = ".metadata.creationTimestamp";

fn column(name: &str, kind: &str, path: &str, priority: i32, description: &str) -> Value {
    let mut column = json!({"name": name, "type": kind, "jsonPath": path, "description": description});
    if priority > 0 {
        column["priority"] = priority.into();
    }
    column
}

fn definition(kind: &str, plural: &str, short_name: &str, status: &Value, columns: &[Value]) -> Value {
    let document = schema::of(kind).unwrap_or(&Value::Null);
    let mut schema = json!({
        "type": "object",
        "description": document["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": document["properties"]["apiVersion"]["description"]},
            "kind": {"type": "string", "description": document["properties"]["kind"]["description"]},
            // Names become parts of keys and values of labels.
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 63}}},
            "spec": structural::of(&document["properties"]["spec"]),
            "status": structural::of(status),
        },
    });
    schema["properties"]["status"]["description"] = "What is true now. Written by the decider.".into();
    rules::add(kind, &mut schema);
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{GROUP}"),
            "labels": {"app.kubernetes.io/part-of": "matrix-infer-autoscaler"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": kind.to_lowercase(),
                "shortNames": [short_name],
                "categories": ["matrixinfer"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

/// The schema of a definition.
pub(crate) fn schema_of(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// A definition as it is committed and applied.
pub fn to_yaml(crd: &Value) -> String {
    let yaml = serde_saphyr::to_string(crd).unwrap_or_default();
    format!("# Generated from the types of decider/api: UPDATE=1 cargo test -p infer-api\n{yaml}")
}
