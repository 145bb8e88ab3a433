//! Every capture of a real engine, read and compared with what is known about it and with a simple reading.

use infer_reader::{Inspection, inspect};

use crate::support::{Plain, capture, captures, plain, total};

/// file, engine, version, engines, front end, running, waiting
type Known = (
    &'static str,
    &'static str,
    &'static str,
    u32,
    &'static str,
    Option<f64>,
    Option<f64>,
);

const KNOWN: &[Known] = &[
    (
        "vllm-0.32.0-idle.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-loaded.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(4.0),
        Some(28.0),
    ),
    (
        "vllm-0.32.0-loaded.openmetrics.txt",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(4.0),
        Some(28.0),
    ),
    (
        "vllm-0.32.0-after.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-run1-before.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-run1-after.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-mid-run1-before.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-mid-run1-after.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-rustfe-idle.prom",
        "vllm",
        ">=0.32",
        1,
        "rust",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-rustfe-loaded.prom",
        "vllm",
        ">=0.32",
        1,
        "rust",
        Some(3.0),
        Some(28.0),
    ),
    (
        "vllm-0.32.0-rustfe-after.prom",
        "vllm",
        ">=0.32",
        1,
        "rust",
        Some(0.0),
        Some(0.0),
    ),
    // Multiprocess mode has no gauges before the engines' first step: absent, not zero.
    ("vllm-0.32.0-dp2-idle.prom", "vllm", ">=0.32", 2, "python", None, None),
    (
        "vllm-0.32.0-dp2-loaded.prom",
        "vllm",
        ">=0.32",
        2,
        "python",
        Some(2.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-dp2-after.prom",
        "vllm",
        ">=0.32",
        2,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-lora-idle.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-lora-loaded.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(4.0),
        Some(20.0),
    ),
    (
        "vllm-0.32.0-sleeping.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.32.0-kvpressure-loaded.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(5.0),
        Some(18.0),
    ),
    (
        "vllm-0.32.0-kvpressure-after.prom",
        "vllm",
        ">=0.32",
        1,
        "python",
        Some(0.0),
        Some(0.0),
    ),
    // Before its first request V0 exposes cache_config_info and nothing else: absent, not zero.
    ("vllm-0.8.5-V0-idle.prom", "vllm", "<0.11.1", 1, "v0", None, None),
    ("vllm-0.8.5-V0-run1-before.prom", "vllm", "<0.11.1", 1, "v0", None, None),
    (
        "vllm-0.8.5-V0-loaded.prom",
        "vllm",
        ">=0.8.5",
        1,
        "v0",
        Some(4.0),
        Some(28.0),
    ),
    (
        "vllm-0.8.5-V0-after.prom",
        "vllm",
        ">=0.8.5",
        1,
        "v0",
        Some(0.0),
        Some(0.0),
    ),
    (
        "vllm-0.8.5-V0-run1-after.prom",
        "vllm",
        ">=0.8.5",
        1,
        "v0",
        Some(0.0),
        Some(0.0),
    ),
    (
        "sglang-0.5.23-idle.prom",
        "sglang",
        ">=0.5.11",
        1,
        "",
        Some(0.0),
        Some(0.0),
    ),
    (
        "sglang-0.5.23-run1-before.prom",
        "sglang",
        ">=0.5.11",
        1,
        "",
        Some(0.0),
        Some(0.0),
    ),
    (
        "sglang-0.5.23-loaded.prom",
        "sglang",
        ">=0.5.22",
        1,
        "",
        Some(3.0),
        Some(19.0),
    ),
    (
        "sglang-0.5.23-loaded.openmetrics.txt",
        "sglang",
        ">=0.5.22",
        1,
        "",
        Some(3.0),
        Some(19.0),
    ),
    (
        "sglang-0.5.23-after.prom",
        "sglang",
        ">=0.5.22",
        1,
        "",
        Some(0.0),
        Some(0.0),
    ),
    (
        "sglang-0.5.23-run1-after.prom",
        "sglang",
        ">=0.5.22",
        1,
        "",
        Some(0.0),
        Some(0.0),
    ),
];

#[test]
fn every_capture_is_known() {
    let Some(directory) = captures() else { return };
    for file in std::fs::read_dir(directory).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let listed = KNOWN.iter().any(|known| known.0 == name);
        assert!(
            listed || !(name.ends_with(".prom") || name.ends_with(".txt")),
            "{name} has no entry in KNOWN"
        );
    }
}

#[test]
fn engine_and_gauges() {
    for &(file, engine, version, engines, front_end, running, waiting) in KNOWN {
        let Some(body) = capture(file) else { return };
        let seen = inspect(&body, None, None).unwrap_or_else(|e| panic!("{file}: {e}"));
        let told = (&*seen.engine, &*seen.version, seen.engines, &*seen.front_end);
        assert_eq!(told, (engine, version, engines, front_end), "{file}");
        assert_eq!(seen.gauges.running, running, "{file}");
        assert_eq!(seen.gauges.waiting, waiting, "{file}");
        assert_eq!(seen.skipped, 0, "{file}");
        // V0 without requests names no model.
        let model = if (front_end, running) == ("v0", None) {
            ""
        } else {
            "tiny-llama"
        };
        assert_eq!(seen.model, model, "{file}");
    }
}

/// Counts, sums and gauges of all captures against sums of plainly split lines.
#[test]
fn numbers_equal_a_simple_reading() {
    for &(file, engine, ..) in KNOWN {
        let Some(body) = capture(file) else { return };
        let seen = inspect(&body, None, None).unwrap();
        let lines = plain(&body);
        let of = |name: &str| total(&lines, &format!("{engine}:{name}"), &[]);
        let whole = |value: Option<f64>| value.map(|v| v as u64);
        if engine == "vllm" {
            let older =
                of("prefix_cache_hits_total").map(|hits| hits + of("external_prefix_cache_hits_total").unwrap());
            let cached = of("prompt_tokens_cached_total").or(older);
            assert_eq!(seen.deltas.prompt_tokens, whole(of("prompt_tokens_total")), "{file}");
            assert_eq!(seen.deltas.prompt_tokens_cached, whole(cached), "{file}");
            assert_eq!(
                seen.deltas.generation_tokens,
                whole(of("generation_tokens_total")),
                "{file}"
            );
            assert_eq!(seen.deltas.requests, whole(of("request_success_total")), "{file}");
            assert_eq!(
                seen.deltas.requests_rejected,
                whole(of("admission_rejections_total")),
                "{file}"
            );
            assert_eq!(seen.deltas.preemptions, whole(of("num_preemptions_total")), "{file}");
            let kv = [of("kv_cache_usage_perc"), of("gpu_cache_usage_perc")]
                .into_iter()
                .flatten()
                .next();
            if seen.engines == 1 {
                assert_eq!(seen.gauges.kv_usage, kv, "{file}");
            }
            histograms(file, engine, &lines, &seen);
        } else {
            assert_eq!(seen.deltas.prompt_tokens, whole(of("prompt_tokens_total")), "{file}");
            assert_eq!(
                seen.deltas.prompt_tokens_cached,
                whole(of("cached_tokens_total")),
                "{file}"
            );
            assert_eq!(
                seen.deltas.generation_tokens,
                whole(of("generation_tokens_total")),
                "{file}"
            );
            assert_eq!(seen.deltas.requests, whole(of("num_requests_total")), "{file}");
            assert_eq!(seen.gauges.kv_usage, of("token_usage"), "{file}");
            assert_eq!(seen.gauges.kv_capacity_tokens, Some(20_000), "{file}");
            let active = total(
                &lines,
                "sglang:http_requests_active",
                &[("endpoint", "/v1/completions")],
            );
            assert_eq!(seen.gauges.in_flight, active, "{file}");
            histograms(file, engine, &lines, &seen);
        }
    }
}

fn histograms(file: &str, engine: &str, lines: &[Plain], seen: &Inspection) {
    let queue = if engine == "vllm" {
        "request_queue_time_seconds"
    } else {
        "queue_time_seconds"
    };
    let itl = if seen.front_end == "v0" {
        "time_per_output_token_seconds"
    } else {
        "inter_token_latency_seconds"
    };
    let signals = [
        (&seen.ttft_ms, "time_to_first_token_seconds"),
        (&seen.itl_ms, itl),
        (&seen.tpot_ms, "request_time_per_output_token_seconds"),
        (&seen.e2e_ms, "e2e_request_latency_seconds"),
        (&seen.queue_ms, queue),
    ];
    for (distribution, family) in signals {
        let count = total(lines, &format!("{engine}:{family}_count"), &[]);
        assert_eq!(distribution.as_ref().map(|d| d.count as f64), count, "{file} {family}");
        let Some(d) = distribution else { continue };
        if d.count == 0 {
            assert_eq!(
                (d.mean, d.p50),
                (None, None),
                "{file} {family}: nothing observed, nothing said"
            );
            continue;
        }
        let sum_ms = total(lines, &format!("{engine}:{family}_sum"), &[]).unwrap() * 1e3;
        assert!(
            (d.sum.unwrap() - sum_ms).abs() < 1e-6 * sum_ms.abs(),
            "{file} {family}: {:?} {sum_ms}",
            d.sum
        );
        for q in [d.p50, d.p90, d.p95, d.p99].into_iter().flatten() {
            assert!(
                q.low <= q.estimate && q.high.is_none_or(|high| q.estimate <= high),
                "{file} {family} {q:?}"
            );
        }
    }
}

#[test]
fn what_single_captures_show() {
    let inspected = |file: &str| capture(file).map(|body| inspect(&body, None, None).unwrap());
    let Some(idle) = inspected("vllm-0.32.0-idle.prom") else {
        return;
    };
    assert_eq!(idle.gauges.kv_capacity_tokens, Some(2_097_152));
    assert_eq!(idle.gauges.asleep, Some(false));
    assert_eq!(idle.lora, None);

    let sleeping = inspected("vllm-0.32.0-sleeping.prom").unwrap();
    assert_eq!(sleeping.gauges.asleep, Some(true));

    let pressed = inspected("vllm-0.32.0-kvpressure-after.prom").unwrap();
    assert_eq!(pressed.deltas.preemptions, Some(42));
    assert_eq!(pressed.gauges.kv_capacity_tokens, Some(5120));
    let loaded = inspected("vllm-0.32.0-kvpressure-loaded.prom").unwrap();
    assert!(loaded.gauges.kv_usage.is_some_and(|kv| (0.5..=1.0).contains(&kv)));

    // num_gpu_blocks is that of both engines in each of the two series.
    let dp2 = inspected("vllm-0.32.0-dp2-idle.prom").unwrap();
    assert_eq!(dp2.gauges.kv_capacity_tokens, Some(2 * 2_097_152));

    let v0 = inspected("vllm-0.8.5-V0-after.prom").unwrap();
    assert_eq!(v0.gauges.kv_capacity_tokens, Some(16 * 131_072));
    assert_eq!((v0.gauges.asleep, v0.tpot_ms.clone()), (None, None), "unknown to V0");
    assert_eq!(v0.deltas.requests, Some(150));

    // Rust front end: no sleep state, no cache size, no rejections.
    let rust = inspected("vllm-0.32.0-rustfe-idle.prom").unwrap();
    assert_eq!((rust.gauges.asleep, rust.gauges.kv_capacity_tokens), (None, None));
    assert_eq!((rust.deltas.requests, rust.deltas.requests_rejected), (None, None));
    assert_eq!(rust.ttft_ms, None, "series are born with their first observation");

    // One series per combination of adapters, of which one is the newest.
    let lora = inspected("vllm-0.32.0-lora-loaded.prom").unwrap().lora.unwrap();
    assert_eq!(
        (lora.max, lora.running, lora.waiting),
        (Some(2), vec!["lora-b".to_owned()], vec!["lora-b".to_owned()])
    );
    assert_eq!(
        sleeping.lora.map(|lora| lora.running),
        Some(vec![]),
        "nothing runs while it sleeps"
    );

    let sglang = inspected("sglang-0.5.23-loaded.prom").unwrap();
    assert_eq!(sglang.gauges.in_flight, Some(40.0));
}

/// The same moment through the text format and through OpenMetrics with its underscored names.
#[test]
fn dialects_agree() {
    for engine in ["vllm-0.32.0", "sglang-0.5.23"] {
        let Some(text) = capture(&format!("{engine}-loaded.prom")) else {
            return;
        };
        let open = capture(&format!("{engine}-loaded.openmetrics.txt")).unwrap();
        let (text, open) = (inspect(&text, None, None).unwrap(), inspect(&open, None, None).unwrap());
        assert_eq!(text.gauges.running, open.gauges.running);
        assert_eq!(text.gauges.waiting, open.gauges.waiting);
        assert_eq!((&text.version, &text.model), (&open.version, &open.model));
        assert!(open.ttft_ms.is_some_and(|d| d.count > 0));
        assert!(open.deltas.prompt_tokens.is_some());
    }
}
