//! A journal that cannot be written: decisions go on, and it is said.

use std::{fs, io::Write as _, path::Path};

use infer_proto::v1::ListDecisionsRequest;
use infer_tests::harness::{Client, Decider};

use crate::support::{Directory, Fleet, health, output, ready, start, turn};

/// Replicas asked for by each applied decision, the oldest first.
async fn applied(client: &Client) -> Vec<u32> {
    let request = ListDecisionsRequest {
        limit: 1000,
        ..ListDecisionsRequest::default()
    };
    let decisions = client
        .clone()
        .list_decisions(request)
        .await
        .unwrap()
        .into_inner()
        .decisions;
    let changes = decisions
        .iter()
        .rev()
        .filter(|made| made.applied && made.replicas_after != made.replicas_before);
    changes.map(|made| made.replicas_after).collect()
}

async fn want(decider: &Decider, client: &Client, replicas: u32) {
    let wanted = replicas.to_string();
    decider
        .inferctl(&["override", "chat", "--replicas", &wanted, "--for", "10m"])
        .await
        .unwrap();
    ready(client, "chat", replicas).await;
}

fn fleet() -> Fleet {
    Fleet {
        startup_s: 0.2,
        ..Fleet::new("chat")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_directory_that_goes_and_comes_back() {
    let _turn = turn().await;
    let directory = Directory::new();
    let (mut decider, client) = start(&directory, &fleet()).await;
    want(&decider, &client, 2).await;
    health(&client, "ok", "").await;

    let (journal, aside) = (directory.path().join("journal"), directory.path().join("aside"));
    fs::rename(&journal, &aside).unwrap();
    fs::write(&journal, "not a directory").unwrap();
    want(&decider, &client, 3).await;
    let status = health(&client, "degraded", "journal").await;
    assert!(
        status.problems[0].contains(journal.to_str().unwrap()),
        "{:?}",
        status.problems
    );

    fs::remove_file(&journal).unwrap();
    fs::rename(&aside, &journal).unwrap();
    want(&decider, &client, 1).await;
    health(&client, "ok", "").await;
    assert_eq!(applied(&client).await, [2, 3, 1]);
    // What was decided in between is lost to the next one; nothing else is.
    decider.kill().unwrap();
    decider.restart().await.unwrap();
    let client = decider.client().await.unwrap();
    let target = ready(&client, "chat", 1).await;
    assert_eq!(
        (target.control.as_str(), target.override_replicas),
        ("override", Some(1))
    );
    assert_eq!(applied(&client).await, [2, 1]);
}

/// A file system of 1 MiB; gone with the value.
struct SmallDisk<'a>(&'a Path);

impl SmallDisk<'_> {
    fn mount(at: &Path) -> Option<SmallDisk<'_>> {
        fs::create_dir_all(at).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at);
        mount
            .output()
            .is_ok_and(|mount| mount.status.success())
            .then_some(SmallDisk(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_no_decision_and_costs_no_history() {
    let _turn = turn().await;
    let directory = Directory::new();
    let journal = directory.path().join("journal");
    let Some(_disk) = SmallDisk::mount(&journal) else {
        eprintln!("skipped: a file system of 1 MiB cannot be mounted here");
        return;
    };
    let (mut decider, client) = start(&directory, &fleet()).await;
    want(&decider, &client, 2).await;
    health(&client, "ok", "").await;

    let ballast = journal.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    while file.write_all(&[0]).is_ok() {}
    // More failed writes than there are segments.
    for round in 0..5 {
        want(&decider, &client, if round % 2 == 0 { 3 } else { 2 }).await;
    }
    let status = health(&client, "degraded", "journal").await;
    assert!(status.problems[0].contains("No space left"), "{:?}", status.problems);
    let state_dir = directory.path().to_str().unwrap();
    let (code, _, said) = output("infer-decider", &["cleanup", "--state-dir", state_dir]).await;
    assert_eq!(code, 1, "it still lives: {said}");

    drop(file);
    fs::remove_file(&ballast).unwrap();
    want(&decider, &client, 1).await;
    health(&client, "ok", "").await;
    decider.kill().unwrap();
    decider.restart().await.unwrap();
    let client = decider.client().await.unwrap();
    ready(&client, "chat", 1).await;
    let kept = applied(&client).await;
    assert_eq!((kept.first(), kept.last()), (Some(&2), Some(&1)), "{kept:?}");
    drop(decider);
}
