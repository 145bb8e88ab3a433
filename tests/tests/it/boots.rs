//! Two agents that claim one replica.

use std::{fs, process::Stdio};

use infer_tests::harness::{Binaries, Client, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Directory, Fleet, SOON, complete, counted, engines, health, ready, start, status, turn, windows};

/// Waits until the one agent that speaks has sent two more.
async fn two_samples(client: &Client) {
    let before = status(client).await.samples_applied;
    until(SOON, "two more samples", || async {
        let now = status(client).await;
        if now.samples_applied >= before + 2 && now.agents_connected == 1 {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_later_boot_speaks_and_nothing_counts_twice() {
    let _turn = turn().await;
    let directory = Directory::new();
    let fleet = Fleet::new("chat");
    let (decider, client) = start(&directory, &fleet).await;
    let send = async |requests: u64| {
        for _ in 0..requests {
            let (answer, _) = complete(&fleet.url(), &fleet.model(), 2).await.unwrap();
            assert!(answer.is_success());
        }
    };
    let all_counted = async |requests: u64| {
        until(SOON, &format!("{requests} requests in the windows"), || async {
            let have = counted(&windows(&client, "chat").await, "requests");
            if have == requests {
                Ok(())
            } else {
                Err(have.to_string())
            }
        })
        .await
        .unwrap();
    };
    send(7).await;
    all_counted(7).await;

    let engine = ready(&client, "chat", 1).await.pods[0].endpoint.clone();
    let mut second = tokio::process::Command::new(Binaries::find().unwrap().path("infer-agent"))
        .args([
            "run",
            "--engine-url",
            &engine,
            "--decider",
            &decider.url(),
            "--pod-name",
            "chat-0",
            "--target",
            "chat",
        ])
        .stdin(Stdio::null())
        .stderr(fs::File::create(directory.path().join("second-agent.log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let log = directory.path().join("logs/chat-0.agent.log");
    until(SOON, "the first agent to be refused", || async {
        let said = fs::read_to_string(&log).unwrap_or_default();
        if said.contains("the decider refused this agent") && said.contains("later boot") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await
    .unwrap();
    let said = decider.log_tail(10_000);
    assert_eq!(
        said.matches("a later boot speaks for this replica now").count(),
        1,
        "{said}"
    );
    two_samples(&client).await;
    send(5).await;
    all_counted(12).await;
    let status = status(&client).await;
    assert_eq!(status.samples_duplicate, 0);
    assert_eq!(status.health, "ok", "{:?}", status.problems);
    assert!(second.try_wait().unwrap().is_none());
    second.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_is_replaced_and_its_replica_serves_on() {
    let _turn = turn().await;
    let directory = Directory::new();
    let fleet = Fleet::new("chat");
    let (decider, client) = start(&directory, &fleet).await;
    let agents = || {
        let processes = decider.processes().into_iter();
        processes
            .filter(|process| process.command.contains("infer-agent"))
            .map(|process| process.pid)
            .collect::<Vec<_>>()
    };
    let (before, engine) = (agents(), engines(&decider.processes()));
    assert_eq!(before.len(), 1);
    kill(Pid::from_raw(before[0] as i32), Signal::SIGKILL).unwrap();
    until(SOON, "a later boot", || async {
        let said = decider.log_tail(10_000);
        if said.contains("a later boot speaks for this replica now") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await
    .unwrap();
    let after = agents();
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    assert_eq!(engines(&decider.processes()), engine);
    health(&client, "ok", "").await;
    // What the new agent finds counted already is not new.
    two_samples(&client).await;
    let (answer, _) = complete(&fleet.url(), &fleet.model(), 2).await.unwrap();
    assert!(answer.is_success());
    until(SOON, "the request in the windows", || async {
        let have = counted(&windows(&client, "chat").await, "requests");
        if have == 1 { Ok(()) } else { Err(have.to_string()) }
    })
    .await
    .unwrap();
}
