//! Requests to the API server: each with a time limit, each failure sorted by what can be done about it.

use std::time::Duration;

use http::{Method, Request};
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A group, version and kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Gvk {
    /// Empty for the core group.
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
}

impl Gvk {
    pub(super) fn new(api_version: &str, kind: &str) -> Gvk {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Gvk {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        }
    }

    /// Whether it may stand in a path as it is.
    pub(super) fn is_plain(&self) -> bool {
        (self.group.is_empty() || is_plain(&self.group)) && is_plain(&self.version)
    }

    /// `/apis/apps/v1`.
    pub(super) fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// `apps/v1`.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// The path of all objects of a resource, in one namespace or all.
pub(super) fn collection(root: &str, plural: &str, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{plural}"),
    }
}

/// Why a request has not been answered as hoped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// 403.
    Forbidden(String),
    /// 404.
    NotFound(String),
    /// 409: the object has changed since it was seen.
    Conflict(String),
    /// 422: the request makes no sense to the API server, or a `test` of a JSON patch does not hold.
    Invalid(String),
    /// 410: a resource version is too old.
    Gone,
    /// 429, 5xx, no connection, no answer in time: may go well later. Seconds to wait, where the server has said so.
    Busy(String, Option<u32>),
    /// Anything else.
    Refused(String),
}

impl Failure {
    pub(super) fn message(&self) -> &str {
        match self {
            Failure::Forbidden(message)
            | Failure::NotFound(message)
            | Failure::Conflict(message)
            | Failure::Invalid(message)
            | Failure::Busy(message, _)
            | Failure::Refused(message) => message,
            Failure::Gone => "the resource version is too old",
        }
    }

    /// Whether this tells that the API server is there and able to answer.
    pub(super) fn is_an_answer(&self) -> bool {
        !matches!(self, Failure::Busy(..))
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let wait_s = status.details.as_ref().map(|details| details.retry_after_seconds);
                Failure::of_status(status.code, status.message.clone(), wait_s.filter(|wait_s| *wait_s > 0))
            }
            kube::Error::SerdeError(error) => Failure::Refused(format!("the answer can not be read: {error}")),
            kube::Error::HttpError(error) => Failure::Refused(error.to_string()),
            other => Failure::Busy(chain(&other), None),
        }
    }
}

impl Failure {
    pub(super) fn of_status(code: u16, message: String, wait_s: Option<u32>) -> Failure {
        match code {
            403 => Failure::Forbidden(message),
            404 => Failure::NotFound(message),
            409 => Failure::Conflict(message),
            410 => Failure::Gone,
            422 => Failure::Invalid(message),
            // 401: a token that is being rotated.
            401 | 408 | 429 | 500.. => Failure::Busy(message, wait_s),
            _ => Failure::Refused(message),
        }
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A PATCH.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PatchRequest {
    /// Without the field manager.
    pub(super) path: String,
    pub(super) content_type: &'static str,
    pub(super) body: Value,
}

/// The API server.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) manager: String,
    pub(super) timeout: Duration,
}

impl Api {
    /// GET.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        accept: &str,
        timeout: Duration,
    ) -> Result<T, Failure> {
        let request = Request::get(path).header(http::header::ACCEPT, accept).body(Vec::new());
        let request = request.map_err(|error| Failure::Refused(error.to_string()))?;
        self.ask(request, timeout).await
    }

    /// GET of anything.
    pub(super) async fn value(&self, path: &str) -> Result<Value, Failure> {
        self.get(path, JSON, self.timeout).await
    }

    /// PATCH, with our field manager.
    pub(super) async fn patch(&self, patch: &PatchRequest, timeout: Duration) -> Result<Value, Failure> {
        let body = serde_json::to_vec(&patch.body).map_err(|error| Failure::Refused(error.to_string()))?;
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(format!("{}?fieldManager={}", patch.path, self.manager))
            .header(http::header::ACCEPT, JSON)
            .header(http::header::CONTENT_TYPE, patch.content_type)
            .body(body);
        let request = request.map_err(|error| Failure::Refused(error.to_string()))?;
        self.ask(request, timeout.min(self.timeout)).await
    }

    /// Whether the API server is able to serve: 200 from `/readyz`, or an answer that says that we may not ask.
    pub(super) async fn is_ready(&self) -> bool {
        let Ok(request) = Request::get("/readyz").body(Vec::new()) else {
            return false;
        };
        match tokio::time::timeout(self.timeout, self.client.request_text(request)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => Failure::from(error).is_an_answer(),
            Err(_) => false,
        }
    }

    async fn ask<T: DeserializeOwned>(&self, request: Request<Vec<u8>>, timeout: Duration) -> Result<T, Failure> {
        match tokio::time::timeout(timeout, self.client.request(request)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Failure::Busy(
                format!("the API server has not answered within {} s", timeout.as_secs_f64()),
                None,
            )),
        }
    }
}

/// For whole objects.
pub(super) const JSON: &str = "application/json";
/// For lists of metadata.
pub(super) const META_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// For watches of metadata.
pub(super) const META: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// Whether a name may stand in a path as it is.
pub(super) fn is_plain(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    !name.is_empty() && name.chars().all(is_plain) && name.chars().any(|c| c != '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let deployment = Gvk::new("apps/v1", "Deployment");
        assert_eq!(
            collection(&deployment.root(), "deployments", Some("x")),
            "/apis/apps/v1/namespaces/x/deployments"
        );
        assert_eq!(collection(&Gvk::new("v1", "Pod").root(), "pods", None), "/api/v1/pods");
        assert_eq!(
            (deployment.api_version(), Gvk::new("v1", "Pod").api_version()),
            ("apps/v1".into(), "v1".into())
        );
        for bad in ["", "..", "a/b", "a?b", "a%2f", "ä"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
        assert!(is_plain("chat-7b.v2") && is_plain("system:x"));
    }

    #[test]
    fn failures_are_sorted_by_what_can_be_done() {
        let of = |code| Failure::of_status(code, String::new(), None);
        assert!(matches!(of(403), Failure::Forbidden(_)));
        assert!(matches!(of(429), Failure::Busy(..)) && matches!(of(503), Failure::Busy(..)));
        assert!(matches!(of(400), Failure::Refused(_)));
        assert!(!of(500).is_an_answer() && of(404).is_an_answer());
    }
}
