//! The families of SGLang 0.5.23, and its `/v1/loads`.

use std::borrow::Cow;

use serde_json::json;

use super::exposition::{Family, Labels, Value};
use super::sglang_off;
use super::stats::{Bounds, Histogram, Stats, total};
use super::view::{Families, Rank, View};

const TTFT_S: &[f64] = &[
    0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0,
];
const ITL_S: &[f64] = &[
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0,
    2.0, 4.0, 6.0, 8.0,
];
const E2E_S: &[f64] = &[
    0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0, 600.0, 1200.0,
    1800.0, 2400.0,
];
const QUEUE_S: &[f64] = &[
    0.0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    70.0, 80.0, 90.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0, 1000.0, 1200.0, 1400.0, 1600.0,
    1800.0, 2000.0, 2500.0, 3000.0,
];
const TOKENS: &[f64] = &[
    100.0,
    300.0,
    500.0,
    700.0,
    1000.0,
    1500.0,
    2000.0,
    3000.0,
    4000.0,
    5000.0,
    6000.0,
    7000.0,
    8000.0,
    9000.0,
    10000.0,
    12500.0,
    15000.0,
    17500.0,
    20000.0,
    22500.0,
    25000.0,
    27500.0,
    30000.0,
    35000.0,
    40000.0,
    60000.0,
    80000.0,
    100_000.0,
    200_000.0,
    300_000.0,
    400_000.0,
    600_000.0,
    800_000.0,
    1_000_000.0,
    1_100_000.0,
];
const IMBALANCE: &[f64] = &[
    1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
const SYNC_WAIT_S: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];
pub(super) const GRAPH_PHASES: &[&str] = &[
    "prefill",
    "decode",
    "target_verify",
    "draft_prefill",
    "draft_decode",
    "draft_extend",
];
const STAGES: &[&str] = &[
    "other",
    "recv_requests",
    "process_input_requests",
    "get_next_batch_to_run",
    "process_queue",
    "run_batch",
    "process_batch_result",
    "sanity_check_cache",
    "idle",
];

/// SGLang writes its gauges on prefill, on going idle and every so many decode steps (`--decode-log-interval`).
pub const DECODE_LOG_INTERVAL: u64 = 40;

/// Bucket bounds.
pub fn bounds() -> Bounds {
    let stages: Vec<f64> = (0..30).map(|i| 0.001 * 1.62f64.powf(f64::from(i))).collect();
    Bounds {
        ttft_s: TTFT_S.into(),
        itl_s: ITL_S.into(),
        e2e_s: E2E_S.into(),
        queue_s: QUEUE_S.into(),
        phase_s: stages.into(),
        tokens: TOKENS.into(),
    }
}

/// All families of a scrape.
pub fn families(view: &View<'_>) -> Vec<Family> {
    let mut f = Families::new(None);
    front_end(&mut f, view);
    capacity(&mut f, view);
    load(&mut f, view);
    sglang_off::families(&mut f, view);
    latencies(&mut f, view);
    scheduler(&mut f, view);
    f.into_inner()
}

/// Labels of the scheduler's series.
pub(super) fn rank_labels(view: &View<'_>, rank: usize) -> Labels {
    let mut labels = request_labels(view);
    labels.extend([
        ("moe_ep_rank", "0".into()),
        ("pp_rank", "0".into()),
        ("tp_rank", "0".into()),
    ]);
    if view.ranks.len() > 1 {
        labels.push(("dp_rank", rank.to_string()));
    }
    labels
}

/// Labels of the front end's series.
pub(super) fn request_labels(view: &View<'_>) -> Labels {
    vec![
        ("engine_type", "unified".to_owned()),
        ("model_name", view.model_name.to_owned()),
    ]
}

pub(super) fn per_rank<V: Into<Value>>(view: &View<'_>, value: impl Fn(&Rank) -> V) -> Vec<(Labels, Value)> {
    view.ranks
        .iter()
        .enumerate()
        .map(|(i, rank)| (rank_labels(view, i), value(rank).into()))
        .collect()
}

fn per_rank_and(
    view: &View<'_>,
    label: &'static str,
    values: &[&str],
    value: impl Fn(&Rank, &str) -> Value,
) -> Vec<(Labels, Value)> {
    let mut series = Vec::new();
    for name in values {
        for (i, rank) in view.ranks.iter().enumerate() {
            let mut labels = rank_labels(view, i);
            labels.push((label, (*name).to_owned()));
            series.push((labels, value(rank, name)));
        }
    }
    series
}

pub(super) fn zero(_: &Rank) -> f64 {
    0.0
}

/// Series per kind of request (streaming or not), summed over ranks, only where such requests were seen.
fn by_streaming<T>(
    view: &View<'_>,
    pick: impl Fn(&Stats, usize) -> T,
    add: impl Fn(T, T) -> T,
    is_empty: impl Fn(&T) -> bool,
) -> Vec<(Labels, T)> {
    let mut series = Vec::new();
    for (streaming, name) in [(1, "true"), (0, "false")] {
        let sum = view.ranks.iter().map(|r| pick(&r.stats, streaming)).reduce(&add);
        if let Some(sum) = sum.filter(|sum| !is_empty(sum)) {
            let mut labels = request_labels(view);
            labels.push(("is_streaming", name.to_owned()));
            series.push((labels, sum));
        }
    }
    series
}

fn counts_by_streaming(view: &View<'_>, pick: impl Fn(&Stats) -> [u64; 2]) -> Vec<(Labels, Value)> {
    by_streaming(view, |s, i| pick(s)[i], |a, b| a + b, |n| *n == 0)
        .into_iter()
        .map(|(labels, n)| (labels, Value::Int(n)))
        .collect()
}

fn add_histograms(mut a: Histogram, b: Histogram) -> Histogram {
    a.merge(&b);
    a
}

/// One histogram over all ranks, absent until it has a value.
fn over_ranks(view: &View<'_>, pick: impl Fn(&Stats) -> Histogram) -> Vec<(Labels, Histogram)> {
    let sum = view.ranks.iter().map(|r| pick(&r.stats)).reduce(add_histograms);
    sum.filter(|h| h.count() > 0)
        .map(|h| (request_labels(view), h))
        .into_iter()
        .collect()
}

fn front_end(f: &mut Families, view: &View<'_>) {
    let components = ["detokenizer", "tokenizer"];
    let cpu = components
        .iter()
        .map(|c| (vec![("component", (*c).to_owned())], Value::Float(0.0)))
        .collect();
    f.counter(
        "sglang:process_cpu_seconds",
        "CPU time of the front-end processes, s.",
        cpu,
    );
    let mut requests = Vec::new();
    let mut responses = Vec::new();
    let mut active = Vec::new();
    for ((endpoint, method), stats) in &view.http.routes {
        let labels = vec![("endpoint", (*endpoint).to_owned()), ("method", (*method).to_owned())];
        requests.push((labels.clone(), Value::Int(stats.started)));
        for (status, n) in &stats.responses {
            let mut labels = labels.clone();
            labels.push(("status_code", status.to_string()));
            responses.push((labels, Value::Int(*n)));
        }
        active.push((labels, Value::Int(stats.active)));
    }
    f.counter("sglang:http_requests", "Requests by endpoint.", requests);
    f.counter("sglang:http_responses", "Responses by endpoint and status.", responses);
    f.counter(
        "sglang:prompt_tokens",
        "Prompt tokens processed.",
        counts_by_streaming(view, |s| s.prompt_tokens),
    );
    f.counter(
        "sglang:generation_tokens",
        "Output tokens.",
        counts_by_streaming(view, |s| s.generation_tokens),
    );
    f.counter(
        "sglang:num_requests",
        "Finished requests.",
        counts_by_streaming(view, |s| s.finished),
    );
    let cached: u64 = view.ranks.iter().map(|r| r.stats.cached_prompt_tokens).sum();
    let mut labels = request_labels(view);
    labels.push(("cache_source", "device".into()));
    let prompt: u64 = view.ranks.iter().map(|r| total(r.stats.prompt_tokens)).sum();
    let cached = if prompt > 0 {
        vec![(labels, Value::Int(cached))]
    } else {
        vec![]
    };
    f.counter(
        "sglang:cached_tokens",
        "Prompt tokens that were cached, by source.",
        cached,
    );
    f.gauge(
        "sglang:routing_keys_active",
        "Routing keys in use.",
        vec![(vec![], Value::Int(0))],
    );
    f.gauge("sglang:http_requests_active", "Requests being served.", active);
}

fn capacity_tokens(rank: &Rank) -> u64 {
    rank.model.capacity_blocks() * u64::from(rank.model.config().block_tokens)
}

fn used_tokens(rank: &Rank) -> u64 {
    rank.stats.gauges.used_blocks * u64::from(rank.model.config().block_tokens)
}

fn usage(rank: &Rank) -> f64 {
    used_tokens(rank) as f64 / capacity_tokens(rank) as f64
}

fn capacity(f: &mut Families, view: &View<'_>) {
    f.gauge(
        "sglang:max_total_num_tokens",
        "Size of the KV cache, tokens.",
        per_rank(view, capacity_tokens),
    );
    f.gauge(
        "sglang:weight_memory_usage_gb",
        "Memory of the weights, GB; not modelled.",
        per_rank(view, zero),
    );
    f.gauge(
        "sglang:kv_cache_memory_usage_gb",
        "Memory of the KV cache, GB; not modelled.",
        per_rank(view, zero),
    );
    let graphs = per_rank_and(view, "phase", GRAPH_PHASES, |_, _| 0.0.into());
    f.gauge(
        "sglang:graph_memory_usage_gb",
        "Memory of captured graphs, GB; not modelled.",
        graphs,
    );
    f.gauge(
        "sglang:page_size",
        "KV page, tokens.",
        per_rank(view, |r| u64::from(r.model.config().block_tokens)),
    );
    f.gauge(
        "sglang:num_pages",
        "KV pages.",
        per_rank(view, |r| r.model.capacity_blocks()),
    );
    f.gauge(
        "sglang:context_len",
        "Longest context, tokens.",
        per_rank(view, |r| u64::from(r.model.config().max_model_len)),
    );
    f.gauge(
        "sglang:startup_available_gpu_memory_gb",
        "Free memory at start, GB; not modelled.",
        per_rank(view, zero),
    );
}

fn load(f: &mut Families, view: &View<'_>) {
    f.gauge(
        "sglang:num_running_reqs",
        "Requests in the batch.",
        per_rank(view, |r| r.stats.gauges.running),
    );
    f.gauge(
        "sglang:num_queue_reqs",
        "Requests in the queue.",
        per_rank(view, |r| r.stats.gauges.waiting),
    );
    f.gauge(
        "sglang:num_grammar_queue_reqs",
        "Requests waiting for a grammar.",
        per_rank(view, zero),
    );
    f.gauge(
        "sglang:gen_throughput",
        "Output tokens per second.",
        per_rank(view, |r| r.stats.gauges.generation_tokens_per_s),
    );
    f.gauge(
        "sglang:cache_hit_rate",
        "Share of prompt tokens that were cached.",
        per_rank(view, hit_rate),
    );
    f.gauge(
        "sglang:decode_sum_seq_lens",
        "Sum of contexts, tokens.",
        per_rank(view, |r| r.stats.gauges.context_tokens),
    );
    f.gauge(
        "sglang:token_usage",
        "Share of the KV cache in use.",
        per_rank(view, usage),
    );
    f.gauge(
        "sglang:full_token_usage",
        "The same for full attention.",
        per_rank(view, usage),
    );
    f.gauge(
        "sglang:swa_token_usage",
        "The same for sliding-window attention.",
        per_rank(view, zero),
    );
    f.gauge(
        "sglang:mamba_usage",
        "The same for state-space layers.",
        per_rank(view, zero),
    );
    f.gauge(
        "sglang:num_used_tokens",
        "KV tokens in use.",
        per_rank(view, used_tokens),
    );
    let free = |r: &Rank| capacity_tokens(r) - used_tokens(r);
    f.gauge("sglang:kv_available_tokens", "KV tokens free.", per_rank(view, free));
    f.gauge(
        "sglang:kv_evictable_tokens",
        "KV tokens that hold only cache.",
        per_rank(view, zero),
    );
    f.gauge(
        "sglang:kv_used_tokens",
        "KV tokens in use by requests.",
        per_rank(view, used_tokens),
    );
}

fn hit_rate(rank: &Rank) -> f64 {
    let queries = rank.stats.prefix_queries;
    if queries == 0 {
        0.0
    } else {
        rank.stats.prefix_hits as f64 / queries as f64
    }
}

fn latencies(f: &mut Families, view: &View<'_>) {
    let histogram = |pick: fn(&Stats) -> &[Histogram; 2]| {
        by_streaming(view, move |s, i| pick(s)[i].clone(), add_histograms, |h| h.count() == 0)
    };
    f.histogram(
        "sglang:time_to_first_token_seconds",
        "Time to first token, s.",
        histogram(|s| &s.ttft_s),
    );
    let itl = over_ranks(view, |s| s.itl_s.clone());
    f.histogram("sglang:inter_token_latency_seconds", "Time between two tokens, s.", itl);
    f.histogram(
        "sglang:e2e_request_latency_seconds",
        "End-to-end latency, s.",
        histogram(|s| &s.e2e_s),
    );
    let tpot = histogram(|s| &s.tpot_s);
    f.histogram(
        "sglang:request_time_per_output_token_seconds",
        "Mean time per output token of a request, s.",
        tpot,
    );
    let prompt = over_ranks(view, |s| s.request_prompt_tokens.clone());
    f.histogram("sglang:prompt_tokens_histogram", "Prompt length of a request.", prompt);
    let uncached = over_ranks(view, |s| s.request_computed_tokens.clone());
    f.histogram(
        "sglang:uncached_prompt_tokens_histogram",
        "Prompt tokens computed for a request.",
        uncached,
    );
    let generation = over_ranks(view, |s| s.request_generation_tokens.clone());
    f.histogram(
        "sglang:generation_tokens_histogram",
        "Output length of a request.",
        generation,
    );
}

fn scheduler(f: &mut Families, view: &View<'_>) {
    let modes = ["input", "device_hit", "host_hit", "storage_hit"];
    let effective = per_rank_and(view, "mode", &modes, |r, mode| match mode {
        "input" => (total(r.stats.prompt_tokens) - r.stats.cached_prompt_tokens).into(),
        "device_hit" => r.stats.cached_prompt_tokens.into(),
        _ => 0u64.into(),
    });
    f.counter(
        "sglang:prefill_effective_tokens",
        "Prefill tokens, each counted once.",
        effective,
    );
    let idle_s = |r: &Rank| (view.uptime_s - r.stats.busy_ns as f64 / 1e9).max(0.0);
    f.counter(
        "sglang:scheduler_idle_seconds",
        "Time without work, s.",
        per_rank(view, idle_s),
    );
    f.counter(
        "sglang:scheduler_process_cpu_seconds",
        "CPU time of the scheduler, s.",
        per_rank(view, zero),
    );
    let mut stages = per_rank_and(view, "category", STAGES, |r, stage| match stage {
        "run_batch" => (r.stats.busy_ns as f64 / 1e9).into(),
        "idle" => idle_s(r).into(),
        _ => 0.0.into(),
    });
    for (labels, _) in &mut stages {
        labels.push(("forward_overlap", "none".into()));
    }
    f.counter("sglang:scheduler_stage_seconds", "Scheduler time by stage, s.", stages);
    let dp = "Data-parallel attention, which is off.";
    let kinds = ["scheduled", "imbalance"];
    let none = |_: &Rank, _: &str| Value::Int(0);
    f.counter(
        "sglang:dp_attention_tokens",
        dp,
        per_rank_and(view, "kind", &kinds, none),
    );
    f.counter(
        "sglang:dp_attention_steps",
        dp,
        per_rank_and(view, "rank_state", &["active", "idle"], none),
    );
    f.counter(
        "sglang:dp_attention_pairs",
        dp,
        per_rank_and(view, "kind", &kinds, none),
    );
    let passes = per_rank_and(view, "mode", &["prefill_none", "decode_none"], |r, mode| match mode {
        "prefill_none" => r.stats.prefill_iterations.into(),
        _ => r.stats.decode_iterations.into(),
    });
    f.counter("sglang:cuda_graph_passes", "Forward passes by graph mode.", passes);
    let modes = ["prefill_compute", "decode", "prefill_cache"];
    let realtime = per_rank_and(view, "mode", &modes, |r, mode| match mode {
        "prefill_compute" => r.stats.computed_prefill_tokens.into(),
        "decode" => r.stats.itl_s.count().into(),
        _ => r.stats.prefix_hits.into(),
    });
    f.counter("sglang:realtime_tokens", "Tokens processed by mode.", realtime);
    let retracted: Vec<_> = per_rank(view, |r| r.stats.preemptions)
        .into_iter()
        .filter(|(_, n)| *n != Value::Int(0))
        .collect();
    f.counter(
        "sglang:num_retracted_requests",
        "Retractions; born with the first.",
        retracted,
    );
    for name in ["sglang:num_retracted_reqs", "sglang:num_paused_reqs"] {
        let mut series = per_rank(view, zero);
        for (labels, _) in &mut series {
            labels.push(("pid", std::process::id().to_string()));
        }
        f.gauge(name, "Requests retracted or paused at the last step.", series);
    }
    let empty = |bounds: &'static [f64]| {
        (0..view.ranks.len())
            .map(|i| (rank_labels(view, i), Histogram::new(Cow::Borrowed(bounds))))
            .collect::<Vec<_>>()
    };
    f.histogram("sglang:dp_attention_token_imbalance_ratio", dp, empty(IMBALANCE));
    f.histogram("sglang:dp_attention_sync_wait_seconds", dp, empty(SYNC_WAIT_S));
    let mut stages = Vec::new();
    for (i, rank) in view.ranks.iter().enumerate() {
        for (stage, histogram) in [
            ("request_process", &rank.stats.request_process_s),
            ("prefill_forward", &rank.stats.prefill_s),
        ] {
            let mut labels = rank_labels(view, i);
            labels.push(("stage", stage.to_owned()));
            stages.push((labels, histogram.clone()));
        }
    }
    f.histogram(
        "sglang:per_stage_req_latency_seconds",
        "Latency of a request's stages, s.",
        stages,
    );
    let queue = view
        .ranks
        .iter()
        .enumerate()
        .map(|(i, r)| (rank_labels(view, i), r.stats.queue_s.clone()))
        .collect();
    f.histogram("sglang:queue_time_seconds", "Time in the queue, s.", queue);
}

/// The live load, which unlike the gauges is never stale.
pub fn loads(ranks: &[Rank], timestamp: &str) -> serde_json::Value {
    let loads: Vec<_> = ranks
        .iter()
        .enumerate()
        .map(|(i, rank)| {
            let model = &rank.model;
            let block = u64::from(model.config().block_tokens);
            json!({
                "dp_rank": i,
                "num_running_reqs": model.running(),
                "num_waiting_reqs": model.waiting(),
                "num_waiting_uncached_tokens": model.waiting_uncached_tokens(),
                "num_total_reqs": model.running() + model.waiting(),
                "num_used_tokens": model.used_blocks() * block,
                "max_total_num_tokens": model.capacity_blocks() * block,
                "max_running_requests": model.config().max_num_seqs,
                "token_usage": model.kv_usage(),
                "gen_throughput": rank.stats.gauges.generation_tokens_per_s,
                "cache_hit_rate": hit_rate(rank),
                "total_prefill_uncached_tokens": rank.stats.computed_prefill_tokens,
                "queues": {"waiting": model.waiting(), "grammar": 0, "paused": 0, "retracted": 0},
            })
        })
        .collect();
    json!({"timestamp": timestamp, "dp_rank_count": ranks.len(), "loads": loads})
}
