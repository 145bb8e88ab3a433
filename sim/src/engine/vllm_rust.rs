//! The families of vLLM 0.32 with the Rust front end: OpenMetrics, request series born with the first request, families
//! of features that are off announced without samples.

use std::borrow::Cow;

use super::exposition::{Family, Labels, Value};
use super::http_stats::status_class;
use super::stats::{Bounds, Histogram, Stats, merged, total};
use super::view::{Families, Rank, View, one_two_five};
use super::vllm::{
    ITL_S, LATENCY_S, TTFT_S, cached_tokens_from, finished_by, kv_usage, prompt_tokens_from, waiting_for,
};

const KV_BLOCK_S: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    1200.0, 1800.0,
];
const NIXL_TRANSFER_S: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0];
const NIXL_POST_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0,
];
const NIXL_DESCRIPTORS: &[f64] = &[
    10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 400.0, 1000.0, 2000.0, 4000.0, 10000.0, 20000.0, 50000.0,
];
/// This front end's length bounds do not follow the deployment.
const LONGEST_TOKENS: u32 = 131_072;

/// Bucket bounds.
pub fn bounds() -> Bounds {
    let mut tokens = one_two_five(LONGEST_TOKENS);
    tokens.push(f64::from(LONGEST_TOKENS));
    Bounds {
        ttft_s: TTFT_S.into(),
        itl_s: ITL_S.into(),
        e2e_s: LATENCY_S.into(),
        queue_s: LATENCY_S.into(),
        phase_s: LATENCY_S.into(),
        tokens: tokens.into(),
    }
}

/// All families of a scrape.
pub fn families(view: &View<'_>) -> Vec<Family> {
    let mut f = Families::new(None);
    gauges_and_cache(&mut f, view);
    features_that_are_off(&mut f, view);
    tokens(&mut f, view);
    requests(&mut f, view);
    http(&mut f, view);
    let operations = "Sleep-mode and weight-transfer operations; there are none on this front end.";
    f.histogram("vllm:rl_weight_update_operation_duration_seconds", operations, vec![]);
    f.gauge("vllm:rl_weight_update_operations_in_flight", operations, vec![]);
    f.histogram("vllm:sleep_mode_operation_duration_seconds", operations, vec![]);
    f.gauge("vllm:sleep_mode_operations_in_flight", operations, vec![]);
    f.into_inner()
}

fn zero(_: &Rank) -> u64 {
    0
}

fn gauges_and_cache(f: &mut Families, view: &View<'_>) {
    f.gauge(
        "vllm:num_requests_running",
        "Requests in the batch",
        view.per_rank(|r| r.stats.gauges.running),
    );
    f.gauge(
        "vllm:num_requests_waiting",
        "Requests in the queue",
        view.per_rank(|r| r.stats.gauges.waiting),
    );
    let by_reason = view.per_rank_and("reason", &["deferred", "capacity"], waiting_for);
    f.gauge(
        "vllm:num_requests_waiting_by_reason",
        "Requests in the queue, by what they wait for",
        by_reason,
    );
    f.gauge(
        "vllm:kv_cache_usage_perc",
        "Share of the KV cache in use; 1 is full",
        view.per_rank(kv_usage),
    );
    f.gauge(
        "vllm:lora_requests_info",
        "Adapters in the batch and in the queue.",
        vec![],
    );
    f.counter(
        "vllm:prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
        view.per_rank(|r| r.stats.prefix_queries),
    );
    f.counter(
        "vllm:prefix_cache_hits",
        "Of these, found.",
        view.per_rank(|r| r.stats.prefix_hits),
    );
    let external = "Prompt tokens in a shared cache of several instances; there is none here.";
    f.counter("vllm:external_prefix_cache_queries", external, view.per_rank(zero));
    let tiers = ["host", "device", "disk", "p2p", "external_unspecified"];
    f.counter(
        "vllm:prompt_tokens_cached_by_source",
        "Prompt tokens that were cached, by tier.",
        view.per_rank_and("source", &tiers, cached_tokens_from),
    );
    f.counter("vllm:external_prefix_cache_hits", external, view.per_rank(zero));
}

fn features_that_are_off(f: &mut Families, view: &View<'_>) {
    let empty = |bounds: &'static [f64]| view.histograms(|_| Histogram::new(bounds));
    let speculation = "Speculative decoding, which is off.";
    f.counter("vllm:spec_decode_num_drafts", speculation, view.per_rank(zero));
    f.counter("vllm:spec_decode_num_draft_tokens", speculation, view.per_rank(zero));
    f.counter("vllm:spec_decode_num_accepted_tokens", speculation, view.per_rank(zero));
    f.counter("vllm:spec_decode_num_accepted_tokens_per_pos", speculation, vec![]);
    let estimate = "Estimate for model utilisation, per GPU; zero unless it is enabled.";
    f.counter("vllm:estimated_flops_per_gpu", estimate, view.per_rank(zero));
    f.counter("vllm:estimated_read_bytes_per_gpu", estimate, view.per_rank(zero));
    f.counter("vllm:estimated_write_bytes_per_gpu", estimate, view.per_rank(zero));
    let block = "Sampled life of KV blocks, s; off.";
    f.histogram("vllm:kv_block_lifetime_seconds", block, empty(KV_BLOCK_S));
    f.histogram("vllm:kv_block_idle_before_evict_seconds", block, empty(KV_BLOCK_S));
    f.histogram("vllm:kv_block_reuse_gap_seconds", block, empty(KV_BLOCK_S));
    let store = "Mooncake store, which is off.";
    f.histogram("vllm:mooncake_store_operation_time_seconds", store, vec![]);
    f.counter("vllm:mooncake_store_operation", store, vec![]);
    f.counter("vllm:mooncake_store_operation_keys", store, vec![]);
    f.counter("vllm:mooncake_store_operation_bytes", store, vec![]);
    f.counter("vllm:mooncake_store_operation_failed_keys", store, vec![]);
    let nixl = "KV transfers over NIXL, which is off.";
    f.histogram("vllm:nixl_xfer_time_seconds", nixl, empty(NIXL_TRANSFER_S));
    f.histogram("vllm:nixl_post_time_seconds", nixl, empty(NIXL_POST_S));
    let bytes: Vec<f64> = (0..12).map(|i| f64::from(2048u32) * 4f64.powi(i)).collect();
    let bytes = view.histograms(|_| Histogram::new(Cow::Owned(bytes.clone())));
    f.histogram("vllm:nixl_bytes_transferred", nixl, bytes);
    f.histogram("vllm:nixl_num_descriptors", nixl, empty(NIXL_DESCRIPTORS));
    f.counter("vllm:nixl_num_failed_transfers", nixl, view.per_rank(zero));
    f.counter("vllm:nixl_num_failed_notifications", nixl, view.per_rank(zero));
    f.counter("vllm:nixl_num_kv_expired_reqs", nixl, view.per_rank(zero));
}

/// Only the ranks that have seen a request: this front end makes series when it first needs them.
fn born<T>(
    view: &View<'_>,
    series: Vec<(Labels, T)>,
    per_rank: usize,
    is_born: fn(&Stats) -> bool,
) -> Vec<(Labels, T)> {
    let mut series = series.into_iter();
    let mut kept = Vec::new();
    // `per_rank_and` goes label by label and rank by rank, so position modulo ranks is the rank.
    for _ in 0..per_rank {
        for rank in view.ranks {
            if let Some(one) = series.next()
                && is_born(&rank.stats)
            {
                kept.push(one);
            }
        }
    }
    kept
}

fn has_first_token(stats: &Stats) -> bool {
    total(stats.prompt_tokens) > 0
}

fn has_finished(stats: &Stats) -> bool {
    total(stats.finished) > 0
}

fn tokens(f: &mut Families, view: &View<'_>) {
    f.histogram(
        "vllm:iteration_tokens_total",
        "Tokens of an engine step that had output.",
        view.histograms(|s| s.iteration_tokens.clone()),
    );
    f.counter(
        "vllm:num_preemptions",
        "Preemptions.",
        view.per_rank(|r| r.stats.preemptions),
    );
    let prompt = view.per_rank(|r| total(r.stats.prompt_tokens));
    f.counter(
        "vllm:prompt_tokens",
        "Prompt tokens processed.",
        born(view, prompt, 1, has_first_token),
    );
    let others = view.per_rank_and(
        "source",
        &["external_kv_transfer", "local_cache_hit"],
        prompt_tokens_from,
    );
    let mut sources = born(view, others, 2, has_first_token);
    sources.extend(view.per_rank_and("source", &["local_compute"], prompt_tokens_from));
    f.counter(
        "vllm:prompt_tokens_by_source",
        "Prompt tokens, by where their KV entries came from.",
        sources,
    );
    let cached = view.per_rank(|r| r.stats.cached_prompt_tokens);
    f.counter(
        "vllm:prompt_tokens_cached",
        "Prompt tokens that were cached.",
        born(view, cached, 1, has_first_token),
    );
    f.counter(
        "vllm:generation_tokens",
        "Output tokens.",
        view.per_rank(|r| total(r.stats.generation_tokens)),
    );
    let corrupted = born(view, view.per_rank(zero), 1, has_first_token);
    f.counter(
        "vllm:corrupted_requests",
        "Requests whose logits were not numbers.",
        corrupted,
    );
    let mut success = born(
        view,
        view.per_rank_and("finished_reason", &["length"], finished_by),
        1,
        has_finished,
    );
    let aborted = view.per_rank_and("finished_reason", &["abort"], finished_by);
    success.extend(born(view, aborted, 1, |s| s.engine_aborts > 0));
    f.counter("vllm:request_success", "Finished requests, by reason.", success);
}

fn requests(f: &mut Families, view: &View<'_>) {
    let mut add = |name, help, is_born: fn(&Stats) -> bool, pick: fn(&Stats) -> Histogram| {
        f.histogram(name, help, born(view, view.histograms(pick), 1, is_born));
    };
    add(
        "vllm:request_prompt_tokens",
        "Prompt length of a request.",
        has_finished,
        |s| s.request_prompt_tokens.clone(),
    );
    add(
        "vllm:request_generation_tokens",
        "Output length of a request.",
        has_finished,
        |s| s.request_generation_tokens.clone(),
    );
    let max_tokens = |s: &Stats| s.request_max_tokens.clone();
    add(
        "vllm:request_max_num_generation_tokens",
        "Output length asked for.",
        has_finished,
        max_tokens,
    );
    add(
        "vllm:request_params_max_tokens",
        "The max_tokens parameter.",
        has_finished,
        max_tokens,
    );
    add("vllm:request_params_n", "The n parameter.", has_finished, |s| {
        s.params_n.clone()
    });
    add(
        "vllm:request_num_preemptions",
        "Preemptions of a request.",
        has_finished,
        |s| s.request_preemptions.clone(),
    );
    add(
        "vllm:request_prefill_kv_computed_tokens",
        "Prompt tokens computed for a request.",
        has_finished,
        |s| s.request_computed_tokens.clone(),
    );
    add(
        "vllm:time_to_first_token_seconds",
        "Time to first token, s.",
        has_first_token,
        |s| merged(&s.ttft_s),
    );
    add(
        "vllm:inter_token_latency_seconds",
        "Time between two tokens, s.",
        |s| s.itl_s.count() > 0,
        |s| s.itl_s.clone(),
    );
    add(
        "vllm:e2e_request_latency_seconds",
        "End-to-end latency, s.",
        has_finished,
        |s| merged(&s.e2e_s),
    );
    add(
        "vllm:request_queue_time_seconds",
        "Time in the queue, s.",
        has_finished,
        |s| s.queue_s.clone(),
    );
    add(
        "vllm:request_prefill_time_seconds",
        "Time in prefill, s.",
        has_finished,
        |s| s.prefill_s.clone(),
    );
    add(
        "vllm:request_decode_time_seconds",
        "Time in decode, s.",
        has_finished,
        |s| s.decode_s.clone(),
    );
    add(
        "vllm:request_inference_time_seconds",
        "Time in the batch, s.",
        has_finished,
        |s| s.inference_s.clone(),
    );
    add(
        "vllm:request_time_per_output_token_seconds",
        "Mean time per output token, s.",
        has_finished,
        |s| merged(&s.tpot_s),
    );
}

fn http(f: &mut Families, view: &View<'_>) {
    let mut requests = Vec::new();
    let mut durations = Vec::new();
    for ((handler, method), stats) in view.http.routes.iter().filter(|(_, stats)| stats.ended() > 0) {
        let mut classes = std::collections::BTreeMap::<String, u64>::new();
        for (status, n) in &stats.responses {
            *classes.entry(status_class(*status)).or_default() += n;
        }
        for (class, n) in classes {
            let labels = vec![
                ("method", (*method).to_owned()),
                ("status", class),
                ("handler", (*handler).to_owned()),
            ];
            requests.push((labels, Value::Int(n)));
        }
        let labels = vec![("method", (*method).to_owned()), ("handler", (*handler).to_owned())];
        durations.push((labels, stats.duration_s.clone()));
    }
    f.counter(
        "http_requests",
        "Requests by method, status class and handler.",
        requests,
    );
    f.histogram(
        "http_request_duration_seconds",
        "Duration of requests by method and handler, s.",
        durations,
    );
    f.histogram(
        "http_request_duration_highr_seconds",
        "Duration of all requests, s.",
        vec![(vec![], view.http.duration_s.clone())],
    );
}
