//! `AdmissionReview` of `admission.k8s.io/v1`, as far as it is needed here.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Group and version of the reviews understood here.
pub const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Warnings of one response. The API server cuts them off at 4,096 bytes in all.
const WARNINGS_MAX: usize = 16;
/// Longer warnings are cut by the API server when there are many; here they are cut always.
const WARNING_MAX_CHARS: usize = 256;

/// What the API server asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// To be repeated in the answer.
    pub uid: String,
    /// Kind of the object.
    #[serde(default)]
    pub kind: GroupVersionKind,
    /// Subresource, such as `status`.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// Name of the object; empty where the API server will generate one.
    #[serde(default)]
    pub name: String,
    /// Namespace of the request.
    #[serde(default)]
    pub namespace: String,
    /// What is done: `CREATE`, `UPDATE`, `DELETE`, `CONNECT`.
    #[serde(default)]
    pub operation: String,
    /// The object as it shall become; null when it is deleted.
    #[serde(default)]
    pub object: Value,
    /// The object as it is; null when it is created.
    #[serde(default)]
    pub old_object: Value,
    /// True when nothing will come of it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub dry_run: bool,
}

/// Group, version and kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct GroupVersionKind {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// Such as `v1`.
    #[serde(default)]
    pub version: String,
    /// Such as `Pod`.
    #[serde(default)]
    pub kind: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// Of the request.
    pub uid: String,
    /// Whether the request goes on.
    pub allowed: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// JSON patch (RFC 6902), in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<String>,
    /// `JSONPatch` when there is a patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_type: Option<&'static str>,
    /// Shown to who made the request; kubectl prints them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// For the audit log.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub audit_annotations: BTreeMap<&'static str, String>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// HTTP status for who made the request.
    pub code: u16,
    /// For programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Response {
    /// Lets the request go on.
    pub fn allow(uid: &str) -> Self {
        Response {
            uid: uid.to_owned(),
            allowed: true,
            status: None,
            patch: None,
            patch_type: None,
            warnings: Vec::new(),
            audit_annotations: BTreeMap::new(),
        }
    }

    /// Refuses the request.
    pub fn refuse(uid: &str, code: u16, reason: &'static str, message: String) -> Self {
        Response {
            allowed: false,
            status: Some(Status { code, reason, message }),
            ..Response::allow(uid)
        }
    }

    /// Adds a warning, cut and cleaned so that it can be an HTTP header, which is how it travels on.
    pub fn warn(&mut self, text: &str) {
        if self.warnings.len() < WARNINGS_MAX {
            let clean = |c: char| if c.is_control() { ' ' } else { c };
            self.warnings
                .push(text.chars().take(WARNING_MAX_CHARS).map(clean).collect());
        }
    }

    /// Adds a patch; an empty one is none.
    pub fn patch(&mut self, operations: &Value) {
        if operations.as_array().is_none_or(|operations| !operations.is_empty()) {
            self.patch = Some(BASE64_STANDARD.encode(operations.to_string()));
            self.patch_type = Some("JSONPatch");
        }
    }

    /// The review to be sent back.
    pub fn into_review(self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Review<'a> {
            api_version: &'static str,
            kind: &'static str,
            response: &'a Response,
        }
        let review = Review {
            api_version: API_VERSION,
            kind: KIND,
            response: &self,
        };
        // Strings and maps with string keys: nothing in it can fail to be written.
        serde_json::to_vec(&review).unwrap_or_default()
    }
}

/// What is wrong with a review. The API server gets it with status 400 and follows its `failurePolicy`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not an object of the expected shape.
    #[error("the body is not an AdmissionReview: {0}")]
    NotAReview(#[from] serde_json::Error),
    /// Another kind or version.
    #[error(
        "the body is a {kind:?} of {api_version:?}; expected {KIND:?} of {API_VERSION:?} (admissionReviewVersions: [v1])"
    )]
    Version {
        /// As received.
        api_version: String,
        /// As received.
        kind: String,
    },
    /// A review without a request or without its uid.
    #[error("the AdmissionReview has no request with a uid")]
    NoRequest,
}

/// Reads a review.
pub fn read(body: &[u8]) -> Result<Request, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Review {
        #[serde(default)]
        api_version: String,
        #[serde(default)]
        kind: String,
        request: Option<Request>,
    }
    let review: Review = serde_json::from_slice(body)?;
    if review.api_version != API_VERSION || review.kind != KIND {
        return Err(Error::Version {
            api_version: review.api_version.chars().take(100).collect(),
            kind: review.kind.chars().take(100).collect(),
        });
    }
    review
        .request
        .filter(|request| !request.uid.is_empty())
        .ok_or(Error::NoRequest)
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}
