//! JSON schema 2020-12 → the dialect of custom resource definitions (OpenAPI 3.0, structural).

use serde_json::{Map, Value, json};

use crate::pattern;

/// The same schema in the other dialect. Unknown fields are refused by the API server itself (field validation), so
/// nothing is said about them; patterns become rules, which can say in words what they want.
pub(super) fn of(schema: &Value) -> Value {
    let mut result = Map::new();
    let mut rules = Vec::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        match key.as_str() {
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                let properties: Map<String, Value> =
                    properties.map(|(name, field)| (name.clone(), of(field))).collect();
                // No properties at all is said by an empty object that nothing may be added to.
                if !properties.is_empty() {
                    result.insert(key.clone(), properties.into());
                }
            }
            "items" => drop(result.insert(key.clone(), of(value))),
            "additionalProperties" if value.is_object() => drop(result.insert(key.clone(), of(value))),
            "additionalProperties" | "$schema" | "title" => {}
            "exclusiveMinimum" => exclusive(&mut result, "minimum", key, value),
            "exclusiveMaximum" => exclusive(&mut result, "maximum", key, value),
            "pattern" => rules.extend(value.as_str().and_then(pattern::of).map(rule)),
            _ => drop(result.insert(key.clone(), value.clone())),
        }
    }
    if !rules.is_empty() {
        result.insert("x-kubernetes-validations".to_owned(), rules.into());
    }
    Value::Object(result)
}

fn exclusive(result: &mut Map<String, Value>, limit: &str, key: &str, value: &Value) {
    result.insert(limit.to_owned(), value.clone());
    result.insert(key.to_owned(), true.into());
}

fn rule(pattern: &pattern::Pattern) -> Value {
    json!({
        "rule": format!("self.matches({})", super::rules::text(pattern.regex)),
        "message": format!("must be {}", pattern.words),
    })
}
