//! The whole, as a person has it: the chart installed, a namespace labelled, one binding; load comes and goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use infer_tests::harness::{
    cluster::{Api, Condition},
    http_get,
    node::{Helm, Inventory, Stages, Traffic, failed},
    until,
};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::sleep};

use crate::support::{ENGINE_PORT, MODEL, SOON, Scene, agent, engine, is_ready};

const SYSTEM: &str = "infer-system";
const RELEASE: &str = "autoscaler";
const DECIDER: &str = "system:serviceaccount:infer-system:infer-decider";
const CHAT: &str = "chat";
const INJECT: &str = "autoscaling.matrixinfer.ai/inject";
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const BINDINGS: &str = "/apis/autoscaling.matrixinfer.ai/v1alpha1";
/// From `helm install` to the first decision on a labelled workload.
const FIRST_DECISION_S: f64 = 60.0;
/// Requests that one replica shall have.
const PER_REPLICA: u32 = 4;
const MOST: u32 = 5;
/// About one second each.
const ANSWER_TOKENS: u32 = 100;
const LOOK: Duration = Duration::from_millis(100);

fn binding() -> Value {
    json!({
        "apiVersion": "autoscaling.matrixinfer.ai/v1alpha1", "kind": "AutoscalingPolicyBinding",
        "metadata": {"name": CHAT},
        "spec": {
            "drain": {"timeoutSeconds": 60},
            "policy": {
                "metrics": [{"type": "concurrency", "target": PER_REPLICA}],
                "stableWindowSeconds": 10,
                "panic": {"windowPercent": 20, "thresholdPercent": 200},
                "behavior": {"scaleDown": {
                    "stabilizationWindowSeconds": 5,
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 5}],
                }},
            },
            "scaling": {
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": CHAT},
                "minReplicas": 1, "maxReplicas": MOST,
            },
        },
    })
}

/// What is seen of a fleet over time by somebody who looks often.
#[derive(Debug, Default)]
struct Seen {
    /// Modes of the decider's, as its metrics have them.
    modes: BTreeSet<String>,
    /// Replicas asked for, each once it changes.
    replicas: Vec<u64>,
    /// What became of each Pod.
    pods: BTreeMap<String, Life>,
}

#[derive(Debug, Default)]
struct Life {
    /// It was chosen to go while it still served.
    chosen: bool,
    /// It was taken out of its Services before it was deleted.
    drained: bool,
    deleted: bool,
}

struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Watch {
    fn start(api: Api, namespace: String) -> Watch {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                // What cannot be seen now is seen next time.
                let pods = api.list(&format!("/api/v1/namespaces/{namespace}/pods")).await;
                let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{CHAT}");
                let deployment = api.get(&path).await;
                let deciders = api.list(&format!("/api/v1/namespaces/{SYSTEM}/pods")).await;
                let modes = modes(&deciders.unwrap_or_default()).await;
                {
                    let mut seen = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.modes.extend(modes);
                    if let Ok(deployment) = deployment {
                        let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or_default();
                        if seen.replicas.last() != Some(&replicas) {
                            seen.replicas.push(replicas);
                        }
                    }
                    for pod in pods.unwrap_or_default() {
                        seen.note(&pod);
                    }
                }
                sleep(LOOK).await;
            }
        });
        Watch { seen, task }
    }

    fn seen<T>(&self, ask: impl FnOnce(&Seen) -> T) -> T {
        ask(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn note(&mut self, pod: &Value) {
        let metadata = &pod["metadata"];
        let life = self
            .pods
            .entry(metadata["name"].as_str().unwrap_or_default().to_owned())
            .or_default();
        if metadata["deletionTimestamp"].is_string() {
            life.deleted = true;
            return;
        }
        let cost = metadata["annotations"][COST]
            .as_str()
            .and_then(|cost| cost.parse::<i64>().ok());
        if cost.is_some_and(|cost| cost < 0) {
            life.chosen = true;
            life.drained |= !is_ready(pod);
        }
    }
}

/// The modes that deciders say their targets are in.
async fn modes(deciders: &[Value]) -> Vec<String> {
    let mut modes = Vec::new();
    for pod in deciders {
        let Some(ip) = pod["status"]["podIP"].as_str() else {
            continue;
        };
        let url = format!("http://{ip}:9401/metrics");
        let Ok(Ok((200, body))) = tokio::time::timeout(Duration::from_secs(2), http_get(&url)).await else {
            continue;
        };
        let text = String::from_utf8_lossy(&body).into_owned();
        let lines = text
            .lines()
            .filter(|line| line.starts_with("infer_decider_target_mode{"));
        let names = lines.filter_map(|line| line.split_once("mode=\"")?.1.split('"').next());
        modes.extend(names.map(str::to_owned));
    }
    modes
}

/// Waits until the Deployment is asked for such a number of replicas and they are all ready.
async fn settled(scene: &Scene, what: &str, wanted: impl Fn(u64) -> bool) -> u64 {
    let path = scene.path("/apis/apps/v1", &format!("deployments/{CHAT}"));
    let settled = |object: &Value| {
        let of = |value: &Value| value.as_u64().unwrap_or(0);
        let replicas = of(&object["spec"]["replicas"]);
        let status = &object["status"];
        wanted(replicas) && of(&status["replicas"]) == replicas && of(&status["readyReplicas"]) == replicas
    };
    let object = scene.api.wait_for(&path, SOON, what, settled).await.unwrap();
    object["spec"]["replicas"].as_u64().unwrap()
}

/// A Service for the engines; returns its URL.
async fn serve(scene: &Scene) -> String {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": CHAT},
        "spec": {"selector": {"app": CHAT}, "ports": [{"name": "http", "port": 80, "targetPort": ENGINE_PORT}]},
    });
    let service = scene.apply(service).await;
    format!("http://{}:80", service["spec"]["clusterIP"].as_str().unwrap())
}

/// The namespace labelled, a workload in it, and its binding.
async fn deploy(scene: &Scene) {
    let label = json!({"metadata": {"labels": {INJECT: "enabled"}}});
    let path = format!("/api/v1/namespaces/{}", scene.namespace);
    scene.api.patch(&path, &label).await.unwrap();
    let workload = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": CHAT},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": CHAT}}, "template": engine(CHAT)},
    });
    scene.apply(workload).await;
    scene.apply(binding()).await;
}

/// Waits until the API server gives Pods their agents: the webhook answers and the API server trusts it.
async fn webhook_works(scene: &Scene) {
    let mut pod = engine("try");
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("try");
    pod["metadata"]["namespace"] = json!(scene.namespace);
    pod["metadata"]["labels"][INJECT] = json!("enabled");
    let path = scene.path("/api/v1", "pods?dryRun=All");
    let injects = || async {
        let made = scene.api.post(&path, &pod).await.map_err(|error| error.to_string())?;
        agent(&made)
            .map(|_| ())
            .ok_or_else(|| "a Pod without an agent".to_owned())
    };
    until(SOON, "a webhook that injects", injects).await.unwrap();
}

/// The last lines of each decider, for a test that fails.
async fn deciders_logs(scene: &Scene) -> String {
    let mut text = String::new();
    let pods = scene.api.list(&format!("/api/v1/namespaces/{SYSTEM}/pods")).await;
    for pod in pods.unwrap_or_default() {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{name}/log?tailLines=15");
        let log = scene.api.text(&path).await.unwrap_or_else(|error| error.to_string());
        text.push_str(&format!("{name}: {}\n{log}\n", pod["status"]["containerStatuses"]));
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_comes_and_goes_and_nothing_is_left_behind() {
    let Some(scene) = Scene::open(CHAT).await else {
        return;
    };
    let system = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}});
    scene.api.create(&system).await.unwrap();
    let account = format!("/api/v1/namespaces/{SYSTEM}/configmaps/kube-root-ca.crt");
    scene
        .api
        .wait_for(&account, SOON, "a namespace", |_| true)
        .await
        .unwrap();
    let url = serve(&scene).await;
    let before = Inventory::take(&scene.api).await.unwrap();
    let helm = Helm::new(scene.cluster).unwrap();
    let audit = scene.cluster.audit().unwrap();

    let stages = Stages::begin();
    helm.install(RELEASE, SYSTEM, &[]).await.unwrap();
    stages.say("the chart is installed");
    let deciders = format!("/apis/apps/v1/namespaces/{SYSTEM}/deployments/infer-decider");
    let available = |object: &Value| object["status"]["readyReplicas"].as_u64() >= Some(1);
    if let Err(error) = scene.api.wait_for(&deciders, SOON, "a decider", available).await {
        panic!("{error}\n{}", deciders_logs(&scene).await);
    }
    stages.say("a decider is ready");
    webhook_works(&scene).await;
    stages.say("Pods get agents");

    deploy(&scene).await;
    let mark = audit.mark().unwrap();
    let watch = Watch::start(scene.api.clone(), scene.namespace.clone());
    let path = scene.path(BINDINGS, &format!("autoscalingpolicybindings/{CHAT}"));
    let decided = |object: &Value| {
        let has_data = Condition::of(object, "MetricsAvailable").is_some_and(|condition| condition.status == "True");
        has_data && object["status"]["desiredReplicas"].as_u64() >= Some(1)
    };
    if let Err(error) = scene.api.wait_for(&path, SOON, "a decision", decided).await {
        panic!("{error}\n{}", deciders_logs(&scene).await);
    }
    let first_s = stages.elapsed_s();
    stages.say("the first decision");
    assert!(
        first_s <= FIRST_DECISION_S,
        "the first decision came {first_s:.1} s after helm install"
    );
    let pods = scene.pods().await;
    assert!(pods.iter().all(|pod| agent(pod).is_some()), "{pods:?}");

    // A little, then far more than one replica takes.
    let steady = Traffic::start(&url, MODEL, 1.5, ANSWER_TOKENS, 1).unwrap();
    steady.answered(10, SOON).await.unwrap();
    settled(&scene, "one replica for little load", |replicas| replicas == 1).await;
    stages.say("little load: one replica");
    let burst = Traffic::start(&url, MODEL, 12.0, ANSWER_TOKENS, 2).unwrap();
    let wanted = settled(&scene, "more replicas for more load", |replicas| replicas >= 3).await;
    stages.say(&format!("a burst: {wanted} replicas are ready"));
    until(SOON, "panic", || async {
        let modes = watch.seen(|seen| seen.modes.clone());
        if modes.contains("panic") {
            Ok(())
        } else {
            Err(format!("{modes:?}"))
        }
    })
    .await
    .unwrap();
    burst.answered(50, SOON).await.unwrap();
    let report = burst.stop().await.unwrap();
    assert_eq!(failed(&report), 0, "{:?} {:?}", report.failures, report.errors);
    stages.say(&format!(
        "the burst is over: {} requests, none failed",
        report.requests.ok
    ));

    settled(&scene, "one replica after the burst", |replicas| replicas == 1).await;
    stages.say("one replica again");
    // Shrinking may have taken several steps; whoever went had been chosen and had been taken out of the Service.
    let (most, undrained) = watch.seen(|seen| {
        let gone = seen.pods.iter().filter(|(_, life)| life.deleted);
        let undrained: Vec<_> = gone
            .filter(|(_, life)| !life.chosen || !life.drained)
            .map(|(name, life)| format!("{name}: {life:?}"))
            .collect();
        (seen.replicas.iter().max().copied().unwrap_or(0), undrained)
    });
    assert!(most >= 3, "{most}");
    assert!(undrained.is_empty(), "deleted without a drain: {undrained:?}");

    // Uninstalled in the middle of work: two replicas and more are needed, and they stay.
    let more = Traffic::start(&url, MODEL, 7.0, ANSWER_TOKENS, 3).unwrap();
    settled(&scene, "replicas for more load", |replicas| replicas >= 2).await;
    let scaled = audit
        .since(mark, |request| {
            request.namespace == CHAT && request.is_scale() && request.succeeded()
        })
        .unwrap();
    assert!(scaled.iter().all(|request| request.user == DECIDER), "{scaled:?}");
    assert!(!scaled.is_empty());
    all_is_well(&scene).await;
    let asked = deployment_replicas(&scene).await;
    stages.say(&format!("helm uninstall with {asked} replicas under load"));
    helm.uninstall(RELEASE, SYSTEM).await.unwrap();
    let left = || async {
        let now = Inventory::take(&scene.api).await.map_err(|error| error.to_string())?;
        let left = now.beyond(&before, &[CHAT]);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    };
    until(SOON, "nothing left", left).await.unwrap();
    stages.say("nothing is left of the chart");
    let uninstalled = audit.mark().unwrap();
    more.answered(20, SOON).await.unwrap();
    assert_eq!(deployment_replicas(&scene).await, asked);
    let scaled = audit
        .since(uninstalled, |request| request.namespace == CHAT && request.is_scale())
        .unwrap();
    assert!(scaled.is_empty(), "{scaled:?}");
    for object in scene.pods().await {
        assert!(object["metadata"]["finalizers"].is_null(), "{object}");
    }
    for traffic in [steady, more] {
        let report = traffic.stop().await.unwrap();
        assert_eq!(failed(&report), 0, "{:?} {:?}", report.failures, report.errors);
        assert!(report.requests.ok > 0);
    }
    stages.say("and no request has failed");
    let path = format!("/api/v1/namespaces/{SYSTEM}");
    scene.api.delete(&path).await.unwrap();
    drop(watch);
    scene.close().await;
}

/// No container has started twice, no decider has logged an error, and it had every right that it wanted.
async fn all_is_well(scene: &Scene) {
    let mut pods = scene.pods().await;
    let deciders = format!("/api/v1/namespaces/{SYSTEM}/pods");
    pods.extend(scene.api.list(&deciders).await.unwrap());
    for pod in &pods {
        for list in ["containerStatuses", "initContainerStatuses"] {
            for container in pod["status"][list].as_array().into_iter().flatten() {
                assert_eq!(container["restartCount"], 0, "{}: {container}", pod["metadata"]["name"]);
            }
        }
    }
    for name in pods.iter().filter(|pod| pod["metadata"]["namespace"] == SYSTEM) {
        let name = name["metadata"]["name"].as_str().unwrap_or_default();
        let log = scene.api.text(&format!("{deciders}/{name}/log")).await.unwrap();
        let errors: Vec<_> = log.lines().filter(|line| line.contains(r#""level":"ERROR""#)).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
    let audit = scene.cluster.audit().unwrap();
    let refused = audit
        .since(0, |request| request.user == DECIDER && request.code == 403)
        .unwrap();
    assert!(refused.is_empty(), "{refused:?}");
}

/// What is asked for now.
async fn deployment_replicas(scene: &Scene) -> u64 {
    let path = scene.path("/apis/apps/v1", &format!("deployments/{CHAT}"));
    let object = scene.api.get(&path).await.unwrap();
    object["spec"]["replicas"].as_u64().unwrap()
}
