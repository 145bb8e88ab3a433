//! Up and down and up again under load: whoever is taken away finishes what it has.

use infer_tests::harness::for_target;

use crate::support::{Directory, Fleet, Load, SOON, failed, start, turn};

const ROUNDS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_however_often_the_fleet_shrinks() {
    let _turn = turn().await;
    let directory = Directory::new();
    let fleet = Fleet {
        startup_s: 0.2,
        ..Fleet::new("chat")
    };
    let (decider, client) = start(&directory, &fleet).await;
    let load = Load::start(&fleet.url(), &fleet.model(), 15.0, 60, 12);
    load.answered(5).await;
    for round in 0..ROUNDS {
        for replicas in [3, 1] {
            let wanted = replicas.to_string();
            decider
                .inferctl(&["override", "chat", "--replicas", &wanted, "--for", "10m"])
                .await
                .unwrap();
            // Some rounds turn round while the last one's drains go on.
            let there = |target: &infer_proto::v1::Target| {
                let now = target.replicas.unwrap_or_default();
                now.ready == replicas && now.spec == replicas && (round % 3 == 0 || now.draining == 0)
            };
            for_target(
                &client,
                "chat",
                SOON,
                &format!("{replicas} ready in round {round}"),
                there,
            )
            .await
            .unwrap();
        }
    }
    load.answered(5).await;
    let report = load.stop().await;
    assert_eq!(failed(&report), 0, "{:?} {:?}", report.failures, report.errors);
    assert_eq!(report.requests.ok, report.requests.sent);
    assert!(report.replicas.len() >= 3, "only {:?} have served", report.replicas);
    drop(decider);
}
