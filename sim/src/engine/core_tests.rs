use super::*;
use crate::engine::profile::Profile;

fn options(max_num_seqs: u32) -> Options {
    let mut model = Config::new(Profile::load("demo-small").unwrap());
    model.max_num_seqs = max_num_seqs;
    Options {
        flavor: Flavor::Vllm,
        model,
        served_model_names: vec!["demo".into()],
        data_parallel: 1,
        api_servers: 1,
        max_num_queued_reqs: None,
        lora_adapters: vec![],
        max_loras: 1,
    }
}

fn start(options: Options) -> Engine {
    let engine = Engine::new(options);
    tokio::spawn({
        let engine = engine.clone();
        async move { engine.run().await }
    });
    engine
}

fn submission(prompt_tokens: u32, output_tokens: u32) -> Submission {
    Submission {
        prompt_tokens,
        output_tokens,
        streaming: true,
        arrival: Instant::now(),
        adapter: None,
    }
}

fn sample(engine: &Engine, start: &str) -> f64 {
    let text = engine.metrics(Dialect::Python, None);
    let line = text
        .lines()
        .find(|l| l.starts_with(start))
        .unwrap_or_else(|| panic!("no {start}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn all_tokens(mut ticket: Ticket) -> Vec<Token> {
    let mut tokens = Vec::new();
    while let Some(token) = ticket.tokens.recv().await {
        tokens.push(token);
    }
    tokens
}

#[tokio::test(start_paused = true)]
async fn what_is_reported_is_what_was_seen() {
    let engine = start(options(16));
    let arrival = Instant::now();
    let mut ticket = engine.submit(submission(100, 5)).unwrap();
    ticket.tokens.recv().await.unwrap();
    let ttft_s = arrival.elapsed().as_secs_f64();
    let rest = all_tokens(ticket).await;
    let e2e_s = arrival.elapsed().as_secs_f64();
    assert_eq!(
        rest.last(),
        Some(&Token {
            index: 5,
            finish: Some(FinishReason::Length)
        })
    );
    // The test's clock has a resolution of one millisecond, as the timer has.
    assert!((sample(&engine, "vllm:time_to_first_token_seconds_sum") - ttft_s).abs() < 2e-3);
    assert!((sample(&engine, "vllm:e2e_request_latency_seconds_sum") - e2e_s).abs() < 2e-3);
    assert_eq!(sample(&engine, "vllm:inter_token_latency_seconds_count"), 4.0);
    assert_eq!(sample(&engine, "vllm:request_prompt_tokens_sum"), 100.0);
    assert_eq!(sample(&engine, "vllm:generation_tokens_total"), 5.0);
    assert_eq!(sample(&engine, "vllm:num_requests_running"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_ticket_is_counted_nowhere() {
    let engine = start(options(1));
    let running = engine.submit(submission(10, 1000)).unwrap();
    let queued = engine.submit(submission(10, 1000)).unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(engine.load(), (1, 1));
    assert_eq!(sample(&engine, "vllm:num_requests_waiting{"), 1.0);
    drop(queued);
    assert_eq!(sample(&engine, "vllm:num_requests_waiting{"), 0.0);
    drop(running);
    assert_eq!(engine.load(), (0, 0));
    let success: f64 = ["stop", "length", "abort", "error"]
        .map(|r| {
            sample(
                &engine,
                &format!("vllm:request_success_total{{engine=\"0\",finished_reason=\"{r}\""),
            )
        })
        .iter()
        .sum();
    assert_eq!(success, 0.0);
    assert_eq!(sample(&engine, "vllm:e2e_request_latency_seconds_count"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_filled_queue_waits_until_it_is_aborted() {
    let engine = start(options(4));
    let ids = engine.fill_queue(50, 16);
    assert_eq!(ids.len(), 54);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(engine.load(), (4, 50));
    assert_eq!(sample(&engine, "vllm:num_requests_waiting{"), 50.0);
    engine.abort(&ids);
    assert_eq!(engine.load(), (0, 0));
    assert_eq!(sample(&engine, "vllm:kv_cache_usage_perc"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn sleeping_aborts_and_holds_what_comes() {
    let engine = start(options(4));
    let ticket = engine.submit(submission(10, 1000)).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    engine.sleep(1);
    let last = all_tokens(ticket).await.pop().unwrap();
    assert_eq!(last.finish, Some(FinishReason::Abort));
    let awake = "vllm:engine_sleep_state{engine=\"0\",model_name=\"demo\",sleep_state=\"awake\"";
    assert_eq!((engine.is_sleeping(), sample(&engine, awake)), (true, 0.0));
    let ticket = engine.submit(submission(10, 2)).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(engine.load(), (0, 1));
    engine.wake_up();
    assert_eq!(all_tokens(ticket).await.len(), 2);
    assert_eq!(sample(&engine, awake), 1.0);
}

#[tokio::test(start_paused = true)]
async fn ranks_share_the_load_and_a_full_queue_refuses() {
    let engine = start(Options {
        data_parallel: 2,
        max_num_queued_reqs: Some(2),
        ..options(1)
    });
    let mut tickets = Vec::new();
    for _ in 0..4 {
        tickets.push(engine.submit(submission(10, 100)).unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(matches!(
        engine.submit(submission(10, 100)),
        Err(Error::QueueFull { waiting: 2, limit: 2 })
    ));
    for rank in 0..2 {
        let running = format!("vllm:num_requests_running{{engine=\"{rank}\"");
        assert_eq!(sample(&engine, &running), 1.0);
    }
    assert_eq!(sample(&engine, "vllm:admission_rejections_total"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_stall_shows_in_the_latencies() {
    let engine = start(options(4));
    let ticket = engine.submit(submission(10, 2)).unwrap();
    engine.stall_until(Instant::now() + Duration::from_secs(7));
    all_tokens(ticket).await;
    assert!(sample(&engine, "vllm:time_to_first_token_seconds_sum") >= 7.0);
}
