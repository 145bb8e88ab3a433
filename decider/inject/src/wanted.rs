//! Opting in.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::INJECT_LABEL;

/// Whether a Pod is to have an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Somebody said so.
    Yes,
    /// Nobody said so, or somebody said no.
    No,
    /// A label says something that means neither; taken as no.
    Unclear {
        /// What it says.
        value: String,
    },
}

/// Whether a Pod is to have an agent: its own label [`INJECT_LABEL`] decides, else its annotation of that name, else the
/// label of its namespace. Without any, no.
pub fn wanted(namespace_labels: &BTreeMap<String, String>, pod: &Value) -> Wish {
    let own = |kind: &str| pod["metadata"][kind][INJECT_LABEL].as_str();
    let said = own("labels")
        .or_else(|| own("annotations"))
        .or_else(|| namespace_labels.get(INJECT_LABEL).map(String::as_str));
    match said {
        Some("enabled") => Wish::Yes,
        Some("disabled") | None => Wish::No,
        Some(value) => Wish::Unclear {
            value: value.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_nearest_word_counts() {
        let namespace = |value: &str| BTreeMap::from([(INJECT_LABEL.to_owned(), value.to_owned())]);
        let pod = |label: Option<&str>, annotation: Option<&str>| {
            let of = |value: Option<&str>| value.map(|value| json!({ INJECT_LABEL: value }));
            json!({"metadata": {"labels": of(label), "annotations": of(annotation)}})
        };
        let none = BTreeMap::new();
        assert_eq!(wanted(&none, &json!({})), Wish::No);
        assert_eq!(wanted(&none, &pod(Some("enabled"), None)), Wish::Yes);
        assert_eq!(wanted(&namespace("enabled"), &pod(None, None)), Wish::Yes);
        assert_eq!(wanted(&namespace("enabled"), &pod(Some("disabled"), None)), Wish::No);
        assert_eq!(wanted(&namespace("enabled"), &pod(None, Some("disabled"))), Wish::No);
        assert_eq!(
            wanted(&namespace("disabled"), &pod(Some("enabled"), Some("disabled"))),
            Wish::Yes
        );
        let unclear = Wish::Unclear { value: "true".into() };
        assert_eq!(wanted(&none, &pod(Some("true"), None)), unclear);
        assert_eq!(wanted(&namespace("true"), &pod(None, None)), unclear);
    }
}
