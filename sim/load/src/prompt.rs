//! Request bodies.

use crate::plan::Arrival;
use crate::random::{self, Purpose};
use bytes::Bytes;
use serde::Serialize;
use std::fmt::Write;
use std::str::FromStr;

/// Which API requests go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`.
    #[default]
    Completions,
    /// `/v1/chat/completions`.
    Chat,
}

impl Api {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

impl FromStr for Api {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "completions" => Ok(Self::Completions),
            "chat" => Ok(Self::Chat),
            _ => Err("expected completions or chat"),
        }
    }
}

/// What prompts are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prompt {
    /// Short words, as many as tokens asked for: about one token each in usual vocabularies, plus a few of a template.
    #[default]
    Words,
    /// Token ids, which give exactly the length asked for. Only the completions API takes them.
    Ids,
}

impl FromStr for Prompt {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "words" => Ok(Self::Words),
            "ids" => Ok(Self::Ids),
            _ => Err("expected words or ids"),
        }
    }
}

/// Words that common vocabularies hold as one token with the space before them.
const WORDS: [&str; 32] = [
    "river", "stone", "light", "table", "green", "house", "water", "small", "night", "paper", "music", "north",
    "bread", "glass", "cloud", "field", "round", "voice", "plant", "early", "metal", "story", "beach", "clear",
    "horse", "plain", "quick", "sound", "train", "world", "young", "seven",
];
/// Ids that every vocabulary has, away from the special ones at its start.
const IDS: std::ops::Range<u32> = 100..1000;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<Content>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<[Message; 1]>,
    max_tokens: u32,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignore_eos: bool,
    temperature: f64,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Ids(Vec<u32>),
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: Content,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// Makes the bodies of a run.
#[derive(Clone, Debug)]
pub(crate) struct Bodies {
    pub(crate) model: String,
    pub(crate) api: Api,
    pub(crate) prompt: Prompt,
    pub(crate) temperature: f64,
    pub(crate) ignore_eos: bool,
    pub(crate) seed: u64,
}

impl Bodies {
    /// The body of one request. Prompts differ from their first token on, so that no prefix cache shortens them.
    pub(crate) fn make(&self, index: u64, arrival: &Arrival) -> Result<Bytes, serde_json::Error> {
        let mut rng = random::stream(self.seed, Purpose::Prompts, index);
        let content = match self.prompt {
            Prompt::Ids => Content::Ids((0..arrival.input_tokens).map(|_| rng.u32(IDS)).collect()),
            Prompt::Words => Content::Text(words(&mut rng, index, arrival.input_tokens)),
        };
        let (prompt, messages) = match self.api {
            Api::Completions => (Some(content), None),
            Api::Chat => (None, Some([Message { role: "user", content }])),
        };
        let body = Body {
            model: &self.model,
            prompt,
            messages,
            max_tokens: arrival.output_tokens,
            ignore_eos: self.ignore_eos,
            temperature: self.temperature,
            stream: true,
            stream_options: StreamOptions { include_usage: true },
        };
        serde_json::to_vec(&body).map(Bytes::from)
    }
}

fn words(rng: &mut fastrand::Rng, index: u64, count: u32) -> String {
    let mut text = String::with_capacity(count as usize * 6 + 8);
    for at in 0..count {
        let word = WORDS[rng.usize(..WORDS.len())];
        // The second word is the request's number, which makes short prompts differ too. Writing to a string cannot fail.
        let _ = if at == 1 {
            write!(text, " {index}")
        } else {
            write!(text, "{}{word}", if at == 0 { "" } else { " " })
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(api: Api, prompt: Prompt, index: u64) -> serde_json::Value {
        let bodies = Bodies {
            model: "m".into(),
            api,
            prompt,
            temperature: 0.0,
            ignore_eos: true,
            seed: 1,
        };
        let arrival = Arrival {
            at_s: 0.0,
            input_tokens: 12,
            output_tokens: 34,
        };
        serde_json::from_slice(&bodies.make(index, &arrival).unwrap()).unwrap()
    }

    #[test]
    fn bodies_have_the_asked_lengths() {
        let ids = body(Api::Completions, Prompt::Ids, 3);
        assert_eq!(ids["prompt"].as_array().unwrap().len(), 12);
        assert_eq!(ids["max_tokens"], 34);
        assert_eq!(ids["ignore_eos"], true);
        assert_eq!(ids["stream_options"]["include_usage"], true);
        let words = body(Api::Completions, Prompt::Words, 3);
        assert_eq!(words["prompt"].as_str().unwrap().split(' ').count(), 12);
        let chat = body(Api::Chat, Prompt::Words, 3);
        assert_eq!(chat["messages"][0]["content"], words["prompt"]);
        assert!(chat.get("prompt").is_none());
    }

    #[test]
    fn prompts_are_repeatable_and_differ_between_requests() {
        assert_eq!(
            body(Api::Completions, Prompt::Words, 3),
            body(Api::Completions, Prompt::Words, 3)
        );
        assert_ne!(
            body(Api::Completions, Prompt::Words, 3),
            body(Api::Completions, Prompt::Words, 4)
        );
        assert_ne!(
            body(Api::Completions, Prompt::Ids, 3),
            body(Api::Completions, Prompt::Ids, 4)
        );
    }
}
