//! SGLang 0.4.1 to 0.5.23, and its `/v1/loads`.
//!
//! * Waiting is the queue, plus requests in the grammar queue and, in prefill/decode disaggregation, those in the
//!   bootstrap, preallocation and transfer queues. The prefill *inflight* queue is not added: its requests are done
//!   here and only their KV cache is on its way. `num_decode_host_receive_queue_reqs` is a part of the transfer queue.
//!   This is also what `/v1/loads` counts as `num_waiting_reqs`, save the grammar queue.
//! * Each tensor- or pipeline-parallel rank may report the same numbers (`--enable-metrics-for-all-schedulers`): of a
//!   family and data-parallel rank only the lowest `(pp_rank, tp_rank, moe_ep_rank)` is read. With DP attention the
//!   ranks' `tp_rank`s differ, which is why "`tp_rank` 0" would be the wrong rule.
//! * With priority scheduling each family has a series per `priority` and the total under `priority=""`: the total is
//!   read, and the parts where there is none.
//! * `is_streaming` splits counters and histograms; the parts are added.

use infer_proto::v1;
use serde::Deserialize;

use super::{
    Counter, Gauge, Hint, Latency, Rule,
    Target::{Counter as C, Gauge as G, Latency as L},
};

/// Prefix of all families.
pub const PREFIX: &str = "sglang:";

/// Live JSON, works without `--enable-metrics`.
pub const FAST_PATH: &str = "/v1/loads";

/// Endpoints that hold inference requests: `http_requests_active` also counts the scrape itself and administration.
const INFERENCE_ENDPOINTS: &[&str] = &[
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/classify",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/transcriptions",
    "/generate",
    "/encode",
    "/classify",
    "/invocations",
    "/vertex_generate",
    "/api/chat",
    "/api/generate",
];

/// What SGLang's families mean.
pub fn rules() -> Vec<Rule> {
    vec![
        Rule::new("sglang:num_running_reqs", G(Gauge::Running)),
        Rule::new("sglang:num_queue_reqs", G(Gauge::Waiting)),
        Rule::new("sglang:num_grammar_queue_reqs", G(Gauge::Waiting)),
        Rule::new("sglang:num_prefill_bootstrap_queue_reqs", G(Gauge::Waiting)),
        Rule::new("sglang:num_decode_prealloc_queue_reqs", G(Gauge::Waiting)),
        Rule::new("sglang:num_decode_transfer_queue_reqs", G(Gauge::Waiting)),
        Rule::new("sglang:token_usage", G(Gauge::KvUsage)),
        Rule::new("sglang:max_total_num_tokens", G(Gauge::KvCapacityTokens)),
        Rule::new("sglang:http_requests_active", G(Gauge::InFlight))
            .with("method", &["POST"])
            .with("endpoint", INFERENCE_ENDPOINTS),
        Rule::new("sglang:prompt_tokens", C(Counter::PromptTokens)),
        Rule::new("sglang:cached_tokens", C(Counter::PromptTokensCached)),
        Rule::new("sglang:generation_tokens", C(Counter::GenerationTokens)),
        Rule::new("sglang:num_requests", C(Counter::Requests)),
        Rule::new("sglang:num_aborted_requests", C(Counter::RequestsFailed)),
        Rule::new("sglang:num_retracted_requests", C(Counter::Preemptions)),
        Rule::new("sglang:time_to_first_token_seconds", L(Latency::Ttft)),
        Rule::new("sglang:inter_token_latency_seconds", L(Latency::Itl)),
        Rule::new("sglang:time_per_output_token_seconds", L(Latency::Itl)).rank(1),
        Rule::new("sglang:request_time_per_output_token_seconds", L(Latency::Tpot)),
        Rule::new("sglang:e2e_request_latency_seconds", L(Latency::E2e)),
        Rule::new("sglang:queue_time_seconds", L(Latency::Queue)),
    ]
}

/// Families by the version that brought them, newest first.
pub const HINTS: &[Hint] = &[
    Hint {
        family: "sglang:request_time_per_output_token_seconds",
        since: "0.5.22",
    },
    Hint {
        family: "sglang:kv_available_tokens",
        since: "0.5.11",
    },
    Hint {
        family: "sglang:num_pages",
        since: "0.5.11",
    },
    Hint {
        family: "sglang:cache_config_info",
        since: "0.5.9",
    },
    Hint {
        family: "sglang:num_retracted_requests",
        since: "0.5.7",
    },
    Hint {
        family: "sglang:queue_time_seconds",
        since: "0.5.3",
    },
    Hint {
        family: "sglang:inter_token_latency_seconds",
        since: "0.4.3",
    },
];

#[derive(Deserialize)]
struct Loads {
    loads: Vec<Load>,
}

#[derive(Deserialize)]
struct Load {
    num_running_reqs: Option<f64>,
    num_waiting_reqs: Option<f64>,
    max_total_num_tokens: Option<f64>,
    max_running_requests: Option<f64>,
    token_usage: Option<f64>,
    queues: Option<Queues>,
}

#[derive(Deserialize)]
struct Queues {
    grammar: Option<f64>,
}

/// Gauges from the JSON of `/v1/loads`, one entry per data-parallel rank: requests, capacity and batch limits are added
/// up, KV usage is the fullest rank's. `Ok(None)` when the answer does not carry the queue: not the engine we know.
pub fn loads(body: &[u8]) -> Result<Option<v1::Gauges>, serde_json::Error> {
    // Some versions answer with the bare list.
    let loads = match body.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'[') => serde_json::from_slice(body)?,
        _ => serde_json::from_slice::<Loads>(body)?.loads,
    };
    let sum = |of: fn(&Load) -> Option<f64>| loads.iter().filter_map(of).filter(|v| *v >= 0.0).reduce(|a, b| a + b);
    let running = sum(|l| l.num_running_reqs);
    let waiting = sum(|l| Some(l.num_waiting_reqs? + l.queues.as_ref().and_then(|q| q.grammar).unwrap_or(0.0)));
    if running.is_none() || waiting.is_none() {
        return Ok(None);
    }
    Ok(Some(v1::Gauges {
        running,
        waiting,
        kv_usage: loads
            .iter()
            .filter_map(|l| l.token_usage)
            .filter(|v| *v >= 0.0)
            .reduce(f64::max),
        kv_capacity_tokens: sum(|l| l.max_total_num_tokens).map(|v| v as u64),
        max_running: sum(|l| l.max_running_requests).map(|v| v as u64),
        in_flight: None,
        asleep: None,
    }))
}
