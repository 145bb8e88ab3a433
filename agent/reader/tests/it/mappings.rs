//! Mapping files: the ones we ship, and what is wrong with bad ones.

use infer_proto::v1::{Signal, engine::Kind};
use infer_reader::{Mapping, Reader, ReaderOptions, inspect, render_table};

const TGI: &str = include_str!("../../../mappings/tgi.yaml");
const TENSORRT: &str = include_str!("../../../mappings/tensorrt-llm.yaml");

fn histogram(family: &str, buckets: &[(&str, u32)], sum: f64) -> String {
    let lines: Vec<String> = buckets
        .iter()
        .map(|(le, n)| format!("{family}_bucket{{le=\"{le}\"}} {n}\n"))
        .collect();
    let count = buckets.last().unwrap().1;
    format!(
        "# TYPE {family} histogram\n{}{family}_sum {sum}\n{family}_count {count}\n",
        lines.concat()
    )
}

#[test]
fn text_generation_inference() {
    let body = "# TYPE tgi_queue_size gauge\ntgi_queue_size 7\n# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 12\n\
                tgi_batch_current_max_tokens 4096\n# TYPE tgi_request_count counter\ntgi_request_count 30\n"
        .to_owned()
        + &histogram("tgi_request_duration", &[("0.5", 10), ("2.25", 28), ("+Inf", 30)], 41.5)
        + &histogram("tgi_request_queue_duration", &[("0.001", 5), ("0.5", 30), ("+Inf", 30)], 3.0)
        + &histogram("tgi_request_mean_time_per_token_duration", &[("0.02", 29), ("0.04", 30), ("+Inf", 30)], 0.4)
        + &histogram("tgi_request_input_length", &[("100", 10), ("+Inf", 30)], 6000.0)
        + &histogram("tgi_request_generated_tokens", &[("100", 10), ("+Inf", 30)], 3100.0);
    let mapping = Mapping::from_yaml(TGI).unwrap();
    assert_eq!(mapping.path, "/metrics");
    let seen = inspect(body.as_bytes(), None, Some(mapping.clone())).unwrap();
    assert_eq!((&*seen.engine, &*seen.model, seen.engines), ("tgi", "", 1));
    assert_eq!(
        (seen.gauges.running, seen.gauges.waiting, seen.gauges.kv_usage),
        (Some(12.0), Some(7.0), None)
    );
    assert_eq!(
        (
            seen.deltas.prompt_tokens,
            seen.deltas.generation_tokens,
            seen.deltas.requests
        ),
        (Some(6000), Some(3100), Some(30))
    );
    assert_eq!((seen.ttft_ms.clone(), seen.itl_ms.clone()), (None, None));
    let e2e = seen.e2e_ms.clone().unwrap();
    assert_eq!(
        (e2e.count, e2e.p50.unwrap().low, e2e.p50.unwrap().high),
        (30, 500.0, Some(2250.0))
    );
    assert_eq!(seen.tpot_ms.as_ref().unwrap().p50.unwrap().high, Some(20.0));
    assert_eq!(seen.queue_ms.as_ref().unwrap().p99.unwrap().high, Some(500.0));
    let table = render_table(&seen);
    assert!(
        table.contains("tgi") && table.contains("500..2250") && !table.contains("TTFT"),
        "{table}"
    );

    let mut reader = Reader::new(ReaderOptions { mapping: Some(mapping) });
    reader.advance(b"tgi_queue_size 0\n").unwrap();
    let advance = reader.advance(body.as_bytes()).unwrap();
    assert_eq!(
        reader.engine().map(|e| (e.kind(), &*e.name)),
        Some((Kind::Mapped, "tgi"))
    );
    assert_eq!(reader.fast_path(), None);
    let signals: Vec<Signal> = advance.histograms.iter().map(|h| h.signal()).collect();
    assert_eq!(signals, [Signal::Tpot, Signal::E2e, Signal::Queue]);
    let error = reader
        .advance(b"vllm:num_requests_running 1\n")
        .unwrap_err()
        .to_string();
    assert!(error.contains("the mapping \"tgi\""), "{error}");
}

#[test]
fn tensorrt_llm() {
    let labels = "engine_type=\"trtllm\",model_name=\"llama\"";
    let body = format!(
        "trtllm_num_requests_running{{{labels}}} 3.0\ntrtllm_num_requests_waiting{{{labels}}} 2.0\n\
         trtllm_kv_cache_utilization{{{labels}}} 0.5\ntrtllm_kv_cache_hit_rate{{{labels}}} 0.1\n\
         trtllm_prompt_tokens_total{{{labels}}} 100.0\ntrtllm_generation_tokens_total{{{labels}}} 50.0\n"
    ) + &histogram(
        "trtllm_time_to_first_token_seconds",
        &[("0.1", 4), ("0.25", 5), ("+Inf", 5)],
        0.3,
    ) + &histogram("trtllm_time_per_output_token_seconds", &[("0.01", 4), ("+Inf", 5)], 0.3)
        + &histogram("trtllm_e2e_request_latency_seconds", &[("0.3", 1), ("+Inf", 5)], 9.0)
        + &histogram("trtllm_request_queue_time_seconds", &[("0.3", 5), ("+Inf", 5)], 0.1);
    let mapping = Mapping::from_yaml(TENSORRT).unwrap();
    assert_eq!(mapping.path, "/prometheus/metrics", "its /metrics is JSON");
    let seen = inspect(body.as_bytes(), None, Some(mapping)).unwrap();
    assert_eq!((&*seen.engine, &*seen.model), ("tensorrt-llm", "llama"));
    assert_eq!(
        (seen.gauges.running, seen.gauges.waiting, seen.gauges.kv_usage),
        (Some(3.0), Some(2.0), Some(0.5))
    );
    assert_eq!(
        (
            seen.deltas.prompt_tokens,
            seen.deltas.generation_tokens,
            seen.deltas.requests
        ),
        (Some(100), Some(50), Some(5))
    );
    let counts = [&seen.ttft_ms, &seen.tpot_ms, &seen.e2e_ms, &seen.queue_ms].map(|d| d.as_ref().map(|d| d.count));
    assert_eq!(counts, [Some(5); 4]);
    assert_eq!(seen.itl_ms, None);
}

#[test]
fn filters_scale_units_and_aggregation() {
    let mapping = Mapping::from_yaml(
        "name: triton\npath: /metrics\nmodel_label: model\nengine_label: rank\n\
         gauges:\n\
         - {family: nv_requests, signal: running, labels: {request_type: scheduled}}\n\
         - {family: nv_requests, signal: waiting, labels: {request_type: [waiting, context]}}\n\
         - {family: nv_kv_percent, signal: kv_usage, scale: 0.01, aggregate: max}\n\
         counters:\n- {family: nv_tokens_total, signal: generation_tokens, scale: 2}\n\
         histograms:\n- {family: nv_ttft_ms, signal: ttft, unit: ms}\n",
    )
    .unwrap();
    let body = "nv_requests{model=\"m\",rank=\"0\",request_type=\"scheduled\"} 3\nnv_requests{model=\"m\",rank=\"1\",request_type=\"scheduled\"} 4\n\
                nv_requests{model=\"m\",rank=\"0\",request_type=\"waiting\"} 5\nnv_requests{rank=\"0\",request_type=\"context\"} 6\n\
                nv_requests{model=\"m\",rank=\"0\",request_type=\"max\"} 99\nnv_kv_percent{rank=\"0\"} 20\nnv_kv_percent{rank=\"1\"} 50\n\
                nv_tokens_total{rank=\"0\"} 7\n"
        .to_owned()
        + &histogram("nv_ttft_ms", &[("5", 1), ("25", 2), ("+Inf", 2)], 30.0);
    let seen = inspect(body.as_bytes(), None, Some(mapping)).unwrap();
    assert_eq!(
        (seen.gauges.running, seen.gauges.waiting, seen.gauges.kv_usage),
        (Some(7.0), Some(11.0), Some(0.5))
    );
    assert_eq!(
        (seen.deltas.generation_tokens, seen.engines, &*seen.model),
        (Some(14), 2, "m")
    );
    let ttft = seen.ttft_ms.unwrap();
    assert_eq!((ttft.mean, ttft.p99.unwrap().high), (Some(15.0), Some(25.0)));
}

#[test]
fn mistakes() {
    let good = "name: x\ngauges:\n- {family: a, signal: waiting}\n";
    assert!(Mapping::from_yaml(good).is_ok());
    // file, line in the message, words in the message
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "name: x\ngauge:\n- {family: a, signal: waiting}\n",
            "line 2",
            &["unknown field \"gauge\"", "did you mean \"gauges\"?"],
        ),
        (
            "name: x\ngauges:\n- family: a\n  signl: waiting\n",
            "line 4",
            &["\"signl\"", "did you mean \"signal\"?"],
        ),
        (
            "name: x\ngauges:\n- {family: a, signal: wating}\n",
            "line 3",
            &["\"wating\"", "did you mean \"waiting\"?"],
        ),
        (
            "name: x\ngauges:\n- {family: a, signal: zzzzzz}\n",
            "line 3",
            &["known: running, waiting"],
        ),
        (
            "name: x\ngauges:\n- {family: a, signal: waiting}\nhistograms:\n- {family: b, signal: ttft, unit: seconds}\n",
            "line 5",
            &["seconds", "s, ms"],
        ),
        (
            "name: x\ngauges:\n- {signal: waiting}\n",
            "line 3",
            &["\"family\" is missing"],
        ),
        (
            "gauges:\n- {family: a, signal: waiting}\n",
            "",
            &["\"name\" is missing"],
        ),
        (
            "name: X y\ngauges:\n- {family: a, signal: waiting}\n",
            "line 1",
            &["a-z"],
        ),
        (
            "name: x\npath: metrics\ngauges:\n- {family: a, signal: waiting}\n",
            "line 2",
            &["begin with '/'"],
        ),
        (
            "name: x\ngauges:\n- {family: a b, signal: waiting}\n",
            "line 3",
            &["not a metric name"],
        ),
        (
            "name: x\ngauges:\n- {family: a, signal: waiting, scale: -1}\n",
            "line 3",
            &["above 0"],
        ),
        (
            "name: x\ngauges:\n- {family: a, signal: waiting, scale: .nan}\n",
            "line 3",
            &["above 0"],
        ),
        (
            "name: x\ngauges:\n- {family: a, signal: waiting}\nhistograms:\n- {family: b_bucket, signal: ttft}\n",
            "line 5",
            &["\"b\" instead of \"b_bucket\""],
        ),
        (
            "name: x\ngauges:\n- {family: a, signal: waiting}\nhistograms:\n- {family: b, signal: ttft}\n- {family: c, signal: ttft}\n",
            "",
            &["\"c\"", "mapped already"],
        ),
        (
            "name: x\ngauges:\n- {family: a, signal: kv_usage}\n",
            "",
            &["running or waiting"],
        ),
        ("name: x\nname: y\n", "line 2", &["name"]),
        ("- a\n- b\n", "line 1", &[]),
        ("name: [x\n", "line", &[]),
        ("", "", &[]),
    ];
    for (file, line, words) in cases {
        let error = Mapping::from_yaml(file).unwrap_err().to_string();
        for expected in [line].into_iter().chain(*words) {
            assert!(
                error.contains(expected),
                "{file:?}\nsays {error:?}\nwithout {expected:?}"
            );
        }
    }
}
