//! What the tests of targets share: a cluster, agents that say what they are told to say, and requests on record.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{Request, Response};
use infer_core::{
    TimeMs,
    decision::{Mode, Plan},
};
use infer_kube::{
    Agents,
    targets::{Fleet, Options, Part, TargetRef, Targets},
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tower::{Layer, Service};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The cluster's configuration; `None` (and a line that says so) without one.
pub(crate) async fn config() -> Option<Config> {
    let Ok(path) = std::env::var("INFER_TEST_KUBECONFIG") else {
        eprintln!("skipped: INFER_TEST_KUBECONFIG not set (the kubeconfig of a cluster with kwok)");
        return None;
    };
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    Some(
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap(),
    )
}

/// Requests that were answered, as "STATUS METHOD path", without their query.
#[derive(Default)]
pub(crate) struct Record {
    requests: Mutex<Vec<String>>,
    hook: Mutex<Option<Hook>>,
}

struct Hook {
    text: String,
    action: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Record {
    /// Those of which the text is a part.
    pub(crate) fn with(&self, text: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|request| request.contains(text))
            .cloned()
            .collect()
    }

    /// Something that happens just before the first request with this text.
    pub(crate) fn before(&self, text: &str, hook: impl Future<Output = ()> + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Hook {
            text: text.to_owned(),
            action: Box::pin(hook),
        });
    }
}

#[derive(Clone)]
struct Recording<S> {
    inner: S,
    record: Arc<Record>,
}

#[derive(Clone)]
struct RecordLayer(Arc<Record>);

impl<S> Layer<S> for RecordLayer {
    type Service = Recording<S>;

    fn layer(&self, inner: S) -> Recording<S> {
        Recording {
            inner,
            record: Arc::clone(&self.0),
        }
    }
}

impl<S, B> Service<Request<Body>> for Recording<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let text = format!("{} {}", request.method(), request.uri().path());
        let hook = {
            let mut hook = self.record.hook.lock().unwrap();
            let is_it = hook.as_ref().is_some_and(|hook| text.contains(&hook.text));
            is_it.then(|| hook.take()).flatten()
        };
        let record = Arc::clone(&self.record);
        let other = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, other);
        Box::pin(async move {
            if let Some(hook) = hook {
                hook.action.await;
            }
            let answer = ready.call(request).await;
            let status = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
            record.requests.lock().unwrap().push(format!("{status} {text}"));
            answer
        })
    }
}

/// A client whose requests are on record.
pub(crate) fn recorded(config: Config) -> (Client, Arc<Record>) {
    let record = Arc::new(Record::default());
    let builder = ClientBuilder::try_from(config).unwrap();
    let builder = builder.with_layer(&tower::buffer::BufferLayer::new(1024));
    (builder.with_layer(&RecordLayer(Arc::clone(&record))).build(), record)
}

/// Agents that say what they are told to say.
#[derive(Default)]
pub(crate) struct FakeAgents {
    loads: Mutex<BTreeMap<String, f64>>,
    told: Mutex<BTreeMap<String, bool>>,
}

impl FakeAgents {
    /// Requests in a replica from now on; those that are not named have none.
    pub(crate) fn set_load(&self, pod: &str, load: f64) {
        self.loads.lock().unwrap().insert(pod.to_owned(), load);
    }

    /// Every replica is empty from now on.
    pub(crate) fn idle(&self) {
        self.loads.lock().unwrap().clear();
    }

    /// Those that are to drain.
    pub(crate) fn draining(&self) -> Vec<String> {
        let told = self.told.lock().unwrap();
        told.iter()
            .filter(|(_, draining)| **draining)
            .map(|(pod, _)| pod.clone())
            .collect()
    }
}

impl Agents for FakeAgents {
    fn drain(&self, _: &str, pod: &str, draining: bool) {
        self.told.lock().unwrap().insert(pod.to_owned(), draining);
    }

    fn load(&self, _: &str, pod: &str) -> Option<f64> {
        Some(self.loads.lock().unwrap().get(pod).copied().unwrap_or(0.0))
    }
}

pub(crate) fn now() -> TimeMs {
    TimeMs(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64)
}

/// A namespace of a test's own, and requests in it.
#[derive(Clone)]
pub(crate) struct Space {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) name: String,
}

impl Space {
    /// A namespace; a fake node is there too. `None` without a cluster.
    pub(crate) async fn new(test: &str) -> Option<Space> {
        let config = config().await?;
        let client = Client::try_from(config.clone()).unwrap();
        let name = format!("{test}-{:06x}", fastrand::u32(..0x0100_0000));
        let space = Space { config, client, name };
        space
            .create("/api/v1/namespaces", json!({"metadata": {"name": space.name}}))
            .await;
        let node = json!({"metadata": {"name": "kwok-targets", "labels": {"type": "kwok", "kubernetes.io/hostname": "kwok-targets"},
                                       "annotations": {"kwok.x-k8s.io/node": "fake"}}});
        let _ = space
            .ask("POST", "/api/v1/nodes", Some(("application/json", node)))
            .await;
        Some(space)
    }

    /// The end of a test that went well; after another one there is something left to look at.
    pub(crate) async fn end(&self) {
        self.ask("DELETE", &format!("/api/v1/namespaces/{}", self.name), None)
            .await
            .unwrap();
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<(&str, Value)>) -> kube::Result<Value> {
        let request = Request::builder().method(method).uri(path);
        let request = match body {
            Some((kind, body)) => request
                .header("content-type", kind)
                .body(serde_json::to_vec(&body).unwrap()),
            None => request.body(Vec::new()),
        };
        self.client.request(request.unwrap()).await
    }

    pub(crate) async fn create(&self, path: &str, object: Value) {
        // A resource that has just been defined, a service account that is not there yet: soon.
        until(&format!("create in {path}"), || async {
            match self.ask("POST", path, Some(("application/json", object.clone()))).await {
                Ok(_) => true,
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409 | 429 | 500..) => {
                    status.code == 409
                }
                Err(error) => panic!("{path}: {error}"),
            }
        })
        .await;
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, None).await.unwrap()
    }

    pub(crate) async fn merge(&self, path: &str, body: Value) -> Value {
        self.ask("PATCH", path, Some(("application/merge-patch+json", body)))
            .await
            .unwrap()
    }

    /// `/apis/apps/v1/namespaces/x/deployments`.
    pub(crate) fn all(&self, group_version: &str, plural: &str) -> String {
        let root = if group_version.contains('/') { "apis" } else { "api" };
        format!("/{root}/{group_version}/namespaces/{}/{plural}", self.name)
    }

    /// A Deployment or StatefulSet with Pods on the fake node.
    pub(crate) async fn workload(&self, plural: &str, name: &str, replicas: u32) {
        let spec = json!({
            "replicas": replicas, "serviceName": name,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec()},
        });
        let mut spec = spec;
        if plural == "deployments" {
            let fields = spec.as_object_mut().unwrap();
            fields.remove("serviceName");
            fields.remove("podManagementPolicy");
        }
        self.create(
            &self.all("apps/v1", plural),
            json!({"metadata": {"name": name}, "spec": spec}),
        )
        .await;
    }

    /// The count that the API server has.
    pub(crate) async fn count(&self, plural: &str, name: &str) -> u64 {
        let scale = self.get(&format!("{}/{name}/scale", self.all("apps/v1", plural))).await;
        scale["spec"]["replicas"].as_u64().unwrap_or(0)
    }

    /// Pods with their annotations, those on their way out left out.
    pub(crate) async fn pods(&self) -> BTreeMap<String, Value> {
        let list = self.get(&self.all("v1", "pods")).await;
        let pods = list["items"].as_array().unwrap().iter();
        let here = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        here.map(|pod| {
            let meta = &pod["metadata"];
            (meta["name"].as_str().unwrap().to_owned(), meta["annotations"].clone())
        })
        .collect()
    }

    /// Names of Pods that carry one of our annotations.
    pub(crate) async fn marked(&self) -> Vec<String> {
        let ours = [
            "autoscaling.matrixinfer.ai/draining",
            "controller.kubernetes.io/pod-deletion-cost",
        ];
        let pods = self.pods().await;
        let marked = pods
            .into_iter()
            .filter(|(_, annotations)| ours.iter().any(|key| !annotations[key].is_null()));
        marked.map(|(name, _)| name).collect()
    }

    pub(crate) fn target(&self, api_version: &str, kind: &str, name: &str) -> TargetRef {
        TargetRef::scale(&self.name, api_version, kind, name)
    }

    pub(crate) fn start(&self) -> (Targets, Arc<FakeAgents>) {
        let agents = Arc::new(FakeAgents::default());
        (Targets::start(self.client.clone(), options(), agents.clone()), agents)
    }
}

/// Options that do not wait for long.
pub(crate) fn options() -> Options {
    Options {
        probe_interval: Duration::from_millis(500),
        ..Options::default()
    }
}

/// A Pod that only a fake node runs.
pub(crate) fn pod_spec() -> Value {
    json!({"nodeName": "kwok-targets", "terminationGracePeriodSeconds": 1, "tolerations": [{"operator": "Exists"}],
           "containers": [{"name": "engine", "image": "localhost/engine:1"}]})
}

pub(crate) fn part(target: TargetRef) -> Part {
    Part {
        name: "main".to_owned(),
        target,
        min: 0,
        max: 50,
        cost: 1.0,
    }
}

pub(crate) fn plan(key: &str, from: u32, to: u32) -> Plan {
    Plan {
        target: key.to_owned(),
        from,
        to,
        mode: Mode::Stable,
        at: now(),
        expires: now().plus_s(5.0),
    }
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn until<'a, F>(what: &'a str, mut holds: impl FnMut() -> F + 'a) -> impl Future<Output = ()> + 'a
where
    F: Future<Output = bool> + 'a,
{
    let at = std::panic::Location::caller();
    async move {
        let looking = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        assert!(
            tokio::time::timeout(PATIENCE, looking).await.is_ok(),
            "waited in vain for: {what} ({at})"
        );
    }
}

/// Waits for a fleet that looks like that.
#[track_caller]
pub(crate) fn fleet<'a>(
    targets: &'a Targets,
    key: &'a str,
    what: &'a str,
    mut holds: impl FnMut(&Fleet) -> bool + 'a,
) -> impl Future<Output = Fleet> + 'a {
    let at = std::panic::Location::caller();
    async move {
        let mut changes = targets.subscribe();
        let looking = async {
            loop {
                if let Some(fleet) = targets.fleet(key).filter(&mut holds) {
                    return fleet;
                }
                changes.next().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(fleet) => fleet,
            Err(_) => panic!(
                "waited in vain for: {what} ({at}); there is {:?}, with {:?}",
                targets.fleet(key),
                targets.problems(key)
            ),
        }
    }
}

/// Waits for a problem.
#[track_caller]
pub(crate) fn problem<'a>(targets: &'a Targets, key: &'a str, text: &'a str) -> impl Future<Output = ()> + 'a {
    let at = std::panic::Location::caller();
    async move {
        let mut changes = targets.subscribe();
        let looking = async {
            while !targets
                .problems(key)
                .iter()
                .any(|problem| problem.to_string().contains(text))
            {
                changes.next().await.unwrap();
            }
        };
        let found = tokio::time::timeout(PATIENCE, looking).await;
        assert!(
            found.is_ok(),
            "waited in vain for {text:?} ({at}); there is {:?}",
            targets.problems(key)
        );
    }
}
