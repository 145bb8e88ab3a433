//! The field reference of the custom resources, as Markdown.

use std::fmt::Write as _;

use serde_json::Value;

use crate::crd;

/// The page about AutoscalingPolicy.
pub fn policy() -> String {
    page("AutoscalingPolicy", &[])
}

/// The page about AutoscalingPolicyBinding. What a policy looks like is on the other page, and what a target looks like
/// is told once.
pub fn binding() -> String {
    let policy = "Its fields are those of [an AutoscalingPolicy's spec](policy.md#spec).";
    let target = "Its fields are those of `spec.scaling.targetRef`.";
    let elsewhere = [
        ("spec.policy", policy),
        ("spec.roles[].policy", policy),
        ("spec.optimize.targets[].targetRef", target),
        ("spec.roles[].targetRef", target),
    ];
    page("AutoscalingPolicyBinding", &elsewhere)
}

/// Fields whose own fields are told in another place, and the place.
type Elsewhere<'a> = &'a [(&'a str, &'a str)];

/// What is collected for a part of a page.
#[derive(Default)]
struct Part {
    rows: Vec<String>,
    /// What is asked, and of which fields.
    rules: Vec<(String, Vec<String>)>,
}

fn page(kind: &str, elsewhere: Elsewhere<'_>) -> String {
    let Some(crd) = crd::of(kind) else {
        return String::new();
    };
    let schema = crd::schema_of(crd);
    let names = &crd["spec"]["names"];
    let mut page = format!(
        "# {kind}\n\n<!-- Generated from the types of decider/api: UPDATE=1 cargo test -p infer-api -->\n\n{}\n\n\
         `apiVersion: {}`, `kind: {kind}`; `kubectl get {}` or `{}`. Namespaced; a name has 1 to 63 lower-case letters, \
         digits and `-`.\nHow the fields work together is in [policy.md](../policy.md).\n",
        schema["description"].as_str().unwrap_or_default(),
        crate::API_VERSION,
        names["plural"].as_str().unwrap_or_default(),
        names["shortNames"][0].as_str().unwrap_or_default(),
    );
    for name in ["spec", "status"] {
        let mut part = Part::default();
        part.visit(&schema["properties"][name], name, elsewhere);
        let _ = write!(
            page,
            "\n## {name}\n\n| field | type | default | allowed | what it is |\n|---|---|---|---|---|\n"
        );
        for row in part.rows {
            let _ = writeln!(page, "{row}");
        }
        if !part.rules.is_empty() {
            page.push_str("\nRules between fields, which the API server holds everybody to:\n\n");
            for (message, fields) in part.rules {
                let _ = writeln!(page, "* {message} ({})", fields.join(", "));
            }
        }
    }
    page
}

impl Part {
    fn visit(&mut self, schema: &Value, path: &str, elsewhere: Elsewhere<'_>) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            // A pattern is told in the field's own row.
            if is_pattern(rule) {
                continue;
            }
            let message = rule["message"].as_str().unwrap_or_default();
            let field = format!("`{path}{}`", rule["fieldPath"].as_str().unwrap_or_default());
            match self.rules.iter_mut().find(|(known, _)| known == message) {
                Some((_, fields)) if fields.contains(&field) => {}
                Some((_, fields)) => fields.push(field),
                None => self.rules.push((message.to_owned(), vec![field])),
            }
        }
        let place = |path: &str| {
            elsewhere
                .iter()
                .find(|(known, _)| *known == path)
                .map(|(_, place)| *place)
        };
        let is_elsewhere = place(path).is_some();
        let required = |name: &str| {
            let names = schema["required"].as_array().into_iter().flatten();
            names.into_iter().any(|required| required == name)
        };
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if is_elsewhere {
                continue;
            }
            self.rows.push(row(&path, field, required(name), place(&path)));
            self.visit(field, &path, elsewhere);
        }
        if schema["items"].is_object() {
            self.visit(&schema["items"], &format!("{path}[]"), elsewhere);
        }
    }
}

fn is_pattern(rule: &Value) -> bool {
    rule["rule"]
        .as_str()
        .is_some_and(|rule| rule.starts_with("self.matches("))
}

fn row(path: &str, field: &Value, is_required: bool, elsewhere: Option<&str>) -> String {
    let default = match &field["default"] {
        _ if is_required => "required".to_owned(),
        Value::Null => String::new(),
        Value::Object(_) | Value::Array(_) => "see its fields".to_owned(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    };
    let description = field["description"].as_str().unwrap_or_default();
    let mut description = description.replace("\n\n", "<br>").replace('|', "\\|");
    if let Some(place) = elsewhere {
        description.push(' ');
        description.push_str(place);
    }
    format!(
        "| `{path}` | {} | {default} | {} | {description} |",
        kind(field),
        allowed(field)
    )
}

fn kind(field: &Value) -> String {
    let name = field["type"].as_str().unwrap_or_default();
    match name {
        "array" => format!("list of {}", kind(&field["items"])),
        "object" if field["additionalProperties"].is_object() => {
            format!("map of {}", kind(&field["additionalProperties"]))
        }
        "string" if field["format"] == "date-time" => "time".to_owned(),
        "string" => "text".to_owned(),
        _ => name.to_owned(),
    }
}

fn allowed(field: &Value) -> String {
    let mut words = Vec::new();
    let (least, most) = (&field["minimum"], &field["maximum"]);
    let sign = |is_exclusive: &Value, strict: &'static str, loose: &'static str| {
        if is_exclusive == true { strict } else { loose }
    };
    if least.is_number() {
        words.push(format!("{} {least}", sign(&field["exclusiveMinimum"], ">", "≥")));
    }
    if most.is_number() {
        words.push(format!("{} {most}", sign(&field["exclusiveMaximum"], "<", "≤")));
    }
    for (least, most, what) in [
        ("minItems", "maxItems", "items"),
        ("minLength", "maxLength", "characters"),
        ("minProperties", "maxProperties", "entries"),
    ] {
        match (field[least].as_u64(), field[most].as_u64()) {
            (Some(least), Some(most)) => words.push(format!("{least} to {most} {what}")),
            (None, Some(most)) => words.push(format!("at most {most} {what}")),
            (Some(least), None) => words.push(format!("at least {least} {what}")),
            (None, None) => {}
        }
    }
    let choices: Vec<String> = field["enum"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|choice| format!("`{choice}`"))
        .collect();
    if !choices.is_empty() {
        words.push(choices.join(", "));
    }
    let patterns = field["x-kubernetes-validations"].as_array().into_iter().flatten();
    let patterns = patterns.filter(|rule| is_pattern(rule));
    words.extend(patterns.filter_map(|rule| Some(rule["message"].as_str()?.trim_start_matches("must be ").to_owned())));
    words.join("; ").replace('|', "\\|")
}
