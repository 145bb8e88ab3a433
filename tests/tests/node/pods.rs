//! What all the others rely on: Pods run, and one with an agent ends as it should.

use std::time::{Duration, Instant};

use infer_tests::harness::{Binaries, cluster::PAUSE, http_get, node::Traffic, until};
use serde_json::{Value, json};

use crate::support::{ENGINE_PORT, MODEL, SOON, Scene, agent, engine, is_ready};

/// About 10 ms each.
const LONG_ANSWER_TOKENS: u32 = 1000;
/// Where agents serve.
const AGENT_PORT: u16 = 9402;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_run_and_go() {
    let Some(scene) = Scene::open("pods").await else {
        return;
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "one"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "pause", "image": PAUSE}]},
    });
    scene.apply(pod).await;
    let path = scene.path("/api/v1", "pods/one");
    scene.api.wait_for(&path, SOON, "a ready Pod", is_ready).await.unwrap();
    scene.api.delete(&path).await.unwrap();
    scene.api.wait_gone(&path, SOON).await.unwrap();
    scene.close().await;
}

/// What `inferctl inject` makes of a Pod whose decider is not there.
async fn injected(scene: &Scene, pod: &Value) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pod.json");
    std::fs::write(&file, pod.to_string()).unwrap();
    let output = tokio::process::Command::new(Binaries::find().unwrap().path("inferctl"))
        .args(["inject", "--decider-url", "https://127.0.0.1:9", "-f"])
        .arg(&file)
        // Some authority; there is nobody to trust.
        .arg("--ca-file")
        .arg(scene.cluster.directory().unwrap().join("ca.crt"))
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_with_an_agent_finishes_its_answers() {
    let Some(scene) = Scene::open("leaving").await else {
        return;
    };
    let mut pod = engine("one");
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("one");
    scene
        .api
        .apply(&scene.namespace, &injected(&scene, &pod).await)
        .await
        .unwrap();
    let path = scene.path("/api/v1", "pods/one");
    let pod = scene.api.wait_for(&path, SOON, "a ready Pod", is_ready).await.unwrap();
    assert_eq!(agent(&pod).unwrap()["restartPolicy"], "Always");
    let ip = pod["status"]["podIP"].as_str().unwrap().to_owned();

    // The agent sees its engine, though there is no decider.
    let metrics = format!("http://{ip}:{AGENT_PORT}/metrics");
    let sees = || async {
        let (_, body) = http_get(&metrics).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let sampled = text
            .lines()
            .filter(|line| line.starts_with("infer_agent_") && line.contains("sample") && !line.ends_with(" 0"))
            .count();
        if sampled > 0 { Ok(()) } else { Err(text) }
    };
    until(SOON, "an agent that samples", sees).await.unwrap();

    // One answer of ten seconds, no more.
    let url = format!("http://{ip}:{ENGINE_PORT}");
    let traffic = Traffic::start(&url, MODEL, 1.0, LONG_ANSWER_TOKENS, 1).unwrap();
    let busy = || async {
        let (_, body) = http_get(&format!("{url}/metrics")).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let running = text.lines().find(|line| line.starts_with("vllm:num_requests_running"));
        match running.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()) {
            Some(running) if running > 0.0 => Ok(()),
            _ => Err(text),
        }
    };
    until(SOON, "a busy engine", busy).await.unwrap();
    let answers = tokio::spawn(traffic.stop());

    let began = Instant::now();
    scene.api.delete(&path).await.unwrap();
    let report = answers.await.unwrap().unwrap();
    let answered = began.elapsed();
    assert_eq!(report.requests.failed, 0, "{:?} {:?}", report.failures, report.errors);
    assert!(report.requests.ok > 0);
    assert!(
        answered > Duration::from_secs(2),
        "it was over before it was asked to go: {answered:?}"
    );
    scene.api.wait_gone(&path, SOON).await.unwrap();
    // Soon after its last answer, not at the end of the grace period.
    let after = began.elapsed() - answered;
    assert!(after < Duration::from_secs(20), "{after:?}");
    scene.close().await;
}
