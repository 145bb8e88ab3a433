//! The levers of the simulation: `POST /sim/failure` and `POST /sim/queue`.

use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use super::faults::Failure;
use super::handlers::{Context, LONGEST_BODY_BYTES};
use super::reply::{Body, json_response, method_not_allowed, not_found, openai_error};

/// More synthetic requests than any test needs.
const MOST_SYNTHETIC: usize = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FillQueue {
    waiting: usize,
    for_s: f64,
    #[serde(default = "default_prompt_tokens")]
    prompt_tokens: u32,
}

fn default_prompt_tokens() -> u32 {
    16
}

/// The levers of the simulation, which no failure closes.
pub(super) async fn answer(context: &Context, request: Request<Incoming>, path: &str) -> Response<Body> {
    if request.method() != Method::POST {
        return method_not_allowed();
    }
    let body = match Limited::new(request.into_body(), LONGEST_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return openai_error(StatusCode::BAD_REQUEST, "BadRequestError", &error.to_string()),
    };
    let wrong = |error: String| openai_error(StatusCode::BAD_REQUEST, "BadRequestError", &error);
    match path {
        "/sim/failure" => match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) if failure.for_s.is_some_and(|s| !(0.0..1e9).contains(&s)) => {
                wrong("for_s must be a number of seconds from 0".into())
            }
            Ok(failure) => {
                context.inject(failure);
                json_response(StatusCode::OK, &json!({}))
            }
            Err(error) => wrong(error.to_string()),
        },
        "/sim/queue" => match serde_json::from_slice::<FillQueue>(&body) {
            Ok(fill) if fill.waiting > MOST_SYNTHETIC || !(0.0..1e9).contains(&fill.for_s) => wrong(format!(
                "waiting must be at most {MOST_SYNTHETIC}, for_s a number of seconds from 0"
            )),
            Ok(fill) => {
                let engine = context.engine.clone();
                let ids = engine.fill_queue(fill.waiting, fill.prompt_tokens);
                let submitted = ids.len();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs_f64(fill.for_s)).await;
                    engine.abort(&ids);
                });
                json_response(StatusCode::OK, &json!({"submitted": submitted}))
            }
            Err(error) => wrong(error.to_string()),
        },
        _ => not_found(),
    }
}
