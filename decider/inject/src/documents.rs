//! Manifests as text: documents in, the same documents out, with or without the agent.

use std::fmt;

use serde::Serialize as _;
use serde_saphyr::MessageFormatter as _;

use crate::ordered::Ordered;
use crate::workload::{Outcome, inject_object, uninject_object};
use crate::{Engine, Error, Options, yaml};

/// Documents after the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// All of them, in their order. Those without a change are as they were, byte for byte; the others keep the order of
    /// their fields and lose their comments.
    pub text: String,
    /// What was done to each Pod and Pod template that there is.
    pub workloads: Vec<Workload>,
}

/// A Pod or a Pod template in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Which document, from 1; those with nothing in them do not count.
    pub document: usize,
    /// Kind and name of the object: `Deployment chat`.
    pub object: String,
    /// Where in the object: `spec.template`, or nothing for a Pod itself.
    pub path: String,
    /// True if it is not as it was.
    pub changed: bool,
    /// The engine the agent reports on, if it has an agent now.
    pub engine: Option<Engine>,
    /// What people should know, a sentence each.
    pub notes: Vec<String>,
}

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentError {
    /// Which document, from 1; those with nothing in them do not count.
    pub document: usize,
    /// The line where the trouble is, or where the document begins; from 1.
    pub line: usize,
    /// Kind and name of the object, as far as it could be read.
    pub object: Option<String>,
    /// Where in the object; empty where that is not known.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: document {}", self.line, self.document)?;
        if let Some(object) = &self.object {
            write!(f, ", {object}")?;
        }
        if !self.path.is_empty() {
            write!(f, ", {}", self.path)?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for DocumentError {}

/// Puts the agent into every workload of a manifest: YAML of any number of documents, or JSON.
///
/// # Errors
/// Everything that is wrong, in order.
pub fn inject_documents(text: &str, options: &Options) -> Result<Rewritten, Vec<DocumentError>> {
    rewrite(text, |object| inject_object(object, options))
}

/// Takes the agent out of every workload of a manifest.
///
/// # Errors
/// Everything that is wrong, in order.
pub fn uninject_documents(text: &str) -> Result<Rewritten, Vec<DocumentError>> {
    rewrite(text, |object| {
        let changed = |path| Outcome {
            path,
            injected: crate::Injected {
                changed: true,
                engine: None,
                notes: Vec::new(),
            },
        };
        Ok(uninject_object(object)?.into_iter().map(changed).collect())
    })
}

type Work<'a> = &'a mut dyn FnMut(&mut serde_json::Value) -> Result<Vec<Outcome>, (String, Error)>;

fn rewrite(
    text: &str,
    mut work: impl FnMut(&mut serde_json::Value) -> Result<Vec<Outcome>, (String, Error)>,
) -> Result<Rewritten, Vec<DocumentError>> {
    let mut run = Run {
        text: String::with_capacity(text.len() + text.len() / 2),
        workloads: Vec::new(),
        errors: Vec::new(),
        documents: 0,
    };
    if !run.json(text, &mut work) {
        run.yaml(text, &mut work);
    }
    if run.errors.is_empty() {
        Ok(Rewritten {
            text: run.text,
            workloads: run.workloads,
        })
    } else {
        Err(run.errors)
    }
}

struct Run {
    text: String,
    workloads: Vec<Workload>,
    errors: Vec<DocumentError>,
    documents: usize,
}

impl Run {
    /// Documents of JSON, one after the other; false if `text` is something else.
    fn json(&mut self, text: &str, work: Work<'_>) -> bool {
        if !text.trim_start().starts_with('{') {
            return false;
        }
        let mut documents = Vec::new();
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Ordered>();
        let mut start = 0;
        while let Some(document) = stream.next() {
            let Ok(document) = document else { return false };
            documents.push((start, stream.byte_offset(), document));
            start = stream.byte_offset();
        }
        for (start, end, document) in &documents {
            let source = &text[*start..*end];
            let body = source.trim_start();
            self.text.push_str(&source[..source.len() - body.len()]);
            let line = line_at(text, end - body.len());
            match self.document(document, line, work) {
                Some(changed) => self.text.push_str(&json_like(&changed, body)),
                None => self.text.push_str(body),
            }
        }
        self.text.push_str(&text[start..]);
        true
    }

    fn yaml(&mut self, text: &str, work: Work<'_>) {
        for (start_line, source) in split(text) {
            if is_blank(source) {
                self.text.push_str(source);
                continue;
            }
            let (header, footer) = frame(source);
            let first_line = start_line + header.lines().count() + 1;
            match parse(source) {
                Ok(document @ (Ordered::Map(_) | Ordered::List(_))) => match self.document(&document, first_line, work)
                {
                    Some(changed) => {
                        self.text.push_str(&header);
                        self.text.push_str(&yaml::write(&changed));
                        self.text.push_str(footer);
                    }
                    None => self.text.push_str(source),
                },
                Ok(Ordered::Scalar(_)) => self.text.push_str(source),
                Err((line, problem)) => {
                    self.documents += 1;
                    self.errors.push(DocumentError {
                        document: self.documents,
                        line: line.map_or(first_line, |line| start_line + line),
                        object: None,
                        path: String::new(),
                        problem,
                    });
                }
            }
        }
    }

    /// Works on one document; what it has become if it is no longer as it was.
    fn document(&mut self, document: &Ordered, line: usize, work: Work<'_>) -> Option<Ordered> {
        self.documents += 1;
        let before = document.to_value();
        let mut after = before.clone();
        let object = describe(&before);
        match work(&mut after) {
            Ok(outcomes) => {
                let workload = |outcome: Outcome| Workload {
                    document: self.documents,
                    object: object.clone(),
                    path: outcome.path,
                    changed: outcome.injected.changed,
                    engine: outcome.injected.engine,
                    notes: outcome.injected.notes,
                };
                self.workloads.extend(outcomes.into_iter().map(workload));
                (after != before).then(|| Ordered::arranged(&after, Some(document)))
            }
            Err((path, error)) => {
                self.errors.push(DocumentError {
                    document: self.documents,
                    line,
                    object: Some(object),
                    path,
                    problem: error.to_string(),
                });
                None
            }
        }
    }
}

fn describe(object: &serde_json::Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("object without a kind");
    let metadata = &object["metadata"];
    match metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()) {
        Some(name) => format!("{kind} {name}"),
        None => kind.to_owned(),
    }
}

/// JSON with the indentation that `source` has.
fn json_like(value: &Ordered, source: &str) -> String {
    let second = source.lines().nth(1);
    let Some(second) = second else {
        return serde_json::to_string(value).unwrap_or_else(|_| value.to_value().to_string());
    };
    let indent = &second[..second.len() - second.trim_start().len()];
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter));
    match (written, String::from_utf8(out)) {
        (Ok(()), Ok(text)) => text,
        // Nothing in memory fails to be written; and if it did, this is the same document.
        _ => value.to_value().to_string(),
    }
}

/// Reads one document as Kubernetes would: `yes` is true and 0644 is octal. Else the line within the document, and what is wrong.
fn parse(document: &str) -> Result<Ordered, (Option<usize>, String)> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 64 },
        legacy_octal_numbers: true,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let error = error.without_snippet();
        let line = error
            .location()
            .and_then(|location| usize::try_from(location.line()).ok());
        let words = serde_saphyr::UserMessageFormatter.format_message(error);
        (line, format!("not valid YAML: {words}"))
    })
}

/// The line, from 1, of a byte of `text`.
fn line_at(text: &str, offset: usize) -> usize {
    text[..offset].bytes().filter(|byte| *byte == b'\n').count() + 1
}

/// Number of lines before each document, and all of its text: together they are `text`. `---` and `...` in the first column
/// are document markers wherever they stand: YAML forbids them even in block and quoted scalars.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (line, content) in text.split_inclusive('\n').enumerate() {
        // Comments and directives before `---` belong to the document it begins.
        if is_marker(content, "---") && !is_blank_but_for_markers(&text[start..offset]) {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, line);
        }
        offset += content.len();
        if is_marker(content, "...") {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, line + 1);
        }
    }
    documents.push((start_line, &text[start..]));
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

fn is_comment(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}').trim();
    line.is_empty() || line.starts_with(['#', '%'])
}

/// Nothing but white space, comments and directives.
fn is_blank_but_for_markers(text: &str) -> bool {
    text.lines().all(is_comment)
}

/// Nothing but white space, comments, directives and markers.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let is_any_marker = is_marker(line, "---") || is_marker(line, "...");
        is_comment(line) || (is_any_marker && is_comment(&line.trim_start_matches('\u{feff}')[3..]))
    })
}

/// What stands before and after a document's content: marker, directives and comments at its head, `...` at its end.
fn frame(source: &str) -> (String, &str) {
    let mut header = String::new();
    for line in source.split_inclusive('\n') {
        if is_comment(line) {
            header.push_str(line);
        } else if is_marker(line, "---") {
            let rest = &line.trim_start_matches('\u{feff}')[3..];
            if !is_comment(rest) {
                header.push_str("---\n");
                break;
            }
            header.push_str(line);
        } else {
            break;
        }
    }
    let last = source
        .split_inclusive('\n')
        .next_back()
        .filter(|line| is_marker(line, "..."));
    (header, last.unwrap_or_default())
}
