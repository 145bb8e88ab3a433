//! What counts as having happened between two bodies.

use infer_proto::v1::{self, Signal, scrape::Outcome};
use infer_reader::{Advance, Error, Reader, ReaderOptions};

use crate::support::capture;

fn reader() -> Reader {
    Reader::new(ReaderOptions::default())
}

/// A small vLLM body: counter, TTFT buckets (≤ 0.1 s, ≤ 1 s, all) and extra lines.
fn body(tokens: f64, ttft: [f64; 3], extra: &str) -> String {
    let [a, b, c] = ttft;
    format!(
        "vllm:num_requests_running{{engine=\"0\",model_name=\"m\"}} 1.0\n\
         vllm:generation_tokens_total{{engine=\"0\",model_name=\"m\"}} {tokens:?}\n\
         vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"0.1\",model_name=\"m\"}} {a:?}\n\
         vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"1.0\",model_name=\"m\"}} {b:?}\n\
         vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"+Inf\",model_name=\"m\"}} {c:?}\n\
         vllm:time_to_first_token_seconds_count{{engine=\"0\",model_name=\"m\"}} {c:?}\n\
         vllm:time_to_first_token_seconds_sum{{engine=\"0\",model_name=\"m\"}} {:?}\n{extra}",
        c * 0.5
    )
}

fn count(advance: &Advance, signal: Signal) -> Option<u64> {
    advance
        .histograms
        .iter()
        .find(|h| h.signal() == signal)
        .map(|h| h.count)
}

/// Feeds bodies one after the other; the outcome of the last one.
fn last(bodies: &[String]) -> Advance {
    let mut reader = reader();
    let mut advance = Advance::default();
    for body in bodies {
        advance = reader.advance(body.as_bytes()).unwrap();
    }
    advance
}

#[test]
fn intervals() {
    struct Case {
        name: &'static str,
        bodies: Vec<String>,
        tokens: Option<u64>,
        ttft: Option<u64>,
        restarted: bool,
        layout_changes: u32,
        skipped: u32,
    }
    let case = |name, bodies, tokens, ttft| Case {
        name,
        bodies,
        tokens,
        ttft,
        restarted: false,
        layout_changes: 0,
        skipped: 0,
    };
    let start = |seconds: &str| format!("process_start_time_seconds {seconds}\n");
    let created =
        |seconds: &str| format!("vllm:generation_tokens_created{{engine=\"0\",model_name=\"m\"}} {seconds}\n");
    let idle = "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 0.0\n".to_owned();
    let wide = |text: String| text.replace("le=\"0.1\"", "le=\"0.2\"");
    let cases = [
        case("first body", vec![body(100.0, [1.0, 2.0, 3.0], "")], None, None),
        case(
            "nothing happened",
            vec![body(100.0, [1.0, 2.0, 3.0], ""); 2],
            Some(0),
            None,
        ),
        case(
            "growth",
            vec![body(100.0, [1.0, 2.0, 3.0], ""), body(150.0, [1.0, 4.0, 5.0], "")],
            Some(50),
            Some(2),
        ),
        case(
            "born in between",
            vec![idle.clone(), body(100.0, [1.0, 2.0, 3.0], "")],
            Some(100),
            Some(3),
        ),
        case("gone", vec![body(100.0, [1.0, 2.0, 3.0], ""), idle.clone()], None, None),
        case(
            "gone and back",
            vec![
                body(100.0, [1.0, 2.0, 3.0], ""),
                idle.clone(),
                body(110.0, [1.0, 2.0, 4.0], ""),
            ],
            Some(10),
            Some(1),
        ),
        Case {
            restarted: true,
            ..case(
                "counter fell",
                vec![body(100.0, [1.0, 2.0, 3.0], ""), body(7.0, [1.0, 2.0, 3.0], "")],
                Some(7),
                Some(3),
            )
        },
        Case {
            restarted: true,
            // The total grew, one bucket fell: only a new process explains it.
            ..case(
                "bucket fell",
                vec![body(100.0, [3.0, 3.0, 3.0], ""), body(100.0, [0.0, 4.0, 4.0], "")],
                Some(100),
                Some(4),
            )
        },
        Case {
            restarted: true,
            ..case(
                "start time moved",
                vec![
                    body(100.0, [1.0, 2.0, 3.0], &start("1.79e9")),
                    body(120.0, [1.0, 2.0, 4.0], &start("1790000060.5")),
                ],
                Some(120),
                Some(4),
            )
        },
        case(
            "start time the same",
            vec![
                body(100.0, [1.0, 2.0, 3.0], &start("1.79e9")),
                body(120.0, [1.0, 2.0, 4.0], &start("1790000000.01")),
            ],
            Some(20),
            Some(1),
        ),
        Case {
            restarted: true,
            ..case(
                "created time moved",
                vec![
                    body(100.0, [1.0, 2.0, 3.0], &created("1.79e9")),
                    body(120.0, [1.0, 2.0, 4.0], &created("1.790001e9")),
                ],
                Some(120),
                Some(4),
            )
        },
        Case {
            layout_changes: 1,
            ..case(
                "other bounds",
                vec![body(100.0, [1.0, 2.0, 3.0], ""), wide(body(120.0, [9.0, 9.0, 9.0], ""))],
                Some(20),
                None,
            )
        },
        case(
            "after other bounds",
            vec![
                body(1.0, [1.0, 2.0, 3.0], ""),
                wide(body(2.0, [9.0, 9.0, 9.0], "")),
                wide(body(3.0, [9.0, 9.0, 11.0], "")),
            ],
            Some(1),
            Some(2),
        ),
        Case {
            restarted: true,
            ..case(
                "other bounds of a new process",
                vec![body(100.0, [1.0, 2.0, 3.0], ""), wide(body(20.0, [5.0, 5.0, 6.0], ""))],
                Some(20),
                Some(6),
            )
        },
        Case {
            skipped: 1,
            ..case(
                "NaN counter",
                vec![body(100.0, [1.0, 2.0, 3.0], ""), body(f64::NAN, [1.0, 2.0, 4.0], "")],
                None,
                Some(1),
            )
        },
        Case {
            skipped: 1,
            ..case(
                "a line of garbage",
                vec![
                    body(100.0, [1.0, 2.0, 3.0], ""),
                    body(101.0, [1.0, 2.0, 4.0], "vllm:generation_tokens_total{ 3\n"),
                ],
                Some(1),
                Some(1),
            )
        },
        Case {
            skipped: 1,
            ..case(
                "buckets that fall",
                vec![body(100.0, [1.0, 2.0, 3.0], ""), body(101.0, [5.0, 2.0, 6.0], "")],
                Some(1),
                None,
            )
        },
        case(
            "a NaN counter keeps the last value",
            vec![
                body(100.0, [1.0, 2.0, 3.0], ""),
                body(f64::NAN, [1.0, 2.0, 3.0], ""),
                body(130.0, [1.0, 2.0, 3.0], ""),
            ],
            Some(30),
            None,
        ),
    ];
    for case in cases {
        let advance = last(&case.bodies);
        assert_eq!(advance.counters.generation_tokens, case.tokens, "{}", case.name);
        assert_eq!(count(&advance, Signal::Ttft), case.ttft, "{}", case.name);
        assert_eq!(advance.engine_restarted, case.restarted, "{}", case.name);
        assert_eq!(advance.layout_changes, case.layout_changes, "{}", case.name);
        assert_eq!(advance.skipped, case.skipped, "{}", case.name);
        assert_eq!(advance.counters.prompt_tokens, None, "{}: never exposed", case.name);
    }
}

#[test]
fn announced_restarts() {
    let (old, new) = (body(100.0, [1.0, 2.0, 3.0], ""), body(130.0, [2.0, 3.0, 4.0], ""));
    // The engine was seen booting: its first body is all news, and nothing was restarted.
    let mut reader = reader();
    reader.expect_restart();
    let advance = reader.advance(old.as_bytes()).unwrap();
    assert_eq!(
        (advance.counters.generation_tokens, count(&advance, Signal::Ttft)),
        (Some(100), Some(3))
    );
    assert!(!advance.engine_restarted && advance.engine_changed);
    // Its counters are above the old ones, yet the process is another.
    reader.expect_restart();
    let advance = reader.advance(new.as_bytes()).unwrap();
    assert_eq!(
        (advance.counters.generation_tokens, count(&advance, Signal::Ttft)),
        (Some(130), Some(4))
    );
    assert!(advance.engine_restarted && !advance.engine_changed);
    // Said once, meant once.
    let advance = reader.advance(new.as_bytes()).unwrap();
    assert_eq!(
        (advance.counters.generation_tokens, advance.engine_restarted),
        (Some(0), false)
    );
}

#[test]
fn refused_bodies_change_nothing() {
    let first = body(100.0, [1.0, 2.0, 3.0], "");
    let second = body(140.0, [1.0, 2.0, 9.0], "");
    let cut = &second[..second.len() - 4];
    let refused: &[(&str, Outcome)] = &[
        (cut, Outcome::Malformed),
        ("", Outcome::NoEngine),
        ("\n \n", Outcome::NoEngine),
        ("<html>\n<body>\n", Outcome::Malformed),
        ("{\"error\": 3}\n", Outcome::Malformed),
        ("http_requests_total{handler=\"/metrics\"} 3\n", Outcome::NoEngine),
        ("# EOF\n", Outcome::NoEngine),
        // Another product's prefix.
        ("vllmx:num_requests_running 3\n", Outcome::NoEngine),
    ];
    let mut reader = reader();
    reader.advance(first.as_bytes()).unwrap();
    for (body, outcome) in refused {
        let error = reader.advance(body.as_bytes()).unwrap_err();
        assert_eq!(error.outcome(), *outcome, "{body:?}: {error}");
        assert!(!error.to_string().is_empty());
    }
    let advance = reader.advance(second.as_bytes()).unwrap();
    assert_eq!(
        (advance.counters.generation_tokens, count(&advance, Signal::Ttft)),
        (Some(40), Some(6))
    );
    assert!(!advance.engine_restarted);
}

#[test]
fn a_body_cut_between_lines_is_missed_by_its_end_mark() {
    let whole = "vllm:num_requests_running{model_name=\"m\",engine=\"0\"} 1\nvllm:prompt_tokens_total{model_name=\"m\",engine=\"0\"} 5\n# EOF\n";
    let cut = "vllm:num_requests_running{model_name=\"m\",engine=\"0\"} 1\n";
    let mut reader = reader();
    reader.advance(whole.as_bytes()).unwrap();
    assert!(matches!(reader.advance(cut.as_bytes()), Err(Error::NoEndMark { .. })));
    reader.advance(whole.as_bytes()).unwrap();
    // A new process may have another front end.
    reader.expect_restart();
    reader.advance(cut.as_bytes()).unwrap();
}

#[test]
fn gauges_that_are_no_numbers_are_absent() {
    let cases = [
        ("NaN", None, 1),
        ("-1.0", None, 1),
        ("+Inf", None, 1),
        ("0.0", Some(0.0), 0),
        ("7.0", Some(7.0), 0),
    ];
    for (text, running, skipped) in cases {
        let body = format!(
            "vllm:num_requests_running{{engine=\"0\"}} {text}\nvllm:num_requests_waiting{{engine=\"0\"}} 2.0\n"
        );
        let advance = reader().advance(body.as_bytes()).unwrap();
        assert_eq!(
            (advance.gauges.running, advance.gauges.waiting, advance.skipped),
            (running, Some(2.0), skipped),
            "{text}"
        );
        assert_eq!(advance.gauges.kv_usage, None, "absent is not zero");
    }
}

#[test]
fn one_data_parallel_engine_restarts() {
    let two = |zero: f64, one: f64, rejected: f64| {
        format!(
            "vllm:generation_tokens_total{{engine=\"0\",model_name=\"m\"}} {zero:?}\n\
             vllm:generation_tokens_total{{engine=\"1\",model_name=\"m\"}} {one:?}\n\
             vllm:admission_rejections_total{{model_name=\"m\",reason=\"max_num_queued_reqs\"}} {rejected:?}\n"
        )
    };
    let after = |now: String| last(&[two(1_000_000.0, 2_000_000.0, 10.0), now]);
    // The other one's whole past is not counted again.
    let advance = after(two(500.0, 2_000_100.0, 11.0));
    assert_eq!(
        (advance.counters.generation_tokens, advance.counters.requests_rejected),
        (Some(600), Some(1))
    );
    assert!(advance.engine_restarted);
    // All of them: the process.
    let advance = after(two(500.0, 300.0, 12.0));
    assert_eq!(
        (advance.counters.generation_tokens, advance.counters.requests_rejected),
        (Some(800), Some(12))
    );
    // The server in front of them: the process.
    let advance = after(two(1_000_001.0, 2_000_001.0, 3.0));
    assert_eq!(
        (advance.counters.generation_tokens, advance.counters.requests_rejected),
        (Some(3_000_002), Some(3))
    );
    // An engine that joins counts from 0.
    let one_more =
        two(1_000_000.0, 2_000_000.0, 10.0) + "vllm:generation_tokens_total{engine=\"2\",model_name=\"m\"} 40\n";
    let advance = after(one_more);
    assert_eq!(
        (
            advance.counters.generation_tokens,
            advance.engine_restarted,
            advance.engine_changed
        ),
        (Some(40), false, true)
    );
}

/// Both families may be there, one of them later: no restart, nothing twice.
#[test]
fn a_better_family_is_born() {
    let of = |hits: u32, cached: Option<u32>| {
        let cached = cached.map_or(String::new(), |n| {
            format!("vllm:prompt_tokens_cached_total{{engine=\"0\"}} {n}\n")
        });
        let itl = |family: &str, n: u32| format!("vllm:{family}_bucket{{engine=\"0\",le=\"+Inf\"}} {n}\n");
        let newer = if cached.is_empty() {
            String::new()
        } else {
            itl("inter_token_latency_seconds", hits / 2)
        };
        format!("vllm:prefix_cache_hits_total{{engine=\"0\"}} {hits}\n{cached}")
            + &itl("time_per_output_token_seconds", hits)
            + &newer
    };
    let cases = [
        (vec![of(500, None), of(520, Some(400))], Some(0), None),
        (vec![of(0, None), of(520, Some(400))], Some(400), Some(260)),
        (
            vec![of(500, None), of(520, Some(400)), of(540, Some(415))],
            Some(15),
            Some(10),
        ),
    ];
    for (bodies, cached, itl) in cases {
        let advance = last(&bodies);
        assert!(!advance.engine_restarted, "{bodies:?}");
        assert_eq!(
            (advance.counters.prompt_tokens_cached, count(&advance, Signal::Itl)),
            (cached, itl),
            "{bodies:?}"
        );
    }
}

#[test]
fn real_pairs() {
    let pairs = [
        (
            "vllm-0.32.0-run1-before.prom",
            "vllm-0.32.0-run1-after.prom",
            193,
            21_412,
            11_131,
        ),
        (
            "vllm-0.32.0-mid-run1-before.prom",
            "vllm-0.32.0-mid-run1-after.prom",
            220,
            10_345,
            13_450,
        ),
        (
            "vllm-0.8.5-V0-run1-before.prom",
            "vllm-0.8.5-V0-run1-after.prom",
            150,
            13_973,
            8764,
        ),
        (
            "sglang-0.5.23-run1-before.prom",
            "sglang-0.5.23-run1-after.prom",
            150,
            8356,
            8764,
        ),
        (
            "vllm-0.32.0-rustfe-idle.prom",
            "vllm-0.32.0-rustfe-after.prom",
            200,
            22_357,
            11_492,
        ),
        (
            "vllm-0.32.0-dp2-idle.prom",
            "vllm-0.32.0-dp2-after.prom",
            117,
            8812,
            6314,
        ),
    ];
    for (before, after, requests, generated, prompt) in pairs {
        let (Some(before), Some(body)) = (capture(before), capture(after)) else {
            return;
        };
        let mut reader = reader();
        let first = reader.advance(&before).unwrap();
        assert_eq!(
            (first.counters, first.histograms.len()),
            (v1::Counters::default(), 0),
            "{after}: no baseline"
        );
        let advance = reader.advance(&body).unwrap();
        assert_eq!(advance.counters.requests, Some(requests), "{after}");
        assert_eq!(advance.counters.generation_tokens, Some(generated), "{after}");
        assert_eq!(advance.counters.prompt_tokens, Some(prompt), "{after}");
        assert_eq!(count(&advance, Signal::Ttft), Some(requests), "{after}");
        // Every request's tokens but its first.
        assert_eq!(
            count(&advance, Signal::Itl),
            Some(generated - requests)
                .filter(|_| !after.starts_with("sglang"))
                .or(Some(7205)),
            "{after}"
        );
        assert_eq!(
            (advance.engine_restarted, advance.layout_changes),
            (false, 0),
            "{after}"
        );
        // And back: everything fell.
        let again = reader.advance(&before).unwrap();
        assert!(
            again.engine_restarted || again.counters == v1::Counters::default(),
            "{after}"
        );
    }
}
