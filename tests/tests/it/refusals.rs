//! Mistakes, and what is said about them.

use std::net::TcpListener;

use crate::support::{Directory, Fleet, is_free, output, start, turn};

/// (line, column, field, a part of what is said)
const MISTAKES: [(u32, u32, &str, &str); 5] = [
    (6, 35, "spec.metrics[0].target", "-8"),
    (7, 3, "spec.stableWindowSecond", "did you mean stableWindowSeconds?"),
    (14, 21, "spec.policyRef.name", "did you mean chat?"),
    (17, 18, "spec.scaling.minReplicas", "allowed: 0 to 3"),
    (26, 50, "spec.engine.command[3]", "did you mean {port}?"),
];

const BAD: &str = r#"apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicy
metadata: {name: chat}
spec:
  metrics:
    - {type: concurrency, target: -8}
  stableWindowSecond: 10
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicyBinding
metadata: {name: chat}
spec:
  # The policy is called otherwise.
  policyRef: {name: chatt}
  scaling:
    targetRef: {kind: LocalFleet, name: chat}
    minReplicas: 7
    maxReplicas: 3
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: LocalFleet
metadata: {name: chat}
spec:
  model: chat-model
  engine:
    command: [infersim, engine, "--port={port}", "{prot}"]
    ports: {from: 21100, to: 21149}
"#;

#[tokio::test]
async fn every_mistake_in_a_document_is_told_with_its_place() {
    let directory = Directory::new();
    let (file, state) = (directory.path().join("bad.yaml"), directory.path().join("state"));
    std::fs::write(&file, BAD).unwrap();
    let (file, state) = (file.to_str().unwrap(), state.to_str().unwrap());
    let check = ["check", file];
    let run = [
        "run",
        "--config",
        file,
        "--state-dir",
        state,
        "--listen",
        "127.0.0.1:0",
        "--no-http",
    ];
    let policy = ["policy", "check", file];
    for (program, arguments) in [
        ("infer-decider", &check[..]),
        ("infer-decider", &run[..]),
        ("inferctl", &policy[..]),
    ] {
        let (code, _, said) = output(program, arguments).await;
        assert_eq!(code, 2, "{program}: {said}");
        for (line, column, field, words) in MISTAKES {
            let place = format!("{file}:{line}:{column}: ");
            let told = said.lines().find(|told| told.contains(&place));
            let told = told.unwrap_or_else(|| panic!("{program} has nothing at {place:?} in:\n{said}"));
            assert!(told.contains(field) && told.contains(words), "{told}");
        }
    }
    assert!(
        !std::path::Path::new(state).exists(),
        "nothing is made of bad documents"
    );
    let (code, _, said) = output("infer-decider", &["check", "no-such-file.yaml"]).await;
    assert!(code == 2 && said.contains("no-such-file.yaml"), "{code}: {said}");
    let (code, _, said) = output("infer-decider", &["run"]).await;
    assert!(code == 2 && said.contains("--config"), "{code}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_is_named() {
    let _turn = turn().await;
    let directory = Directory::new();
    let fleet = Fleet::new("chat");
    let file = directory.path().join("taken.yaml");
    std::fs::write(&file, fleet.yaml()).unwrap();
    let (file, own) = (file.to_str().unwrap(), directory.path().join("own"));
    let own = own.to_str().unwrap();
    let run = async |state: &str, arguments: &[&str]| {
        let mut all = vec!["run", "--config", file, "--state-dir", state];
        all.extend(arguments);
        output("infer-decider", &all).await
    };
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for arguments in [
        ["--listen", &taken, "--no-http", "--leave-engines"],
        ["--listen", "127.0.0.1:0", "--http-listen", &taken],
    ] {
        let (code, _, said) = run(own, &arguments).await;
        assert!(
            code == 1 && said.contains(&taken) && said.contains("in use"),
            "{code}: {said}"
        );
    }
    // The front door's too; and nothing has been started.
    let door = TcpListener::bind(("127.0.0.1", fleet.door)).unwrap();
    let (code, _, said) = run(own, &["--listen", "127.0.0.1:0", "--no-http"]).await;
    assert!(
        code == 1 && said.contains(&format!("127.0.0.1:{}", fleet.door)) && said.contains("chat"),
        "{code}: {said}"
    );
    drop(door);
    assert!(fleet.all_ports().all(is_free));

    let (decider, _client) = start(&directory, &fleet).await;
    let (code, _, said) = run(
        directory.path().to_str().unwrap(),
        &["--listen", "127.0.0.1:0", "--no-http"],
    )
    .await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&format!("pid {}", decider.pid().unwrap())), "{said}");
    assert!(decider.inferctl(&["status"]).await.unwrap().contains("ok"));
}

#[tokio::test]
async fn inferctl_says_what_is_missing() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    for command in [
        &["status"][..],
        &["targets"],
        &["explain", "chat"],
        &["override", "chat", "--replicas", "1", "--for", "1m"],
    ] {
        let mut arguments = vec!["--server", nobody.as_str()];
        arguments.extend(command);
        let (code, printed, said) = output("inferctl", &arguments).await;
        assert_eq!((code, printed.as_str()), (1, ""), "{said}");
        assert!(
            said.contains(&nobody) && said.contains("infer-decider") && said.contains("--server"),
            "{said}"
        );
    }
    let (code, _, said) = output(
        "inferctl",
        &["--server", &nobody, "override", "chat", "--replicas", "1"],
    )
    .await;
    assert!(code == 2 && said.contains("--for"), "{code}: {said}");
}
