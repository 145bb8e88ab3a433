//! Who has set a count: reading `managedFields`.

use infer_api::PathStep;
use serde::Deserialize;
use serde_json::Value;

/// One entry of `managedFields`, as far as it is read.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Managed {
    manager: String,
    time: Option<String>,
    fields_v1: Value,
}

/// The manager that has written the count last; `None` when nobody owns it.
pub(super) fn owner_of<'a>(managed: &'a [Managed], steps: &[PathStep]) -> Option<&'a str> {
    let owners = managed.iter().filter(|entry| owns(&entry.fields_v1, steps));
    // Times are RFC 3339 in UTC, all of the same length: they sort as text.
    let latest = owners.max_by(|a, b| a.time.cmp(&b.time))?;
    Some(latest.manager.as_str())
}

/// Whether a field set reaches a path, or ends above it (a list that is owned as a whole).
fn owns(fields: &Value, steps: &[PathStep]) -> bool {
    let Some(set) = fields.as_object() else { return false };
    let Some((step, rest)) = steps.split_first() else {
        return true;
    };
    let inside = set.iter().find(|(key, _)| match step {
        PathStep::Field(name) => key.strip_prefix("f:") == Some(name),
        PathStep::Item { key: field, value } => key
            .strip_prefix("k:")
            .and_then(|key| serde_json::from_str::<Value>(key).ok())
            .is_some_and(|key| key.get(field).and_then(Value::as_str) == Some(value)),
    });
    match inside {
        Some((_, inside)) => inside.as_object().is_some_and(serde_json::Map::is_empty) || owns(inside, rest),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use infer_api::parse_replicas_path;
    use serde_json::json;

    use super::*;

    fn entry(manager: &str, time: &str, fields: Value) -> Managed {
        serde_json::from_value(json!({"manager": manager, "operation": "Update", "time": time, "fieldsV1": fields}))
            .unwrap()
    }

    #[test]
    fn the_latest_owner_of_the_count_is_told() {
        let replicas = parse_replicas_path(".spec.replicas").unwrap();
        let managed = [
            entry(
                "kubectl-create",
                "2026-01-01T00:00:09Z",
                json!({"f:spec": {"f:template": {}}}),
            ),
            entry("hpa", "2026-01-01T00:00:02Z", json!({"f:spec": {"f:replicas": {}}})),
            entry("kubectl", "2026-01-01T00:00:03Z", json!({"f:spec": {"f:replicas": {}}})),
        ];
        assert_eq!(owner_of(&managed, &replicas), Some("kubectl"));
        assert_eq!(owner_of(&managed[..1], &replicas), None);
    }

    #[test]
    fn roles_by_key_and_lists_as_a_whole() {
        let role = parse_replicas_path(".spec.roles[name=decode].replicas").unwrap();
        let by_key = |name: &str| {
            let key = format!("k:{}", json!({"name": name}));
            entry(
                "someone",
                "2026-01-01T00:00:01Z",
                json!({"f:spec": {"f:roles": {key: {".": {}, "f:replicas": {}}}}}),
            )
        };
        assert_eq!(owner_of(&[by_key("decode")], &role), Some("someone"));
        assert_eq!(owner_of(&[by_key("prefill")], &role), None);
        let whole = entry("helm", "2026-01-01T00:00:01Z", json!({"f:spec": {"f:roles": {}}}));
        assert_eq!(owner_of(&[whole], &role), Some("helm"));
    }
}
