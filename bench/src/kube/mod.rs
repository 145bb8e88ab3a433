//! What the benches on a Kubernetes control plane share: the cluster, workloads on kwok's nodes, deciders, and what the
//! audit log says.

pub(crate) mod agents;
pub(crate) mod jump;
pub(crate) mod restart;
pub(crate) mod scale;
pub(crate) mod service;
pub(crate) mod webhook;

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use infer_tests::harness::cluster::{
    Abilities, Api, Audit, Cluster, KWOK_LABEL, KubernetesDecider, KubernetesOptions, Request, Source,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{Outcome, process, report::Report};

/// Where everything of a bench is.
pub(crate) const NAMESPACE: &str = "bench";
/// The node that has every Pod; it exists in the API server only.
const NODE: &str = "bench-node";
/// The decider, as the audit log has it: nobody else has this name.
const DECIDER: &str = "system:serviceaccount:infer-system:infer-decider";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/bench/deployments";
const PODS: &str = "/api/v1/namespaces/bench/pods";
/// Requests of ours under way at the same time: enough to keep an API server on two cores busy.
const WIDTH: usize = 16;

/// A control plane of one's own.
pub(crate) struct Stage {
    pub(crate) cluster: &'static Cluster,
    pub(crate) api: Api,
    pub(crate) audit: Audit,
}

/// Starts a control plane with kwok, or says why there is none to be had.
pub(crate) async fn open(report: &mut Report) -> anyhow::Result<Result<Stage, Outcome>> {
    let skipped = |why: &str| Ok(Err(Outcome::Skipped(why.to_owned())));
    match Source::choose() {
        Source::None(why) => return skipped(&format!("no control plane: {why}")),
        Source::Given(_) => {
            return skipped("it breaks and floods its control plane, and would not do that to a given one");
        }
        Source::Programs(_) => {}
    }
    let Some(cluster) = Cluster::start().await? else {
        return skipped("no control plane");
    };
    if cluster.abilities() < Abilities::Fleet {
        return skipped("this control plane has no controllers or no kwok (tests/cluster/build.sh)");
    }
    // Deciders hold on to it. A bench has a process to itself (`main.rs`), and the cluster ends with that.
    let cluster: &'static Cluster = Box::leak(Box::new(cluster));
    let api = cluster.api().await?;
    let version = api.get("/version").await?;
    report.version("kubernetes", version["gitVersion"].as_str().unwrap_or("unknown"));
    cluster.add_nodes(&[NODE.to_owned()]).await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    api.create(&namespace).await?;
    let account = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default");
    api.wait_for(&account, Duration::from_secs(60), "a ServiceAccount", |_| true)
        .await?;
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for entry in fs::read_dir(&crds).with_context(|| format!("reading {}", crds.display()))? {
        for crd in api.apply("", &fs::read_to_string(entry?.path())?).await? {
            let name = crd["metadata"]["name"].as_str().context("a kind without a name")?;
            api.wait_established(name, Duration::from_secs(60)).await?;
        }
    }
    let rights = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "bench-decider"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": DECIDER}],
    });
    api.create(&rights).await?;
    let audit = cluster.audit()?;
    Ok(Ok(Stage { cluster, api, audit }))
}

impl Stage {
    /// Starts a decider and waits until it is ready.
    pub(crate) async fn decider(&self, name: &str, webhooks: bool) -> anyhow::Result<KubernetesDecider> {
        let kubeconfig = self.cluster.kubeconfig_for(DECIDER, Some("system:serviceaccounts"))?;
        let options = KubernetesOptions {
            name: name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            kubeconfig,
            webhooks,
            arguments: Vec::new(),
        };
        let started = KubernetesDecider::start(self.cluster, options).await;
        started
            .inspect_err(|_| self.cluster.keep_logs())
            .context("starting infer-decider")
    }

    /// Creates objects, many at a time.
    pub(crate) async fn create(&self, objects: Vec<Value>) -> anyhow::Result<()> {
        let create = |object: Value| {
            let api = self.api.clone();
            async move {
                api.create(&object).await?;
                Ok(())
            }
        };
        many(objects, create).await.map(drop)
    }

    /// Waits until all Pods of all Deployments are ready.
    pub(crate) async fn all_ready(&self, pods: usize, patience: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let deployments = self.api.list(DEPLOYMENTS).await?;
            let ready = |deployment: &Value| deployment["status"]["readyReplicas"].as_u64().unwrap_or(0);
            let now: u64 = deployments.iter().map(ready).sum();
            if now >= pods as u64 {
                return Ok(());
            }
            ensure!(
                began.elapsed() < patience,
                "{now} of {pods} Pods ready after {} s",
                patience.as_secs()
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// All Pods that are not on their way out.
    pub(crate) async fn pods(&self) -> anyhow::Result<Vec<Value>> {
        let mut pods = self.api.list(PODS).await?;
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(pods)
    }

    /// Accepted writes of replica counts since then, by target, oldest first. Nobody else scales here.
    pub(crate) fn scales(&self, mark: u64) -> anyhow::Result<BTreeMap<String, Vec<Scale>>> {
        let mut scales = BTreeMap::<String, Vec<Scale>>::new();
        for request in self.since(mark, |request| request.is_scale() && request.succeeded())? {
            let scale = Scale {
                replicas: request.replicas.context("a scale write without a count")?,
                received_ms: unix_ms_of(&request.received)?,
                answered_ms: unix_ms_of(&request.answered)?,
            };
            scales.entry(request.name).or_default().push(scale);
        }
        for of_target in scales.values_mut() {
            of_target.sort_by(|a, b| a.received_ms.total_cmp(&b.received_ms));
        }
        Ok(scales)
    }

    /// The decider's requests since then.
    pub(crate) fn requests(&self, mark: u64) -> anyhow::Result<Vec<Request>> {
        self.since(mark, |_| true)
    }

    fn since(&self, mark: u64, wanted: impl Fn(&Request) -> bool) -> anyhow::Result<Vec<Request>> {
        // Silence would look like a decider that asks for nothing.
        ensure!(
            self.audit.mark()? >= mark,
            "the API server began a new audit log in the middle (--audit-log-maxsize)"
        );
        Ok(self
            .audit
            .since(mark, |request| request.user == DECIDER && wanted(request))?)
    }
}

/// An accepted write of a replica count; times are Unix ms by the API server's clock, which is this machine's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    pub(crate) replicas: u64,
    pub(crate) received_ms: f64,
    pub(crate) answered_ms: f64,
}

/// What a sequence of accepted writes on a target that had `before` replicas and needs `needed` has of writes that take
/// away what is needed, and of repetitions.
pub(crate) fn faults(before: u64, needed: u64, scales: &[Scale]) -> (u64, u64) {
    let (mut downs, mut doubles, mut last) = (0, 0, before);
    for scale in scales {
        downs += u64::from(scale.replicas < last && scale.replicas < needed);
        doubles += u64::from(scale.replicas == last);
        last = scale.replicas;
    }
    (downs, doubles)
}

/// RFC 3339 with microseconds, as the audit log has it.
pub(crate) fn unix_ms_of(timestamp: &str) -> anyhow::Result<f64> {
    let time: jiff::Timestamp = timestamp.parse().with_context(|| format!("time {timestamp:?}"))?;
    Ok(time.as_microsecond() as f64 / 1e3)
}

/// Now, Unix ms.
pub(crate) fn unix_ms() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
        * 1e3
}

/// Does something with many things, some at a time. Stops at the first error.
pub(crate) async fn many<I, T, F>(inputs: Vec<I>, each: impl Fn(I) -> F) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let mut outputs = Vec::with_capacity(inputs.len());
    let mut running = JoinSet::new();
    for input in inputs {
        if running.len() >= WIDTH
            && let Some(done) = running.join_next().await
        {
            outputs.push(done??);
        }
        running.spawn(each(input));
    }
    while let Some(done) = running.join_next().await {
        outputs.push(done??);
    }
    Ok(outputs)
}

/// A Deployment whose Pods are on kwok's node at once, no scheduler between, and ready after so many seconds.
pub(crate) fn deployment(name: &str, replicas: usize, boot_s: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {
                    "labels": {"app": name},
                    "annotations": {"infer-test/start-after": format!("{boot_s}s")},
                },
                "spec": {
                    "nodeName": NODE,
                    "tolerations": [{"key": KWOK_LABEL, "operator": "Exists"}],
                    "containers": [{"name": "engine", "image": "localhost/engine:1"}],
                },
            },
        },
    })
}

/// A binding of the Deployment by the same name.
pub(crate) fn binding(name: &str, policy: &Value, min: usize, max: usize) -> Value {
    json!({
        "apiVersion": "autoscaling.matrixinfer.ai/v1alpha1", "kind": "AutoscalingPolicyBinding",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "policy": policy,
            "scaling": {
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "minReplicas": min, "maxReplicas": max,
            },
        },
    })
}

/// As in the bench `jump`: the panic window is as long as with the defaults, the stable one is as short, and nothing but
/// the windows themselves keeps a target from shrinking.
pub(crate) fn quick_policy() -> Value {
    json!({
        "metrics": [{"type": "concurrency", "target": 8}],
        "stableWindowSeconds": 6,
        "panic": {"windowPercent": 100, "thresholdPercent": 200},
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
    })
}

/// Targets that a decider has decided on, and those of them of which it has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) targets: usize,
    pub(crate) with_data: usize,
}

/// From a decider's metrics.
pub(crate) fn decided(metrics: &str) -> Decided {
    let modes = || {
        metrics
            .lines()
            .filter(|line| line.starts_with("infer_decider_target_mode{"))
    };
    Decided {
        targets: modes().count(),
        with_data: modes().filter(|line| !line.contains("mode=\"unknown\"")).count(),
    }
}

/// Waits until a decider has decided as wanted. The inner error is what it had decided instead when patience ended.
pub(crate) async fn wait_decided(
    decider: &KubernetesDecider,
    patience: Duration,
    wanted: impl Fn(Decided) -> bool,
) -> Result<(), Decided> {
    let began = Instant::now();
    loop {
        // One that has just been started does not answer yet.
        let now = decided(&decider.metrics().await.unwrap_or_default());
        if wanted(now) {
            return Ok(());
        }
        if began.elapsed() > patience {
            return Err(now);
        }
        // A thousand targets are 300 KB of metrics.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The same where nothing can be measured otherwise.
pub(crate) async fn until_decided(
    decider: &KubernetesDecider,
    patience: Duration,
    wanted: impl Fn(Decided) -> bool,
) -> anyhow::Result<()> {
    wait_decided(decider, patience, wanted).await.map_err(|now| {
        let (after_s, log) = (patience.as_secs(), decider.log());
        anyhow::anyhow!(
            "after {after_s} s the decider has decided on {now:?}; its log: {}",
            log.display()
        )
    })
}

/// Pid of the one decider that runs; the harness starts them as children of this process.
pub(crate) fn decider_pid() -> anyhow::Result<u32> {
    let pids = process::children(std::process::id(), "infer-decider");
    let alive: Vec<u32> = pids.into_iter().filter(|pid| process::is_alive(*pid)).collect();
    ensure!(alive.len() == 1, "deciders: {alive:?}");
    Ok(alive[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_seen() {
        let scales = |counts: &[u64]| {
            counts
                .iter()
                .map(|replicas| Scale {
                    replicas: *replicas,
                    received_ms: 0.0,
                    answered_ms: 0.0,
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(faults(2, 9, &scales(&[4, 8, 13, 10])), (0, 0));
        assert_eq!(faults(2, 9, &scales(&[2, 4, 4, 3, 10, 8])), (2, 2));
    }

    #[test]
    fn times_and_modes_are_read() {
        assert_eq!(unix_ms_of("1970-01-01T00:00:01.250500Z").unwrap(), 1250.5);
        let metrics = "infer_decider_target_mode{target=\"n/a\",mode=\"stable\"} 1\n\
                       infer_decider_target_mode{target=\"n/b\",mode=\"unknown\"} 1\nother 1\n";
        let both = Decided {
            targets: 2,
            with_data: 1,
        };
        assert_eq!(decided(metrics), both);
    }
}
