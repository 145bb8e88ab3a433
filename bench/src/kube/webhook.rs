//! A hundred Pods a second through an API server that asks the webhook about each.

use std::{
    fs,
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use infer_tests::harness::cluster::Api;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{NAMESPACE, Stage, open};
use crate::{
    Outcome, Setting,
    report::{Figure, Report, Target},
    say,
};

/// Pods per second.
const RATE: u32 = 100;
const INJECT: &str = "autoscaling.matrixinfer.ai/inject";
/// The name that the decider knows.
const CONFIGURATION: &str = "infer-decider";
const WEBHOOK: &str = "pod.inject.autoscaling.matrixinfer.ai";
/// Admitted, not stored: Pods do not pile up.
const DRY_RUN: &str = "/api/v1/namespaces/bench/pods?dryRun=All";

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(setting, report))
}

async fn measure(setting: &Setting, report: &mut Report) -> anyhow::Result<Outcome> {
    let period = setting.either(Duration::from_secs(30), Duration::from_secs(2));
    let stage = match open(report).await? {
        Ok(stage) => stage,
        Err(skipped) => return Ok(skipped),
    };
    let decider = stage.decider("webhook", true).await?;
    let ca_pem = decider.agents(&stage.api, Duration::from_secs(30)).await?.ca_pem;
    let url = decider.webhooks();
    configure(&stage, &url, &ca_pem).await?;
    let api = &stage.api;
    let with = pod("enabled");
    let without = pod("disabled");
    // The API server takes a new configuration up in its own time.
    let began = Instant::now();
    while !is_injected(&api.post(DRY_RUN, &with).await?) {
        ensure!(began.elapsed() < Duration::from_secs(30), "no Pod got an agent in 30 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    say("bench webhook: the webhook by itself");
    let direct = direct_api(&stage, &url, &ca_pem).await?;
    let review = review(&api.post(DRY_RUN, &without).await?, &with);
    let answers = at_rate(period, || {
        let (direct, review) = (direct.clone(), review.clone());
        async move { Ok(direct.post("/mutate-pods", &review).await?["response"]["patch"].is_string()) }
    })
    .await;
    let own = Outcomes::of(answers);

    say("bench webhook: Pods with and without it");
    let server_before = admission(api).await?;
    let create = |pod: Value| {
        move || {
            let (api, pod) = (api.clone(), pod.clone());
            async move { Ok(is_injected(&api.post(DRY_RUN, &pod).await?)) }
        }
    };
    // Both at the same time, so that whatever the machine does happens to both.
    let (asked, unasked) = tokio::join!(at_rate(period, create(with.clone())), async {
        tokio::time::sleep(Duration::from_secs(1) / RATE / 2).await;
        at_rate(period, create(without.clone())).await
    });
    let (asked, unasked) = (Outcomes::of(asked), Outcomes::of(unasked));
    let (count, total_s) = admission(api).await?;
    let in_server_ms = 1e3 * (total_s - server_before.1) / (count - server_before.0).max(1.0);

    say("bench webhook: the decider is killed");
    decider.kill()?;
    let killed = Outcomes::of(at_rate(period / 3, create(with)).await);

    let figure = |name: &str, samples: &[f64]| Figure::p99(name, "ms", samples);
    let answer = "webhook: request to answer over TLS";
    report.figure(figure(answer, &own.ms).promised(Target::AtMost(20.0)));
    report.figure(Figure::median(answer, "ms", &own.ms));
    report.figure(
        Figure::total("API server's time for asking it, mean", "ms", in_server_ms, &[])
            .note("apiserver_admission_webhook_admission_duration_seconds"),
    );
    for (name, outcomes) in [("with the webhook", &asked), ("without it", &unasked)] {
        let name = format!("Pod create {name}");
        report.figure(figure(&name, &outcomes.ms));
        report.figure(Figure::median(name, "ms", &outcomes.ms));
    }
    report.figure(figure("Pod create with the decider killed", &killed.ms));
    report.figure(Figure::total(
        "Pods injected",
        "1/s",
        asked.yes as f64 / period.as_secs_f64(),
        &[],
    ));
    let none = |name: &str, count: usize| Figure::total(name, "Pods", count as f64, &[]).promised(Target::AtMost(0.0));
    report.figure(none("Pods without their agent", own.no + asked.no));
    report.figure(none("Pods refused", own.failed + asked.failed + unasked.failed));
    report.figure(
        none("Pods refused with the decider killed", killed.failed).note(format!(
            "{} Pods, {} of them with an agent",
            killed.ms.len(),
            killed.yes
        )),
    );
    if let Some(error) = [own, asked, unasked, killed]
        .into_iter()
        .find_map(|outcomes| outcomes.error)
    {
        report.note(format!("the first refusal: {error}"));
    }
    report.note(format!(
        "{RATE} Pods a second for {} s, each begun at its time whether or not those before it are done, timed from then \
         until the answer is read",
        period.as_secs()
    ));
    report.note(
        "Pods are created with dryRun=All: everything of a create but the write to etcd; with and without the webhook in \
         the same seconds, so 200 creates a second in all; the webhook by itself gets the review of the same Pod",
    );
    report.note("real kube-apiserver and infer-decider (webhooks, TLS with its own authority) on loopback");
    Ok(Outcome::Measured)
}

/// An engine's Pod that wants its agent, or not.
fn pod(inject: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "chat-", "namespace": NAMESPACE, "labels": {"app": "chat", INJECT: inject}},
        "spec": {
            "terminationGracePeriodSeconds": 120,
            "containers": [{
                "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
                "args": ["--model", "Qwen/Qwen3-8B", "--port", "8000", "--max-num-seqs", "64"],
                "ports": [{"name": "http", "containerPort": 8000}],
                "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2},
                "resources": {"limits": {"nvidia.com/gpu": 1}},
            }],
        },
    })
}

fn is_injected(pod: &Value) -> bool {
    let containers = pod["spec"]["initContainers"].as_array();
    containers.is_some_and(|containers| containers.iter().any(|container| container["name"] == "infer-agent"))
}

/// As the chart has it for Pods that ask for themselves, with an address instead of a Service.
async fn configure(stage: &Stage, url: &str, ca_pem: &str) -> anyhow::Result<()> {
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATION},
        "webhooks": [{
            "name": WEBHOOK,
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore",
            "reinvocationPolicy": "IfNeeded", "timeoutSeconds": 2,
            "clientConfig": {"url": format!("{url}/mutate-pods"), "caBundle": STANDARD.encode(ca_pem)},
            "objectSelector": {"matchExpressions": [{"key": INJECT, "operator": "In", "values": ["enabled"]}]},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                "scope": "Namespaced",
            }],
        }],
    });
    stage.api.create(&configuration).await?;
    Ok(())
}

/// A client of the webhook itself, which is what an API server is to it.
async fn direct_api(stage: &Stage, url: &str, ca_pem: &str) -> anyhow::Result<Api> {
    let directory = stage.cluster.directory().context("a cluster without a directory")?;
    let path = directory.join("webhook.kubeconfig");
    let ca = STANDARD.encode(ca_pem);
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "webhook",
        "clusters": [{"name": "webhook", "cluster": {"server": url, "certificate-authority-data": ca}}],
        "users": [{"name": "webhook", "user": {}}],
        "contexts": [{"name": "webhook", "context": {"cluster": "webhook", "user": "webhook"}}],
    });
    fs::write(&path, text.to_string())?;
    Ok(Api::connect(&path).await?)
}

/// The review of a Pod as the API server would send it: with every default, as an admitted one has them.
fn review(admitted: &Value, pod: &Value) -> Value {
    let mut object = admitted.clone();
    object["metadata"]["labels"] = pod["metadata"]["labels"].clone();
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "name": object["metadata"]["name"], "namespace": NAMESPACE, "operation": "CREATE",
            "userInfo": {"username": "admin", "groups": ["system:masters", "system:authenticated"]},
            "object": object, "oldObject": null, "dryRun": true,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

/// How often the API server has asked the webhook, and how long that took in all, s.
async fn admission(api: &Api) -> anyhow::Result<(f64, f64)> {
    let metrics = api.text("/metrics").await?;
    let sum = |what: &str| -> f64 {
        let name = format!("apiserver_admission_webhook_admission_duration_seconds_{what}{{");
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with(&name) && line.contains(&format!("name=\"{WEBHOOK}\"")));
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    };
    Ok((sum("count"), sum("sum")))
}

/// Does something [`RATE`] times a second: how long each took from when it was due, ms, and what it came to.
async fn at_rate<F>(period: Duration, each: impl Fn() -> F) -> Vec<(f64, anyhow::Result<bool>)>
where
    F: Future<Output = anyhow::Result<bool>> + Send + 'static,
{
    let began = tokio::time::Instant::now();
    let mut running = JoinSet::new();
    for number in 0..RATE * period.as_secs().max(1) as u32 {
        let due = began + Duration::from_secs(1) * number / RATE;
        tokio::time::sleep_until(due).await;
        let work = each();
        running.spawn(async move {
            let outcome = work.await;
            (due.elapsed().as_secs_f64() * 1e3, outcome)
        });
    }
    let mut all = Vec::new();
    while let Some(Ok(done)) = running.join_next().await {
        all.push(done);
    }
    all
}

/// What many came to.
struct Outcomes {
    ms: Vec<f64>,
    yes: usize,
    no: usize,
    failed: usize,
    error: Option<String>,
}

impl Outcomes {
    fn of(outcomes: Vec<(f64, anyhow::Result<bool>)>) -> Self {
        let count = |wanted: fn(&anyhow::Result<bool>) -> bool| outcomes.iter().filter(|(_, one)| wanted(one)).count();
        Outcomes {
            yes: count(|one| matches!(one, Ok(true))),
            no: count(|one| matches!(one, Ok(false))),
            failed: count(Result::is_err),
            error: outcomes
                .iter()
                .find_map(|(_, one)| Some(one.as_ref().err()?.to_string())),
            ms: outcomes.iter().map(|(ms, _)| *ms).collect(),
        }
    }
}
