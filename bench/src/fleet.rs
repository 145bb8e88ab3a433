//! A real decider with a real fleet of stand-in engines on this machine.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use infer_proto::v1::{ListTargetsRequest, Pod, Target, decisions_client::DecisionsClient};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::{
    Setting,
    process::{Process, children, free_port},
};

/// The fleet's name, and its target's.
pub(crate) const NAME: &str = "bench";
/// How the processes are called in /proc.
pub(crate) const ENGINE: &str = "infersim";

/// Policy, binding and fleet of stand-in engines; see [`Fleet::new`] for what is in braces.
pub(crate) fn documents(policy: &str, max_replicas: u32, initial_replicas: usize, engine_arguments: &str) -> String {
    format!(
        r#"
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicy
metadata: {{name: bench}}
spec:
{policy}
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicyBinding
metadata: {{name: bench}}
spec:
  policyRef: {{name: bench}}
  scaling:
    targetRef: {{kind: LocalFleet, name: bench}}
    minReplicas: 1
    maxReplicas: {max_replicas}
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: LocalFleet
metadata: {{name: bench}}
spec:
  model: bench
  initialReplicas: {initial_replicas}
  engine:
    command: ["{{engine}}", engine, --port, "{{port}}", --profile, h100-llama-8b{engine_arguments}]
    ports: {{ports}}
  startupProbe: {{path: /health, intervalMilliseconds: 100, timeoutSeconds: 60}}
  drain: {{timeoutSeconds: 5, terminationGraceSeconds: 2}}
"#
    )
}

/// A decider and its documents.
pub(crate) struct Fleet {
    program: PathBuf,
    scratch: TempDir,
    port: u16,
    decider: Option<Process>,
}

impl Fleet {
    /// With these documents; `{engine}` in them stands for the engine's program, `{ports}` for a range of 20 free ports.
    /// Nothing runs yet.
    pub(crate) fn new(setting: &Setting, documents: &str) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let engine = setting.binary("infersim")?.canonicalize()?;
        setting.binary("infer-agent")?;
        let first = free_ports(20)?;
        let documents = documents
            .replace("{engine}", &engine.to_string_lossy())
            .replace("{ports}", &format!("{{from: {first}, to: {}}}", first + 19));
        std::fs::write(scratch.path().join("fleet.yaml"), documents)?;
        Ok(Fleet {
            program: setting.binary("infer-decider")?.canonicalize()?,
            scratch,
            port: free_port()?,
            decider: None,
        })
    }

    fn state_dir(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    /// Starts the decider, the first time or again. Returns the instant just before.
    pub(crate) fn start(&mut self) -> anyhow::Result<Instant> {
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.program);
        command
            .arg("run")
            .arg("--config")
            .arg(self.scratch.path().join("fleet.yaml"));
        command.arg("--state-dir").arg(self.state_dir()).arg("--no-http");
        command.arg("--listen").arg(format!("127.0.0.1:{}", self.port));
        command.stdout(Stdio::null()).stderr(log);
        let began = Instant::now();
        self.decider = Some(Process::start("infer-decider", &mut command)?);
        Ok(began)
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join("decider.log")
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.decider.take().context("no decider runs")?.kill()
    }

    /// A client, once the decider answers.
    pub(crate) async fn client(&mut self) -> anyhow::Result<DecisionsClient<Channel>> {
        let began = Instant::now();
        loop {
            if let Ok(client) = connect(&format!("http://127.0.0.1:{}", self.port)).await {
                return Ok(client);
            }
            self.check()?;
            ensure!(
                began.elapsed() < Duration::from_secs(20),
                "the decider does not answer after 20 s"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// An error, with the end of its log, when the decider has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let log = self.log();
        self.decider
            .as_mut()
            .context("no decider runs")?
            .check()
            .with_context(|| last_lines(&log))
    }

    /// Engines that the decider has started and that are its children: pids, ascending.
    pub(crate) fn engines(&self) -> Vec<u32> {
        let mut pids = self
            .decider
            .as_ref()
            .map_or(Vec::new(), |decider| children(decider.pid(), ENGINE));
        pids.sort_unstable();
        pids
    }

    /// Ends everything in order.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        if let Some(decider) = self.decider.take() {
            decider
                .stop(Duration::from_secs(30))
                .with_context(|| last_lines(&self.log()))?;
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(decider) = self.decider.take() {
            // What could not be measured must not leave engines behind.
            let _ = decider.kill();
        }
        // Whatever is left, an engine whose decider was killed above all.
        let mut cleanup = Command::new(&self.program);
        cleanup.arg("cleanup").arg("--state-dir").arg(self.state_dir());
        let _ = cleanup.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A client of the decider at `url`.
pub(crate) async fn connect(url: &str) -> anyhow::Result<DecisionsClient<Channel>> {
    Ok(DecisionsClient::new(
        Endpoint::from_shared(url.to_owned())?.connect().await?,
    ))
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    format!(
        "the decider's log ends:\n{}",
        lines[lines.len().saturating_sub(15)..].join("\n")
    )
}

/// The first of `count` ports in a row that are free now, below the range from which the kernel picks.
fn free_ports(count: u16) -> anyhow::Result<u16> {
    let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..200 {
        let first = fastrand::u16(15_000..30_000);
        if (first..first + count).all(free) {
            return Ok(first);
        }
    }
    anyhow::bail!("no {count} free ports in a row between 15000 and 30000")
}

/// The fleet's target as the decider sees it now.
pub(crate) async fn target(client: &mut DecisionsClient<Channel>) -> anyhow::Result<Target> {
    let targets = client.list_targets(ListTargetsRequest {}).await?.into_inner().targets;
    targets
        .into_iter()
        .find(|target| target.name == NAME)
        .context("the decider has no target of that name")
}

/// Replicas that serve.
pub(crate) fn ready(target: &Target) -> Vec<&Pod> {
    target.pods.iter().filter(|pod| pod.phase == "ready").collect()
}

/// Where a replica's API is.
pub(crate) fn address(pod: &Pod) -> anyhow::Result<SocketAddr> {
    let endpoint = pod.endpoint.trim_start_matches("http://").trim_end_matches('/');
    endpoint
        .parse()
        .with_context(|| format!("endpoint {:?} of {}", pod.endpoint, pod.name))
}

/// Waits until the target is as wanted.
pub(crate) async fn until(
    client: &mut DecisionsClient<Channel>,
    what: &str,
    patience: Duration,
    wanted: impl Fn(&Target) -> bool,
) -> anyhow::Result<Target> {
    let began = Instant::now();
    loop {
        let target = target(client).await?;
        if wanted(&target) {
            return Ok(target);
        }
        ensure!(
            began.elapsed() < patience,
            "not {what} after {} s: {:?}, mode {}, control {}, {}, metrics {:?}",
            patience.as_secs(),
            target.replicas,
            target.mode,
            target.control,
            target.reason,
            target.metrics
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
