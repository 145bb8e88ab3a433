//! The engine stand-in as a client sees it.

use std::process::{Command, Stdio};
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use infersim::engine::server::Outcome;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Server, sample, until, whole};

const FAST: &str = "--profile demo-small --speed 50 --served-model-name demo";

fn events(body: &str) -> Vec<Value> {
    let mut lines: Vec<_> = body.split("\n\n").filter(|e| !e.is_empty()).collect();
    assert_eq!(lines.pop(), Some("data: [DONE]"));
    lines
        .iter()
        .map(|l| serde_json::from_str(l.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

#[tokio::test]
async fn a_stream_carries_one_event_per_token_and_the_metrics_agree() {
    let server = Server::start(FAST).await;
    let body = r#"{"model": "demo", "prompt": [1, 2, 3, 4, 5], "max_tokens": 7, "stream": true, "ignore_eos": true,
                   "stream_options": {"include_usage": true}}"#;
    let response = server.send(Method::POST, "/v1/completions", &[], body).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let (status, text) = whole(response).await;
    assert_eq!(status, 200);
    let events = events(&text);
    assert_eq!(events.len(), 8);
    for event in &events[..7] {
        assert!(!event["choices"][0]["text"].as_str().unwrap().is_empty());
        assert_eq!(event["object"], "text_completion");
    }
    assert_eq!(events[5]["choices"][0]["finish_reason"], Value::Null);
    assert_eq!(events[6]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[7]["choices"], Value::Array(vec![]));
    assert_eq!(events[7]["usage"]["prompt_tokens"], 5);
    assert_eq!(events[7]["usage"]["completion_tokens"], 7);

    let (status, text) = server
        .post("/v1/completions", r#"{"prompt": "one two three", "max_tokens": 2}"#)
        .await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, answer["usage"]["total_tokens"].as_u64()), (200, Some(6)));
    let chat = r#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": true}"#;
    let (_, text) = server.post("/v1/chat/completions", chat).await;
    let chat = self::events(&text);
    assert_eq!(chat.len(), 3);
    assert_eq!(chat[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chat[2]["choices"][0]["finish_reason"], "length");

    let page = server
        .metrics_until("all three counted", |page| page.contains("highr_seconds_count 3.0"))
        .await;
    let rank = "{engine=\"0\",model_name=\"demo\"}";
    for (name, value) in [
        ("request_prompt_tokens_count", 3.0),
        ("request_prompt_tokens_sum", 5.0 + 4.0 + 6.0),
        ("prompt_tokens_total", 15.0),
        ("generation_tokens_total", 12.0),
        ("request_generation_tokens_sum", 12.0),
        ("request_params_max_tokens_sum", 12.0),
        ("time_to_first_token_seconds_count", 3.0),
        ("inter_token_latency_seconds_count", 9.0),
        ("e2e_request_latency_seconds_count", 3.0),
        ("request_queue_time_seconds_count", 3.0),
        ("iteration_tokens_total_sum", 27.0),
        ("prefix_cache_queries_total", 15.0),
        ("prefix_cache_hits_total", 0.0),
        ("num_requests_running", 0.0),
        ("num_requests_waiting", 0.0),
        ("kv_cache_usage_perc", 0.0),
    ] {
        assert_eq!(sample(&page, &format!("vllm:{name}{rank}")), value, "{name}");
    }
    assert_eq!(
        sample(
            &page,
            "vllm:request_success_total{engine=\"0\",finished_reason=\"length\""
        ),
        3.0
    );
    assert_eq!(
        sample(
            &page,
            "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"}"
        ),
        2.0
    );
}

#[tokio::test]
async fn small_paths_and_mistakes() {
    let server = Server::start(&format!("{FAST} --max-model-len 100 --max-num-queued-reqs 0")).await;
    assert_eq!(server.get("/health").await, (200, String::new()));
    assert_eq!(server.get("/version").await.1, r#"{"version":"0.32.0"}"#);
    assert_eq!(server.get("/load").await.1, r#"{"server_load":0}"#);
    let models: Value = serde_json::from_str(&server.get("/v1/models").await.1).unwrap();
    assert_eq!(models["data"][0]["id"], "demo");
    assert_eq!(models["data"][0]["max_model_len"], 100);
    assert_eq!(server.get("/v1/completions").await.0, 405);
    assert_eq!(server.get("/nowhere").await.0, 404);
    for (body, status, part) in [
        ("{", 400, "not a valid request"),
        (r#"{"prompt": "a", "model": "other"}"#, 404, "`other` does not exist"),
        (r#"{"prompt": "a"}"#, 503, "queue"),
    ] {
        let (got, text) = server.post("/v1/completions", body).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(got, status, "{text}");
        assert!(error["error"]["message"].as_str().unwrap().contains(part), "{text}");
    }
    let (status, text) = server
        .post("/v1/completions", r#"{"prompt": "a", "stream": true}"#)
        .await;
    assert!(
        status == 200 && text.contains("ServiceUnavailableError"),
        "{status} {text}"
    );
    let rejected = "vllm:admission_rejections_total{model_name=\"demo\",reason=\"max_num_queued_reqs\"}";
    assert_eq!(sample(&server.metrics().await, rejected), 2.0);

    let server = Server::start(&format!("{FAST} --max-model-len 100")).await;
    let (status, text) = server
        .post("/v1/completions", r#"{"prompt": "a", "max_tokens": 99}"#)
        .await;
    assert!(status == 400 && text.contains("100 tokens"), "{text}");
}

#[tokio::test]
async fn a_client_that_leaves_is_counted_nowhere() {
    let server = Server::start("--profile demo-small --max-num-seqs 1 --served-model-name demo").await;
    let body = r#"{"prompt": "a b", "max_tokens": 2000, "stream": true}"#;
    let mut running = server.send(Method::POST, "/v1/completions", &[], body).await;
    running.body_mut().frame().await.unwrap().unwrap();
    let queued = server.send(Method::POST, "/v1/completions", &[], body).await;
    server
        .metrics_until("one waits", |page| sample(page, "vllm:num_requests_waiting{") == 1.0)
        .await;
    drop(queued);
    server
        .metrics_until("none waits", |page| sample(page, "vllm:num_requests_waiting{") == 0.0)
        .await;
    drop(running);
    let page = server
        .metrics_until("none runs", |page| sample(page, "vllm:num_requests_running{") == 0.0)
        .await;
    for reason in ["abort", "length"] {
        let name = format!("vllm:request_success_total{{engine=\"0\",finished_reason=\"{reason}\"");
        assert_eq!(sample(&page, &name), 0.0);
    }
    assert_eq!(sample(&page, "vllm:time_to_first_token_seconds_count"), 1.0);
    assert_eq!(sample(&page, "vllm:e2e_request_latency_seconds_count"), 0.0);
    assert_eq!(sample(&page, "vllm:kv_cache_usage_perc{"), 0.0);
}

#[tokio::test]
async fn the_queue_can_be_made_to_jump() {
    let server = Server::start("--profile demo-small --max-num-seqs 4 --served-model-name demo").await;
    let (status, text) = server.post("/sim/queue", r#"{"waiting": 40, "for_s": 0.5}"#).await;
    assert_eq!((status, text.as_str()), (200, r#"{"submitted":44}"#));
    server
        .metrics_until("40 wait", |page| sample(page, "vllm:num_requests_waiting{") == 40.0)
        .await;
    server
        .metrics_until("all gone", |page| sample(page, "vllm:num_requests_waiting{") == 0.0)
        .await;
    let (status, text) = server.post("/sim/queue", r#"{"waiting": 4}"#).await;
    assert!(status == 400 && text.contains("for_s"), "{text}");
}

#[tokio::test]
async fn sleep_shows_and_aborts() {
    let server = Server::start("--profile demo-small --served-model-name demo").await;
    let body = r#"{"prompt": "a b", "max_tokens": 2000, "stream": true}"#;
    let mut running = server.send(Method::POST, "/v1/completions", &[], body).await;
    running.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(server.post("/sleep?level=1", "").await.0, 200);
    let (_, rest) = whole(running).await;
    assert_eq!(events(&rest).last().unwrap()["choices"][0]["finish_reason"], "abort");
    let page = server.metrics().await;
    let state = |state| format!("vllm:engine_sleep_state{{engine=\"0\",model_name=\"demo\",sleep_state=\"{state}\"}}");
    assert_eq!(
        (
            sample(&page, &state("awake")),
            sample(&page, &state("weights_offloaded"))
        ),
        (0.0, 1.0)
    );
    assert_eq!(server.get("/is_sleeping").await.1, r#"{"is_sleeping":true}"#);
    assert_eq!(server.post("/sleep?level=7", "").await.0, 400);
    assert_eq!(server.post("/wake_up", "").await.0, 200);
    assert_eq!(sample(&server.metrics().await, &state("awake")), 1.0);
}

#[tokio::test]
async fn failures_on_demand() {
    let server = Server::start(FAST).await;
    assert_eq!(server.post("/sim/failure", r#"{"kind": "unavailable"}"#).await.0, 200);
    for path in ["/metrics", "/health", "/v1/models"] {
        assert_eq!(server.get(path).await.0, 503, "{path}");
    }
    assert_eq!(server.post("/sim/failure", r#"{"kind": "hang_metrics"}"#).await.0, 200);
    assert_eq!(server.post("/sim/failure", r#"{"kind": "none"}"#).await.0, 200);
    assert_eq!(server.get("/metrics").await.0, 200);

    let brief = Duration::from_millis(200);
    server.post("/sim/failure", r#"{"kind": "hang_metrics"}"#).await;
    assert!(tokio::time::timeout(brief, server.get("/metrics")).await.is_err());
    assert_eq!(server.get("/health").await.0, 200);
    server.post("/sim/failure", r#"{"kind": "none"}"#).await;

    let before = std::time::Instant::now();
    server
        .post("/sim/failure", r#"{"kind": "slow_metrics", "delay_ms": 300}"#)
        .await;
    server.metrics().await;
    assert!(before.elapsed() >= Duration::from_millis(300));
    server.post("/sim/failure", r#"{"kind": "none"}"#).await;

    server.post("/sim/failure", r#"{"kind": "hang"}"#).await;
    assert!(tokio::time::timeout(brief, server.get("/health")).await.is_err());
    let completion = server.post("/v1/completions", r#"{"prompt": "a", "max_tokens": 2}"#);
    let release = async {
        assert!(tokio::time::timeout(brief, server.get("/v1/models")).await.is_err());
        server.post("/sim/failure", r#"{"kind": "none"}"#).await
    };
    let ((status, _), _) = tokio::join!(completion, release);
    assert_eq!(status, 200);

    for (body, part) in [
        (r#"{"kind": "explode"}"#, "explode"),
        (r#"{"kind": "hang", "for_s": -1}"#, "for_s"),
        ("{}", "kind"),
    ] {
        let (status, text) = server.post("/sim/failure", body).await;
        assert!(status == 400 && text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_crash_cuts_streams_and_ends_the_server() {
    let server = Server::start("--profile demo-small").await;
    let body = r#"{"prompt": "a b", "max_tokens": 2000, "stream": true}"#;
    let mut running = server.send(Method::POST, "/v1/completions", &[], body).await;
    running.body_mut().frame().await.unwrap().unwrap();
    let address = server.address;
    // The answer to this request may or may not get out.
    let crash = tokio::spawn(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = "POST /sim/failure HTTP/1.1\r\nhost: x\r\ncontent-length: 17\r\n\r\n{\"kind\": \"crash\"}";
        stream.writable().await.unwrap();
        assert_eq!(stream.try_write(request.as_bytes()).unwrap(), request.len());
        stream
    });
    assert_eq!(server.outcome.await.unwrap(), Outcome::Crashed);
    drop(crash);
    assert!(
        running.into_body().collect().await.is_err(),
        "the stream is cut, not ended"
    );
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn an_idle_connection_is_closed_as_uvicorn_does() {
    let server = Server::start("--profile demo-small --keep-alive-s 0.3").await;
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn shutdown_cuts_at_once_or_after_its_grace() {
    let body = r#"{"prompt": "a b", "max_tokens": 20, "stream": true}"#;
    for (grace_s, finishes) in [(0, false), (20, true)] {
        let mut server = Server::start(&format!("--profile demo-small --shutdown-grace-s {grace_s}")).await;
        let mut running = server.send(Method::POST, "/v1/completions", &[], body).await;
        running.body_mut().frame().await.unwrap().unwrap();
        server.shutdown.take().unwrap().send(()).unwrap();
        let rest = running.into_body().collect().await;
        assert_eq!(rest.is_ok(), finishes);
        assert_eq!(server.outcome.await.unwrap(), Outcome::ShutDown);
    }
}

fn infersim(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infersim"));
    command
        .arg("engine")
        .args(arguments.split_whitespace())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[tokio::test]
async fn the_process_explains_its_end() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (arguments, code, part) in [
        (format!("--port {port}"), 1, "is in use"),
        ("--port 0 --profile nonsense".into(), 2, "demo-small"),
        ("--port 0 --fail explode@3".into(), 2, "hang_metrics"),
        ("--port 0 --fail crash@0.05".into(), 1, "failure injected"),
        ("--port 0 --speed 0".into(), 2, "above 0"),
    ] {
        let output = tokio::task::spawn_blocking(move || infersim(&arguments).output().unwrap())
            .await
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn connections_are_refused_while_weights_load_and_sigterm_is_a_clean_end() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut child = infersim(&format!("--port {} --startup-delay-s 0.5", free.port()))
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    until("connected", async || tokio::net::TcpStream::connect(free).await.ok()).await;
    assert!(begun.elapsed() >= Duration::from_millis(450));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = until("ended", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
}
