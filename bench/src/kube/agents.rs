//! Real agents (the library) for Pods of kwok's, all in this process: each with its Pod's own token, its own connection
//! over TLS, and an engine of which only the queue exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use infer_agent::{Agent, Credentials, FetchError, Options, Path, Settings, Source};
use infer_proto::v1::PodIdentity;
use infer_tests::harness::cluster::{Agents as Trust, Api};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::AbortHandle;

use super::{NAMESPACE, PODS, many, unix_ms};

/// The agents' audience, as injection has it.
const AUDIENCE: &str = "infer-decider";
/// How often new Pods are looked for.
const LOOK: Duration = Duration::from_millis(250);

/// What an engine's queue is like.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    running: AtomicU32,
    waiting: AtomicU32,
    /// When the agent first read what was set last, Unix ms.
    read_ms: Mutex<Option<f64>>,
}

impl Queue {
    /// Sets it, and forgets when it was read.
    pub(crate) fn set(&self, running: u32, waiting: u32) {
        let mut read_ms = self.read_ms();
        self.running.store(running, Ordering::SeqCst);
        self.waiting.store(waiting, Ordering::SeqCst);
        *read_ms = None;
    }

    /// When the agent first read what was set last, Unix ms.
    pub(crate) fn first_read_ms(&self) -> Option<f64> {
        *self.read_ms()
    }

    fn read_ms(&self) -> MutexGuard<'_, Option<f64>> {
        self.read_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Engine {
    queue: Arc<Queue>,
    body: Vec<u8>,
}

impl Source for Engine {
    async fn fetch(&mut self, _: Path) -> Result<&[u8], FetchError> {
        let mut read_ms = self.queue.read_ms();
        let (running, waiting) = (
            self.queue.running.load(Ordering::SeqCst),
            self.queue.waiting.load(Ordering::SeqCst),
        );
        read_ms.get_or_insert_with(unix_ms);
        drop(read_ms);
        let labels = r#"{engine="0",model_name="bench"}"#;
        self.body = format!(
            "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{labels} {running}\n\
             # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{labels} {waiting}\n\
             # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{labels} 0.1\n\
             # TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1.7e+09\n"
        )
        .into_bytes();
        Ok(&self.body)
    }
}

/// The agents of a namespace. Dropping it ends them without a goodbye.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    /// Looks for new Pods, where wanted.
    follow: Option<AbortHandle>,
}

struct Shared {
    api: Api,
    trust: Trust,
    tokens: TempDir,
    settings: Settings,
    /// By Pod.
    agents: Mutex<BTreeMap<String, One>>,
}

struct One {
    queue: Arc<Queue>,
    task: AbortHandle,
}

impl Fleet {
    /// Agents of these Pods, all engines with so many running requests.
    pub(crate) async fn start(
        api: &Api,
        trust: Trust,
        settings: Settings,
        pods: Vec<Value>,
        running: u32,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            api: api.clone(),
            trust,
            tokens: tempfile::tempdir()?,
            settings,
            agents: Mutex::default(),
        });
        // All tokens first: what the agents do at their start is measured, and a kubelet's work is not.
        let token = |pod: Value| {
            let shared = Arc::clone(&shared);
            async move { Ok((shared.token(&pod).await?, pod)) }
        };
        for (token, pod) in many(pods, token).await? {
            shared.add(&pod, token, running)?;
        }
        Ok(Fleet { shared, follow: None })
    }

    /// From now on new Pods have an agent as soon as they are on their node, with an engine that has nothing to do.
    pub(crate) fn follow(&mut self) {
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            loop {
                // While the API server is away no Pod comes and none goes.
                if let Ok(pods) = shared.api.list(PODS).await {
                    shared.follow(&pods).await;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        self.follow = Some(task.abort_handle());
    }

    /// The queues of a Deployment's engines, by Pod.
    pub(crate) fn queues(&self, deployment: &str) -> Vec<Arc<Queue>> {
        let prefix = format!("{deployment}-");
        let agents = self.shared.agents();
        let of = agents.iter().filter(|(pod, _)| pod.starts_with(&prefix));
        of.map(|(_, one)| Arc::clone(&one.queue)).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(follow) = &self.follow {
            follow.abort();
        }
        for one in self.shared.agents().values() {
            one.task.abort();
        }
    }
}

impl Shared {
    fn agents(&self) -> MutexGuard<'_, BTreeMap<String, One>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Agents come and go with their Pods.
    async fn follow(&self, pods: &[Value]) {
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let there: BTreeSet<String> = pods.iter().map(name).collect();
        self.agents().retain(|pod, one| {
            let stays = there.contains(pod);
            if !stays {
                one.task.abort();
            }
            stays
        });
        for pod in pods {
            let known = self.agents().contains_key(&name(pod));
            // An agent starts when its Pod is on its node, and never in one that is on its way out.
            if known || !pod["status"]["podIP"].is_string() || pod["metadata"]["deletionTimestamp"].is_string() {
                continue;
            }
            // One that is gone in between is no loss.
            if let Ok(token) = self.token(pod).await {
                let _ = self.add(pod, token, 0);
            }
        }
    }

    /// Writes the Pod's token to a file.
    async fn token(&self, pod: &Value) -> anyhow::Result<PathBuf> {
        let name = pod["metadata"]["name"].as_str().context("a Pod without a name")?;
        let path = self.tokens.path().join(name);
        fs::write(&path, self.api.pod_token(pod, AUDIENCE).await?)?;
        Ok(path)
    }

    fn add(&self, pod: &Value, token: PathBuf, running: u32) -> anyhow::Result<()> {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
        let options = Options {
            decider: self.trust.decider.clone(),
            credentials: Credentials {
                ca_pem: Some(self.trust.ca_pem.clone()),
                ca_file: None,
                token_file: Some(token),
            },
            pod: PodIdentity {
                namespace: NAMESPACE.to_owned(),
                name: text("name"),
                uid: text("uid"),
                target: String::new(),
            },
            settings: self.settings,
            ..Options::default()
        };
        let queue = Arc::<Queue>::default();
        queue.set(running, 0);
        let source = Engine {
            queue: Arc::clone(&queue),
            body: Vec::new(),
        };
        let task = tokio::spawn(Agent::new(options).run_with(source, std::future::pending()));
        let one = One {
            queue,
            task: task.abort_handle(),
        };
        self.agents().insert(text("name"), one);
        Ok(())
    }
}
