//! The agent's reader must take the stand-in for the real thing.

use infer_reader::{Reader, ReaderOptions};

use crate::support::{Server, until};

#[tokio::test]
async fn the_reader_sees_an_engine_and_counts_what_was_sent() {
    for (flavor, engine) in [("vllm", "vllm"), ("vllm-rust", "vllm"), ("sglang", "sglang")] {
        let server = Server::start(&format!(
            "--profile demo-small --speed 50 --served-model-name demo --flavor {flavor}"
        ))
        .await;
        let inspection = infer_reader::inspect(server.metrics().await.as_bytes(), None, None).unwrap();
        assert_eq!(
            (inspection.engine.as_str(), inspection.model.as_str()),
            (engine, "demo"),
            "{flavor}"
        );
        let mut reader = Reader::new(ReaderOptions::default());
        reader.advance(server.metrics().await.as_bytes()).unwrap();
        for _ in 0..3 {
            let body = r#"{"prompt": [1, 2, 3, 4], "max_tokens": 5, "stream": true}"#;
            assert_eq!(server.post("/v1/completions", body).await.0, 200);
        }
        let advance = reader.advance(server.metrics().await.as_bytes()).unwrap();
        let counters = &advance.counters;
        assert_eq!(
            (counters.prompt_tokens, counters.generation_tokens),
            (Some(12), Some(15)),
            "{flavor}"
        );
        assert!(!advance.engine_restarted && !advance.histograms.is_empty());
        let idle = until("idle", async || {
            let advance = reader.advance(server.metrics().await.as_bytes()).unwrap();
            Some(advance.gauges).filter(|g| g.running == Some(0.0) && g.waiting == Some(0.0))
        });
        idle.await;
    }
}
