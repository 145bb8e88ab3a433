//! YAML as a tree in which every key and value knows its place, so that mistakes found late can still name a line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{MessageFormatter, Spanned};

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In document order; a key may occur twice.
    Map(Vec<Entry>),
}

/// A key, its place, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

/// One document of a file: its tree, or why there is none.
pub(crate) type Parsed = Result<Node, SyntaxError>;

/// Not YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) place: Place,
    pub(crate) problem: String,
}

impl Node {
    /// The tree of a value that never was text; its place says nothing.
    pub(crate) fn from_json(json: &serde_json::Value) -> Node {
        use serde_json::Value as Json;
        let place = Place { line: 0, column: 0 };
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => Value::Integer(integer),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(text.clone()),
            Json::Array(items) => Value::List(items.iter().map(Node::from_json).collect()),
            Json::Object(object) => {
                let entry = |(key, value): (&String, &Json)| Entry {
                    key: key.clone(),
                    place,
                    node: Node::from_json(value),
                };
                Value::Map(object.iter().map(entry).collect())
            }
        };
        Node { place, value }
    }

    /// The value of a key of a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The text under a key of a mapping.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The place of a field given by its path (`spec.metrics[0].target`), or of the nearest thing around it.
    pub(crate) fn locate(&self, path: &str) -> Place {
        let mut node = self;
        let mut place = self.place;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match (&node.value, step.strip_suffix(']')) {
                (Value::List(items), Some(index)) => index.parse::<usize>().ok().and_then(|i| items.get(i)),
                _ => node.get(step).map(|entry| {
                    place = entry.place;
                    &entry.node
                }),
            };
            let Some(next) = next else { return place };
            node = next;
            // A block begins below its key; what people look for is the key.
            if !matches!(node.value, Value::Map(_) | Value::List(_) | Value::Null) || step.ends_with(']') {
                place = node.place;
            }
        }
        place
    }
}

/// Splits a file into its documents and parses each, so that a syntax error ends only the document it is in. Empty
/// documents are left out.
pub(crate) fn parse(text: &str) -> Vec<Parsed> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    split(text)
        .into_iter()
        .map(|(line, document)| parse_one(document, line))
        .filter(is_not_null)
        .collect()
}

fn is_not_null(parsed: &Parsed) -> bool {
    !matches!(parsed, Ok(Node { value: Value::Null, .. }))
}

/// Number of lines before each document, and its text. `---` and `...` in the first column are document markers
/// wherever they stand: YAML forbids them even in block and quoted scalars.
fn split(text: &str) -> Vec<(u32, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset, mut line) = (0, 0, 0, 0);
    let mut cut = |start: &mut usize, start_line: &mut u32, at: usize, line: u32| {
        let document = &text[*start..at];
        if !is_blank(document) {
            documents.push((*start_line, document));
        }
        (*start, *start_line) = (at, line);
    };
    for content in text.split_inclusive('\n') {
        if is_marker(content, "---") {
            cut(&mut start, &mut start_line, offset, line);
        }
        offset += content.len();
        line += 1;
        if is_marker(content, "...") {
            cut(&mut start, &mut start_line, offset, line);
        }
    }
    cut(&mut start, &mut start_line, text.len(), line);
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Nothing but white space, comments, directives and markers.
fn is_blank(document: &str) -> bool {
    document.lines().all(|line| {
        let line = if is_marker(line, "---") || is_marker(line, "...") {
            &line[3..]
        } else {
            line
        };
        let line = line.trim();
        line.is_empty() || line.starts_with(['#', '%'])
    })
}

fn parse_one(document: &str, lines_before: u32) -> Parsed {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 64 },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        with_snippet: false,
    };
    let place = |location: serde_saphyr::Location| Place {
        line: lines_before.saturating_add(u32::try_from(location.line()).unwrap_or(u32::MAX)),
        column: u32::try_from(location.column()).unwrap_or(u32::MAX),
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(document, options) {
        Ok(raw) => Ok(build(raw, &place)),
        Err(error) => {
            let error = error.without_snippet();
            let words = serde_saphyr::UserMessageFormatter.format_message(error);
            Err(SyntaxError {
                place: error.location().map_or(
                    Place {
                        line: lines_before + 1,
                        column: 1,
                    },
                    place,
                ),
                problem: format!("not valid YAML: {words}"),
            })
        }
    }
}

fn build(raw: Spanned<Raw>, place: &impl Fn(serde_saphyr::Location) -> Place) -> Node {
    let value = match raw.value {
        Raw::Scalar(value) => value,
        Raw::List(items) => Value::List(items.into_iter().map(|item| build(item, place)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| Entry {
                    key: key.value.0,
                    place: place(key.referenced),
                    node: build(value, place),
                })
                .collect(),
        ),
    };
    Node {
        place: place(raw.referenced),
        value,
    }
}

/// The tree as serde hands it over.
enum Raw {
    Scalar(Value),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Key>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(
            i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer),
        ))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Text(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

/// A key as text, whatever scalar it is.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn place(text: &str, path: &str) -> (u32, u32) {
        let documents = parse(text);
        let place = documents
            .last()
            .expect("a document")
            .as_ref()
            .expect("valid YAML")
            .locate(path);
        (place.line, place.column)
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let text = "# first\n---\na:\n  b: 1\n  c:\n  - x: 2\n    y:\n  - {x: 3}\n  d: {}\n1: one\n";
        assert_eq!(place(text, "a.b"), (4, 6));
        assert_eq!(place(text, "a"), (3, 1));
        assert_eq!(place(text, "a.c[0].x"), (6, 8));
        assert_eq!(place(text, "a.c[0].y"), (7, 5));
        assert_eq!(place(text, "a.c[1].x"), (8, 9));
        assert_eq!(place(text, "a.c[1].nowhere"), (8, 5));
        assert_eq!(place(text, "a.c[7]"), (5, 3));
        assert_eq!(place(text, "a.d.nowhere"), (9, 3));
        assert_eq!(place(text, "1"), (10, 4));
    }

    #[test]
    fn documents_are_told_apart() {
        let text = "\u{feff}%YAML 1.2\n---\na: 1\n--- # two\nb: |\n  text\n  --- not a marker\n...\n# nothing\n---\n--- {c: 3}\n---\nnull\n";
        let documents = parse(text);
        assert_eq!(documents.len(), 3, "{documents:?}");
        assert_eq!(place("a: 1\n---\n\n--- {c: 3}\n", "c"), (4, 9));
        assert!(parse("").is_empty());
        assert!(parse("---\n---\r\n# no\n...\n").is_empty());
    }

    #[test]
    fn a_syntax_error_ends_only_its_document() {
        let documents = parse("a: 1\n---\nb: [1\n---\nc: 1\n");
        assert_eq!(documents.len(), 3);
        let error = documents[1].as_ref().expect_err("unclosed list");
        assert!((3..=4).contains(&error.place.line), "{error:?}");
        assert!(documents[2].is_ok());
    }

    #[test]
    fn nesting_and_aliases_are_bounded() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(parse(&deep)[0].is_err());
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let previous = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{previous}]\n"));
        }
        assert!(parse(&bomb)[0].is_err());
    }
}
