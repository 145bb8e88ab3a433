//! vLLM 0.6.6 to 0.33: V1 with its Python and its Rust front end, data parallel, and the old V0 engine.
//!
//! * `num_requests_waiting` counts every queued request whatever it waits for (its `_by_reason` and
//!   `num_requests_kv_fetch_by_stage` are parts of it). V0 kept preempted requests apart, in `num_requests_swapped`:
//!   they wait too and are added.
//! * Inter-token latency is `inter_token_latency_seconds` since 0.10.2 and was called `time_per_output_token_seconds`
//!   before (both exist up to 0.15); either is observed per gap between two tokens, not per request, so both are ITL.
//!   TPOT is `request_time_per_output_token_seconds` (since 0.11), nothing before.
//! * `gpu_prefix_cache_*` counted blocks; only the token counters of 0.9.2 and later are read.
//! * A data-parallel engine's `cache_config_info` gives `num_gpu_blocks` of all engines together but
//!   `kv_cache_size_tokens` (newer) of its own: the latter is added up, the former is not.

use super::{
    Counter, Gauge, Hint, Latency, Rule,
    Target::{Counter as C, Gauge as G, Latency as L},
};

/// Prefix of all families.
pub const PREFIX: &str = "vllm:";

/// The paths that ask for three gauges only. Answered by the Python front end of a single process; an empty body means
/// that the filter is not supported here.
pub const FAST_PATH: &str =
    "/metrics/?name[]=vllm:num_requests_running&name[]=vllm:num_requests_waiting&name[]=vllm:kv_cache_usage_perc";

/// What vLLM's families mean.
pub fn rules() -> Vec<Rule> {
    vec![
        Rule::new("vllm:num_requests_running", G(Gauge::Running)),
        Rule::new("vllm:num_requests_waiting", G(Gauge::Waiting)),
        Rule::new("vllm:num_requests_swapped", G(Gauge::Waiting)),
        Rule::new("vllm:kv_cache_usage_perc", G(Gauge::KvUsage)),
        Rule::new("vllm:gpu_cache_usage_perc", G(Gauge::KvUsage)).rank(1),
        Rule::new("vllm:engine_sleep_state", G(Gauge::Awake)).with("sleep_state", &["awake"]),
        Rule::new("vllm:prompt_tokens", C(Counter::PromptTokens)),
        Rule::new("vllm:prompt_tokens_cached", C(Counter::PromptTokensCached)),
        Rule::new("vllm:prefix_cache_hits", C(Counter::PromptTokensCached)).rank(1),
        Rule::new("vllm:external_prefix_cache_hits", C(Counter::PromptTokensCached)).rank(1),
        Rule::new("vllm:generation_tokens", C(Counter::GenerationTokens)),
        Rule::new("vllm:request_success", C(Counter::Requests)),
        Rule::new("vllm:request_success", C(Counter::RequestsFailed)).with("finished_reason", &["abort", "error"]),
        Rule::new("vllm:admission_rejections", C(Counter::RequestsRejected)),
        Rule::new("vllm:num_preemptions", C(Counter::Preemptions)),
        Rule::new("vllm:time_to_first_token_seconds", L(Latency::Ttft)),
        Rule::new("vllm:inter_token_latency_seconds", L(Latency::Itl)),
        Rule::new("vllm:time_per_output_token_seconds", L(Latency::Itl)).rank(1),
        Rule::new("vllm:request_time_per_output_token_seconds", L(Latency::Tpot)),
        Rule::new("vllm:e2e_request_latency_seconds", L(Latency::E2e)),
        Rule::new("vllm:request_queue_time_seconds", L(Latency::Queue)),
        Rule::new("vllm:time_in_queue_requests", L(Latency::Queue)).rank(1),
    ]
}

/// Families by the version that brought them, newest first.
pub const HINTS: &[Hint] = &[
    Hint {
        family: "vllm:admission_rejections",
        since: "0.32",
    },
    Hint {
        family: "vllm:prompt_tokens_cached_by_source",
        since: "0.32",
    },
    Hint {
        family: "vllm:num_requests_kv_fetch_by_stage",
        since: "0.32",
    },
    Hint {
        family: "vllm:request_num_preemptions",
        since: "0.30",
    },
    Hint {
        family: "vllm:num_requests_waiting_by_reason",
        since: "0.22",
    },
    Hint {
        family: "vllm:prompt_tokens_by_source",
        since: "0.16",
    },
    Hint {
        family: "vllm:prompt_tokens_cached",
        since: "0.16",
    },
    Hint {
        family: "vllm:kv_block_lifetime_seconds",
        since: "0.12",
    },
    Hint {
        family: "vllm:engine_sleep_state",
        since: "0.11.1",
    },
    Hint {
        family: "vllm:mm_cache_queries",
        since: "0.11.1",
    },
    Hint {
        family: "vllm:external_prefix_cache_queries",
        since: "0.11.1",
    },
    Hint {
        family: "vllm:request_time_per_output_token_seconds",
        since: "0.11.0",
    },
    Hint {
        family: "vllm:inter_token_latency_seconds",
        since: "0.10.2",
    },
    Hint {
        family: "vllm:kv_cache_usage_perc",
        since: "0.9.2",
    },
    Hint {
        family: "vllm:prefix_cache_queries",
        since: "0.9.2",
    },
    // Not a version worth telling, but only V1 ever had it: early V1 cannot be told from V0 otherwise.
    Hint {
        family: "vllm:gpu_prefix_cache_queries",
        since: "0.7.3",
    },
];

/// TTFT buckets reach to 2560 s since this version.
pub const LONG_BUCKETS_SINCE: &str = "0.8.5";
/// The V0 engine is gone since this version.
pub const V0_UNTIL: &str = "0.11.1";
