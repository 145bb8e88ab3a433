//! Small parts of HTTP: query strings and whole responses.

use std::collections::HashMap;
use std::convert::Infallible;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::json;

use super::api::error_body;

/// A response body of any kind.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The values of a query string, the last of each name; percent-decoded.
pub(super) fn query(query: Option<&str>) -> HashMap<String, String> {
    pairs(query).collect()
}

/// The values of `name[]`.
pub(super) fn wanted_names(query: Option<&str>) -> Vec<String> {
    pairs(query)
        .filter(|(name, _)| name == "name[]")
        .map(|(_, value)| value)
        .collect()
}

pub(super) fn pairs(query: Option<&str>) -> impl Iterator<Item = (String, String)> + '_ {
    query
        .unwrap_or("")
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (percent_decode(name), percent_decode(value))
        })
}

pub(super) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let byte = match bytes[index] {
            b'%' => {
                let hex = bytes
                    .get(index + 1..index + 3)
                    .and_then(|h| std::str::from_utf8(h).ok());
                match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
                    Some(byte) => {
                        index += 2;
                        byte
                    }
                    None => b'%',
                }
            }
            b'+' => b' ',
            byte => byte,
        };
        out.push(byte);
        index += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(super) fn respond(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

pub(super) fn full(status: StatusCode, content_type: &'static str, bytes: Bytes) -> Response<Body> {
    respond(status, content_type, UnsyncBoxBody::new(Full::new(bytes)))
}

pub(super) fn text(status: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    full(status, content_type, text.into())
}

pub(super) fn json_response(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    text(status, "application/json", value.to_string())
}

pub(super) fn openai_error(status: StatusCode, kind: &str, message: &str) -> Response<Body> {
    text(status, "application/json", error_body(status.as_u16(), kind, message))
}

pub(super) fn not_found() -> Response<Body> {
    json_response(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"}))
}

pub(super) fn method_not_allowed() -> Response<Body> {
    json_response(StatusCode::METHOD_NOT_ALLOWED, &json!({"detail": "Method Not Allowed"}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_filters_are_decoded() {
        let names = wanted_names(Some("name[]=vllm:a&name%5B%5D=vllm%3Ab&x=1"));
        assert_eq!(names, ["vllm:a", "vllm:b"]);
        assert_eq!(percent_decode("a%2"), "a%2");
        assert_eq!(query(Some("level=2"))["level"], "2");
    }
}
