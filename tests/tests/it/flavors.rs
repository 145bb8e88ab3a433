//! Engines of other kinds, in one run.

use infer_proto::v1::{Signal, engine::Kind};
use infer_tests::harness::{Decider, Options, until};

use crate::support::{Directory, Fleet, SOON, complete, counted, observed, ready, turn, windows};

const REQUESTS: u64 = 9;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sglang_and_vllm_rust_are_read_as_what_they_are() {
    let _turn = turn().await;
    let directory = Directory::new();
    let fleets = [("lang", "sglang"), ("rust", "vllm-rust"), ("python", "vllm")].map(|(name, flavor)| Fleet {
        flavor,
        ..Fleet::new(name)
    });
    let mut options = Options::new(directory.path(), "");
    options.documents = fleets.iter().map(Fleet::yaml).collect();
    let decider = Decider::start(options).await.unwrap();
    let client = decider.client().await.unwrap();
    let found = [
        (Kind::Sglang, "sglang", None),
        (Kind::Vllm, "vllm", Some("rust")),
        (Kind::Vllm, "vllm", Some("python")),
    ];
    for (fleet, (kind, name, front_end)) in fleets.iter().zip(found) {
        let target = ready(&client, fleet.name, 1).await;
        let engine = target.pods[0].engine.clone().unwrap();
        assert_eq!((engine.kind(), engine.name.as_str()), (kind, name), "{engine:?}");
        assert!(
            front_end.is_none_or(|front_end| engine.front_end == front_end),
            "{engine:?}"
        );
        for _ in 0..REQUESTS {
            let (answer, _) = complete(&fleet.url(), &fleet.model(), 3).await.unwrap();
            assert!(answer.is_success());
        }
    }
    for fleet in &fleets {
        until(SOON, &format!("{REQUESTS} requests of {}", fleet.name), || async {
            let windows = windows(&client, fleet.name).await;
            let counts = (
                counted(&windows, "requests"),
                observed(&windows, Signal::Ttft),
                observed(&windows, Signal::E2e),
                counted(&windows, "generation_tokens"),
            );
            let wanted = (REQUESTS, REQUESTS, REQUESTS, 3 * REQUESTS);
            if counts == wanted {
                Ok(())
            } else {
                Err(format!("{counts:?}, not {wanted:?}"))
            }
        })
        .await
        .unwrap();
    }
}
