//! `replicasPath`: reading and writing a count inside an object.

use infer_api::{PathStep, parse_replicas_path};
use serde_json::{Value, json};

/// A path to a replica count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplicasPath {
    text: String,
    steps: Vec<PathStep>,
}

/// Where a path has led to in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    /// The count; `None` where the field is not set.
    pub(super) replicas: Option<u32>,
    /// RFC 6901 pointer to it.
    pointer: String,
    /// What has to hold of list items on the way: pointer and value.
    items: Vec<(String, String)>,
}

/// A body for PATCH.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PatchBody {
    /// Its media type.
    pub(super) content_type: &'static str,
    /// Itself.
    pub(super) body: Value,
}

/// Media type of RFC 7396.
pub(super) const MERGE: &str = "application/merge-patch+json";
/// Media type of RFC 6902.
pub(super) const JSON: &str = "application/json-patch+json";

impl ReplicasPath {
    /// Reads a path.
    ///
    /// # Errors
    /// What a path should look like.
    pub(super) fn parse(text: &str) -> Result<ReplicasPath, String> {
        let steps = parse_replicas_path(text)
            .ok_or_else(|| "should look like .spec.roles[name=prefill].replicas".to_owned())?;
        Ok(ReplicasPath {
            text: text.to_owned(),
            steps,
        })
    }

    /// As it was given.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Its steps.
    pub(super) fn steps(&self) -> &[PathStep] {
        &self.steps
    }

    /// The value of the last list item on the way: a role's name.
    pub(super) fn role(&self) -> Option<&str> {
        self.steps.iter().rev().find_map(|step| match step {
            PathStep::Item { value, .. } => Some(value.as_str()),
            PathStep::Field(_) => None,
        })
    }

    /// Follows the path.
    ///
    /// # Errors
    /// Where it ends too early.
    pub(super) fn locate(&self, object: &Value) -> Result<Located, String> {
        let (mut at, mut pointer, mut items) = (object, String::new(), Vec::new());
        let last = self.steps.len().saturating_sub(1);
        for (index, step) in self.steps.iter().enumerate() {
            match step {
                PathStep::Field(name) => {
                    let escaped = name.replace('~', "~0").replace('/', "~1");
                    let here = if pointer.is_empty() {
                        "the object".to_owned()
                    } else {
                        pointer.clone()
                    };
                    pointer = format!("{pointer}/{escaped}");
                    let fields = at.as_object().ok_or_else(|| format!("{here} has no fields"))?;
                    at = match fields.get(name) {
                        Some(value) => value,
                        None if index == last => &Value::Null,
                        None => return Err(format!("{here} has no field {name:?}")),
                    };
                }
                PathStep::Item { key, value } => {
                    let list = at.as_array().ok_or_else(|| format!("{pointer} is no list"))?;
                    let is_it = |item: &&Value| item.get(key).and_then(Value::as_str) == Some(value);
                    let mut found = list.iter().enumerate().filter(|(_, item)| is_it(item));
                    let (place, item) = found.next().ok_or_else(|| {
                        let names: Vec<&str> = list.iter().filter_map(|item| item.get(key)?.as_str()).collect();
                        format!(
                            "{pointer} has no item with {key} {value:?} (there are: {})",
                            names.join(", ")
                        )
                    })?;
                    if found.next().is_some() {
                        return Err(format!("{pointer} has several items with {key} {value:?}"));
                    }
                    pointer = format!("{pointer}/{place}");
                    items.push((
                        format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")),
                        value.clone(),
                    ));
                    at = item;
                }
            }
        }
        let replicas = match at {
            Value::Null => None,
            other => Some(
                other
                    .as_u64()
                    .and_then(|count| u32::try_from(count).ok())
                    .ok_or_else(|| format!("{pointer} is {other}, not a count of replicas"))?,
            ),
        };
        Ok(Located {
            replicas,
            pointer,
            items,
        })
    }

    /// The change of the count, void unless the object is still at `resource_version`. Where the path goes through a
    /// list, also void unless the item is still in its place: a list that was reordered is never hit.
    pub(super) fn patch(&self, located: &Located, resource_version: &str, to: u32) -> PatchBody {
        if located.items.is_empty() {
            let mut body = json!(to);
            for step in self.steps.iter().rev() {
                if let PathStep::Field(name) = step {
                    body = json!({ name: body });
                }
            }
            body["metadata"] = json!({"resourceVersion": resource_version});
            return PatchBody {
                content_type: MERGE,
                body,
            };
        }
        let mut steps: Vec<Value> = located
            .items
            .iter()
            .map(|(pointer, value)| json!({"op": "test", "path": pointer, "value": value}))
            .collect();
        if let Some(from) = located.replicas {
            steps.push(json!({"op": "test", "path": located.pointer, "value": from}));
        }
        // `add` replaces a field that is there.
        steps.push(json!({"op": "add", "path": located.pointer, "value": to}));
        steps.push(json!({"op": "add", "path": "/metadata/resourceVersion", "value": resource_version}));
        PatchBody {
            content_type: JSON,
            body: Value::Array(steps),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROLE: &str = r#".spec.template.roles[?(@.name=="decode")].replicas"#;

    fn serving() -> Value {
        json!({"spec": {"replicas": 2, "text": "x", "template": {"roles": [
            {"name": "prefill", "replicas": 1}, {"name": "decode", "replicas": 3}, {"name": "bare"},
            {"name": "twice"}, {"name": "twice"}]}}})
    }

    fn located(path: &str) -> Result<Option<u32>, String> {
        ReplicasPath::parse(path)
            .unwrap()
            .locate(&serving())
            .map(|located| located.replicas)
    }

    #[test]
    fn finds_counts_and_says_where_a_path_ends() {
        assert_eq!(located(".spec.replicas"), Ok(Some(2)));
        assert_eq!(located(ROLE), Ok(Some(3)));
        assert_eq!(located(".spec.template.roles[name=bare].replicas"), Ok(None));
        let wrong = |path: &str| located(path).unwrap_err();
        assert_eq!(
            wrong(".spec.rolls[name=decode].replicas"),
            r#"/spec has no field "rolls""#
        );
        assert_eq!(
            wrong(".spec.template.roles[name=encode].replicas"),
            r#"/spec/template/roles has no item with name "encode" (there are: prefill, decode, bare, twice, twice)"#
        );
        assert!(wrong(".spec.template.roles[name=twice].replicas").contains("several"));
        assert_eq!(wrong(".spec.text"), r#"/spec/text is "x", not a count of replicas"#);
        assert_eq!(wrong(".spec.template[name=a].replicas"), "/spec/template is no list");
        assert!(ReplicasPath::parse(".spec.roles[0].replicas").is_err());
    }

    #[test]
    fn a_plain_path_is_a_merge_and_a_role_is_tested_for() {
        let plain = ReplicasPath::parse(".spec.worker.replicas").unwrap();
        let at = plain.locate(&json!({"spec": {"worker": {"replicas": 1}}})).unwrap();
        let patch = plain.patch(&at, "7", 4);
        assert_eq!(patch.content_type, MERGE);
        assert_eq!(
            patch.body,
            json!({"metadata": {"resourceVersion": "7"}, "spec": {"worker": {"replicas": 4}}})
        );
        let role = ReplicasPath::parse(ROLE).unwrap();
        let patch = role.patch(&role.locate(&serving()).unwrap(), "7", 4);
        assert_eq!(patch.content_type, JSON);
        assert_eq!(
            patch.body,
            json!([
                {"op": "test", "path": "/spec/template/roles/1/name", "value": "decode"},
                {"op": "test", "path": "/spec/template/roles/1/replicas", "value": 3},
                {"op": "add", "path": "/spec/template/roles/1/replicas", "value": 4},
                {"op": "add", "path": "/metadata/resourceVersion", "value": "7"},
            ])
        );
        assert_eq!(role.role(), Some("decode"));
    }

    /// As much of RFC 6902 as our patches use.
    fn apply(object: &mut Value, patch: &Value) -> bool {
        let steps = patch.as_array().unwrap();
        let tests = steps.iter().filter(|step| step["op"] == "test");
        for step in tests {
            if object.pointer(step["path"].as_str().unwrap()) != Some(&step["value"]) {
                return false;
            }
        }
        for step in steps.iter().filter(|step| step["op"] == "add") {
            let (parent, field) = step["path"].as_str().unwrap().rsplit_once('/').unwrap();
            if let Some(parent) = object.pointer_mut(parent) {
                parent[field] = step["value"].clone();
            }
        }
        true
    }

    proptest! {
        #[test]
        fn another_role_is_never_hit(
            mut roles in proptest::collection::btree_map("[a-f]", 0_u32..9, 1..6),
            target in "[a-f]", to in 10_u32..20, rotate in 0_usize..6,
        ) {
            let before = *roles.entry(target.clone()).or_insert(1);
            let list: Vec<Value> = roles.iter().map(|(name, replicas)| json!({"name": name, "replicas": replicas})).collect();
            let path = ReplicasPath::parse(&format!(".spec.roles[name={target}].replicas")).unwrap();
            let located = path.locate(&json!({"spec": {"roles": list.clone()}})).unwrap();
            prop_assert_eq!(located.replicas, Some(before));
            let patch = path.patch(&located, "1", to);
            let mut moved = list;
            let by = rotate % moved.len();
            moved.rotate_left(by);
            let mut object = json!({"metadata": {}, "spec": {"roles": moved}});
            let applied = apply(&mut object, &patch.body);
            prop_assert_eq!(applied, by == 0);
            for role in object["spec"]["roles"].as_array().unwrap() {
                let expected = if applied && role["name"] == *target { to } else { roles[role["name"].as_str().unwrap()] };
                prop_assert_eq!(&role["replicas"], &json!(expected));
            }
        }
    }
}
