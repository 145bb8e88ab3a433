//! A fleet under a decider: a Deployment whose Pods have engines and agents, a binding, and what becomes of it.

use std::{collections::BTreeMap, sync::Arc};

use infer_tests::harness::{
    cluster::{
        Abilities, Agents, Audit, Condition, Engines, Front, KubernetesDecider, KubernetesOptions, Load, Loads,
        RUN_LABEL, Request, Runner,
    },
    until,
};
use serde_json::{Value, json};

use crate::support::{SOON, Scene, decider_of, deployment, install_decider};

/// Requests that one replica shall have.
pub(crate) const PER_REPLICA: u32 = 4;
pub(crate) const BINDINGS: &str = "/apis/autoscaling.matrixinfer.ai/v1alpha1";
/// Name of the Deployment and of its binding.
pub(crate) const CHAT: &str = "chat";

/// What differs from test to test.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) initial: u32,
    pub(crate) stable_s: u32,
    pub(crate) stabilization_s: u32,
    pub(crate) drain_s: u32,
    pub(crate) mode: &'static str,
    pub(crate) engines: Engines,
}

impl Default for Options {
    /// Short windows, nothing that delays shrinking.
    fn default() -> Self {
        Options {
            min: 1,
            // As much as the tests' bursts want: while load moves to new replicas it is seen twice for a moment.
            max: 5,
            initial: 1,
            stable_s: 6,
            stabilization_s: 0,
            drain_s: 30,
            mode: "auto",
            engines: Engines::Fake(Loads::default()),
        }
    }
}

pub(crate) struct Fleet {
    pub(crate) scene: Scene,
    /// What agents know.
    pub(crate) front: Front,
    pub(crate) decider: KubernetesDecider,
    pub(crate) loads: Loads,
    pub(crate) runner: Arc<Runner>,
    pub(crate) audit: Audit,
    /// The decider, as the audit log has it.
    pub(crate) user: String,
    /// Where the audit log was when the fleet had settled.
    pub(crate) mark: u64,
}

/// A running number of requests and none that wait.
pub(crate) fn running(running: u32) -> Load {
    Load { running, waiting: 0 }
}

/// A decider that looks at the scene's namespace only, with the rights that it needs; it does not run yet.
pub(crate) async fn new_decider(scene: &Scene, name: &str, webhooks: bool) -> KubernetesDecider {
    install_decider(scene).await;
    let user = decider_of(&scene.namespace);
    let options = KubernetesOptions {
        name: name.to_owned(),
        namespace: scene.namespace.clone(),
        kubeconfig: scene
            .cluster
            .kubeconfig_for(&user, Some("system:serviceaccounts"))
            .unwrap(),
        webhooks,
        arguments: Vec::new(),
    };
    KubernetesDecider::new(scene.cluster, options).unwrap()
}

async fn start_decider(scene: &Scene, name: &str) -> KubernetesDecider {
    let decider = new_decider(scene, name, false).await;
    decider.launch().unwrap();
    decider.wait_ready().await.unwrap();
    decider
}

/// A binding with its policy in it.
pub(crate) fn binding(name: &str, target: &str, options: &Options) -> Value {
    // At least 2 s.
    let panic_percent = (200 / options.stable_s + 1).max(10);
    json!({
        "apiVersion": "autoscaling.matrixinfer.ai/v1alpha1", "kind": "AutoscalingPolicyBinding",
        "metadata": {"name": name},
        "spec": {
            "mode": options.mode,
            "drain": {"timeoutSeconds": options.drain_s},
            "policy": {
                "metrics": [{"type": "concurrency", "target": PER_REPLICA}],
                "stableWindowSeconds": options.stable_s,
                "panic": {"windowPercent": panic_percent, "thresholdPercent": 200},
                "behavior": {"scaleDown": {
                    "stabilizationWindowSeconds": options.stabilization_s,
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 2}],
                }},
            },
            "scaling": {
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
                "minReplicas": options.min, "maxReplicas": options.max,
            },
        },
    })
}

impl Fleet {
    /// Decider, Deployment and binding; returns when the initial Pods are ready and the decider has their data.
    pub(crate) async fn open(name: &str, options: Options, load: Load) -> Option<Fleet> {
        let scene = Scene::open(name, Abilities::Fleet).await?;
        Some(Fleet::within(scene, options, load).await)
    }

    /// The same in a scene that is there.
    pub(crate) async fn within(scene: Scene, options: Options, load: Load) -> Fleet {
        let decider = start_decider(&scene, "first").await;
        let front = Front::listen().await.unwrap();
        front.add(decider.grpc());
        let agents = Agents {
            decider: format!("https://{}", front.address()),
            ..decider.agents(&scene.api, SOON).await.unwrap()
        };
        let loads = match &options.engines {
            Engines::Fake(loads) => loads.clone(),
            Engines::Simulated(_) => Loads::default(),
        };
        loads.set_total(load);
        loads.share_among(usize::try_from(options.initial).unwrap());
        let runner = Runner::start(scene.cluster, &scene.namespace, options.engines.clone(), agents)
            .await
            .unwrap();
        let workload = deployment(CHAT, options.initial, &json!({RUN_LABEL: "yes"}), &json!({}));
        scene.apply(workload).await;
        scene.apply(binding(CHAT, CHAT, &options)).await;
        let audit = scene.cluster.audit().unwrap();
        let mut fleet = Fleet {
            user: decider_of(&scene.namespace),
            scene,
            front,
            decider,
            loads,
            runner: Arc::new(runner),
            audit,
            mark: 0,
        };
        fleet.scene.settled(CHAT, u64::from(options.initial)).await;
        fleet.condition(CHAT, "MetricsAvailable", "True").await;
        fleet.loads.share_among(1);
        fleet.mark = fleet.audit.mark().unwrap();
        fleet
    }

    /// One more decider, known to agents as the first one is.
    pub(crate) async fn add_decider(&self, name: &str) -> KubernetesDecider {
        let decider = start_decider(&self.scene, name).await;
        self.front.add(decider.grpc());
        decider
    }

    /// Waits until a condition of a binding is so.
    pub(crate) async fn condition(&self, binding: &str, kind: &str, status: &str) -> Condition {
        let object = self
            .binding(binding, &format!("{kind} {status}"), |object| {
                Condition::of(object, kind).is_some_and(|condition| condition.status == status)
            })
            .await;
        Condition::of(&object, kind).unwrap()
    }

    /// Waits until a binding is as wanted.
    pub(crate) async fn binding(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let path = self.scene.path(BINDINGS, &format!("autoscalingpolicybindings/{name}"));
        self.scene.api.wait_for(&path, SOON, what, wanted).await.unwrap()
    }

    /// Waits until the Deployment is asked for so many replicas.
    pub(crate) async fn wants(&self, what: &str, wanted: impl Fn(u64) -> bool) -> u64 {
        let asked = |object: &Value| object["spec"]["replicas"].as_u64().is_some_and(&wanted);
        let path = self.scene.deployment(CHAT);
        let object = self.scene.api.wait_for(&path, SOON, what, asked).await.unwrap();
        object["spec"]["replicas"].as_u64().unwrap()
    }

    /// Writes of replicas in this namespace since the fleet had settled, accepted ones only, by whoever it was.
    pub(crate) fn scales(&self) -> Vec<Request> {
        let wanted =
            |request: &Request| request.namespace == self.scene.namespace && request.is_scale() && request.succeeded();
        self.audit.since(self.mark, wanted).unwrap()
    }

    /// Waits until an Event about the binding has this in its text.
    pub(crate) async fn event(&self, part: &str) -> Value {
        let path = self.scene.path("/apis/events.k8s.io/v1", "events");
        until(SOON, &format!("an Event with {part:?}"), || async {
            let events = self.scene.api.list(&path).await.map_err(|error| error.to_string())?;
            let text = |event: &Value| format!("{} {}", event["reason"], event["note"]);
            let ours = |event: &&Value| event["regarding"]["kind"] == "AutoscalingPolicyBinding";
            match events.iter().filter(ours).find(|event| text(event).contains(part)) {
                Some(event) => Ok(event.clone()),
                None => Err(format!(
                    "{:?}",
                    events.iter().filter(ours).map(text).collect::<Vec<_>>()
                )),
            }
        })
        .await
        .unwrap()
    }

    /// The Pods that are not leaving, by name.
    pub(crate) async fn pods(&self) -> BTreeMap<String, Value> {
        let pods = self.scene.api.list(&self.scene.path("/api/v1", "pods")).await.unwrap();
        let staying = pods
            .into_iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        staying
            .map(|pod| (pod["metadata"]["name"].as_str().unwrap().to_owned(), pod))
            .collect()
    }

    /// Looks on for so many of the decider's decisions (its ticks are a second apart): `holds` is true of the Deployment
    /// at each look.
    pub(crate) async fn holds(&self, looks: u32, what: &str, holds: impl Fn(u64) -> bool) {
        for _ in 0..looks * 4 {
            let object = self.scene.api.get(&self.scene.deployment(CHAT)).await.unwrap();
            let replicas = object["spec"]["replicas"].as_u64().unwrap();
            assert!(holds(replicas), "{what}: {replicas} replicas are asked for");
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        }
    }
}

/// Who scaled to what, in order.
pub(crate) fn steps(requests: &[Request]) -> Vec<(&str, u64)> {
    requests
        .iter()
        .map(|request| (request.user.as_str(), request.replicas.unwrap_or(u64::MAX)))
        .collect()
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let problems = self.runner.problems();
            eprintln!("decider's log: {}; Pods: {problems:?}", self.decider.log().display());
        }
    }
}
