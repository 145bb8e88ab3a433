//! What every document has: a version and a name.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern;

/// Group and version of a document; there is one so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    #[doc(hidden)]
    #[default]
    #[serde(rename = "autoscaling.matrixinfer.ai/v1alpha1")]
    V1alpha1,
}

/// Name and notes of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Name of the document, unique among documents of its kind: 1 to 63 lower-case letters, digits and '-', beginning
    /// and ending with a letter or a digit.
    #[schemars(length(min = 1, max = 63), extend("pattern" = pattern::NAME))]
    pub name: String,
    /// Namespace of the document in a cluster. A binding finds policies and targets in its own namespace. On one machine
    /// it has no meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), extend("pattern" = pattern::NAME))]
    pub namespace: Option<String>,
    /// Free key-value pairs for the operator's own use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free key-value pairs for tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    /// Metadata with only a name.
    pub fn named(name: impl Into<String>) -> Self {
        Metadata {
            name: name.into(),
            ..Metadata::default()
        }
    }
}
