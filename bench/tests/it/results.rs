use std::path::Path;

use serde_json::Value;

/// What every result must say to be worth keeping.
pub(crate) fn check(name: &str, text: &str, quick: bool) {
    let result: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name} does not parse: {error}"));
    let bench = result["bench"].as_str().unwrap();
    assert_eq!(format!("{bench}.json"), name);
    let flag = if quick { "--quick " } else { "" };
    assert_eq!(
        result["command"],
        format!("bench/run {flag}{bench}"),
        "{name} does not name its command"
    );
    assert_eq!(result["quick"], quick, "{name}: a quick run is no measurement");
    for field in ["cpu", "kernel"] {
        assert!(
            result["machine"][field].as_str().is_some_and(|text| !text.is_empty()),
            "{name}: machine.{field}"
        );
    }
    assert!(result["date"].as_str().unwrap().ends_with('Z'));
    let figures = result["figures"].as_array().unwrap();
    assert!(!figures.is_empty(), "{name} has no figures");
    for figure in figures {
        let about = format!("{name}: {}", figure["name"]);
        assert!(figure["samples"].as_u64().unwrap() > 0, "{about}: samples");
        assert!(
            figure["unit"].as_str().is_some_and(|unit| !unit.is_empty()),
            "{about}: unit"
        );
        let value = figure["value"].as_f64().unwrap_or_else(|| panic!("{about}: value"));
        assert!(
            figure["min"].as_f64().unwrap() <= figure["median"].as_f64().unwrap(),
            "{about}"
        );
        assert!(
            figure["median"].as_f64().unwrap() <= figure["max"].as_f64().unwrap(),
            "{about}"
        );
        let target = &figure["target"];
        let met = match (target["at_most"].as_f64(), target["at_least"].as_f64()) {
            (Some(bound), None) => Some(value <= bound),
            (None, Some(bound)) => Some(value >= bound),
            _ => None,
        };
        assert_eq!(figure.get("met").and_then(Value::as_bool), met, "{about}: met");
    }
}

#[test]
fn kept_results_parse_and_name_their_command() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            check(&name, &std::fs::read_to_string(&path).unwrap(), false);
        }
    }
}
