//! What each path answers.

use std::convert::Infallible;
use std::io::Write as _;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;
use tokio::time::Instant;

use super::api::{self, Answer, Completion, Endpoint, error_body};
use super::core::{Engine, Error as EngineError, Flavor, Submission, Ticket, Token};
use super::exposition::Dialect;
use super::faults::{Failure, Faults};
use super::http_stats::Route;
use super::levers;
use super::reply::{
    Body, full, json_response, method_not_allowed, not_found, openai_error, query, respond, text, wanted_names,
};
use super::stats::FinishReason;

/// A prompt of a million token ids has about 7 MB.
pub(super) const LONGEST_BODY_BYTES: usize = 16 << 20;
/// Tokens put into one frame when a slow client has let several come together.
const TOKENS_PER_FRAME: usize = 64;

/// What handlers need; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) engine: Engine,
    faults: Faults,
}

impl Context {
    /// For one server.
    pub(super) fn new(engine: Engine, faults: Faults) -> Self {
        Self { engine, faults }
    }

    /// Puts a failure in force, engine included.
    pub(super) fn inject(&self, failure: Failure) {
        tracing::info!(?failure, "failure injected");
        if let Some(until) = self.faults.inject(failure) {
            self.engine.stall_until(until);
        }
    }
}

/// The path as the metrics name it, and whether the flavour counts it.
fn route(flavor: Flavor, method: &Method, path: &str) -> Option<Route> {
    const KNOWN: &[&str] = &[
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/v1/loads",
        "/get_model_info",
        "/metrics",
        "/health",
        "/version",
        "/load",
        "/ping",
    ];
    // vLLM's instrumentation leaves these out, SGLang's does not.
    const UNCOUNTED: &[&str] = &["/metrics", "/health", "/version", "/load", "/ping"];
    let known = KNOWN
        .iter()
        .copied()
        .find(|known| *known == path.strip_suffix('/').unwrap_or(path));
    if path.starts_with("/sim/") || flavor != Flavor::Sglang && known.is_some_and(|k| UNCOUNTED.contains(&k)) {
        return None;
    }
    let method = match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        _ => "OTHER",
    };
    Some((known.unwrap_or("none"), method))
}

/// Counts a request when it is over, however it ends.
#[derive(Debug)]
struct Counted {
    engine: Engine,
    route: Option<Route>,
    begun: Instant,
    status: u16,
    response_bytes: u64,
}

impl Counted {
    fn begin(engine: &Engine, route: Option<Route>, headers: &HeaderMap) -> Self {
        if let Some(route) = route {
            let length = headers
                .get(header::CONTENT_LENGTH)
                .and_then(|v| v.to_str().ok()?.parse().ok())
                .unwrap_or(0);
            engine.count_http(|http| http.begin(route, length));
        }
        Self {
            engine: engine.clone(),
            route,
            begun: Instant::now(),
            status: 200,
            response_bytes: 0,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(route) = self.route {
            let duration_s = self.begun.elapsed().as_secs_f64();
            self.engine
                .count_http(|http| http.end(route, self.status, self.response_bytes, duration_s));
        }
    }
}

/// Answers one request.
pub(super) async fn handle(context: Context, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let flavor = context.engine.options().flavor;
    if path.starts_with("/sim/") {
        return levers::answer(&context, request, &path).await;
    }
    let mut counted = Counted::begin(
        &context.engine,
        route(flavor, request.method(), &path),
        request.headers(),
    );
    context.faults.wait_out_hang().await;
    if context.faults.is_unavailable() {
        counted.status = 503;
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain; charset=utf-8",
            "Service Unavailable".into(),
        );
    }
    let endpoint = match path.as_str() {
        "/v1/completions" => Some(Endpoint::Completions),
        "/v1/chat/completions" => Some(Endpoint::Chat),
        _ => None,
    };
    let mut response = match (request.method().clone(), endpoint) {
        (Method::POST, Some(endpoint)) => return complete(context, counted, endpoint, request).await,
        (_, Some(_)) => method_not_allowed(),
        (method, None) => small(&context, &method, &path, &request).await,
    };
    counted.status = response.status().as_u16();
    counted.response_bytes = hyper::body::Body::size_hint(response.body()).exact().unwrap_or(0);
    if flavor != Flavor::VllmRust {
        response
            .headers_mut()
            .insert(header::SERVER, header::HeaderValue::from_static("uvicorn"));
    }
    response
}

async fn small(context: &Context, method: &Method, path: &str, request: &Request<Incoming>) -> Response<Body> {
    let engine = &context.engine;
    let options = engine.options();
    let flavor = options.flavor;
    let get = *method == Method::GET || *method == Method::HEAD;
    match path {
        "/metrics" | "/metrics/" if get => metrics(context, path, request).await,
        "/health" | "/ping" if get => text(StatusCode::OK, "text/plain; charset=utf-8", String::new()),
        "/v1/models" if get => {
            let names = options.served_model_names.iter().chain(&options.lora_adapters);
            let root = options.served_model_names.first();
            let models: Vec<_> = names
                .map(|name| {
                    json!({
                        "id": name, "object": "model", "created": engine.start_unix_s() as u64, "owned_by": "vllm",
                        "root": root, "parent": null, "max_model_len": options.model.max_model_len,
                    })
                })
                .collect();
            json_response(StatusCode::OK, &json!({"object": "list", "data": models}))
        }
        "/version" if get && flavor != Flavor::Sglang => json_response(StatusCode::OK, &json!({"version": "0.32.0"})),
        "/load" if get && flavor == Flavor::Vllm => {
            let (running, waiting) = engine.load();
            json_response(StatusCode::OK, &json!({"server_load": running + waiting}))
        }
        "/is_sleeping" if get && flavor == Flavor::Vllm => {
            json_response(StatusCode::OK, &json!({"is_sleeping": engine.is_sleeping()}))
        }
        "/sleep" if *method == Method::POST && flavor == Flavor::Vllm => {
            match query(request.uri().query())
                .get("level")
                .map_or(Ok(1), |v| v.parse::<u8>())
            {
                Ok(level @ 1..=2) => {
                    engine.sleep(level);
                    text(StatusCode::OK, "text/plain; charset=utf-8", String::new())
                }
                _ => openai_error(StatusCode::BAD_REQUEST, "BadRequestError", "level must be 1 or 2"),
            }
        }
        "/wake_up" if *method == Method::POST && flavor == Flavor::Vllm => {
            engine.wake_up();
            text(StatusCode::OK, "text/plain; charset=utf-8", String::new())
        }
        "/v1/loads" if get && flavor == Flavor::Sglang => json_response(StatusCode::OK, &engine.sglang_loads()),
        "/get_model_info" if get && flavor == Flavor::Sglang => {
            let name = options.served_model_names.first();
            json_response(
                StatusCode::OK,
                &json!({"model_path": name, "tokenizer_path": name, "is_generation": true}),
            )
        }
        _ => not_found(),
    }
}

async fn metrics(context: &Context, path: &str, request: &Request<Incoming>) -> Response<Body> {
    context.faults.wait_out_metrics().await;
    let engine = &context.engine;
    let flavor = engine.options().flavor;
    let slash = path.ends_with('/');
    let has = |name, part: &str| {
        request
            .headers()
            .get_all(name)
            .iter()
            .any(|v| v.to_str().is_ok_and(|v| v.contains(part)))
    };
    if flavor == Flavor::VllmRust {
        if slash {
            return not_found();
        }
        let page = engine.metrics(Dialect::Rust, None);
        return text(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            page,
        );
    }
    // vLLM's own route always answers plain text; behind the slash is the library's application, which negotiates,
    // compresses and filters. SGLang has only the latter.
    let library = slash || flavor == Flavor::Sglang;
    let wanted: Vec<String> = if library {
        wanted_names(request.uri().query())
    } else {
        vec![]
    };
    let open_metrics = library && has(header::ACCEPT, "application/openmetrics-text");
    let dialect = match (open_metrics, engine.is_multiprocess()) {
        (true, _) => Dialect::PythonOpenMetrics,
        (false, true) => Dialect::PythonMultiprocess,
        (false, false) => Dialect::Python,
    };
    let page = match (wanted.is_empty(), engine.is_multiprocess()) {
        (true, _) => engine.metrics(dialect, None),
        (false, false) => engine.metrics(dialect, Some(&wanted)),
        // The library's filter knows nothing of the other processes' files.
        (false, true) => String::new(),
    };
    let content_type = if open_metrics {
        "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
    } else {
        "text/plain; version=1.0.0; charset=utf-8"
    };
    if library
        && has(header::ACCEPT_ENCODING, "gzip")
        && let Some(packed) = gzip(page.as_bytes())
    {
        let mut response = full(StatusCode::OK, content_type, packed.into());
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
        return response;
    }
    text(StatusCode::OK, content_type, page)
}

fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

async fn complete(
    context: Context,
    mut counted: Counted,
    endpoint: Endpoint,
    request: Request<Incoming>,
) -> Response<Body> {
    let arrival = Instant::now();
    let engine = &context.engine;
    let refuse = |counted: &mut Counted, status: StatusCode, kind: &str, message: &str| {
        counted.status = status.as_u16();
        openai_error(status, kind, message)
    };
    let bad_request = StatusCode::BAD_REQUEST;
    let body = match Limited::new(request.into_body(), LONGEST_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refuse(&mut counted, bad_request, "BadRequestError", &error.to_string()),
    };
    let completion = match api::parse(endpoint, &body) {
        Ok(completion) => completion,
        Err(error) => return refuse(&mut counted, bad_request, "BadRequestError", &error.to_string()),
    };
    let options = engine.options();
    let adapter = completion
        .model
        .clone()
        .filter(|name| options.lora_adapters.contains(name));
    let known = completion
        .model
        .as_ref()
        .is_none_or(|name| options.served_model_names.contains(name));
    if !known && adapter.is_none() {
        let message = format!("The model `{}` does not exist.", completion.model.unwrap_or_default());
        return refuse(&mut counted, StatusCode::NOT_FOUND, "NotFoundError", &message);
    }
    let submitted = engine.submit(Submission {
        prompt_tokens: completion.prompt_tokens,
        output_tokens: completion.output_tokens,
        streaming: completion.stream,
        arrival,
        adapter,
    });
    let mut ticket = match submitted {
        Ok(ticket) => ticket,
        Err(error @ EngineError::Model(_)) => {
            return refuse(&mut counted, bad_request, "BadRequestError", &error.to_string());
        }
        Err(error @ EngineError::QueueFull { .. }) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            if !completion.stream {
                return refuse(&mut counted, status, "ServiceUnavailableError", &error.to_string());
            }
            // As in vLLM, a stream has already been answered with 200 when this is found out.
            let event = error_body(status.as_u16(), "ServiceUnavailableError", &error.to_string());
            return full(
                StatusCode::OK,
                EVENT_STREAM,
                format!("data: {event}\n\ndata: [DONE]\n\n").into(),
            );
        }
    };
    let answer = answer(engine, endpoint, &ticket, completion.clone());
    if completion.stream {
        return stream_response(ticket, counted, answer);
    }
    let mut last = Token { index: 0, finish: None };
    let mut count = 0;
    while last.finish.is_none() {
        match ticket.tokens.recv().await {
            Some(token) => last = token,
            None => break,
        }
        count = count.max(last.index);
    }
    let page = answer.whole(count, last.finish.unwrap_or(FinishReason::Abort));
    counted.response_bytes = page.len() as u64;
    text(StatusCode::OK, "application/json", page)
}

fn answer(engine: &Engine, endpoint: Endpoint, ticket: &Ticket, completion: Completion) -> Answer {
    let served = engine.options().served_model_names.first().cloned().unwrap_or_default();
    let model = completion.model.clone().unwrap_or(served);
    let created_s = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    Answer::new(endpoint, ticket.id(), model, created_s, completion)
}

const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";

struct Streaming {
    ticket: Ticket,
    answer: Answer,
    emitted_tokens: u32,
    ended: bool,
    /// Held to the end of the body, so that the request counts as active and its duration is the whole stream's.
    _counted: Counted,
}

fn stream_response(ticket: Ticket, counted: Counted, answer: Answer) -> Response<Body> {
    let state = Streaming {
        ticket,
        answer,
        emitted_tokens: 0,
        ended: false,
        _counted: counted,
    };
    let frames = stream::unfold(state, |mut state| async move {
        if state.ended {
            return None;
        }
        let mut tokens = Vec::new();
        if state.ticket.tokens.recv_many(&mut tokens, TOKENS_PER_FRAME).await == 0 {
            return None;
        }
        let mut out = String::with_capacity(256 * tokens.len());
        for token in tokens {
            state.emitted_tokens = state.emitted_tokens.max(token.index);
            state.answer.push_token(&mut out, token.index, token.finish);
            if token.finish.is_some() {
                state.answer.push_end(&mut out, state.emitted_tokens);
                state.ended = true;
            }
        }
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(out))), state))
    });
    let body = UnsyncBoxBody::new(StreamBody::new(frames));
    respond(StatusCode::OK, EVENT_STREAM, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllm_does_not_count_its_own_monitoring() {
        assert_eq!(route(Flavor::Vllm, &Method::GET, "/metrics"), None);
        assert_eq!(route(Flavor::Vllm, &Method::GET, "/metrics/"), None);
        assert_eq!(
            route(Flavor::Sglang, &Method::GET, "/metrics"),
            Some(("/metrics", "GET"))
        );
        assert_eq!(route(Flavor::Vllm, &Method::GET, "/nowhere"), Some(("none", "GET")));
        assert_eq!(route(Flavor::Vllm, &Method::POST, "/sim/queue"), None);
    }
}
