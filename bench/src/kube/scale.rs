//! A thousand bindings of ten Pods each: what they cost when nothing happens, and how soon a new decider knows them all.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use infer_agent::Settings;
use infer_tests::harness::cluster::{KubernetesDecider, Request};
use serde_json::{Value, json};

use super::{
    Decided, Stage, agents::Fleet, binding, decider_pid, deployment, open, unix_ms, unix_ms_of, until_decided,
    wait_decided,
};
use crate::{
    Outcome, Setting,
    process::{CpuTime, Memory},
    report::{Figure, Report, Target},
    say,
};

/// Requests that run in every engine, and how many the policy wants there: ten replicas want to be ten, and one request
/// more or less changes nothing.
const RUNNING: u32 = 15;
const WANTED: u32 = 16;
/// Ten thousand agents take their time to connect on two cores.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(setting, report))
}

async fn measure(setting: &Setting, report: &mut Report) -> anyhow::Result<Outcome> {
    let (sizes, pods_each) = (setting.either(vec![10, 100, 1000], vec![2]), setting.either(10, 2));
    let stage = match open(report).await? {
        Ok(stage) => stage,
        Err(skipped) => return Ok(skipped),
    };
    let largest = sizes.last().copied().unwrap_or(0);
    let mut there = 0;
    for bindings in sizes {
        let names: Vec<String> = (there..bindings).map(|number| format!("fleet-{number}")).collect();
        let workloads = names.iter().map(|name| deployment(name, pods_each, 0));
        let bound = names.iter().map(|name| binding(name, &policy(), 1, 2 * pods_each));
        let began = Instant::now();
        stage.create(workloads.chain(bound).collect()).await?;
        there = bindings;
        stage.all_ready(bindings * pods_each, Duration::from_secs(1800)).await?;
        say(&format!(
            "bench kube-scale: {bindings} bindings, {} Pods, ready after {} s",
            bindings * pods_each,
            began.elapsed().as_secs()
        ));
        let mut size = Size {
            stage: &stage,
            bindings,
            judged: bindings == largest,
            setting,
            report,
        };
        size.measure().await.with_context(|| format!("{bindings} bindings"))?;
    }
    report.note(format!(
        "one namespace; each binding has a Deployment of {pods_each} kwok Pods and a policy of its own with every default; \
         nothing changes while it is measured"
    ));
    report.note(
        "without agents: kwok's Pods run nothing, so nothing reports, and the decider holds every target; with agents: one \
         real agent (library, all in this process) a Pod at 1 Hz over TLS with its Pod's token, and engines of which only \
         the queue exists, so that samples carry three gauges and no histograms; what is promised is promised of the former, \
         ingest.json has the cost of whole samples",
    );
    report.note(
        "requests are the decider's in the API server's audit log: Leases, status, Events, token reviews, lists and watches; \
         CPU is the scheduler's ns over all threads of infer-decider; API server, etcd, controllers, kwok and agents share \
         the machine with it",
    );
    Ok(Outcome::Measured)
}

fn policy() -> Value {
    json!({"metrics": [{"type": "concurrency", "target": WANTED}]})
}

/// One number of bindings.
struct Size<'a> {
    stage: &'a Stage,
    bindings: usize,
    /// Whether promises are about it.
    judged: bool,
    setting: &'a Setting,
    report: &'a mut Report,
}

impl Size<'_> {
    async fn measure(&mut self) -> anyhow::Result<()> {
        let bindings = self.bindings;
        let alone = move |now: Decided| now.targets == bindings;
        let heard = move |now: Decided| now.targets == bindings && now.with_data == bindings;

        let mark = self.stage.audit.mark()?;
        let (began, began_ms) = (Instant::now(), unix_ms());
        let decider = self.stage.decider(&format!("of-{bindings}"), false).await?;
        until_decided(&decider, PATIENCE, alone).await?;
        self.judge(
            "cold start to the first decision on all",
            "s",
            began.elapsed().as_secs_f64(),
            Some(30.0),
        );
        self.steady("without agents", Some(30.0)).await?;
        let written = first_statuses(&self.stage.requests(mark)?)?;
        let last_s = written.values().map(|ms| (ms - began_ms) / 1e3).fold(0.0, f64::max);
        self.judge("cold start to the last status written", "s", last_s, None);
        self.judge("statuses written in it", "bindings", written.len() as f64, None);
        self.restart("without agents", &decider, alone).await?;

        // Cold again, with agents that wait for it.
        decider.kill()?;
        for entry in fs::read_dir(decider.directory())? {
            let path = entry?.path();
            if path == decider.log() {
                continue;
            }
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        let trust = decider.agents(&self.stage.api, Duration::from_secs(30)).await?;
        let settings = Settings {
            // Looks at the queue cost the agent and its engine, not the decider.
            fast_interval_ms: 0,
            ..Settings::default()
        };
        let pods = self.stage.pods().await?;
        let agents = Fleet::start(&self.stage.api, trust, settings, pods, RUNNING).await?;
        // The Lease of the one before is over, and agents try as seldom as they ever do.
        tokio::time::sleep(self.setting.either(Duration::from_secs(10), Duration::from_secs(3))).await;
        let (mark, began) = (self.stage.audit.mark()?, Instant::now());
        decider.launch()?;
        decider.wait_ready().await?;
        self.wait(&decider, heard).await;
        self.judge(
            "cold start to a decision on data of all",
            "s",
            began.elapsed().as_secs_f64(),
            Some(30.0),
        );
        self.steady("with agents", None).await?;
        let scales: usize = self.stage.scales(mark)?.values().map(Vec::len).sum();
        self.judge(
            "scale changes after a cold start, with agents",
            "writes",
            scales as f64,
            None,
        );
        self.restart("with agents", &decider, heard).await?;
        decider.kill()?;
        drop(agents);
        Ok(())
    }

    /// Adds a figure.
    fn judge(&mut self, name: &str, unit: &'static str, value: f64, bound: Option<f64>) {
        let figure = Figure::total(format!("{} bindings: {name}", self.bindings), unit, value, &[]);
        self.report.figure(match bound {
            Some(bound) if self.judged => figure.promised(Target::AtMost(bound)),
            _ => figure,
        });
    }

    /// Waits for decisions, but not for ever: what is missing then is a result.
    async fn wait(&mut self, decider: &KubernetesDecider, wanted: impl Fn(Decided) -> bool) {
        if let Err(now) = wait_decided(decider, PATIENCE, wanted).await {
            self.report.note(format!(
                "{} bindings: after {} s only {} targets were decided on, {} of them with data; what follows was measured so",
                self.bindings,
                PATIENCE.as_secs(),
                now.targets,
                now.with_data
            ));
        }
    }

    /// What it costs when nothing happens.
    async fn steady(&mut self, with: &str, cpu_percent: Option<f64>) -> anyhow::Result<()> {
        // Statuses are written, and agents have stopped coming.
        tokio::time::sleep(self.setting.either(Duration::from_secs(30), Duration::from_secs(3))).await;
        let pid = decider_pid()?;
        let (mark, began, cpu) = (self.stage.audit.mark()?, Instant::now(), CpuTime::of(pid)?);
        tokio::time::sleep(self.setting.either(Duration::from_secs(60), Duration::from_secs(5))).await;
        let (cpu, seconds) = (CpuTime::of(pid)?.percent_since(&cpu), began.elapsed().as_secs_f64());
        let requests = self.stage.requests(mark)?;
        let memory = Memory::of(pid)?;
        let name = |name: &str| format!("{name}, {with}");
        self.judge(
            &name("API requests in steady state"),
            "1/s",
            requests.len() as f64 / seconds,
            Some(5.0),
        );
        self.judge(&name("decider's CPU"), "% of a core", cpu, cpu_percent);
        self.judge(&name("decider's RSS"), "MiB", memory.rss_mib, None);
        self.judge(&name("decider's RSS at most"), "MiB", memory.peak_rss_mib, None);
        self.report.note(format!(
            "{} bindings, {with}: requests were {}",
            self.bindings,
            kinds(&requests)
        ));
        Ok(())
    }

    /// kill -9, and the same again.
    async fn restart(
        &mut self,
        with: &str,
        decider: &KubernetesDecider,
        wanted: impl Fn(Decided) -> bool,
    ) -> anyhow::Result<()> {
        let mark = self.stage.audit.mark()?;
        decider.kill()?;
        let began = Instant::now();
        decider.launch()?;
        decider.wait_ready().await?;
        self.wait(decider, wanted).await;
        self.judge(
            &format!("restart to decisions on all, {with}"),
            "s",
            began.elapsed().as_secs_f64(),
            None,
        );
        tokio::time::sleep(self.setting.either(Duration::from_secs(30), Duration::from_secs(5))).await;
        let scales: usize = self.stage.scales(mark)?.values().map(Vec::len).sum();
        self.judge(
            &format!("scale changes after a restart, {with}"),
            "writes",
            scales as f64,
            Some(0.0),
        );
        Ok(())
    }
}

/// When each binding's status was first written, Unix ms.
fn first_statuses(requests: &[Request]) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut first = BTreeMap::new();
    let written = |request: &&Request| request.subresource == "status" && request.is_write() && request.succeeded();
    for request in requests.iter().filter(written) {
        let answered_ms = unix_ms_of(&request.answered)?;
        let earliest = first.entry(request.name.clone()).or_insert(answered_ms);
        *earliest = answered_ms.min(*earliest);
    }
    Ok(first)
}

/// "60 update leases, 3 watch pods".
fn kinds(requests: &[Request]) -> String {
    let mut kinds = BTreeMap::<String, usize>::new();
    for request in requests {
        let slash = if request.subresource.is_empty() { "" } else { "/" };
        let kind = format!("{} {}{slash}{}", request.verb, request.resource, request.subresource);
        *kinds.entry(kind).or_default() += 1;
    }
    let words: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}
