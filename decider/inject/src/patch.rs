//! What changed, as JSON Patch.

use serde_json::{Value, json};

/// The JSON Patch (RFC 6902, an array of operations) that makes `after` of `before`. Empty where nothing changed.
///
/// Of lists, elements are compared one by one and the rest is added or removed at the end, which is all that injection does.
pub fn json_patch(before: &Value, after: &Value) -> Value {
    let mut operations = Vec::new();
    diff(before, after, &mut String::new(), &mut operations);
    Value::Array(operations)
}

fn diff(before: &Value, after: &Value, path: &mut String, operations: &mut Vec<Value>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                at(path, key, |path| operations.push(json!({"op": "remove", "path": path})));
            }
            for (key, value) in new {
                at(path, key, |path| match old.get(key) {
                    Some(old) => diff(old, value, path, operations),
                    None => operations.push(json!({"op": "add", "path": path, "value": value})),
                });
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                at(path, &index.to_string(), |path| diff(old, new, path, operations));
            }
            for index in (new.len()..old.len()).rev() {
                let path = format!("{path}/{index}");
                operations.push(json!({"op": "remove", "path": path}));
            }
            for value in new.iter().skip(old.len()) {
                let path = format!("{path}/-");
                operations.push(json!({"op": "add", "path": path, "value": value}));
            }
        }
        _ => operations.push(json!({"op": "replace", "path": *path, "value": after})),
    }
}

/// Runs `run` with `path` one step longer.
fn at(path: &mut String, step: &str, run: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push('/');
    path.push_str(&step.replace('~', "~0").replace('/', "~1"));
    run(path);
    path.truncate(length);
}
