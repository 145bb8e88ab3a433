//! The committed JSON schemas are those of the types, and say what every field is.

use std::path::Path;

use infer_api::{KINDS, schema};
use serde_json::Value;

#[test]
fn committed_schemas_are_up_to_date() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/schemas");
    for kind in KINDS {
        let path = directory.join(format!("{kind}.json"));
        let generated = schema(kind).expect("a known kind");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(&directory).expect("the directory can be made");
            let text = serde_json::to_string_pretty(&generated).expect("JSON") + "\n";
            std::fs::write(&path, text).expect("the schema can be written");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let committed: Value = serde_json::from_str(&committed).unwrap_or_default();
        assert!(
            committed == generated,
            "{kind}.json has drifted: run `UPDATE=1 cargo test -p infer-api schemas`"
        );
    }
    assert!(schema("Deployment").is_none());
}

#[test]
fn every_field_is_described_and_plainly_typed() {
    fn visit(schema: &Value, path: &str, fields: &mut usize) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            *fields += 1;
            let description = field["description"].as_str().unwrap_or_default();
            assert!(description.len() > 5, "{path} has no description");
            assert!(field["type"].is_string(), "{path} has no single type: {field}");
            if field["type"] == "integer" {
                assert!(
                    field["minimum"].is_number() && field["maximum"].is_number(),
                    "{path} has no range"
                );
                assert_eq!(field["format"], "int32", "{path}");
            }
            visit(field, &path, fields);
            visit(&field["items"], &format!("{path}[]"), fields);
        }
        if schema["properties"].is_object() {
            assert_eq!(
                schema["additionalProperties"], false,
                "{path} lets unknown fields through"
            );
        }
    }
    let mut fields = 0;
    for kind in KINDS {
        let schema = schema(kind).expect("a known kind");
        visit(&schema, kind, &mut fields);
        let text = schema.to_string();
        for word in ["$ref", "anyOf", "oneOf", "\"null\"", "uint"] {
            assert!(!text.contains(word), "{kind} contains {word}");
        }
    }
    assert!(fields > 90, "{fields}");
}
