//! The manifests that an API server is tried with (`tests/data`): what it refuses by the schema and the rules of the
//! custom resource definitions, and what it accepts, is refused and accepted here just the same.

use std::path::{Path, PathBuf};

use infer_api::{FieldMistake, Purpose, parse_sources_for, read_binding_spec, read_policy_spec};
use serde_json::Value;

fn manifests(directory: &str) -> Vec<(PathBuf, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data")
        .join(directory);
    let entries = std::fs::read_dir(&directory).expect("the directory is there");
    let mut manifests: Vec<(PathBuf, String)> = entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("text");
            (path, text)
        })
        .collect();
    manifests.sort();
    manifests
}

/// What is wrong with an object as the API server would hand it over.
fn read(text: &str) -> Result<(), Vec<FieldMistake>> {
    let object: Value = serde_saphyr::from_str(text).expect("YAML");
    match object["kind"].as_str() {
        Some("AutoscalingPolicy") => read_policy_spec(&object["spec"]).map(drop),
        Some("AutoscalingPolicyBinding") => read_binding_spec(&object["spec"]).map(drop),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_api_server_refuses_is_refused_here() {
    let manifests = manifests("bad-manifests");
    assert!(manifests.len() >= 45, "{}", manifests.len());
    for (path, text) in manifests {
        let path = path.display();
        assert!(text.starts_with("# expect: "), "{path} does not say what is expected");
        let errors = parse_sources_for(Purpose::Cluster, [("f.yaml", text.as_str())]);
        let errors = errors.err().unwrap_or_else(|| panic!("{path} is accepted in a file"));
        // A name is the only mistake outside of spec.
        let outside = errors
            .mistakes()
            .iter()
            .all(|mistake| mistake.field.starts_with("metadata."));
        assert!(outside || read(&text).is_err(), "{path} is accepted as an object");
    }
}

#[test]
fn what_the_api_server_accepts_is_accepted_here() {
    let manifests = manifests("good-manifests");
    assert!(manifests.len() >= 12, "{}", manifests.len());
    for (path, text) in manifests {
        if let Err(errors) = parse_sources_for(Purpose::Cluster, [("f.yaml", text.as_str())]) {
            panic!("{}: {errors}", path.display());
        }
        assert_eq!(read(&text), Ok(()), "{}", path.display());
    }
}
