//! The committed custom resource definitions and their field reference are those of the types.

use std::path::Path;

use infer_api::{crd, reference};
use serde_json::Value;

/// Compares a committed file with what it should be, or writes it.
#[track_caller]
fn compare(path: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("the directory can be made");
        std::fs::write(&path, generated).expect("the file can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "{} has drifted: run `UPDATE=1 cargo test -p infer-api`",
        path.display()
    );
}

#[test]
fn committed_definitions_are_up_to_date() {
    for crd in crd::all() {
        let plural = crd["spec"]["names"]["plural"].as_str().expect("a plural");
        compare(&format!("deploy/crds/{plural}.yaml"), &crd::to_yaml(crd));
    }
}

#[test]
fn committed_reference_is_up_to_date() {
    compare("docs/reference/policy.md", &reference::policy());
    compare("docs/reference/binding.md", &reference::binding());
}

#[test]
fn what_is_written_as_yaml_is_read_as_the_same() {
    for crd in crd::all() {
        let again: Value = serde_saphyr::from_str(&crd::to_yaml(crd)).expect("YAML");
        assert_eq!(again, *crd);
    }
}

/// What the API server asks of a structural schema, and what it should not be asked without a limit.
#[test]
fn schemas_are_structural() {
    fn visit(schema: &Value, path: &str, rules: &mut usize) {
        assert!(schema["type"].is_string(), "{path} has no type");
        for word in ["$ref", "anyOf", "oneOf", "allOf", "not", "pattern", "title", "$schema"] {
            assert!(schema.get(word).is_none(), "{path} has {word}");
        }
        assert!(
            schema.get("additionalProperties").is_none_or(Value::is_object),
            "{path}"
        );
        assert!(schema.get("exclusiveMinimum").is_none_or(Value::is_boolean), "{path}");
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            *rules += 1;
            assert!(!rule["message"].as_str().unwrap_or_default().contains('\n'), "{rule}");
            let field = rule["fieldPath"].as_str().unwrap_or_default();
            let found = field
                .split('.')
                .skip(1)
                .fold(schema, |schema, name| &schema["properties"][name]);
            assert!(found["type"].is_string(), "{path}: there is no {field}");
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            visit(field, &format!("{path}.{name}"), rules);
        }
        if schema["type"] == "array" {
            assert!(schema["maxItems"].is_u64(), "{path} may be of any length");
            visit(&schema["items"], &format!("{path}[]"), rules);
        }
    }
    let mut rules = 0;
    for crd in crd::all() {
        visit(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "", &mut rules);
    }
    assert!(rules > 40, "{rules}");
}
