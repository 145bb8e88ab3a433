//! What every document has: a version and a name.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Group and version of a document; there is one so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    #[doc(hidden)]
    #[default]
    #[serde(rename = "autoscaling.matrixinfer.ai/v1alpha1")]
    V1alpha1,
}

/// Rule for names, as in Kubernetes.
pub(crate) const NAME_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// Name and notes of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Name of the document, unique among documents of its kind: 1 to 63 lower-case letters, digits and '-', beginning
    /// and ending with a letter or a digit.
    #[schemars(length(min = 1, max = 63), extend("pattern" = NAME_PATTERN))]
    pub name: String,
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
