//! The OpenAI-compatible requests and answers.

use serde::Deserialize;
use serde_json::{Value, json};

use super::stats::FinishReason;

/// Which of the two endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    Chat,
}

/// Tokens a word counts for. Prompts given as token ids are counted exactly.
const TOKENS_PER_WORD: f64 = 1.3;
/// Tokens of a chat template around each message.
const TOKENS_PER_MESSAGE: u32 = 4;
/// Output length when the request does not say.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// What is wrong with a request; the text goes to the client with status 400.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or a field has the wrong type.
    #[error("the body is not a valid request: {0}")]
    Json(String),
    /// A field is missing or has a value this engine does not take.
    #[error("{field}: {problem}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// A request, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Model or adapter named, if any.
    pub model: Option<String>,
    /// Prompt length, tokens.
    pub prompt_tokens: u32,
    /// Output length, tokens: exactly `max_tokens`.
    pub output_tokens: u32,
    /// Whether to stream.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
}

#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    prompt: Option<Value>,
    messages: Option<Vec<Message>>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n: Option<u64>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Value,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Reads a request body.
///
/// # Errors
/// Says which field is wrong.
pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Completion, Error> {
    let body: Body = serde_json::from_slice(body).map_err(|cause| Error::Json(cause.to_string()))?;
    let field = |field, problem: &str| Error::Field {
        field,
        problem: problem.into(),
    };
    if body.n.unwrap_or(1) != 1 {
        return Err(field(
            "n",
            "this engine makes one sequence per request, so it must be 1",
        ));
    }
    let prompt_tokens = match endpoint {
        Endpoint::Completions => prompt_tokens(&body.prompt.ok_or_else(|| field("prompt", "is required"))?)?,
        Endpoint::Chat => {
            let messages = body.messages.ok_or_else(|| field("messages", "is required"))?;
            messages
                .iter()
                .map(|m| TOKENS_PER_MESSAGE + content_tokens(&m.content))
                .sum()
        }
    };
    if prompt_tokens == 0 {
        return Err(field("prompt", "is empty: at least one token is needed"));
    }
    let output_tokens = match body.max_completion_tokens.or(body.max_tokens) {
        None => DEFAULT_MAX_TOKENS,
        Some(n) => u32::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| Error::Field {
            field: "max_tokens",
            problem: format!("must be at least 1, got {n}"),
        })?,
    };
    Ok(Completion {
        model: body.model,
        prompt_tokens,
        output_tokens,
        stream: body.stream.unwrap_or(false),
        include_usage: body.stream_options.is_some_and(|o| o.include_usage),
    })
}

fn prompt_tokens(prompt: &Value) -> Result<u32, Error> {
    let field = |problem: &str| Error::Field {
        field: "prompt",
        problem: problem.into(),
    };
    match prompt {
        Value::String(text) => Ok(text_tokens(text)),
        Value::Array(items) if items.iter().all(Value::is_number) => {
            u32::try_from(items.len()).map_err(|_| field("has too many tokens"))
        }
        Value::Array(items) if items.len() == 1 => prompt_tokens(&items[0]),
        Value::Array(_) => Err(field("holds several prompts; this engine takes one per request")),
        _ => Err(field("must be a string or an array of token ids")),
    }
}

fn content_tokens(content: &Value) -> u32 {
    match content {
        Value::String(text) => text_tokens(text),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part.get("text")?.as_str())
            .map(text_tokens)
            .sum(),
        _ => 0,
    }
}

fn text_tokens(text: &str) -> u32 {
    (text.split_whitespace().count() as f64 * TOKENS_PER_WORD).ceil() as u32
}

/// The output's words; token `n` of any request is always the same.
const WORDS: &[&str] = &[
    " the", " model", " said", " that", " a", " fleet", " of", " small", " engines", " can",
];

fn word(index: u32) -> &'static str {
    WORDS[index as usize % WORDS.len()]
}

fn reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
    }
}

/// Writes the answers to one request.
#[derive(Debug, Clone)]
pub struct Answer {
    endpoint: Endpoint,
    id: String,
    model: String,
    created_s: u64,
    completion: Completion,
}

impl Answer {
    /// For a request under this number, made by the model of this name at this Unix time.
    pub fn new(endpoint: Endpoint, number: u64, model: String, created_s: u64, completion: Completion) -> Self {
        let prefix = if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            endpoint,
            id: format!("{prefix}-{number:032x}"),
            model,
            created_s,
            completion,
        }
    }

    fn usage(&self, output_tokens: u32) -> Value {
        let prompt_tokens = self.completion.prompt_tokens;
        json!({
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + output_tokens,
            "completion_tokens": output_tokens,
            "prompt_tokens_details": null,
        })
    }

    fn object(&self, streaming: bool) -> &'static str {
        match (self.endpoint, streaming) {
            (Endpoint::Completions, _) => "text_completion",
            (Endpoint::Chat, true) => "chat.completion.chunk",
            (Endpoint::Chat, false) => "chat.completion",
        }
    }

    /// The answer in one piece.
    pub fn whole(&self, output_tokens: u32, finish: FinishReason) -> String {
        let text: String = (1..=output_tokens).map(word).collect();
        let choice = match self.endpoint {
            Endpoint::Completions => json!({
                "index": 0, "text": text, "logprobs": null, "finish_reason": reason(finish), "stop_reason": null,
            }),
            Endpoint::Chat => json!({
                "index": 0, "message": {"role": "assistant", "content": text}, "logprobs": null,
                "finish_reason": reason(finish), "stop_reason": null,
            }),
        };
        json!({
            "id": self.id, "object": self.object(false), "created": self.created_s, "model": self.model,
            "choices": [choice], "usage": self.usage(output_tokens),
        })
        .to_string()
    }

    /// Appends the event of one token. The first event of a chat also says the role.
    pub fn push_token(&self, out: &mut String, index: u32, finish: Option<FinishReason>) {
        let finish_reason = finish.map(reason);
        let choice = match self.endpoint {
            Endpoint::Completions => json!({
                "index": 0, "text": if index > 0 { word(index) } else { "" }, "logprobs": null,
                "finish_reason": finish_reason, "stop_reason": null,
            }),
            Endpoint::Chat => {
                let delta = match index {
                    0 => json!({}),
                    1 => json!({"role": "assistant", "content": word(index)}),
                    _ => json!({"content": word(index)}),
                };
                json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason})
            }
        };
        self.push_event(out, &json!([choice]), None);
    }

    /// Appends what ends a stream: the usage if it was asked for, then `[DONE]`.
    pub fn push_end(&self, out: &mut String, output_tokens: u32) {
        if self.completion.include_usage {
            self.push_event(out, &json!([]), Some(self.usage(output_tokens)));
        }
        out.push_str("data: [DONE]\n\n");
    }

    fn push_event(&self, out: &mut String, choices: &Value, usage: Option<Value>) {
        let mut event = json!({
            "id": self.id, "object": self.object(true), "created": self.created_s, "model": self.model,
            "choices": choices,
        });
        if self.completion.include_usage {
            event["usage"] = usage.unwrap_or(Value::Null);
        }
        out.push_str("data: ");
        out.push_str(&event.to_string());
        out.push_str("\n\n");
    }
}

/// An error as the OpenAI API shows it.
pub fn error_body(status: u16, kind: &str, message: &str) -> String {
    json!({"error": {"message": message, "type": kind, "param": null, "code": status}}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(endpoint: Endpoint, body: &str, expected: Result<(u32, u32), &str>) {
        match (parse(endpoint, body.as_bytes()), expected) {
            (Ok(c), Ok(lengths)) => assert_eq!((c.prompt_tokens, c.output_tokens), lengths),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, _) => panic!("{got:?}"),
        }
    }

    #[test]
    fn lengths_and_mistakes() {
        use Endpoint::{Chat, Completions};
        check(Completions, r#"{"prompt": "one two three"}"#, Ok((4, 16)));
        check(
            Completions,
            r#"{"prompt": [5, 6, 7], "max_tokens": 9, "ignore_eos": true}"#,
            Ok((3, 9)),
        );
        check(Completions, r#"{"prompt": [[5, 6, 7]], "max_tokens": 9}"#, Ok((3, 9)));
        check(Completions, r#"{"prompt": ["a b"], "max_tokens": 1}"#, Ok((3, 1)));
        check(Completions, r#"{"prompt": ["a", "b"]}"#, Err("one per request"));
        check(Completions, r#"{"prompt": ""}"#, Err("empty"));
        check(Completions, r#"{"prompt": 3}"#, Err("token ids"));
        check(Completions, r#"{"max_tokens": 3}"#, Err("prompt: is required"));
        check(Completions, r#"{"prompt": "a", "max_tokens": 0}"#, Err("at least 1"));
        check(Completions, r#"{"prompt": "a", "n": 2}"#, Err("n: "));
        check(Completions, "{", Err("not a valid request"));
        let chat = r#"{"messages": [{"role": "user", "content": "a b"}], "max_completion_tokens": 5, "max_tokens": 6}"#;
        check(Chat, chat, Ok((7, 5)));
        check(
            Chat,
            r#"{"messages": [{"content": [{"type": "text", "text": "a"}]}]}"#,
            Ok((6, 16)),
        );
        check(Chat, r#"{"prompt": "a"}"#, Err("messages"));
    }
}
