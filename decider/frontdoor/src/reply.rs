//! The front door's own responses, with errors in the OpenAI API's form.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    body::Reply,
    headers::X_REPLICA,
    stats::{Failure, Refusal},
};

/// A JSON response.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response<Reply> {
    let mut response = Response::new(Reply::Own(Full::new(Bytes::from(value.to_string()))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
        .headers_mut()
        .insert(X_REPLICA, HeaderValue::from_static("none"));
    response
}

pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response<Reply> {
    let kind = if status.is_client_error() {
        "invalid_request_error"
    } else {
        "server_error"
    };
    json(
        status,
        &json!({ "error": { "message": message, "type": kind, "param": null, "code": code } }),
    )
}

/// The answer to a request refused here.
pub(crate) fn refused(refusal: Refusal, max_body_bytes: usize) -> Response<Reply> {
    let busy = StatusCode::SERVICE_UNAVAILABLE;
    let too_large = format!("the request body is larger than {max_body_bytes} bytes");
    let (status, code, message, retry_after_s) = match refusal {
        Refusal::QueueFull => (busy, "queue_full", "no replica is ready and the queue is full", Some(5)),
        Refusal::QueueTimeout => (busy, "queue_timeout", "no replica became ready in time", Some(10)),
        Refusal::NoReplica => (busy, "no_replica", "no replica is ready", Some(5)),
        Refusal::BuffersFull => (busy, "buffers_full", "too many request bodies at a time", Some(5)),
        Refusal::ShuttingDown => (busy, "shutting_down", "the front door is shutting down", Some(5)),
        Refusal::BodyTooLarge => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            too_large.as_str(),
            None,
        ),
        Refusal::BodyTimeout => (
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            "the request body did not come in time",
            None,
        ),
        Refusal::BodyMalformed => (
            StatusCode::BAD_REQUEST,
            "body_malformed",
            "the request body is malformed",
            None,
        ),
        Refusal::Method => (
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this is no forward proxy",
            None,
        ),
    };
    let mut response = error(status, code, message);
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if matches!(
        refusal,
        Refusal::BodyTooLarge | Refusal::BodyTimeout | Refusal::BodyMalformed
    ) {
        // What is left of the body is not read.
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The answer to a request that failed at `replica` before its response began.
pub(crate) fn failed(failure: Failure, replica: &HeaderValue) -> Response<Reply> {
    let (status, code, message) = match failure {
        Failure::Connect => (
            StatusCode::BAD_GATEWAY,
            "replica_unreachable",
            "no connection to a replica",
        ),
        Failure::Reset => (
            StatusCode::BAD_GATEWAY,
            "replica_reset",
            "the replica closed the connection unanswered",
        ),
        Failure::HeaderTimeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "replica_timeout",
            "the replica did not answer in time",
        ),
        Failure::BadResponse | Failure::BodyBroken | Failure::BodyIdle => (
            StatusCode::BAD_GATEWAY,
            "replica_bad_response",
            "the replica's response is malformed or broke off",
        ),
    };
    let mut response = error(status, code, message);
    response.headers_mut().insert(X_REPLICA, replica.clone());
    response
}

/// The answer to `GET /v1/models` while no replica is ready.
pub(crate) fn models(model: &str) -> Response<Reply> {
    let entry = json!({ "id": model, "object": "model", "created": 0, "owned_by": "infer-frontdoor" });
    json(StatusCode::OK, &json!({ "object": "list", "data": [entry] }))
}
