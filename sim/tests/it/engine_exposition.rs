//! Each flavour's metrics page against a capture of the real server: same families and types, same label names per
//! sample, same bucket bounds as written. Skipped where the captures are not there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use http::Method;
use http_body_util::BodyExt;

use crate::support::{Server, whole};

const FAST: &str = "--profile demo-small --speed 50 --max-model-len 2048";

/// What a page looks like, values and label values aside.
#[derive(Debug, Default, PartialEq)]
struct Shape {
    types: BTreeMap<String, String>,
    labels: BTreeMap<String, BTreeSet<BTreeSet<String>>>,
    /// `le` values as written.
    bounds: BTreeMap<String, BTreeSet<String>>,
}

fn shape(page: &str, absent: &[&str]) -> Shape {
    let mut shape = Shape::default();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            if !absent.iter().any(|prefix| name.starts_with(prefix)) {
                shape.types.insert(name.into(), kind.into());
            }
        }
        if line.starts_with('#') || line.is_empty() || absent.iter().any(|prefix| line.starts_with(prefix)) {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() || value == "+Inf", "{line}");
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}').unwrap())),
            None => (series, vec![]),
        };
        for (label, value) in &labels {
            if label == "le" {
                shape.bounds.entry(name.into()).or_default().insert(value.clone());
            }
        }
        let names = labels.into_iter().map(|(name, _)| name).collect();
        shape.labels.entry(name.into()).or_default().insert(names);
    }
    shape
}

/// No label value in question holds an escaped quote.
fn parse_labels(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"').unwrap();
        labels.push((name.to_owned(), value.to_owned()));
        rest = after.trim_start_matches(',');
    }
    labels
}

fn capture(name: &str) -> Option<String> {
    let path = format!("{}/../../shared/data/engines/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        eprintln!("skipped: {path} not found");
    }
    text
}

/// Compares, naming every difference at once.
#[track_caller]
fn check_same(page: &str, capture: &str, absent: &[&str]) {
    let ours = shape(page, &[]);
    let real = shape(capture, absent);
    assert!(
        real.types.len() > 30 && real.bounds.len() > 3,
        "the capture was not understood"
    );
    let mut differences = Vec::new();
    diff(&ours.types, &real.types, &mut differences);
    diff(&ours.labels, &real.labels, &mut differences);
    diff(&ours.bounds, &real.bounds, &mut differences);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn diff<T: PartialEq + std::fmt::Debug>(ours: &BTreeMap<String, T>, real: &BTreeMap<String, T>, out: &mut Vec<String>) {
    for name in ours.keys().chain(real.keys()).collect::<BTreeSet<_>>() {
        if ours.get(name) != real.get(name) {
            out.push(format!("{name}: ours {:?}, real {:?}", ours.get(name), real.get(name)));
        }
    }
}

async fn completion(server: &Server, fields: &str) {
    let body = format!(r#"{{"prompt": [1, 2, 3], "max_tokens": 4{fields}}}"#);
    assert_eq!(server.post("/v1/completions", &body).await.0, 200);
}

#[tokio::test]
async fn vllm_python_front_end() {
    let (Some(idle), Some(after)) = (capture("vllm-0.32.0-idle.prom"), capture("vllm-0.32.0-after.prom")) else {
        return;
    };
    let server = Server::start(FAST).await;
    check_same(&server.metrics().await, &idle, &[]);
    completion(&server, "").await;
    let page = server
        .metrics_until("counted", |page| page.contains("http_requests_total{"))
        .await;
    check_same(&page, &after, &[]);
    // The library's application behind the slash: the same page, compressed when asked, filtered when asked.
    let (status, slash) = server.get("/metrics/").await;
    assert_eq!(status, 200);
    check_same(&slash, &after, &[]);
    let response = server
        .send(
            Method::GET,
            "/metrics",
            &[("accept", "application/openmetrics-text")],
            "",
        )
        .await;
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; version=1.0.0; charset=utf-8"
    );
    assert!(whole(response).await.1.len() > 40_000);
    let response = server
        .send(Method::GET, "/metrics/", &[("accept-encoding", "gzip")], "")
        .await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let packed = response.into_body().collect().await.unwrap().to_bytes();
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_string(&mut text)
        .unwrap();
    check_same(&text, &after, &[]);
    let three = "/metrics/?name[]=vllm:num_requests_running&name[]=vllm:num_requests_waiting&name%5B%5D=vllm%3Akv_cache_usage_perc";
    let (_, page) = server.get(three).await;
    assert_eq!(page.lines().filter(|l| !l.starts_with('#')).count(), 3, "{page}");
    assert_eq!(page.lines().count(), 9);
}

#[tokio::test]
async fn vllm_open_metrics_behind_the_slash() {
    let Some(loaded) = capture("vllm-0.32.0-loaded.openmetrics.txt") else {
        return;
    };
    let server = Server::start(FAST).await;
    completion(&server, "").await;
    server
        .metrics_until("counted", |page| page.contains("http_requests_total{"))
        .await;
    let response = server
        .send(
            Method::GET,
            "/metrics/",
            &[("accept", "application/openmetrics-text")],
            "",
        )
        .await;
    let (_, page) = whole(response).await;
    check_same(&page, &loaded, &[]);
    assert!(page.ends_with("# EOF\n"));
}

#[tokio::test]
async fn vllm_data_parallel() {
    let Some(after) = capture("vllm-0.32.0-dp2-after.prom") else {
        return;
    };
    let server = Server::start(&format!("{FAST} --data-parallel 2")).await;
    completion(&server, "").await;
    let page = server
        .metrics_until("counted", |page| page.contains("http_requests_total{"))
        .await;
    check_same(&page, &after, &[]);
    assert!(page.contains("vllm:num_requests_running{engine=\"1\""));
    assert_eq!(
        server.get("/metrics/?name[]=vllm:num_requests_running").await,
        (200, String::new())
    );
}

/// Sampled KV-block life is a flag of its own that this engine does not have.
const KV_BLOCKS: &str = "vllm:kv_block_";

#[tokio::test]
async fn vllm_lora_and_sleep() {
    let (Some(idle), Some(loaded), Some(sleeping)) = (
        capture("vllm-0.32.0-lora-idle.prom"),
        capture("vllm-0.32.0-lora-loaded.prom"),
        capture("vllm-0.32.0-sleeping.prom"),
    ) else {
        return;
    };
    let server = Server::start(&format!("{FAST} --lora-modules lora-a,lora-b --max-loras 2")).await;
    check_same(&server.metrics().await, &idle, &[KV_BLOCKS]);
    completion(&server, r#", "model": "lora-b""#).await;
    let page = server
        .metrics_until("counted", |page| page.contains("http_requests_total{"))
        .await;
    check_same(&page, &loaded, &[KV_BLOCKS]);
    let running = "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"lora-b\",waiting_lora_adapters=\"\"}";
    assert!(page.contains(running), "{page}");
    assert_eq!(server.post("/sleep?level=1", "").await.0, 200);
    let page = server
        .metrics_until("sleep counted", |page| page.contains("handler=\"/sleep\""))
        .await;
    check_same(&page, &sleeping, &[KV_BLOCKS]);
}

#[tokio::test]
async fn vllm_rust_front_end() {
    let (Some(idle), Some(after)) = (
        capture("vllm-0.32.0-rustfe-idle.prom"),
        capture("vllm-0.32.0-rustfe-after.prom"),
    ) else {
        return;
    };
    let server = Server::start(&format!("{FAST} --flavor vllm-rust")).await;
    check_same(&server.metrics().await, &idle, &[]);
    completion(&server, "").await;
    let page = server
        .metrics_until("counted", |page| page.contains("http_requests_total{"))
        .await;
    check_same(&page, &after, &[]);
    assert!(page.ends_with("# EOF\n"));
    assert!(page.contains("vllm:time_to_first_token_seconds_bucket{le=\"0.001\",model_name="));
    let response = server.send(Method::GET, "/metrics", &[], "").await;
    assert_eq!(
        response.headers()["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert_eq!(server.get("/metrics/").await.0, 404);
}

#[tokio::test]
async fn sglang() {
    let (Some(idle), Some(after)) = (capture("sglang-0.5.23-idle.prom"), capture("sglang-0.5.23-after.prom")) else {
        return;
    };
    let server = Server::start(&format!("{FAST} --flavor sglang")).await;
    // The capture's server had answered a health check before.
    assert_eq!(server.get("/health").await.0, 200);
    check_same(&server.metrics().await, &idle, &[]);
    completion(&server, r#", "stream": true"#).await;
    completion(&server, "").await;
    let counted = "sglang:http_responses_total{endpoint=\"/v1/completions\",method=\"POST\",status_code=\"200\"} 2.0";
    let page = server.metrics_until("counted", |page| page.contains(counted)).await;
    check_same(&page, &after, &[]);
    assert_eq!(
        server.get("/metrics?name[]=sglang:num_queue_reqs").await,
        (200, String::new())
    );
    let loads: serde_json::Value = serde_json::from_str(&server.get("/v1/loads").await.1).unwrap();
    assert_eq!(loads["loads"][0]["num_running_reqs"], 0);
    assert_eq!(loads["loads"][0]["dp_rank"], 0);
}
