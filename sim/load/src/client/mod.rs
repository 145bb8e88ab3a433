//! The HTTP client: one request, streamed and timed.

mod chunk;
mod pool;

use crate::event::{Class, Failure};
use crate::histogram::Latency;
use crate::sse::Parser;
use bytes::Bytes;
use chunk::Chunk;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
pub(crate) use pool::Target;
use pool::{Lease, Pool};
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

/// How much of an error answer is kept for its message.
const ERROR_BYTES_MAX: usize = 2048;
/// The header in which a proxy may name the replica that answered.
const REPLICA_HEADER: &str = "x-replica";

/// What has been seen of one request so far; kept apart from its result so that a timeout loses nothing.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) status: Option<u16>,
    pub(crate) replica: Option<String>,
    pub(crate) token_at: Vec<Instant>,
    pub(crate) prompt_tokens: Option<u32>,
    pub(crate) usage_tokens: Option<u32>,
    finish_reason: Option<String>,
    done: bool,
    error: Option<Failure>,
}

impl Sample {
    /// Tokens received: the server's count, else chunks.
    pub(crate) fn completion_tokens(&self) -> u32 {
        self.usage_tokens
            .unwrap_or(u32::try_from(self.token_at.len()).unwrap_or(u32::MAX))
    }

    fn take_event(&mut self, data: &[u8], now: Instant) {
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        let chunk: Chunk<'_> = match serde_json::from_slice(data) {
            Ok(chunk) => chunk,
            Err(error) => {
                let text = String::from_utf8_lossy(&data[..data.len().min(200)]);
                self.fail(Failure::new(
                    Class::Protocol,
                    format!("event that is not a completion chunk ({error}): {text}"),
                ));
                return;
            }
        };
        if let Some(error) = &chunk.error {
            self.fail(Failure::new(Class::StreamError, chunk::error_text(error)));
        }
        if chunk.has_tokens() {
            self.token_at.push(now);
        }
        if let Some(reason) = chunk.finish_reason() {
            self.finish_reason = Some(reason.to_owned());
        }
        if let Some(usage) = chunk.usage {
            self.prompt_tokens = Some(usage.prompt_tokens);
            self.usage_tokens = Some(usage.completion_tokens);
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.error.get_or_insert(failure);
    }

    /// Whether a stream that has ended gave what was asked for.
    fn verdict(&mut self, expected_tokens: u32, may_stop_early: bool) -> Result<(), Failure> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let tokens = self.completion_tokens();
        let truncated = |what: &str| {
            Err(Failure::new(
                Class::Truncated,
                format!("{what}: {tokens} of {expected_tokens} tokens"),
            ))
        };
        if !self.done {
            return truncated("stream ended without [DONE]");
        }
        let reason = self.finish_reason.as_deref();
        // Chunks can hold several tokens: without the server's count, its word that the length was reached has to do.
        let complete = tokens >= expected_tokens
            || (self.usage_tokens.is_none() && reason == Some("length"))
            || (may_stop_early && reason == Some("stop"));
        if complete {
            return Ok(());
        }
        truncated(&format!(
            "stream ended early, finish_reason {}",
            reason.unwrap_or("missing")
        ))
    }
}

/// What is the same for every request of a run.
pub(crate) struct Client {
    pool: Pool,
    path: String,
    headers: HeaderMap,
    may_stop_early: bool,
    /// TTFT of the streams that began since it was last cleared. Locked for one record at a time.
    pub(crate) begun: Mutex<Latency>,
}

impl Client {
    pub(crate) fn new(target: Target, path: &str, headers: HeaderMap, idle_max: usize, may_stop_early: bool) -> Self {
        let path = format!("{}{path}", target.base_path);
        Self {
            pool: Pool::new(target, idle_max),
            path,
            headers,
            may_stop_early,
            begun: Mutex::new(Latency::new()),
        }
    }

    /// Sends a body and follows the answer until its end mark.
    pub(crate) async fn complete(
        &self,
        body: Bytes,
        expected_tokens: u32,
        started: Instant,
        sample: &mut Sample,
    ) -> Result<(), Failure> {
        let (lease, response) = self.send(body).await?;
        sample.status = Some(response.status().as_u16());
        sample.replica = response
            .headers()
            .get(REPLICA_HEADER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let (head, mut body) = response.into_parts();
        if head.status != StatusCode::OK {
            let text = error_body(&mut body).await;
            self.pool.give_back(lease, body);
            return Err(Failure::new(
                Class::HttpStatus,
                format!("status {}: {text}", head.status.as_u16()),
            ));
        }
        let kind = head
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("none");
        if !kind.starts_with("text/event-stream") {
            let message = format!("answer of content type {kind:?}: expected text/event-stream");
            return Err(Failure::new(Class::Protocol, message));
        }
        let mut parser = Parser::default();
        while !sample.done && sample.error.is_none() {
            let Some(frame) = body.frame().await else { break };
            let now = Instant::now();
            let frame = frame.map_err(|error| {
                let tokens = sample.completion_tokens();
                let message = format!("stream broken: {tokens} of {expected_tokens} tokens: {}", chain(&error));
                Failure::new(Class::Truncated, message)
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let waiting = sample.token_at.is_empty();
            parser
                .push(&data, |event| sample.take_event(event, now))
                .map_err(|error| Failure::new(Class::Protocol, error.to_string()))?;
            if waiting && !sample.token_at.is_empty() {
                let ttft_ms = (now - started).as_secs_f64() * 1e3;
                self.begun
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .record_ms(ttft_ms);
            }
        }
        let verdict = sample.verdict(expected_tokens, self.may_stop_early);
        self.pool.give_back(lease, body);
        verdict
    }

    /// Sends a request over a kept connection or a new one. A request that was not handed to a connection goes to the
    /// next one; a request that the server may have seen is never repeated.
    async fn send(&self, body: Bytes) -> Result<(Lease, http::Response<Incoming>), Failure> {
        let mut request = self.request(body)?;
        loop {
            let mut lease = self.pool.lease().await?;
            match lease.sender.try_send_request(request).await {
                Ok(response) => return Ok((lease, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if lease.reused => request = unsent,
                    _ => {
                        let message = format!("no answer: {}", chain(error.error()));
                        return Err(Failure::new(Class::Closed, message));
                    }
                },
            }
        }
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::post(&self.path)
            .body(Full::new(body))
            .map_err(|error| Failure::new(Class::Internal, error.to_string()))?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::HOST, self.pool.target().authority.clone());
        headers.extend(self.headers.clone());
        Ok(request)
    }
}

/// The start of an error answer, on one line.
async fn error_body(body: &mut Incoming) -> String {
    let mut text = Vec::new();
    while text.len() < ERROR_BYTES_MAX {
        let Some(Ok(frame)) = body.frame().await else { break };
        text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    text.truncate(ERROR_BYTES_MAX);
    chunk::plain_error(&text)
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(events: &[&str], may_stop_early: bool, expected: Result<u32, Class>) {
        let mut sample = Sample::default();
        for event in events {
            sample.take_event(event.as_bytes(), Instant::now());
        }
        let verdict = sample.verdict(2, may_stop_early).map_err(|failure| failure.class);
        assert_eq!(verdict.map(|()| sample.completion_tokens()), expected);
    }

    #[test]
    fn streams_are_judged() {
        const A: &str = r#"{"choices":[{"text":"a","finish_reason":null}]}"#;
        const LAST: &str = r#"{"choices":[{"text":"b","finish_reason":"length"}]}"#;
        const STOP: &str = r#"{"choices":[{"text":"","finish_reason":"stop"}]}"#;
        const EMPTY_TEXT: &str = r#"{"choices":[{"text":"","finish_reason":null}]}"#;
        const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#;
        const ROLE: &str = r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
        const CHAT: &str = r#"{"choices":[{"delta":{"content":"\"a"},"finish_reason":null}]}"#;
        const THOUGHT: &str = r#"{"choices":[{"delta":{"reasoning_content":"a"},"finish_reason":"length"}]}"#;
        const ERROR: &str = r#"{"error":{"message":"queue full","code":503}}"#;
        check(&[A, LAST, "[DONE]"], false, Ok(2));
        check(&[A, USAGE, "[DONE]"], false, Ok(2));
        check(&[EMPTY_TEXT, LAST, "[DONE]"], false, Ok(2));
        check(&[ROLE, CHAT, THOUGHT, "[DONE]"], false, Ok(2));
        // Two tokens in one chunk, and no count.
        check(&[LAST, "[DONE]"], false, Ok(1));
        check(&[A, LAST], false, Err(Class::Truncated));
        check(&[A, "[DONE]"], false, Err(Class::Truncated));
        check(&[A, STOP, "[DONE]"], false, Err(Class::Truncated));
        check(&[A, STOP, "[DONE]"], true, Ok(1));
        check(&[ERROR, "[DONE]"], false, Err(Class::StreamError));
        check(&["oops"], false, Err(Class::Protocol));
        check(&[], false, Err(Class::Truncated));
    }
}
