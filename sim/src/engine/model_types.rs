//! What goes into the engine model and what comes out of it.

use super::profile::{Batch, Profile};

/// Names a request; chosen by the caller, unique among the requests in the model.
pub type RequestId = u64;

/// One generation request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The caller's name for it.
    pub id: RequestId,
    /// Prompt length, tokens, at least 1.
    pub prompt_tokens: u32,
    /// Exactly how many tokens will be generated, at least 1.
    pub output_tokens: u32,
}

/// What the engine is like.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Iteration times.
    pub profile: Profile,
    /// Most sequences that run at once.
    pub max_num_seqs: u32,
    /// Token budget of one iteration.
    pub max_num_batched_tokens: u32,
    /// KV cache size, tokens; rounded down to whole blocks.
    pub kv_capacity_tokens: u64,
    /// KV block size, tokens.
    pub block_tokens: u32,
    /// Longest prompt plus output, tokens.
    pub max_model_len: u32,
    /// Share of every prompt that is found in the prefix cache, 0 to 1, in whole blocks.
    pub prefix_hit_share: f64,
    /// Half-width of the uniform noise on iteration times, as a share: 0.05 = ±5 %.
    pub jitter_share: f64,
    /// Time compression: every iteration takes its profile time divided by this.
    pub speed: f64,
    /// Seed of the noise.
    pub seed: u64,
}

impl Config {
    /// The engine of a profile, without noise or prefix hits, in real time.
    pub fn new(profile: Profile) -> Self {
        Self {
            max_num_seqs: profile.max_num_seqs,
            max_num_batched_tokens: profile.max_num_batched_tokens,
            kv_capacity_tokens: profile.kv_capacity_tokens,
            block_tokens: 16,
            max_model_len: profile.max_model_len,
            prefix_hit_share: 0.0,
            jitter_share: 0.0,
            speed: 1.0,
            seed: 0,
            profile,
        }
    }
}

/// Why a request cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Prompt or output of length zero.
    #[error("prompt and output must have at least one token")]
    Empty,
    /// It could never finish, however long it waits.
    #[error(
        "prompt of {prompt_tokens} plus output of {output_tokens} tokens is longer than the {limit_tokens} tokens this engine can hold"
    )]
    TooLong {
        /// Prompt length.
        prompt_tokens: u32,
        /// Output length.
        output_tokens: u32,
        /// The most that prompt plus output may have.
        limit_tokens: u64,
    },
}

/// What happened, in order of time. All times are nanoseconds on the caller's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A request got its first place in a batch, or got one again after a preemption.
    Scheduled {
        /// Which.
        id: RequestId,
        /// When the iteration started.
        at_ns: u64,
        /// True the first time.
        first: bool,
        /// Prompt tokens found in the prefix cache.
        cached_tokens: u32,
    },
    /// A running request lost its KV blocks and went back to the head of the queue.
    Preempted {
        /// Which.
        id: RequestId,
        /// When.
        at_ns: u64,
    },
    /// One output token.
    Token {
        /// Whose.
        id: RequestId,
        /// When the iteration that made it ended.
        at_ns: u64,
        /// 1 for the first token.
        index: u32,
        /// Time since the previous token of the same request; none for the first.
        gap_ns: Option<u64>,
    },
    /// The last token is out.
    Finished {
        /// Which.
        id: RequestId,
        /// When.
        at_ns: u64,
        /// Its life.
        summary: Summary,
    },
    /// An iteration ended.
    Iteration {
        /// Start.
        start_ns: u64,
        /// End.
        end_ns: u64,
        /// What it computed.
        batch: Batch,
        /// Tokens handed out at its end.
        emitted_tokens: u32,
        /// Computed prompt tokens of the requests whose first token this was (vLLM's way of counting an iteration).
        first_token_prompt_tokens: u32,
    },
}

impl Event {
    /// When it happened, ns.
    pub fn at_ns(&self) -> u64 {
        match *self {
            Event::Scheduled { at_ns, .. }
            | Event::Preempted { at_ns, .. }
            | Event::Token { at_ns, .. }
            | Event::Finished { at_ns, .. } => at_ns,
            Event::Iteration { end_ns, .. } => end_ns,
        }
    }
}

/// The life of a finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// When it was queued, ns.
    pub queued_ns: u64,
    /// When it was first scheduled, ns.
    pub scheduled_ns: u64,
    /// When its first token came, ns.
    pub first_token_ns: u64,
    /// When its last token came, ns.
    pub last_token_ns: u64,
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Of these, found in the prefix cache.
    pub cached_tokens: u32,
    /// Output tokens.
    pub output_tokens: u32,
    /// How often it was preempted.
    pub preemptions: u32,
}
