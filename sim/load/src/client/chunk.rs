//! The chunks of a streamed completion, of both APIs.

use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;

#[derive(Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    pub(super) usage: Option<Usage>,
    pub(super) error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    /// Where engines put what a reasoning model thinks; newer ones say `reasoning`.
    #[serde(borrow)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning: Option<Cow<'a, str>>,
}

#[derive(Clone, Copy, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: u32,
    #[serde(default)]
    pub(super) completion_tokens: u32,
}

impl Chunk<'_> {
    /// Whether it brings tokens. A completion chunk of empty text does (a token that is half a character), unless it is
    /// the closing one; a chat chunk of empty content only announces the role.
    pub(super) fn has_tokens(&self) -> bool {
        let full = |text: &Option<Cow<'_, str>>| text.as_deref().is_some_and(|text| !text.is_empty());
        self.choices.iter().any(|choice| {
            full(&choice.text)
                || (choice.text.is_some() && choice.finish_reason.is_none())
                || choice.delta.as_ref().is_some_and(|delta| {
                    full(&delta.content) || full(&delta.reasoning_content) || full(&delta.reasoning)
                })
        })
    }

    pub(super) fn finish_reason(&self) -> Option<&str> {
        self.choices.iter().find_map(|choice| choice.finish_reason.as_deref())
    }
}

/// The message of an error object, or the object itself.
pub(super) fn error_text(error: &Value) -> String {
    let message = error.get("message").unwrap_or(error);
    message.as_str().map_or_else(|| message.to_string(), str::to_owned)
}

/// The message of an error answer, which is JSON in the known forms or plain text.
pub(super) fn plain_error(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let text = match &json {
        Some(json) => error_text(json.get("error").unwrap_or(json)),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        "no message".into()
    } else {
        line.chars().take(200).collect()
    }
}
