//! What the tests share: one cluster with one node, and workloads for it.

use std::{sync::LazyLock, time::Duration};

use infer_tests::harness::{
    cluster::{Api, Cluster, Condition, skip},
    node::{ENGINE_IMAGE, Stages, build_images, prepare},
    until,
};
use serde_json::{Value, json};
use tokio::{
    runtime::Runtime,
    sync::{Mutex, MutexGuard, OnceCell},
};

/// Generous, for machines that do other things as well.
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// Where an engine listens.
pub(crate) const ENGINE_PORT: u16 = 8000;
/// What its model is called.
pub(crate) const MODEL: &str = "demo/tiny-llama";
/// Every container and its agent have this long.
const GRACE_S: u32 = 60;

static CLUSTER: OnceCell<Option<Cluster>> = OnceCell::const_new();
/// A test's own runtime ends with it; what serves the cluster does not.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
/// There are two cores and times are looked at: one test after the other.
static TURN: Mutex<()> = Mutex::const_new(());

/// A test's place: the cluster, and the machine for itself.
pub(crate) struct Scene {
    pub(crate) cluster: &'static Cluster,
    pub(crate) api: Api,
    pub(crate) namespace: String,
    _turn: MutexGuard<'static, ()>,
}

async fn start() -> Option<Cluster> {
    let stages = Stages::begin();
    if let Err(missing) = prepare() {
        skip(&format!("no real node: {missing}"));
        return None;
    }
    let images = build_images().unwrap();
    stages.say("images are made");
    let cluster = Cluster::start_with_node(&images).await.unwrap()?;
    stages.say("a control plane and a node are ready");
    Some(cluster)
}

impl Scene {
    /// A namespace of one's own on the node; `None`, said on stderr, when there can be none here.
    pub(crate) async fn open(name: &str) -> Option<Scene> {
        let turn = TURN.lock().await;
        let cluster = CLUSTER
            .get_or_init(|| async { RUNTIME.spawn(start()).await.unwrap() })
            .await
            .as_ref()?;
        let api = cluster.api().await.unwrap();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        api.create(&namespace).await.unwrap();
        let scene = Scene {
            cluster,
            api,
            namespace: name.to_owned(),
            _turn: turn,
        };
        // Pods are refused before it is there.
        let account = scene.path("/api/v1", "serviceaccounts/default");
        scene
            .api
            .wait_for(&account, SOON, "a ServiceAccount", |_| true)
            .await
            .unwrap();
        Some(scene)
    }

    /// A path within the namespace: `path("/apis/apps/v1", "deployments/web")`.
    pub(crate) fn path(&self, root: &str, rest: &str) -> String {
        format!("{root}/namespaces/{}/{rest}", self.namespace)
    }

    /// Applies an object in the namespace.
    pub(crate) async fn apply(&self, mut object: Value) -> Value {
        object["metadata"]["namespace"] = json!(self.namespace);
        self.api.apply_object(&object).await.unwrap()
    }

    /// The Pods of the namespace.
    pub(crate) async fn pods(&self) -> Vec<Value> {
        self.api.list(&self.path("/api/v1", "pods")).await.unwrap()
    }

    /// Ends what the test has started, so that the next one has the machine for itself.
    pub(crate) async fn close(self) {
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        self.api.delete(&path).await.unwrap();
        // The namespace itself stays for half a grace period longer.
        let gone = || async {
            let pods = self.api.list(&self.path("/api/v1", "pods")).await;
            match pods.map_err(|error| error.to_string())?.len() {
                0 => Ok(()),
                pods => Err(format!("{pods} Pods")),
            }
        };
        until(SOON, "the Pods' end", gone).await.unwrap();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cluster.keep_logs();
        }
    }
}

/// Whether a Pod is ready.
pub(crate) fn is_ready(object: &Value) -> bool {
    Condition::of(object, "Ready").is_some_and(|condition| condition.status == "True")
}

/// The agent's container, which is a native sidecar.
pub(crate) fn agent(pod: &Value) -> Option<&Value> {
    let containers = pod["spec"]["initContainers"].as_array()?;
    containers.iter().find(|container| container["name"] == "infer-agent")
}

/// A Pod's template with a simulated engine.
pub(crate) fn engine(name: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": [{
                "name": "engine",
                "image": ENGINE_IMAGE,
                "args": ["engine", "--host", "0.0.0.0", "--port", ENGINE_PORT.to_string(), "--startup-delay-s", "1"],
                "ports": [{"name": "http", "containerPort": ENGINE_PORT}],
                "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1},
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            }],
        },
    })
}
