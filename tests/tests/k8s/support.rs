//! What the tests share: the cluster, namespaces, workloads.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use infer_kube::{Rule, Scope, rbac};
use infer_tests::harness::cluster::{Abilities, Api, Cluster, KWOK_LABEL, skip};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit};

/// Generous, for machines that do other things as well.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Nodes that kwok looks after; node-a is the cheap pool.
const NODES: [&str; 2] = ["node-a", "node-b"];

static CLUSTER: OnceCell<Option<Cluster>> = OnceCell::const_new();
/// Who breaks the cluster has it alone.
static WHOLE: RwLock<()> = RwLock::const_new(());
/// A fleet's processes take about a core.
static HEAVY: Semaphore = Semaphore::const_new(2);

/// A test's place in the cluster.
pub(crate) struct Scene {
    pub(crate) cluster: &'static Cluster,
    pub(crate) api: Api,
    pub(crate) namespace: String,
    _turn: Turn,
}

/// Held until the test ends.
enum Turn {
    Shared(
        #[allow(dead_code)] RwLockReadGuard<'static, ()>,
        #[allow(dead_code)] SemaphorePermit<'static>,
    ),
    Alone(#[allow(dead_code)] RwLockWriteGuard<'static, ()>),
}

/// The suite's cluster; `None`, said on stderr, when there is none or it cannot do what is needed.
async fn cluster(needed: Abilities) -> Option<&'static Cluster> {
    let start = async { Cluster::start().await.unwrap() };
    let cluster = CLUSTER.get_or_init(|| start).await.as_ref()?;
    if cluster.abilities() < needed {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        skip(&format!("{test}: this control plane has no controllers or no kwok"));
        return None;
    }
    Some(cluster)
}

impl Scene {
    /// A namespace of one's own in a cluster that can do what is needed.
    pub(crate) async fn open(name: &str, needed: Abilities) -> Option<Scene> {
        let cluster = cluster(needed).await?;
        let turn = Turn::Shared(WHOLE.read().await, HEAVY.acquire().await.unwrap());
        Some(Scene::begin(cluster, name, needed, turn).await)
    }

    /// The same while nobody else uses the cluster: to break it.
    pub(crate) async fn open_alone(name: &str) -> Option<Scene> {
        let cluster = cluster(Abilities::Fleet).await?;
        let turn = Turn::Alone(WHOLE.write().await);
        Some(Scene::begin(cluster, name, Abilities::Fleet, turn).await)
    }

    async fn begin(cluster: &'static Cluster, name: &str, needed: Abilities, turn: Turn) -> Scene {
        let api = cluster.api().await.unwrap();
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": format!("{name}-")}});
        let made = api.post("/api/v1/namespaces", &namespace).await.unwrap();
        let namespace = made["metadata"]["name"].as_str().unwrap().to_owned();
        let scene = Scene {
            cluster,
            api,
            namespace,
            _turn: turn,
        };
        if needed == Abilities::Fleet {
            scene.cluster.add_nodes(&NODES.map(str::to_owned)).await.unwrap();
            // Pods are refused before it is there.
            let path = scene.path("/api/v1", "serviceaccounts/default");
            scene
                .api
                .wait_for(&path, SOON, "a ServiceAccount", |_| true)
                .await
                .unwrap();
        }
        scene
    }

    /// A path within the namespace: `path("/apis/apps/v1", "deployments/web")`.
    pub(crate) fn path(&self, root: &str, rest: &str) -> String {
        format!("{root}/namespaces/{}/{rest}", self.namespace)
    }

    /// A Deployment's path.
    pub(crate) fn deployment(&self, name: &str) -> String {
        self.path("/apis/apps/v1", &format!("deployments/{name}"))
    }

    /// Applies an object in the namespace.
    pub(crate) async fn apply(&self, mut object: Value) -> Value {
        object["metadata"]["namespace"] = json!(self.namespace);
        self.api.apply_object(&object).await.unwrap()
    }

    /// Waits until so many Pods of a Deployment are ready, and it wants no others.
    pub(crate) async fn settled(&self, deployment: &str, replicas: u64) -> Value {
        let settled = |object: &Value| {
            object["spec"]["replicas"] == replicas
                && object["status"]["readyReplicas"].as_u64().unwrap_or(0) == replicas
                && object["status"]["replicas"].as_u64().unwrap_or(0) == replicas
        };
        let what = format!("{replicas} ready Pods");
        self.api
            .wait_for(&self.deployment(deployment), SOON, &what, settled)
            .await
            .unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cluster.keep_logs();
        }
        if self.cluster.directory().is_none() {
            // Somebody's own cluster; ours goes away as a whole.
            let (cluster, path) = (self.cluster, format!("/api/v1/namespaces/{}", self.namespace));
            let delete = async move { cluster.api().await.unwrap().delete(&path).await.unwrap() };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let _ = std::thread::spawn(move || runtime.block_on(delete)).join();
        }
    }
}

/// A Deployment on kwok's nodes.
pub(crate) fn deployment(name: &str, replicas: u32, labels: &Value, annotations: &Value) -> Value {
    let mut labels = labels.clone();
    labels["app"] = json!(name);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {
                    "tolerations": [{"key": KWOK_LABEL, "operator": "Exists"}],
                    "nodeSelector": {KWOK_LABEL: "yes"},
                    "containers": [{"name": "engine", "image": "localhost/engine:1"}],
                },
            },
        },
    })
}

/// A place in the checkout.
pub(crate) fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The YAML files of a directory, by name.
pub(crate) fn yaml_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

/// The decider of a namespace, as the audit log has it.
pub(crate) fn decider_of(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:infer-decider")
}

/// Installs what a decider of one namespace needs: kinds, the objects that it fills, and the rights that infer-kube says it
/// needs, and no others.
pub(crate) async fn install_decider(scene: &Scene) {
    const NAME: &str = "infer-test-decider";
    install_kinds(&scene.api).await;
    let namespace = &scene.namespace;
    let (cluster, own): (Vec<_>, Vec<_>) = rbac().into_iter().partition(|rule| rule.scope == Scope::Cluster);
    let api_group = "rbac.authorization.k8s.io";
    let role = |kind: &str, rules: &[Rule]| {
        json!({
            "apiVersion": format!("{api_group}/v1"), "kind": kind,
            "metadata": {"name": NAME, "namespace": namespace},
            "rules": rules,
        })
    };
    let binding = |kind: &str, name: &str, role: &str| {
        json!({
            "apiVersion": format!("{api_group}/v1"), "kind": kind,
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": api_group, "kind": role, "name": NAME},
            "subjects": [{"apiGroup": api_group, "kind": "User", "name": decider_of(namespace)}],
        })
    };
    // The manifests bring these, empty: the decider may fill them and may not create any.
    let empty = |api_version: &str, kind: &str, name: &str| json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}});
    for object in [
        empty("v1", "Secret", infer_kube::ca::SECRET),
        empty("coordination.k8s.io/v1", "Lease", "infer-decider-shard-0"),
        role("ClusterRole", &cluster),
        role("Role", &own),
        binding("ClusterRoleBinding", &format!("{NAME}-{namespace}"), "ClusterRole"),
        binding("RoleBinding", NAME, "Role"),
    ] {
        scene.api.apply_object(&object).await.unwrap();
    }
}

/// Installs the project's own kinds; the same again changes nothing.
pub(crate) async fn install_kinds(api: &Api) {
    static ONCE: OnceCell<()> = OnceCell::const_new();
    let install = async {
        for file in yaml_files(&checkout("deploy/crds")) {
            for crd in api.apply("", &fs::read_to_string(&file).unwrap()).await.unwrap() {
                let name = crd["metadata"]["name"].as_str().unwrap();
                api.wait_established(name, SOON).await.unwrap();
            }
        }
    };
    ONCE.get_or_init(|| install).await;
}
