//! What the captures do not show: other versions, other set-ups.

use infer_proto::v1::Signal;
use infer_reader::{Inspection, Reader, ReaderOptions, inspect};

fn seen(body: &str) -> Inspection {
    inspect(body.as_bytes(), None, None).unwrap_or_else(|e| panic!("{e}\n{body}"))
}

fn histogram(family: &str, labels: &str, counts: [u32; 3]) -> String {
    let [a, b, c] = counts;
    format!(
        "{family}_bucket{{{labels}le=\"0.1\"}} {a}\n{family}_bucket{{{labels}le=\"1.0\"}} {b}\n\
         {family}_bucket{{{labels}le=\"+Inf\"}} {c}\n{family}_count{{{labels}}} {c}\n{family}_sum{{{labels}}} {c}\n"
    )
}

#[test]
fn versions_of_vllm() {
    // families there are, version, front end
    let cases: &[(&[&str], &str, &str)] = &[
        (
            &[
                "num_requests_running{model_name=\"m\"}",
                "gpu_cache_usage_perc{model_name=\"m\"}",
                "num_requests_swapped{model_name=\"m\"}",
            ],
            "<0.11.1",
            "v0",
        ),
        (
            &[
                "num_requests_running{model_name=\"m\"}",
                "gpu_prefix_cache_queries_total{model_name=\"m\"}",
            ],
            ">=0.7.3",
            "python",
        ),
        (
            &[
                "num_requests_running{engine=\"0\",model_name=\"m\"}",
                "kv_cache_usage_perc{engine=\"0\",model_name=\"m\"}",
            ],
            ">=0.9.2",
            "python",
        ),
        (
            &[
                "num_requests_running{engine=\"0\",model_name=\"m\"}",
                "inter_token_latency_seconds_count{engine=\"0\",model_name=\"m\"}",
            ],
            ">=0.10.2",
            "python",
        ),
        (
            &[
                "num_requests_running{engine=\"0\",model_name=\"m\"}",
                "request_time_per_output_token_seconds_count{engine=\"0\"}",
            ],
            ">=0.11.0",
            "python",
        ),
        (
            &["engine_sleep_state{engine=\"0\",sleep_state=\"awake\"}"],
            ">=0.11.1",
            "python",
        ),
        (
            &["prompt_tokens_cached_total{engine=\"0\",model_name=\"m\"}"],
            ">=0.16",
            "python",
        ),
        (
            &[
                "prompt_tokens_by_source_total{engine=\"0\",model_name=\"m\",source=\"x\"}",
                "num_requests_waiting{model_name=\"m\",engine=\"0\"}",
            ],
            ">=0.16",
            "rust",
        ),
        (
            &[
                "num_requests_waiting_by_reason{engine=\"0\"}",
                "num_requests_waiting{engine=\"0\"}",
            ],
            ">=0.22",
            "python",
        ),
        (
            &[
                "request_num_preemptions_count{engine=\"0\"}",
                "num_requests_waiting{engine=\"0\"}",
            ],
            ">=0.30",
            "python",
        ),
        (
            &[
                "admission_rejections_total{reason=\"x\"}",
                "num_requests_waiting{engine=\"0\"}",
            ],
            ">=0.32",
            "python",
        ),
    ];
    for (families, version, front_end) in cases {
        for prefix in ["vllm:", "vllm_"] {
            let body: String = families.iter().map(|f| format!("{prefix}{f} 1.0\n")).collect();
            let seen = seen(&body);
            assert_eq!(
                (&*seen.engine, &*seen.version, &*seen.front_end),
                ("vllm", *version, *front_end),
                "{body}"
            );
        }
    }
}

#[test]
fn old_names_of_vllm() {
    let old = seen(
        "vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.25\nvllm:num_requests_waiting 3\nvllm:num_requests_swapped 2\n",
    );
    assert_eq!(
        (old.gauges.kv_usage, old.gauges.waiting),
        (Some(0.25), Some(5.0)),
        "swapped requests wait"
    );
    // 0.9.2 to 0.11 exposed both; they are not added up.
    let both = seen("vllm:gpu_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n");
    assert_eq!(both.gauges.kv_usage, Some(0.5));
    let itl = seen(&histogram(
        "vllm:time_per_output_token_seconds",
        "engine=\"0\",",
        [1, 2, 3],
    ));
    assert_eq!(
        (itl.itl_ms.map(|d| d.count), itl.tpot_ms),
        (Some(3), None),
        "observed per gap in those versions"
    );
    let names = histogram("vllm:time_per_output_token_seconds", "engine=\"0\",", [1, 2, 3])
        + &histogram("vllm:inter_token_latency_seconds", "engine=\"0\",", [5, 5, 5]);
    assert_eq!(
        seen(&names).itl_ms.map(|d| d.count),
        Some(5),
        "the same gaps under two names"
    );
    // Without `_total`, and cached tokens under their older name.
    let plain = seen(
        "vllm:prompt_tokens{engine=\"0\"} 70\nvllm:prefix_cache_hits{engine=\"0\"} 20\nvllm:external_prefix_cache_hits_total{engine=\"0\"} 5\n",
    );
    assert_eq!(
        (plain.deltas.prompt_tokens, plain.deltas.prompt_tokens_cached),
        (Some(70), Some(25))
    );
    let newer =
        seen("vllm:prompt_tokens_cached_total{engine=\"0\"} 21\nvllm:prefix_cache_hits_total{engine=\"0\"} 20\n");
    assert_eq!(newer.deltas.prompt_tokens_cached, Some(21));
}

#[test]
fn requests_by_their_end() {
    let body = "vllm:request_success_total{engine=\"0\",finished_reason=\"stop\"} 10\n\
                vllm:request_success_total{engine=\"0\",finished_reason=\"length\"} 5\n\
                vllm:request_success_total{engine=\"0\",finished_reason=\"abort\"} 2\n\
                vllm:request_success_total{engine=\"0\",finished_reason=\"error\"} 1\n\
                vllm:admission_rejections_total{reason=\"max_num_queued_reqs\"} 4\n\
                vllm:admission_rejections_total{reason=\"max_num_queued_tokens\"} 3\n";
    let d = seen(body).deltas;
    assert_eq!(
        (d.requests, d.requests_failed, d.requests_rejected),
        (Some(18), Some(3), Some(7))
    );
}

#[test]
fn data_parallel_and_multiprocess_vllm() {
    let body = "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3\nvllm:num_requests_running{engine=\"1\",model_name=\"m\"} 4\n\
                vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 1\nvllm:num_requests_waiting{engine=\"1\",model_name=\"m\"} 0\n\
                vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.2\nvllm:kv_cache_usage_perc{engine=\"1\",model_name=\"m\"} 0.9\n\
                vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 0\nvllm:engine_sleep_state{engine=\"1\",sleep_state=\"awake\"} 1\n\
                vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"2000\"} 1\n\
                vllm:cache_config_info{block_size=\"16\",engine=\"1\",num_gpu_blocks=\"2000\"} 1\n";
    let seen_two = seen(body);
    assert_eq!(seen_two.engines, 2);
    assert_eq!(
        (seen_two.gauges.running, seen_two.gauges.waiting),
        (Some(7.0), Some(1.0))
    );
    assert_eq!(
        (seen_two.gauges.kv_usage, seen_two.gauges.asleep),
        (Some(0.9), Some(false))
    );
    assert_eq!(
        seen_two.gauges.kv_capacity_tokens,
        Some(32_000),
        "num_gpu_blocks is of both together"
    );
    // 0.11.x: one series per API server, most of them stale.
    let pids = "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\",pid=\"7\"} 0\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\",pid=\"8\"} 0.6\n\
                vllm:num_requests_running{engine=\"0\",model_name=\"m\",pid=\"7\"} 5\nvllm:num_requests_running{engine=\"0\",model_name=\"m\",pid=\"8\"} 0\n\
                vllm:num_requests_running{engine=\"1\",model_name=\"m\",pid=\"7\"} 2\nvllm:num_requests_running{engine=\"1\",model_name=\"m\",pid=\"8\"} 2\n";
    let pids = seen(pids);
    assert_eq!((pids.gauges.kv_usage, pids.gauges.running), (Some(0.6), Some(7.0)));
    // Both engines' observations, and no more.
    let ttft = histogram("vllm:time_to_first_token_seconds", "engine=\"0\",", [1, 2, 3])
        + &histogram("vllm:time_to_first_token_seconds", "engine=\"1\",", [0, 0, 4]);
    let ttft = seen(&ttft).ttft_ms.unwrap();
    assert_eq!(
        (ttft.count, ttft.p50.unwrap().low, ttft.p50.unwrap().high),
        (7, 1000.0, None)
    );
}

#[test]
fn any_bounds_will_do() {
    let mut body = String::new();
    let mut bound = 0.01f64;
    for i in 0..50 {
        body += &format!("vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"{bound:?}\"}} {i}\n");
        bound *= 1.25;
    }
    body += "vllm:time_to_first_token_seconds_bucket{engine=\"0\",le=\"+Inf\"} 50\n";
    let ttft = seen(&body).ttft_ms.unwrap();
    let p50 = ttft.p50.unwrap();
    assert!(ttft.count == 50 && p50.high.unwrap() / p50.low < 1.6, "{p50:?}");
    assert_eq!(ttft.sum, None, "no sum, no mean");
    // Unordered, and with Go's way of writing numbers.
    let body = "vllm:e2e_request_latency_seconds_bucket{le=\"+Inf\"} 4\nvllm:e2e_request_latency_seconds_bucket{le=\"1e-01\"} 1\n\
                vllm:e2e_request_latency_seconds_bucket{le=\"2\"} 3\n";
    let e2e = seen(body).e2e_ms.unwrap();
    assert_eq!(
        (e2e.count, e2e.p50.unwrap().low, e2e.p50.unwrap().high),
        (4, 100.0, Some(2000.0))
    );
    // Without +Inf the count stands for it.
    let body = "vllm:e2e_request_latency_seconds_bucket{le=\"2\"} 3\nvllm:e2e_request_latency_seconds_count 4\n";
    assert_eq!(seen(body).e2e_ms.map(|d| d.count), Some(4));
}

#[test]
fn parallel_ranks_of_sglang() {
    let rank = |family: &str, dp: &str, tp: u32, value: f64| {
        format!(
            "sglang:{family}{{dp_rank=\"{dp}\",engine_type=\"unified\",model_name=\"m\",moe_ep_rank=\"0\",pp_rank=\"0\",tp_rank=\"{tp}\"}} {value}\n"
        )
    };
    // DP attention over 4 GPUs: ranks 0 and 1 are engine 0, 2 and 3 are engine 1; all of them report.
    let mut body = String::new();
    for (dp, tp, running, usage) in [
        ("0", 1, 5.0, 0.1),
        ("0", 0, 5.0, 0.1),
        ("1", 2, 7.0, 0.4),
        ("1", 3, 7.0, 0.4),
    ] {
        body += &rank("num_running_reqs", dp, tp, running);
        body += &rank("num_queue_reqs", dp, tp, 1.0);
        body += &rank("token_usage", dp, tp, usage);
        body += &rank("max_total_num_tokens", dp, tp, 1000.0);
    }
    for tp in [0, 1] {
        let labels = format!("dp_rank=\"0\",pp_rank=\"0\",tp_rank=\"{tp}\",");
        body += &histogram("sglang:queue_time_seconds", &labels, [1, 2, 3]);
    }
    body += "sglang:num_retracted_reqs{dp_rank=\"0\",pid=\"3\",tp_rank=\"0\"} 2\n";
    let seen_dp = seen(&body);
    assert_eq!(seen_dp.engines, 2);
    assert_eq!(
        (seen_dp.gauges.running, seen_dp.gauges.waiting),
        (Some(12.0), Some(2.0))
    );
    assert_eq!(
        (seen_dp.gauges.kv_usage, seen_dp.gauges.kv_capacity_tokens),
        (Some(0.4), Some(2000))
    );
    assert_eq!(seen_dp.queue_ms.map(|d| d.count), Some(3));
}

#[test]
fn priorities_and_queues_of_sglang() {
    let body = "sglang:num_running_reqs{priority=\"\",tp_rank=\"0\"} 9\nsglang:num_running_reqs{priority=\"1\",tp_rank=\"0\"} 4\n\
                sglang:num_running_reqs{priority=\"2\",tp_rank=\"0\"} 5\n\
                sglang:num_queue_reqs{priority=\"2\",tp_rank=\"0\"} 3\nsglang:num_queue_reqs{priority=\"7\",tp_rank=\"0\"} 4\n\
                sglang:num_grammar_queue_reqs{tp_rank=\"0\"} 1\n\
                sglang:num_prefill_bootstrap_queue_reqs{tp_rank=\"0\"} 10\nsglang:num_decode_prealloc_queue_reqs{tp_rank=\"0\"} 20\n\
                sglang:num_decode_transfer_queue_reqs{tp_rank=\"0\"} 40\nsglang:num_prefill_inflight_queue_reqs{tp_rank=\"0\"} 100\n\
                sglang:fwd_occupancy{tp_rank=\"0\"} NaN\nsglang:token_usage{tp_rank=\"0\"} NaN\n\
                sglang:routing_key_running_req_count{gt=\"0\",le=\"1\"} 3\n";
    let seen = seen(body);
    assert_eq!(seen.gauges.running, Some(9.0), "the total, not total and parts");
    assert_eq!(
        seen.gauges.waiting,
        Some(7.0 + 1.0 + 70.0),
        "parts where there is no total; queues before execution"
    );
    assert_eq!(
        (seen.gauges.kv_usage, seen.skipped),
        (None, 1),
        "NaN is absent; families we do not read are not counted"
    );
}

#[test]
fn streaming_and_not_of_sglang_are_added() {
    let body = histogram(
        "sglang:time_to_first_token_seconds",
        "is_streaming=\"true\",",
        [1, 2, 3],
    ) + &histogram(
        "sglang:time_to_first_token_seconds",
        "is_streaming=\"false\",",
        [0, 4, 4],
    ) + "sglang:prompt_tokens_total{is_streaming=\"true\"} 5\nsglang:prompt_tokens_total{is_streaming=\"false\"} 6\n";
    let mut reader = Reader::new(ReaderOptions::default());
    reader.advance(b"sglang:num_running_reqs 0\n").unwrap();
    let advance = reader.advance(body.as_bytes()).unwrap();
    assert_eq!(advance.counters.prompt_tokens, Some(11));
    let [ttft] = &advance.histograms[..] else {
        panic!("{:?}", advance.histograms)
    };
    assert_eq!(
        (ttft.signal(), ttft.count, ttft.sum_ms),
        (Signal::Ttft, 7, Some(7000.0))
    );
    let seen = seen(&body).ttft_ms.unwrap();
    assert_eq!(seen.p50.map(|q| (q.low, q.high)), Some((100.0, Some(1000.0))));
}

#[test]
fn adapters_of_the_newest_series() {
    let lora = |running: &str, at: &str| {
        format!(
            "vllm:lora_requests_info{{max_lora=\"2\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"c\"}} {at}\n"
        )
    };
    let body = lora("a", "1.79e9") + &lora("b,a", "1.790001e9") + &lora("", "1.78e9") + &lora("x", "NaN");
    let lora = seen(&body).lora.unwrap();
    assert_eq!(
        (lora.running, lora.waiting, lora.max),
        (vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()], Some(2))
    );
}

#[test]
fn more_engines_than_there_can_be() {
    let body: String = (0..2000)
        .map(|i| format!("vllm:num_requests_running{{engine=\"{i}\"}} 1\n"))
        .collect();
    let seen = seen(&body);
    assert_eq!((seen.engines, seen.skipped), (256, 2000 - 256));
}

#[test]
fn more_bounds_than_there_can_be() {
    let bucket = |le: String, n: u32| format!("vllm:e2e_request_latency_seconds_bucket{{le=\"{le}\"}} {n}\n");
    let body: String = (1..=5000).map(|i| bucket(i.to_string(), i)).collect::<String>() + &bucket("+Inf".into(), 6000);
    let seen = seen(&(body + "vllm:e2e_request_latency_seconds_count 6000\n"));
    let e2e = seen.e2e_ms.unwrap();
    assert_eq!((e2e.count, seen.skipped), (6000, 5001 - 512));
    let p50 = e2e.p50.unwrap();
    assert_eq!((p50.low, p50.high), (512_000.0, None), "wider, and still right");
}
