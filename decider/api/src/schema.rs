//! The documents' JSON schemas, derived from the types.

use std::sync::LazyLock;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::{AutoscalingPolicy, AutoscalingPolicyBinding, KINDS, LocalFleet};

static SCHEMAS: LazyLock<[Value; 3]> = LazyLock::new(|| {
    [
        generate::<AutoscalingPolicy>(),
        generate::<AutoscalingPolicyBinding>(),
        generate::<LocalFleet>(),
    ]
});

/// JSON schema (2020-12) of a kind of document, without references; `None` for an unknown kind.
pub fn schema(kind: &str) -> Option<Value> {
    of(kind).cloned()
}

/// Like [`schema()`], without a copy.
pub(crate) fn of(kind: &str) -> Option<&'static Value> {
    KINDS
        .iter()
        .zip(SCHEMAS.iter())
        .find(|(known, _)| **known == kind)
        .map(|(_, schema)| schema)
}

/// JSON schema of a type, in plain form.
pub(crate) fn generate<T: JsonSchema>() -> Value {
    // Kubernetes knows neither references nor alternatives in the schemas of custom resources.
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    simplify(&mut schema);
    schema
}

/// Rewrites what Rust's types leave behind into the plain form: optional is "not required" and never "or null", and an
/// enumeration is one list of texts.
fn simplify(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(simplify),
        Value::Object(object) => {
            drop_null(object);
            merge_enumeration(object);
            if let Some(Value::String(description)) = object.get_mut("description") {
                *description = unwrap_lines(description);
            }
            object.values_mut().for_each(simplify);
        }
        _ => {}
    }
}

fn drop_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [kind] = types.as_slice() {
            let kind = kind.clone();
            object.insert("type".to_owned(), kind);
        }
    }
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
    if let Some(Value::Array(alternatives)) = object.get_mut("anyOf") {
        alternatives.retain(|schema| schema.get("type").is_none_or(|kind| kind != "null"));
        if let [Value::Object(only)] = alternatives.as_slice() {
            let only = only.clone();
            object.remove("anyOf");
            // What the field says about itself goes before what its type says.
            for (key, value) in only {
                object.entry(key).or_insert(value);
            }
        }
    }
}

fn merge_enumeration(object: &mut Map<String, Value>) {
    if let Some(constant) = object.remove("const") {
        object.insert("enum".to_owned(), Value::Array(vec![constant]));
    }
    let Some(Value::Array(variants)) = object.get("oneOf") else {
        return;
    };
    let mut values = Vec::new();
    let mut words = String::new();
    for variant in variants {
        let Some(value) = variant.get("const") else { return };
        values.push(value.clone());
        if let (Some(name), Some(Value::String(description))) = (value.as_str(), variant.get("description")) {
            words.push_str(&format!("\n{name}: {}", unwrap_lines(description)));
        }
    }
    object.remove("oneOf");
    object.insert("type".to_owned(), "string".into());
    object.insert("enum".to_owned(), Value::Array(values));
    if let Some(Value::String(description)) = object.get_mut("description") {
        // Two breaks survive the unwrapping of lines.
        description.push_str(&words.replace('\n', "\n\n"));
    }
}

/// Doc comments are wrapped for the source; a description has a line per paragraph.
fn unwrap_lines(description: &str) -> String {
    description
        .split("\n\n")
        .map(|paragraph| paragraph.replace('\n', " "))
        .collect::<Vec<_>>()
        .join("\n\n")
}
