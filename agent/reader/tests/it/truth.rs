//! Bounds against what the clients of the captured runs measured themselves.
//!
//! Bounds hold for what the *engine* observed. A client sees more: the front end before and behind the engine's clock,
//! chunks of several tokens that come at once, and it has no first token of a request it did not stream. Where its
//! quantiles lie outside of the bounds, this table says so and README.md why; where they lie inside, so they must.

use infer_reader::{Inspection, inspect, inspect::Quantile};

use crate::support::{capture, client};

struct Client {
    ttft_ms: Vec<f64>,
    itl_ms: Vec<f64>,
    /// End to end of the requests that were not streamed: each one's first token came within it.
    unstreamed_ms: Vec<f64>,
    tokens: u64,
}

fn measured(file: &str) -> Option<Client> {
    let mut seen = Client {
        ttft_ms: Vec::new(),
        itl_ms: Vec::new(),
        unstreamed_ms: Vec::new(),
        tokens: 0,
    };
    for request in client(file)?.iter().filter(|r| r["status"] == 200) {
        let at: Vec<f64> = request["ts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_f64().unwrap() * 1e3)
            .collect();
        seen.tokens += request["ct"].as_u64().unwrap();
        match at.first() {
            Some(first) => seen.ttft_ms.push(*first),
            None => seen.unstreamed_ms.push(request["e2e"].as_f64().unwrap() * 1e3),
        }
        seen.itl_ms.extend(at.windows(2).map(|pair| pair[1] - pair[0]));
    }
    seen.ttft_ms.sort_by(f64::total_cmp);
    seen.itl_ms.sort_by(f64::total_cmp);
    Some(seen)
}

/// Nearest rank, and linear between order statistics: the two usual definitions.
fn quantiles(sorted: &[f64], q: f64) -> [f64; 2] {
    let n = sorted.len();
    let position = q * (n - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    [
        sorted[((q * n as f64).ceil() as usize).max(1) - 1],
        below + (above - below) * position.fract(),
    ]
}

fn inside(bound: Quantile, truth: [f64; 2]) -> bool {
    truth
        .iter()
        .all(|t| bound.low <= *t && bound.high.is_none_or(|high| *t <= high))
}

struct Run {
    before: Option<&'static str>,
    after: &'static str,
    client: &'static str,
    /// Whether the client's p50, p95 and p99 are within the engine's bounds.
    ttft: [bool; 3],
    itl: [bool; 3],
}

const RUNS: &[Run] = &[
    Run {
        before: Some("vllm-0.32.0-mid-run1-before.prom"),
        after: "vllm-0.32.0-mid-run1-after.prom",
        client: "vllm-0.32.0-mid-run1-client.jsonl.gz",
        // p95: 29 of 220 requests were not streamed and have no TTFT at the client; see `unstreamed_requests`.
        ttft: [true, false, true],
        itl: [true, true, true],
    },
    Run {
        before: Some("vllm-0.8.5-V0-run1-before.prom"),
        after: "vllm-0.8.5-V0-run1-after.prom",
        client: "vllm-0.8.5-V0-run1-client.jsonl.gz",
        ttft: [true, true, true],
        // p95: 12.1 ms at the client, at most 10 in the engine.
        itl: [true, false, true],
    },
    Run {
        before: Some("sglang-0.5.23-run1-before.prom"),
        after: "sglang-0.5.23-run1-after.prom",
        client: "sglang-0.5.23-run1-client.jsonl.gz",
        ttft: [true, true, true],
        // p99: 30.6 ms at the client, at most 30 in the engine.
        itl: [true, true, false],
    },
    Run {
        before: None,
        after: "vllm-0.32.0-kvpressure-after.prom",
        client: "vllm-0.32.0-kvpressure-client.jsonl.gz",
        ttft: [true, true, true],
        itl: [true, true, true],
    },
    Run {
        before: Some("vllm-0.32.0-rustfe-idle.prom"),
        after: "vllm-0.32.0-rustfe-after.prom",
        client: "vllm-0.32.0-rustfe-run1-client.jsonl.gz",
        ttft: [true, true, true],
        // p99: 33.6 ms at the client, at most 25 in the engine.
        itl: [true, true, false],
    },
    Run {
        before: Some("vllm-0.32.0-idle.prom"),
        after: "vllm-0.32.0-run1-before.prom",
        client: "vllm-0.32.0-warm-client.jsonl.gz",
        ttft: [true, true, true],
        itl: [true, true, false],
    },
    Run {
        // The API server was starved: 32 streams, client and engine on two shared cores.
        before: Some("vllm-0.32.0-run1-before.prom"),
        after: "vllm-0.32.0-run1-after.prom",
        client: "vllm-0.32.0-run1-client.jsonl.gz",
        ttft: [false, false, false],
        itl: [true, true, true],
    },
    Run {
        // Likewise, and more so: chunks of whole answers reached the client at once.
        before: Some("vllm-0.32.0-dp2-idle.prom"),
        after: "vllm-0.32.0-dp2-after.prom",
        client: "vllm-0.32.0-dp2-client.jsonl.gz",
        ttft: [false, false, false],
        itl: [true, false, false],
    },
];

fn inspected(run: &Run) -> Option<Inspection> {
    let before = match run.before {
        Some(before) => Some(capture(before)?),
        None => None,
    };
    Some(inspect(&capture(run.after)?, before.as_deref(), None).unwrap())
}

#[test]
fn clients_quantiles_within_the_bounds() {
    for run in RUNS {
        let (Some(seen), Some(client)) = (inspected(run), measured(run.client)) else {
            return;
        };
        let signals = [
            ("TTFT", seen.ttft_ms, &client.ttft_ms, run.ttft),
            ("ITL", seen.itl_ms, &client.itl_ms, run.itl),
        ];
        for (name, distribution, truth, expected) in signals {
            let d = distribution.unwrap();
            for ((q, bound), expected) in [(0.5, d.p50), (0.95, d.p95), (0.99, d.p99)].into_iter().zip(expected) {
                let (bound, truth) = (bound.unwrap(), quantiles(truth, q));
                assert_eq!(
                    inside(bound, truth),
                    expected,
                    "{} {name} {q}: client {truth:?}, engine {bound:?}",
                    run.after
                );
                if !expected && name == "TTFT" && !run.after.contains("mid-run") {
                    assert!(
                        truth[0] > bound.low,
                        "{}: an engine does not see more than its client",
                        run.after
                    );
                }
            }
        }
    }
}

/// The engine counts the TTFT of every request, the client knows it of streamed ones only: of the others it is above 0
/// and at most the whole. Where the clocks agree, each bucket holds as many as that allows.
#[test]
fn unstreamed_requests() {
    let run = &RUNS[0];
    let (Some(seen), Some(client)) = (inspected(run), measured(run.client)) else {
        return;
    };
    assert_eq!((client.ttft_ms.len(), client.unstreamed_ms.len()), (191, 29));
    let ttft = seen.ttft_ms.unwrap();
    assert_eq!(ttft.count, 220);
    let with = |unstreamed: &dyn Fn(f64) -> f64| {
        let mut all = client.ttft_ms.clone();
        all.extend(client.unstreamed_ms.iter().map(|e2e| unstreamed(*e2e)));
        all.sort_by(f64::total_cmp);
        all
    };
    let (least, most) = (with(&|_| 0.0), with(&|e2e| e2e));
    for (q, bound) in [(0.5, ttft.p50), (0.9, ttft.p90), (0.95, ttft.p95), (0.99, ttft.p99)] {
        let bound = bound.unwrap();
        let (least, most) = (quantiles(&least, q)[0], quantiles(&most, q)[0]);
        assert!(
            bound.low <= most && bound.high.is_none_or(|high| least <= high),
            "{q}: {least}..{most}, {bound:?}"
        );
    }
}

/// What needs no clock agrees to the last token, in every run.
#[test]
fn counts_agree() {
    for run in RUNS {
        let (Some(seen), Some(client)) = (inspected(run), measured(run.client)) else {
            return;
        };
        let requests = (client.ttft_ms.len() + client.unstreamed_ms.len()) as u64;
        // Before the warm run one request of 16 tokens was made to try the server.
        let extra = if run.client.contains("-warm-") { (1, 16) } else { (0, 0) };
        assert_eq!(seen.deltas.requests, Some(requests + extra.0), "{}", run.after);
        assert_eq!(
            seen.deltas.generation_tokens,
            Some(client.tokens + extra.1),
            "{}",
            run.after
        );
        assert_eq!(seen.ttft_ms.unwrap().count, requests + extra.0, "{}", run.after);
    }
}
