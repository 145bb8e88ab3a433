//! Mapping files: how to read an engine nobody has written a reader for.
//!
//! ```yaml
//! name: tgi
//! path: /metrics
//! gauges:
//!   - family: tgi_queue_size
//!     signal: waiting
//! counters:
//!   - family: tgi_request_generated_tokens_sum   # a histogram's sum is a counter too
//!     signal: generation_tokens
//! histograms:
//!   - family: tgi_request_duration
//!     signal: e2e
//!     unit: s
//! ```
//!
//! Families are matched by their whole name (counters with or without `_total`); several entries of one signal are
//! added up, or the greatest is taken with `aggregate: max`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::engine::{Aggregate, Counter, Gauge, Latency, Rule, Target};

/// A mapping file, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapping {
    /// The engine's name, as it is reported.
    pub name: String,
    /// HTTP path of the exposition.
    pub path: String,
    /// Label with the served model's name.
    pub model_label: String,
    /// Label that tells data-parallel engines of one process apart.
    pub engine_label: Option<String>,
    /// What to read.
    pub rules: Vec<Rule>,
}

/// What is wrong with a mapping file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not YAML, or not of this shape.
    #[error("line {line}: {what}")]
    At {
        /// Line in the file, from 1.
        line: u64,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A mistake that has no line of its own.
    #[error("{0}")]
    Whole(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Spanned<String>,
    #[serde(default = "default_path")]
    path: Spanned<String>,
    #[serde(default = "default_model_label")]
    model_label: String,
    engine_label: Option<String>,
    #[serde(default)]
    gauges: Vec<NumberEntry<Gauge>>,
    #[serde(default)]
    counters: Vec<NumberEntry<Counter>>,
    #[serde(default)]
    histograms: Vec<HistogramEntry>,
}

fn default_path() -> Spanned<String> {
    Spanned::new(
        "/metrics".to_owned(),
        serde_saphyr::Location::UNKNOWN,
        serde_saphyr::Location::UNKNOWN,
    )
}

fn default_model_label() -> String {
    "model_name".to_owned()
}

/// A gauge or a counter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NumberEntry<S> {
    family: Spanned<String>,
    signal: S,
    #[serde(default)]
    labels: BTreeMap<String, OneOrMore>,
    scale: Option<Spanned<f64>>,
    aggregate: Option<Aggregate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HistogramEntry {
    family: Spanned<String>,
    signal: Latency,
    #[serde(default)]
    labels: BTreeMap<String, OneOrMore>,
    #[serde(default)]
    unit: Unit,
    scale: Option<Spanned<f64>>,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "snake_case")]
enum Unit {
    #[default]
    S,
    Ms,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Mapping {
    /// Reads and checks a mapping file.
    pub fn from_yaml(text: &str) -> Result<Self, Error> {
        let file: File = serde_saphyr::from_str(text).map_err(yaml_error)?;
        let name = &file.name.value;
        if name.is_empty()
            || !name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(at(
                &file.name,
                format!("name {name:?} must consist of a-z, 0-9 and '-', as in \"tensorrt-llm\""),
            ));
        }
        if !file.path.value.starts_with('/') {
            let path = &file.path.value;
            return Err(at(
                &file.path,
                format!("path {path:?} must begin with '/', as in \"/metrics\""),
            ));
        }
        let mut rules = Vec::new();
        for g in file.gauges {
            let aggregate = g.aggregate;
            rules.push(rule(g.family, Target::Gauge(g.signal), g.labels, g.scale, aggregate)?);
        }
        for c in file.counters {
            rules.push(rule(
                c.family,
                Target::Counter(c.signal),
                c.labels,
                c.scale,
                c.aggregate,
            )?);
        }
        for h in file.histograms {
            let unit_us = match h.unit {
                Unit::S => 1e6,
                Unit::Ms => 1e3,
            };
            let mut rule = rule(h.family, Target::Latency(h.signal), h.labels, h.scale, None)?;
            rule.scale *= unit_us;
            if rules.iter().any(|r: &Rule| r.target == rule.target) {
                let what = format!(
                    "histogram {:?}: its signal is mapped already, and unlike histograms cannot be added",
                    rule.family
                );
                return Err(Error::Whole(what));
            }
            rules.push(rule);
        }
        if !rules
            .iter()
            .any(|r| matches!(r.target, Target::Gauge(Gauge::Running | Gauge::Waiting)))
        {
            let what = "no gauge is mapped to running or waiting: without load there is nothing to scale on";
            return Err(Error::Whole(what.to_owned()));
        }
        Ok(Self {
            name: file.name.value,
            path: file.path.value,
            model_label: file.model_label,
            engine_label: file.engine_label,
            rules,
        })
    }
}

fn at<T>(place: &Spanned<T>, what: String) -> Error {
    Error::At {
        line: place.referenced.line(),
        what,
    }
}

fn rule(
    family: Spanned<String>,
    target: Target,
    labels: BTreeMap<String, OneOrMore>,
    scale: Option<Spanned<f64>>,
    aggregate: Option<Aggregate>,
) -> Result<Rule, Error> {
    let name = &family.value;
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':');
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(legal) {
        return Err(at(
            &family,
            format!("family {name:?} is not a metric name ([a-zA-Z_:][a-zA-Z0-9_:]*)"),
        ));
    }
    let suffix = ["_bucket", "_sum", "_count"].into_iter().find(|s| name.ends_with(s));
    if let (Target::Latency(_), Some(suffix)) = (target, suffix) {
        let family_name = name.trim_end_matches(suffix);
        return Err(at(
            &family,
            format!("a histogram is mapped by its family: {family_name:?} instead of {name:?}"),
        ));
    }
    let mut rule = Rule::new(name, target);
    rule.scale = 1.0;
    if let Some(scale) = scale {
        if !(scale.value.is_finite() && scale.value > 0.0) {
            return Err(at(&scale, format!("scale {} must be a number above 0", scale.value)));
        }
        rule.scale = scale.value;
    }
    if let Some(aggregate) = aggregate {
        rule.aggregate = aggregate;
    }
    rule.filters = labels
        .into_iter()
        .map(|(label, values)| match values {
            OneOrMore::One(value) => (label, vec![value]),
            OneOrMore::More(values) => (label, values),
        })
        .collect();
    Ok(rule)
}

fn yaml_error(error: serde_saphyr::Error) -> Error {
    use serde_saphyr::Error as Yaml;
    let error = error.without_snippet();
    let unknown = |kind: &str, found: &str, expected: &[&str]| {
        let nearest = expected
            .iter()
            .map(|e| (strsim::damerau_levenshtein(found, e), *e))
            .min_by_key(|(distance, _)| *distance)
            .filter(|(distance, e)| *distance <= e.len().max(found.len()) / 2);
        let all = expected.join(", ");
        match nearest {
            Some((_, nearest)) => format!("unknown {kind} {found:?}, did you mean {nearest:?}? (known: {all})"),
            None => format!("unknown {kind} {found:?} (known: {all})"),
        }
    };
    let what = match error {
        Yaml::SerdeUnknownField { field, expected, .. } => unknown("field", field, expected),
        Yaml::SerdeUnknownVariant { variant, expected, .. } => unknown("value", variant, expected),
        Yaml::SerdeMissingField { field, .. } => format!("field {field:?} is missing"),
        other => other.to_string(),
    };
    match error.location() {
        Some(location) => Error::At {
            line: location.line(),
            what,
        },
        None => Error::Whole(what),
    }
}
