//! The families of vLLM 0.32 with the Python front end.

use super::exposition::{Family, Labels, Value};
use super::http_stats::status_class;
use super::process;
use super::stats::{Bounds, merged, total};
use super::view::{Families, Rank, View, one_two_five};

pub(super) const TTFT_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
pub(super) const ITL_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
pub(super) const LATENCY_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// Upper bounds of sleep and wake-up durations, s.
pub(super) const SLEEP_OPERATION_S: &[f64] = &[0.01, 0.1, 1.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

pub(super) const FINISH_REASONS: &[&str] = &["stop", "length", "abort", "error", "repetition"];

/// Bucket bounds; lengths end at the longest request this deployment takes.
pub fn bounds(max_model_len: u32) -> Bounds {
    Bounds {
        ttft_s: TTFT_S.into(),
        itl_s: ITL_S.into(),
        e2e_s: LATENCY_S.into(),
        queue_s: LATENCY_S.into(),
        phase_s: LATENCY_S.into(),
        tokens: one_two_five(max_model_len).into(),
    }
}

/// All families of a scrape.
pub fn families(view: &View<'_>) -> Vec<Family> {
    let mut f = Families::new((!view.multiprocess).then_some(view.created_s));
    if !view.multiprocess {
        process::families(&mut f, view.created_s);
    }
    counters_and_gauges(&mut f, view);
    histograms(&mut f, view);
    if !view.lora.adapters.is_empty() {
        f.gauge(
            "vllm:lora_requests_info",
            "Adapters in the batch and in the queue, when last seen.",
            lora_series(view),
        );
    }
    f.gauge(
        "vllm:cache_config_info",
        "The cache configuration, in labels.",
        cache_config(view),
    );
    http(&mut f, view);
    sleep_operations(&mut f, view);
    f.into_inner()
}

fn zero(_: &Rank) -> u64 {
    0
}

fn counters_and_gauges(f: &mut Families, view: &View<'_>) {
    let per_gpu = "Estimate for model utilisation, per GPU; zero unless it is enabled.";
    f.counter("vllm:estimated_flops_per_gpu", per_gpu, view.per_rank(zero));
    f.counter("vllm:estimated_read_bytes_per_gpu", per_gpu, view.per_rank(zero));
    f.counter("vllm:estimated_write_bytes_per_gpu", per_gpu, view.per_rank(zero));
    f.gauge(
        "vllm:num_requests_running",
        "Requests in the batch.",
        view.per_rank(|r| r.stats.gauges.running),
    );
    f.gauge(
        "vllm:num_requests_waiting",
        "Requests in the queue.",
        view.per_rank(|r| r.stats.gauges.waiting),
    );
    let by_reason = view.per_rank_and("reason", &["capacity", "deferred"], waiting_for);
    f.gauge(
        "vllm:num_requests_waiting_by_reason",
        "Requests in the queue, by what they wait for.",
        by_reason,
    );
    let states = view.per_rank_and(
        "sleep_state",
        &["awake", "weights_offloaded", "discard_all"],
        |_, state| {
            let shown = match state {
                "awake" => 0,
                "weights_offloaded" => 1,
                _ => 2,
            };
            u64::from(view.sleep.level == shown).into()
        },
    );
    f.gauge("vllm:engine_sleep_state", "1 for the state the engine is in.", states);
    f.gauge(
        "vllm:kv_cache_usage_perc",
        "Share of the KV cache in use; 1 is full.",
        view.per_rank(kv_usage),
    );
    f.counter(
        "vllm:prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
        view.per_rank(|r| r.stats.prefix_queries),
    );
    f.counter(
        "vllm:prefix_cache_hits",
        "Prompt tokens found in the prefix cache.",
        view.per_rank(|r| r.stats.prefix_hits),
    );
    let external = "Prompt tokens in a shared cache of several instances; there is none here.";
    f.counter("vllm:external_prefix_cache_queries", external, view.per_rank(zero));
    f.counter("vllm:external_prefix_cache_hits", external, view.per_rank(zero));
    f.counter(
        "vllm:mm_cache_queries",
        "Multi-modal items looked up.",
        view.per_rank(zero),
    );
    f.counter("vllm:mm_cache_hits", "Multi-modal items found.", view.per_rank(zero));
    f.counter(
        "vllm:num_preemptions",
        "Preemptions.",
        view.per_rank(|r| r.stats.preemptions),
    );
    f.counter(
        "vllm:prompt_tokens",
        "Prompt tokens processed.",
        view.per_rank(|r| total(r.stats.prompt_tokens)),
    );
    let sources = ["local_compute", "local_cache_hit", "external_kv_transfer"];
    f.counter(
        "vllm:prompt_tokens_by_source",
        "Prompt tokens, by where their KV entries came from.",
        view.per_rank_and("source", &sources, prompt_tokens_from),
    );
    f.counter(
        "vllm:prompt_tokens_cached",
        "Prompt tokens that were cached.",
        view.per_rank(|r| r.stats.cached_prompt_tokens),
    );
    let tiers = ["device", "host", "p2p", "disk", "external_unspecified"];
    f.counter(
        "vllm:prompt_tokens_cached_by_source",
        "Prompt tokens that were cached, by tier.",
        view.per_rank_and("source", &tiers, cached_tokens_from),
    );
    f.counter(
        "vllm:generation_tokens",
        "Output tokens.",
        view.per_rank(|r| total(r.stats.generation_tokens)),
    );
    f.counter(
        "vllm:request_success",
        "Finished requests, by reason.",
        view.per_rank_and("finished_reason", FINISH_REASONS, finished_by),
    );
    let rejections = [("max_num_queued_reqs", view.rejections), ("max_num_queued_tokens", 0)];
    f.counter(
        "vllm:admission_rejections",
        "Requests refused because a queue limit was reached.",
        rejections
            .iter()
            .map(|(reason, n)| {
                (
                    vec![
                        ("model_name", view.model_name.to_owned()),
                        ("reason", (*reason).to_owned()),
                    ],
                    Value::Int(*n),
                )
            })
            .collect(),
    );
}

fn histograms(f: &mut Families, view: &View<'_>) {
    let mut add = |name, help, pick: fn(&super::stats::Stats) -> super::stats::Histogram| {
        f.histogram(name, help, view.histograms(pick));
    };
    add("vllm:request_prompt_tokens", "Prompt length of a request.", |s| {
        s.request_prompt_tokens.clone()
    });
    add("vllm:request_generation_tokens", "Output length of a request.", |s| {
        s.request_generation_tokens.clone()
    });
    add("vllm:iteration_tokens_total", "Tokens of an engine step.", |s| {
        s.iteration_tokens.clone()
    });
    add(
        "vllm:request_max_num_generation_tokens",
        "Output length asked for, over all sequences.",
        |s| s.request_max_tokens.clone(),
    );
    add("vllm:request_params_n", "The n parameter.", |s| s.params_n.clone());
    add("vllm:request_params_max_tokens", "The max_tokens parameter.", |s| {
        s.request_max_tokens.clone()
    });
    add("vllm:time_to_first_token_seconds", "Time to first token, s.", |s| {
        merged(&s.ttft_s)
    });
    add("vllm:inter_token_latency_seconds", "Time between two tokens, s.", |s| {
        s.itl_s.clone()
    });
    add(
        "vllm:request_time_per_output_token_seconds",
        "Mean time per output token of a request, s.",
        |s| merged(&s.tpot_s),
    );
    add("vllm:e2e_request_latency_seconds", "End-to-end latency, s.", |s| {
        merged(&s.e2e_s)
    });
    add("vllm:request_queue_time_seconds", "Time in the queue, s.", |s| {
        s.queue_s.clone()
    });
    add("vllm:request_inference_time_seconds", "Time in the batch, s.", |s| {
        s.inference_s.clone()
    });
    add("vllm:request_prefill_time_seconds", "Time in prefill, s.", |s| {
        s.prefill_s.clone()
    });
    add("vllm:request_decode_time_seconds", "Time in decode, s.", |s| {
        s.decode_s.clone()
    });
    add("vllm:request_num_preemptions", "Preemptions of a request.", |s| {
        s.request_preemptions.clone()
    });
    add(
        "vllm:request_prefill_kv_computed_tokens",
        "Prompt tokens computed for a request.",
        |s| s.request_computed_tokens.clone(),
    );
}

pub(super) fn waiting_for(rank: &Rank, reason: &str) -> Value {
    if reason == "capacity" {
        rank.stats.gauges.waiting.into()
    } else {
        0u64.into()
    }
}

pub(super) fn kv_usage(rank: &Rank) -> f64 {
    rank.stats.gauges.used_blocks as f64 / rank.model.capacity_blocks() as f64
}

pub(super) fn prompt_tokens_from(rank: &Rank, source: &str) -> Value {
    let cached = rank.stats.cached_prompt_tokens;
    match source {
        "local_compute" => (total(rank.stats.prompt_tokens) - cached).into(),
        "local_cache_hit" => cached.into(),
        _ => 0u64.into(),
    }
}

pub(super) fn cached_tokens_from(rank: &Rank, tier: &str) -> Value {
    if tier == "device" {
        rank.stats.cached_prompt_tokens.into()
    } else {
        0u64.into()
    }
}

pub(super) fn finished_by(rank: &Rank, reason: &str) -> Value {
    match reason {
        "length" => total(rank.stats.finished).into(),
        "abort" => rank.stats.engine_aborts.into(),
        _ => 0u64.into(),
    }
}

fn lora_series(view: &View<'_>) -> Vec<(Labels, Value)> {
    view.lora
        .seen
        .iter()
        .map(|((running, waiting), at_s)| {
            let labels = vec![
                ("max_lora", view.lora.max_loras.to_string()),
                ("running_lora_adapters", running.clone()),
                ("waiting_lora_adapters", waiting.clone()),
            ];
            (labels, Value::Float(*at_s))
        })
        .collect()
}

/// vLLM puts its whole cache configuration into labels. What this engine has no notion of is shown as vLLM's default.
fn cache_config(view: &View<'_>) -> Vec<(Labels, Value)> {
    let series = view.ranks.iter().enumerate().map(|(index, rank)| {
        let config = rank.model.config();
        let block = config.block_tokens.to_string();
        // One more than can be used: vLLM keeps a null block.
        let blocks = (rank.model.capacity_blocks() + 1).to_string();
        let tokens = rank.model.capacity_blocks() * u64::from(config.block_tokens);
        let concurrency = super::exposition::python_float(tokens as f64 / f64::from(config.max_model_len));
        let mut labels: Labels = vec![
            ("block_size", block.clone()),
            ("effective_attention_block_size", block),
            ("engine", index.to_string()),
            ("kv_cache_max_concurrency", concurrency),
            ("kv_cache_size_tokens", tokens.to_string()),
            ("num_gpu_blocks", blocks),
        ];
        labels.extend(
            CACHE_CONFIG_DEFAULTS
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        (labels, Value::Int(1))
    });
    series.collect()
}

const CACHE_CONFIG_DEFAULTS: &[(&str, &str)] = &[
    ("_block_size_resolved", "True"),
    ("cache_dtype", "auto"),
    ("cache_hit_alignment_tokens", "None"),
    ("enable_mamba_shared_prefix_checkpoint", "False"),
    ("enable_prefix_caching", "True"),
    ("gpu_memory_utilization", "0.92"),
    ("hash_block_size", "None"),
    ("is_attention_free", "False"),
    ("kv_cache_dtype_skip_layers", "[]"),
    ("kv_cache_layout", "None"),
    ("kv_cache_memory_bytes", "None"),
    ("kv_offloading_backend", "native"),
    ("kv_offloading_size", "None"),
    ("kv_sharing_fast_prefill", "False"),
    ("mamba_block_size", "None"),
    ("mamba_cache_dtype", "auto"),
    ("mamba_cache_mode", "none"),
    ("mamba_page_size_padded", "None"),
    ("mamba_ssm_cache_dtype", "float32"),
    ("num_cpu_blocks", "None"),
    ("num_gpu_blocks_override", "None"),
    ("prefix_cache_retention_interval", "0"),
    ("prefix_caching_hash_algo", "sha256"),
    ("prefix_match_unit", "None"),
    ("replayssm_buffer_len", "16"),
    ("skip_page_size_padded", "None"),
    ("sliding_window", "None"),
    ("swa_bounded_replay", "True"),
    ("use_kda_recoverssm", "False"),
    ("use_replayssm", "False"),
    ("user_specified_block_size", "False"),
];

fn http(f: &mut Families, view: &View<'_>) {
    let ended: Vec<_> = view.http.routes.iter().filter(|(_, stats)| stats.ended() > 0).collect();
    let mut requests = Vec::new();
    let mut request_bytes = Vec::new();
    let mut response_bytes = Vec::new();
    let mut durations = Vec::new();
    for ((handler, method), stats) in ended {
        let handler = ("handler", (*handler).to_owned());
        let method = ("method", (*method).to_owned());
        let mut classes = std::collections::BTreeMap::<String, u64>::new();
        for (status, n) in &stats.responses {
            *classes.entry(status_class(*status)).or_default() += n;
        }
        for (class, n) in classes {
            requests.push((vec![handler.clone(), method.clone(), ("status", class)], Value::Int(n)));
        }
        request_bytes.push((vec![handler.clone()], stats.ended(), stats.request_bytes as f64));
        response_bytes.push((vec![handler.clone()], stats.ended(), stats.response_bytes as f64));
        durations.push((vec![handler, method], stats.duration_s.clone()));
    }
    f.counter(
        "http_requests",
        "Requests by method, status class and handler.",
        requests,
    );
    f.summary(
        "http_request_size_bytes",
        "Content-Length of requests, by handler.",
        request_bytes,
    );
    f.summary(
        "http_response_size_bytes",
        "Content-Length of responses, by handler.",
        response_bytes,
    );
    f.histogram(
        "http_request_duration_highr_seconds",
        "Duration of all requests, s.",
        vec![(vec![], view.http.duration_s.clone())],
    );
    f.histogram(
        "http_request_duration_seconds",
        "Duration of requests by handler, s.",
        durations,
    );
}

/// Born with the first sleep or wake-up.
fn sleep_operations(f: &mut Families, view: &View<'_>) {
    if view.sleep.operations.is_empty() {
        return;
    }
    let label = |operation: &&'static str| vec![("operation", (*operation).to_owned())];
    let durations = view
        .sleep
        .operations
        .iter()
        .map(|(op, h)| (label(op), h.clone()))
        .collect();
    f.histogram(
        "vllm:sleep_mode_operation_duration_seconds",
        "Duration of a sleep-mode operation, s.",
        durations,
    );
    let in_flight = view
        .sleep
        .operations
        .keys()
        .map(|op| (label(op), Value::Int(0)))
        .collect();
    f.gauge(
        "vllm:sleep_mode_operations_in_flight",
        "Sleep-mode operations going on.",
        in_flight,
    );
}
