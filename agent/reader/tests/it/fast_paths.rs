//! Cheap looks at the queue.

use infer_proto::v1::{self, engine::Kind, scrape::Outcome};
use infer_reader::{Error, FastBody, FastPath, Reader, ReaderOptions};

use crate::support::capture;

fn reader() -> Reader {
    Reader::new(ReaderOptions::default())
}

#[test]
fn fast_paths() {
    let path = |file: &str| {
        let mut reader = reader();
        assert_eq!(reader.fast_path(), None);
        reader.advance(&capture(file)?).unwrap();
        Some((reader.fast_path(), reader))
    };
    let Some((python, mut reader)) = path("vllm-0.32.0-idle.prom") else {
        return;
    };
    assert_eq!(python, Some(FastPath::VllmFilter));
    assert_eq!(
        path("vllm-0.32.0-rustfe-idle.prom").unwrap().0,
        Some(FastPath::FullBody)
    );
    assert_eq!(
        path("vllm-0.32.0-dp2-idle.prom").unwrap().0,
        None,
        "several processes answer the filter with nothing"
    );
    assert_eq!(path("vllm-0.8.5-V0-after.prom").unwrap().0, None);

    // The three families as the filter returns them.
    let loaded = capture("vllm-0.32.0-loaded.prom").unwrap();
    let families = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"];
    let wanted = |line: &&str| {
        families
            .iter()
            .any(|f| line.contains(&format!("vllm:{f} ")) || line.contains(&format!("vllm:{f}{{")))
    };
    let filtered: Vec<&str> = std::str::from_utf8(&loaded).unwrap().lines().filter(wanted).collect();
    let filtered = filtered.join("\n") + "\n";
    assert_eq!(
        filtered.len(),
        545 + "28.0".len() - "0.0".len() + "0.0003051944088384717".len() - "0.0".len()
    );
    let gauges = reader
        .advance_fast(FastBody::VllmFiltered(filtered.as_bytes()))
        .unwrap()
        .unwrap();
    assert_eq!((gauges.running, gauges.waiting), (Some(4.0), Some(28.0)));
    assert!(gauges.kv_usage.is_some_and(|kv| kv > 0.0));
    // The same from a whole body, and neither moves the baseline.
    let full = reader.advance_fast(FastBody::Full(&loaded)).unwrap().unwrap();
    assert_eq!((full.running, full.waiting), (Some(4.0), Some(28.0)));
    assert_eq!(reader.advance(&loaded).unwrap().counters.requests, Some(112));
    assert_eq!(reader.engine().map(v1::Engine::kind), Some(Kind::Vllm));

    assert!(matches!(
        reader.advance_fast(FastBody::VllmFiltered(&filtered.as_bytes()[..300])),
        Err(Error::Truncated { .. })
    ));
    assert_eq!(
        reader.fast_path(),
        Some(FastPath::VllmFilter),
        "a cut answer says nothing about the filter"
    );
    assert_eq!(
        reader.advance_fast(FastBody::VllmFiltered(b"")).unwrap(),
        None,
        "an empty answer is not a zero"
    );
    assert_eq!(reader.fast_path(), None);
    reader.expect_restart();
    assert_eq!(
        reader.fast_path(),
        Some(FastPath::VllmFilter),
        "another process may support it"
    );
}

#[test]
fn sglang_loads() {
    let body = br#"{"timestamp": "2026-11-23T10:00:00Z", "dp_rank_count": 2, "loads": [
        {"dp_rank": 0, "num_running_reqs": 3, "num_waiting_reqs": 19, "num_waiting_uncached_tokens": 900, "num_used_tokens": 371,
         "max_total_num_tokens": 20000, "max_running_requests": 48, "token_usage": 0.02, "gen_throughput": 495.2,
         "cache_hit_rate": 0.01, "queues": {"waiting": 19, "grammar": 2, "paused": 0, "retracted": 0}},
        {"dp_rank": 1, "num_running_reqs": 1, "num_waiting_reqs": 0, "max_total_num_tokens": 20000,
         "max_running_requests": 48, "token_usage": 0.5}]}"#;
    let mut reader = reader();
    let gauges = reader.advance_fast(FastBody::SglangLoads(body)).unwrap().unwrap();
    assert_eq!(
        (gauges.running, gauges.waiting, gauges.kv_usage),
        (Some(4.0), Some(21.0), Some(0.5))
    );
    assert_eq!(
        (gauges.kv_capacity_tokens, gauges.max_running),
        (Some(40_000), Some(96))
    );
    assert_eq!((gauges.in_flight, gauges.asleep), (None, None));
    let bare = br#"[{"num_running_reqs": 1, "num_waiting_reqs": 2, "unknown": {"x": []}}]"#;
    let gauges = reader.advance_fast(FastBody::SglangLoads(bare)).unwrap().unwrap();
    assert_eq!(
        (gauges.running, gauges.waiting, gauges.kv_usage),
        (Some(1.0), Some(2.0), None)
    );

    for nothing in [&b""[..], b" ", b"{\"loads\": []}", b"{\"loads\": [{\"dp_rank\": 0}]}"] {
        assert_eq!(
            reader.advance_fast(FastBody::SglangLoads(nothing)).unwrap(),
            None,
            "{nothing:?}"
        );
    }
    for wrong in [
        &b"{\"loads\": ["[..],
        b"404 page not found",
        b"{}",
        b"{\"loads\": [{\"num_running_reqs\": \"x\"}]}",
    ] {
        let error = reader.advance_fast(FastBody::SglangLoads(wrong)).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Malformed, "{wrong:?}");
    }

    let Some(body) = capture("sglang-0.5.23-idle.prom") else {
        return;
    };
    let mut reader = self::reader();
    reader.advance(&body).unwrap();
    assert_eq!(reader.fast_path(), Some(FastPath::SglangLoads));
    assert_eq!(reader.fast_path().and_then(FastPath::path), Some("/v1/loads"));
}
