//! Who may speak for a replica, and who may ask and order.

use http::{HeaderMap, header::AUTHORIZATION};
use infer_proto::v1;
use tonic::Status;

use crate::actuate::BoxFuture;

/// What a person wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Ask.
    Read,
    /// Pause, resume, override.
    Write,
}

/// Decides about tokens. Bounded in time by whoever implements it.
pub trait Authenticate: Send + Sync + 'static {
    /// Whether the bearer of `token` may speak for `pod`.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a good token, PERMISSION_DENIED for another Pod than the token's, UNAVAILABLE when that cannot be
    /// found out now; the message says what is missing.
    fn agent(&self, token: Option<String>, pod: v1::PodIdentity) -> BoxFuture<Result<(), Status>>;

    /// Whether the bearer of `token` may do that with the targets of `namespace` (empty: of all).
    ///
    /// # Errors
    /// As for agents.
    fn person(&self, token: Option<String>, access: Access, namespace: String) -> BoxFuture<Result<(), Status>>;
}

/// Trusts whoever can connect: for a decider that listens on the loopback address only.
pub struct Trusting;

impl Authenticate for Trusting {
    fn agent(&self, _: Option<String>, _: v1::PodIdentity) -> BoxFuture<Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }

    fn person(&self, _: Option<String>, _: Access, _: String) -> BoxFuture<Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }
}

/// The token of an `authorization: Bearer …` header.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<String> {
    let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}
