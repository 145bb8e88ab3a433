//! What a kubelet does for a Pod, done with processes on this machine.
//!
//! kwok has nodes without machines: nothing runs in its Pods. For Pods with the label [`RUN_LABEL`] the runner starts an
//! engine and a real `infer-agent` with the environment that injection gives it (identity, projected token, authority),
//! makes the Pod ready when the engine and the agent are, and takes it through termination: preStop, SIGTERM, gone.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use super::{Api, Child, Cluster, Error, Loads, fake::Fake};
use crate::harness::{Binaries, free_port, http_get};

/// Pods with this label ("yes") are run here.
pub const RUN_LABEL: &str = "infer-test/processes";
/// The agent's audience, as injection has it.
const AUDIENCE: &str = "infer-decider";
/// How often the runner looks at Pods and probes.
const LOOK: Duration = Duration::from_millis(100);
/// Kubernetes' own default.
const GRACE_S: u64 = 30;
/// From SIGTERM to SIGKILL of an agent or an engine.
const TERM: Duration = Duration::from_secs(5);
const PROBE: Duration = Duration::from_secs(1);

/// What stands in for inference engines.
#[derive(Debug, Clone)]
pub enum Engines {
    /// Numbers only.
    Fake(Loads),
    /// `infersim engine` with these arguments; requests can be sent to it.
    Simulated(Vec<String>),
}

/// Whom agents report to, and how.
#[derive(Debug, Clone)]
pub struct Agents {
    /// The decider's URL.
    pub decider: String,
    /// The authority of its certificate, PEM; empty: no TLS and no token.
    pub ca_pem: String,
    /// Further environment.
    pub env: Vec<(String, String)>,
}

/// Runs the Pods of one namespace until it is dropped. Processes that are left then end with the cluster.
#[derive(Debug)]
pub struct Runner {
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    cluster: &'static Cluster,
    api: Api,
    namespace: String,
    engines: Engines,
    agents: Agents,
    binaries: Binaries,
    /// By Pod's name.
    running: Mutex<BTreeMap<String, Running>>,
    problems: Mutex<Vec<String>>,
}

/// One Pod that runs.
#[derive(Debug, Clone)]
struct Running {
    /// Of the engine.
    url: String,
    agent: Child,
    ready: bool,
}

impl Runner {
    /// Starts to look after the Pods of a namespace.
    ///
    /// # Errors
    /// Programs that are not built; a kubeconfig that cannot be read.
    pub async fn start(
        cluster: &'static Cluster,
        namespace: &str,
        engines: Engines,
        agents: Agents,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            cluster,
            api: cluster.api().await?,
            namespace: namespace.to_owned(),
            engines,
            agents,
            binaries: Binaries::find()?,
            running: Mutex::default(),
            problems: Mutex::default(),
        });
        let task = tokio::spawn(look_after(Arc::clone(&shared)));
        Ok(Runner {
            shared,
            task: task.abort_handle(),
        })
    }

    /// URLs of the engines that run, by Pod.
    pub fn engines(&self) -> BTreeMap<String, String> {
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().map(|(pod, of)| (pod.clone(), of.url.clone())).collect()
    }

    /// Where the engines of ready Pods are: the endpoints that a Service would have.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = running.values().filter(|of| of.ready);
        ready
            .filter_map(|of| of.url.strip_prefix("http://")?.parse().ok())
            .collect()
    }

    /// The agent of a Pod, to be killed or stopped by a test.
    pub fn agent(&self, pod: &str) -> Option<Child> {
        let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(pod).map(|of| of.agent.clone())
    }

    /// What went wrong with Pods so far.
    pub fn problems(&self) -> Vec<String> {
        let problems = self.shared.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.clone()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look_after(shared: Arc<Shared>) {
    let path = format!(
        "/api/v1/namespaces/{}/pods?labelSelector={RUN_LABEL}%3Dyes",
        shared.namespace
    );
    let mut begun = std::collections::BTreeSet::new();
    // Dropped with this task, and every Pod's task with it.
    let mut pods = JoinSet::new();
    loop {
        // While the API server is away, Pods run on.
        for pod in shared.api.list(&path).await.unwrap_or_default() {
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            if pod["status"]["podIP"].is_string() && begun.insert(uid) {
                let shared = Arc::clone(&shared);
                pods.spawn(async move {
                    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                    if let Err(error) = shared.run(&name, &pod).await {
                        let mut problems = shared.problems.lock().unwrap_or_else(PoisonError::into_inner);
                        problems.push(format!("{name}: {error}"));
                    }
                });
            }
        }
        while pods.try_join_next().is_some() {}
        sleep(LOOK).await;
    }
}

impl Shared {
    /// One Pod's life.
    async fn run(&self, name: &str, pod: &Value) -> Result<(), Error> {
        let directory = self.directory(pod)?;
        let path = format!("/api/v1/namespaces/{}/pods/{name}", self.namespace);
        let (url, engine, fake) = match &self.engines {
            Engines::Fake(loads) => {
                let fake = Fake::listen(name, loads).await?;
                (format!("http://{}", fake.address), None, Some(fake))
            }
            Engines::Simulated(arguments) => {
                let port = free_port()?;
                let mut command = Command::new(self.binaries.path("infersim"));
                command.args(["engine", "--port", &port.to_string()]).args(arguments);
                let child = self.cluster.spawn(command, &directory.join("engine.log"))?;
                (format!("http://127.0.0.1:{port}"), Some(child), None)
            }
        };
        let http = format!("127.0.0.1:{}", free_port()?);
        let agent = self.agent(pod, &directory, &url, &http).await?;
        let of = Running {
            url: url.clone(),
            agent: agent.clone(),
            ready: false,
        };
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), of);
        let stop = self.follow(&path, pod, &url, &http).await;
        // A Pod that is leaving is no endpoint any more, whatever its probes say.
        self.set_ready(pod, false);
        if let Some(grace) = stop {
            self.terminate(grace, &http, [Some(agent), engine].into_iter().flatten())
                .await?;
            drop(fake);
            let now = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}});
            while let Err(error) = self.api.delete_with(&path, &now).await {
                // Another Pod by the same name, as a StatefulSet has it.
                if error.is("Conflict") {
                    break;
                }
                sleep(LOOK).await;
            }
        }
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }

    /// Keeps the Pod's readiness true to what engine and agent say, until it shall go; then its grace. `None` when it is
    /// gone already.
    async fn follow(&self, path: &str, pod: &Value, url: &str, http: &str) -> Option<Duration> {
        let mut said = None;
        loop {
            match self.api.get(path).await {
                Ok(now) if now["metadata"]["uid"] != pod["metadata"]["uid"] => return None,
                Ok(now) if now["metadata"]["deletionTimestamp"].is_string() => {
                    let grace = now["metadata"]["deletionGracePeriodSeconds"].as_u64();
                    return Some(Duration::from_secs(grace.unwrap_or(GRACE_S)));
                }
                Err(error) if error.is("NotFound") => return None,
                _ => {}
            }
            let (engine, agent) = (format!("{url}/health"), format!("http://{http}/readyz"));
            let ready = answers(&engine).await && answers(&agent).await;
            self.set_ready(pod, ready);
            if said != Some(ready) {
                let status = status(pod, ready);
                if self.api.patch(&format!("{path}/status"), &status).await.is_ok() {
                    said = Some(ready);
                }
            }
            sleep(LOOK).await;
        }
    }

    fn set_ready(&self, pod: &Value, ready: bool) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        if let Some(of) = running.get_mut(name) {
            of.ready = ready;
        }
    }

    /// preStop of the engine's container, then SIGTERM, then SIGKILL.
    async fn terminate(
        &self,
        grace: Duration,
        http: &str,
        processes: impl Iterator<Item = Child>,
    ) -> Result<(), Error> {
        let drain = format!("http://{http}/drain?grace_seconds={}", grace.as_secs());
        // Whatever it answers, and whether it does.
        let _ = tokio::time::timeout(grace, http_get(&drain)).await;
        let processes: Vec<_> = processes.collect();
        // The sidecar goes last.
        for process in processes.iter().rev() {
            process.terminate();
            let began = Instant::now();
            while process.is_alive() && began.elapsed() < TERM {
                sleep(LOOK).await;
            }
            process.end(TERM)?;
        }
        Ok(())
    }

    async fn agent(&self, pod: &Value, directory: &std::path::Path, url: &str, http: &str) -> Result<Child, Error> {
        let metadata = &pod["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut command = Command::new(self.binaries.path("infer-agent"));
        command
            .arg("run")
            .env("INFER_AGENT_DECIDER", &self.agents.decider)
            .env("INFER_AGENT_ENGINE_URL", url)
            .env("INFER_AGENT_HTTP_LISTEN", http)
            .env("POD_NAME", text(&metadata["name"]))
            .env("POD_NAMESPACE", text(&metadata["namespace"]))
            .env("POD_UID", text(&metadata["uid"]));
        if !self.agents.ca_pem.is_empty() {
            let file = directory.join("token");
            let token = self.api.pod_token(pod, AUDIENCE).await?;
            fs::write(&file, token).map_err(Error::io("write", &file))?;
            command
                .env("INFER_AGENT_CA_PEM", &self.agents.ca_pem)
                .env("INFER_AGENT_TOKEN_FILE", file);
        }
        command.envs(self.agents.env.iter().map(|(name, value)| (name, value)));
        self.cluster.spawn(command, &directory.join("agent.log"))
    }

    /// Logs and token of one Pod.
    fn directory(&self, pod: &Value) -> Result<PathBuf, Error> {
        let metadata = &pod["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let root = self.cluster.directory().ok_or(Error::NotOurs)?;
        let name = format!("{}-{}", text(&metadata["name"]), text(&metadata["uid"]));
        let directory = root.join("pods").join(&self.namespace).join(name);
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        Ok(directory)
    }
}

async fn answers(url: &str) -> bool {
    let answer = tokio::time::timeout(PROBE, http_get(url)).await;
    matches!(answer, Ok(Ok((200, _))))
}

fn status(pod: &Value, ready: bool) -> Value {
    let now = &pod["metadata"]["creationTimestamp"];
    let word = if ready { "True" } else { "False" };
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
    let containers: Vec<_> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|container| {
            json!({
                "name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0,
                "ready": ready, "started": true, "state": {"running": {"startedAt": now}},
            })
        })
        .collect();
    json!({"status": {
        "phase": "Running",
        "startTime": now,
        "conditions": [
            condition("PodScheduled", "True"), condition("Initialized", "True"),
            condition("ContainersReady", word), condition("Ready", word),
        ],
        "containerStatuses": containers,
    }})
}
