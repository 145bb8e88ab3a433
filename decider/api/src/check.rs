//! Checks the shape of a document against its schema, and goes on after a mistake.

use serde_json::{Map, Value as Json};

use crate::pattern;
use crate::tree::{Entry, Node, Place, Value};

/// A mistake that does not yet know its file.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) place: Place,
    pub(crate) field: String,
    pub(crate) problem: String,
    pub(crate) allowed: Option<String>,
}

/// Checks `node` against `schema` and adds what is wrong to `findings`. Returns the value as JSON, without unknown
/// fields and empty ones, when it can be read in spite of its mistakes.
pub(crate) fn check(schema: &Json, node: &Node, findings: &mut Vec<Finding>) -> Option<Json> {
    check_at("", schema, node, findings)
}

/// Like [`check`], for a value that stands at the path `at` of its document.
pub(crate) fn check_at(at: &str, schema: &Json, node: &Node, findings: &mut Vec<Finding>) -> Option<Json> {
    let root = schema;
    Checker { at, root, findings }.value(schema, node, node.place, at)
}

struct Checker<'a> {
    at: &'a str,
    root: &'a Json,
    findings: &'a mut Vec<Finding>,
}

impl Checker<'_> {
    fn report(&mut self, place: Place, field: &str, problem: impl Into<String>, allowed: Option<String>) {
        self.findings.push(Finding {
            place,
            field: field.to_owned(),
            problem: problem.into(),
            allowed,
        });
    }

    /// `place` is where to point for things that the value lacks: the key it stands under.
    fn value(&mut self, schema: &Json, node: &Node, place: Place, field: &str) -> Option<Json> {
        match schema["type"].as_str() {
            Some("object") => self.object(schema, node, place, field),
            Some("array") => self.array(schema, node, place, field),
            Some("string") => self.text(schema, node, place, field),
            Some("integer" | "number") => self.number(schema, node, place, field),
            _ => None,
        }
    }

    fn wrong_type(
        &mut self,
        wanted: &str,
        node: &Node,
        place: Place,
        field: &str,
        hint: Option<String>,
    ) -> Option<Json> {
        let place = if matches!(node.value, Value::Null) {
            place
        } else {
            node.place
        };
        self.report(
            place,
            field,
            format!("expected {wanted}, found {}", describe(&node.value)),
            hint,
        );
        None
    }

    fn object(&mut self, schema: &Json, node: &Node, place: Place, field: &str) -> Option<Json> {
        let Value::Map(entries) = &node.value else {
            let hint = schema["properties"]
                .as_object()
                .map(|known| format!("allowed fields: {}", list(known.keys())));
            return self.wrong_type("a mapping", node, place, field, hint);
        };
        let mut object = Map::new();
        let mut complete = true;
        for (index, entry) in entries.iter().enumerate() {
            let path = join(field, &entry.key);
            if let Some(first) = entries[..index].iter().find(|earlier| earlier.key == entry.key) {
                let problem = format!("is given twice, first in line {}", first.place.line);
                self.report(entry.place, &path, problem, Some("keep one of them".to_owned()));
                continue;
            }
            let known = schema["properties"].get(&entry.key);
            let Some(property) = known.or_else(|| schema.get("additionalProperties").filter(|free| free.is_object()))
            else {
                self.unknown_field(schema, entry, &path);
                continue;
            };
            if matches!(entry.node.value, Value::Null) && !is_required(schema, &entry.key) && known.is_some() {
                continue; // As in Kubernetes, an empty field takes its default.
            }
            match self.value(property, &entry.node, entry.place, &path) {
                Some(value) => drop(object.insert(entry.key.clone(), value)),
                None => complete = false,
            }
        }
        let most = schema["maxProperties"].as_u64();
        if let Some(most) = most.filter(|most| entries.len() as u64 > *most) {
            let problem = format!("has {} entries", entries.len());
            self.report(place, field, problem, Some(format!("allowed: at most {most}")));
        }
        for name in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
        {
            if !entries.iter().any(|entry| entry.key == name) {
                let what = schema["properties"][name]["description"]
                    .as_str()
                    .and_then(|text| text.split("\n\n").next());
                self.report(
                    place,
                    &join(field, name),
                    "is required and missing",
                    what.map(str::to_owned),
                );
                complete = false;
            }
        }
        complete.then_some(Json::Object(object))
    }

    fn unknown_field(&mut self, schema: &Json, entry: &Entry, path: &str) {
        let known: Vec<&str> = schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.as_str())
            .collect();
        let mut elsewhere = Vec::new();
        homes(self.root, &entry.key, self.at, &mut elsewhere);
        let allowed = match nearest(&entry.key, known.iter().copied()) {
            Some(name) => format!("did you mean {name}? Allowed: {}", known.join(", ")),
            None if !elsewhere.is_empty() => format!("it belongs in {}", elsewhere.join(" or ")),
            None => format!("allowed: {}", known.join(", ")),
        };
        self.report(entry.place, path, "is not a known field", Some(allowed));
    }

    fn array(&mut self, schema: &Json, node: &Node, place: Place, field: &str) -> Option<Json> {
        let Value::List(items) = &node.value else {
            let hint = "begin each item with '- ', or write [item, item]".to_owned();
            return self.wrong_type("a list", node, place, field, Some(hint));
        };
        let length = items.len() as u64;
        let (least, most) = (
            schema["minItems"].as_u64().unwrap_or(0),
            schema["maxItems"].as_u64().unwrap_or(u64::MAX),
        );
        if length < least {
            self.report(
                place,
                field,
                format!("has {length} items"),
                Some(format!("allowed: at least {least}")),
            );
        } else if length > most {
            self.report(
                place,
                field,
                format!("has {length} items"),
                Some(format!("allowed: at most {most}")),
            );
        }
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            values.push(self.value(&schema["items"], item, item.place, &format!("{field}[{index}]")));
        }
        values.into_iter().collect::<Option<Vec<Json>>>().map(Json::Array)
    }

    fn text(&mut self, schema: &Json, node: &Node, place: Place, field: &str) -> Option<Json> {
        let choices: Vec<&str> = schema["enum"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        let Value::Text(text) = &node.value else {
            let hint = match &node.value {
                _ if !choices.is_empty() => Some(format!("allowed: {}", choices.join(", "))),
                Value::Bool(_) | Value::Integer(_) | Value::Float(_) => Some("put it in quotes".to_owned()),
                _ => None,
            };
            return self.wrong_type("text", node, place, field, hint);
        };
        if !choices.is_empty() {
            if choices.contains(&text.as_str()) {
                return Some(Json::String(text.clone()));
            }
            let allowed = match nearest(text, choices.iter().copied()) {
                Some(choice) if choices.len() > 1 => format!("did you mean {choice}? Allowed: {}", choices.join(", ")),
                _ => format!("allowed: {}", choices.join(", ")),
            };
            self.report(node.place, field, format!("{text:?} is not known"), Some(allowed));
            return None;
        }
        let length = text.chars().count() as u64;
        if schema["minLength"].as_u64().is_some_and(|least| length < least) {
            self.report(node.place, field, "is empty", None);
        } else if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
            let allowed = format!("allowed: at most {most}");
            self.report(node.place, field, format!("has {length} characters"), Some(allowed));
        } else if let Some(pattern) = schema["pattern"]
            .as_str()
            .and_then(pattern::of)
            .filter(|pattern| !(pattern.fits)(text))
        {
            self.report(
                node.place,
                field,
                format!("{text:?} is not allowed"),
                Some(format!("allowed: {}", pattern.words)),
            );
        }
        Some(Json::String(text.clone()))
    }

    fn number(&mut self, schema: &Json, node: &Node, place: Place, field: &str) -> Option<Json> {
        let is_integer = schema["type"] == "integer";
        let wanted = if is_integer { "a whole number" } else { "a number" };
        let (number, json) = match &node.value {
            Value::Integer(integer) => (*integer as f64, Json::from(*integer)),
            Value::Float(float) if !is_integer => (*float, Json::from(*float)),
            Value::Text(text) => {
                let hint = numeral_hint(text).or_else(|| range(schema));
                return self.wrong_type(wanted, node, place, field, hint);
            }
            _ => return self.wrong_type(wanted, node, place, field, range(schema)),
        };
        let limit = |name: &str| schema[name].as_f64();
        let too_small = limit("minimum").is_some_and(|least| number < least)
            || limit("exclusiveMinimum").is_some_and(|least| number <= least);
        let too_large = limit("maximum").is_some_and(|most| number > most)
            || limit("exclusiveMaximum").is_some_and(|most| number >= most);
        if too_small || too_large {
            let problem = format!("{json} is too {}", if too_small { "small" } else { "large" });
            self.report(node.place, field, problem, range(schema));
        }
        // Every whole number of a document is an i32; a schema without a range would let more through.
        let fits = !is_integer || (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number);
        fits.then_some(json)
    }
}

fn is_required(schema: &Json, name: &str) -> bool {
    schema["required"]
        .as_array()
        .is_some_and(|required| required.iter().any(|field| field == name))
}

/// What a found value is called in a message.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Integer(value) => format!("the number {value}"),
        Value::Float(value) => format!("the number {value}"),
        Value::Text(value) => format!("the text {value:?}"),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
    }
}

/// The numbers a schema allows, in words.
fn range(schema: &Json) -> Option<String> {
    let (least, most) = (&schema["minimum"], &schema["maximum"]);
    let (above, below) = (&schema["exclusiveMinimum"], &schema["exclusiveMaximum"]);
    let words = match (
        least.is_number(),
        above.is_number(),
        most.is_number(),
        below.is_number(),
    ) {
        (true, _, true, _) => format!("{least} to {most}"),
        (true, ..) => format!("at least {least}"),
        (_, true, true, _) => format!("more than {above}, at most {most}"),
        (_, true, _, true) => format!("more than {above}, less than {below}"),
        (_, true, ..) => format!("more than {above}"),
        (_, _, true, _) => format!("at most {most}"),
        (_, _, _, true) => format!("less than {below}"),
        _ => return None,
    };
    Some(format!("allowed: {words}"))
}

/// What to write instead of a text that begins with a number: "60s", "10%", "4".
fn numeral_hint(text: &str) -> Option<String> {
    let numeral = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%' || c == ' ');
    let unit = &text[numeral.len()..];
    numeral.parse::<f64>().ok().filter(|number| number.is_finite())?;
    Some(match unit {
        "" => format!("write {numeral} without quotes"),
        _ => "write the plain number; its unit is fixed by the field".to_owned(),
    })
}

/// Paths of the mappings in which a field called `name` is known.
fn homes(schema: &Json, name: &str, path: &str, found: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        if properties.contains_key(name) && !path.is_empty() && !found.iter().any(|home| home == path) {
            found.push(path.to_owned());
        }
        for (key, property) in properties {
            homes(property, name, &join(path, key), found);
        }
    }
    if schema["items"].is_object() {
        homes(&schema["items"], name, &format!("{path}[]"), found);
    }
}

pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn list(names: impl Iterator<Item = impl AsRef<str>>) -> String {
    names
        .map(|name| name.as_ref().to_owned())
        .collect::<Vec<_>>()
        .join(", ")
}

/// The candidate that somebody who wrote `word` probably meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['_', '-', ' '], "");
    let word = plain(word);
    candidates
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(&word, &plain(candidate)),
                candidate,
            )
        })
        // Below this, suggestions are more often puzzling than right ("list" for "max").
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn meant(word: &str, candidates: &[&'static str], expected: Option<&str>) {
        assert_eq!(nearest(word, candidates.iter().copied()), expected);
    }

    #[test]
    fn suggests_what_was_meant_and_nothing_far_fetched() {
        meant("max_replicas", &["minReplicas", "maxReplicas"], Some("maxReplicas"));
        meant("waitng", &["waiting", "running"], Some("waiting"));
        meant("prt", &["port", "model"], Some("port"));
        meant("foo", &["bar", "policies"], None);
        meant("", &["port"], None);
    }

    /// Patterns that are not known are passed over; none may slip into the schemas.
    #[test]
    fn every_pattern_of_the_schemas_is_checked() {
        fn patterns(schema: &Json, found: &mut Vec<String>) {
            match schema {
                Json::Object(object) => {
                    found.extend(object.get("pattern").and_then(Json::as_str).map(str::to_owned));
                    object.values().for_each(|value| patterns(value, found));
                }
                Json::Array(items) => items.iter().for_each(|value| patterns(value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        for kind in crate::KINDS {
            patterns(crate::schema::of(kind).expect("a known kind"), &mut found);
        }
        assert!(!found.is_empty());
        for pattern in found {
            assert!(pattern::of(&pattern).is_some(), "{pattern} is not checked");
        }
    }
}
