//! A clean stop leaves nothing; what a killed decider leaves, one command ends, and nothing else.

use std::process::Stdio;

use infer_tests::harness::{Binaries, until};

use crate::support::{Directory, Fleet, SOON, complete, engines, is_free, output, start, turn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_leaves_nothing_running() {
    let _turn = turn().await;
    let directory = Directory::new();
    let fleet = Fleet {
        initial: 2,
        min: 2,
        ..Fleet::new("chat")
    };
    let (mut decider, _client) = start(&directory, &fleet).await;
    let (answer, _) = complete(&fleet.url(), &fleet.model(), 4).await.unwrap();
    assert!(answer.is_success());
    assert_eq!(engines(&decider.processes()).len(), 2);

    let ended = decider.stop(SOON).await.unwrap();
    assert!(ended.success(), "{ended}\n{}", decider.log_tail(15));
    assert_eq!(decider.processes(), []);
    let taken: Vec<_> = fleet.all_ports().filter(|port| !is_free(*port)).collect();
    assert_eq!(taken, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleanup_ends_what_a_killed_decider_has_left_and_no_stranger() {
    let _turn = turn().await;
    let directory = Directory::new();
    let fleet = Fleet {
        initial: 2,
        min: 2,
        ..Fleet::new("chat")
    };
    let (mut decider, _client) = start(&directory, &fleet).await;
    // An engine on a port of the fleet that somebody else has started.
    let port = fleet
        .all_ports()
        .find(|port| *port > fleet.ports + 10 && is_free(*port))
        .unwrap();
    let mut stranger = tokio::process::Command::new(Binaries::find().unwrap().path("infersim"))
        .args(["engine", "--port", &port.to_string()])
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    let state_dir = directory.path().to_str().unwrap().to_owned();
    let cleanup = async || output("infer-decider", &["cleanup", "--state-dir", &state_dir]).await;
    let (code, _, said) = cleanup().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&format!("pid {}", decider.pid().unwrap())), "{said}");
    assert_eq!(engines(&decider.processes()).len(), 2);

    decider.kill().unwrap();
    let left = decider.processes();
    assert_eq!(left.len(), 4, "two engines and two agents: {left:?}");
    let (code, _, said) = cleanup().await;
    assert_eq!(code, 0, "{said}");
    for process in left {
        assert!(
            said.contains(&format!("pid {} of fleet chat", process.pid)),
            "{process} is not in: {said}"
        );
    }
    assert_eq!(decider.processes(), []);
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger was ended");
    let url = format!("http://127.0.0.1:{port}");
    until(SOON, "the stranger's answer", || complete(&url, "demo/tiny-llama", 1))
        .await
        .unwrap();
    // A second time there is nothing to do.
    let (code, _, said) = cleanup().await;
    assert!(code == 0 && said.contains("0 ended"), "{code}: {said}");
    stranger.kill().await.unwrap();
}
