//! What the end-to-end tests share: documents, load, engines' own numbers, and a decider that comes back where it was.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy, rt::TokioExecutor};
use infer_load::{Class, Event, Lengths, Plan, Report, Shutdown, rate};
use infer_proto::v1::{
    ExplainRequest, Explanation, GetStatusRequest, GetWindowsRequest, Status, Target, Windows, explain_request,
};
use infer_tests::harness::{Binaries, Client, Decider, MARK, Options, Process, for_target, free_range, marked, until};
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::JoinHandle,
};
use tonic::transport::Endpoint;

/// A start, a drain, a recovery: generous, for machines that do other things as well.
pub(crate) const SOON: Duration = Duration::from_secs(45);
/// Decider and engines of one test take about a core; more at a time only make each other late.
static HEAVY: Semaphore = Semaphore::const_new(2);
/// More than any fleet here has replicas: one that is replaced takes another port.
const ENGINE_PORTS: u16 = 40;
/// An answer on this machine that has not come by then never comes.
const ANSWER: Duration = Duration::from_secs(30);

/// Ports that nobody has and that no other test of this process was given.
fn ports(count: u16) -> u16 {
    static GIVEN: Mutex<Vec<(u16, u16)>> = Mutex::new(Vec::new());
    loop {
        let first = free_range(count).unwrap();
        let mut given = GIVEN.lock().unwrap();
        if given.iter().all(|(from, to)| first + count <= *from || *to <= first) {
            given.push((first, first + count));
            return first;
        }
    }
}

/// A turn; held until the test ends.
pub(crate) async fn turn() -> SemaphorePermit<'static> {
    HEAVY.acquire().await.unwrap()
}

/// A fleet of stand-in engines with its policy and binding. Load is counted in requests.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    pub(crate) name: &'static str,
    pub(crate) flavor: &'static str,
    pub(crate) per_replica: f64,
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) initial: u32,
    pub(crate) stable_s: u32,
    pub(crate) stabilization_s: u32,
    pub(crate) startup_s: f64,
    /// First of its engines' ports.
    pub(crate) ports: u16,
    pub(crate) door: u16,
}

impl Fleet {
    /// One to three replicas, the shortest windows, nothing that delays shrinking.
    pub(crate) fn new(name: &'static str) -> Fleet {
        Fleet {
            name,
            flavor: "vllm",
            per_replica: 4.0,
            min: 1,
            max: 3,
            initial: 1,
            stable_s: 6,
            stabilization_s: 0,
            startup_s: 1.5,
            ports: ports(ENGINE_PORTS),
            door: ports(1),
        }
    }

    pub(crate) fn yaml(&self) -> String {
        let Fleet {
            name,
            flavor,
            per_replica,
            min,
            max,
            initial,
            stable_s,
            stabilization_s,
            startup_s,
            ports,
            door,
        } = self;
        let last = ports + ENGINE_PORTS - 1;
        // At least 2 s.
        let panic_percent = (200 / stable_s + 1).max(10);
        format!(
            r#"apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicy
metadata: {{name: {name}}}
spec:
  metrics:
    - {{type: concurrency, target: {per_replica}}}
  stableWindowSeconds: {stable_s}
  panic: {{windowPercent: {panic_percent}, thresholdPercent: 200}}
  scaleToZeroGraceSeconds: 1
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {stabilization_s}
      policies:
        - {{type: Percent, value: 100, periodSeconds: 2}}
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicyBinding
metadata: {{name: {name}}}
spec:
  policyRef: {{name: {name}}}
  scaling:
    targetRef: {{kind: LocalFleet, name: {name}}}
    minReplicas: {min}
    maxReplicas: {max}
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: LocalFleet
metadata: {{name: {name}}}
spec:
  model: {name}-model
  initialReplicas: {initial}
  engine:
    command: [infersim, engine, --port, "{{port}}", --flavor, {flavor}, --served-model-name, "{{model}}",
              --startup-delay-s, "{startup_s}"]
    ports: {{from: {ports}, to: {last}}}
  startupProbe: {{path: /health, intervalMilliseconds: 100, timeoutSeconds: 60}}
  drain: {{timeoutSeconds: 30, terminationGraceSeconds: 5}}
  restart: {{initialBackoffMilliseconds: 200}}
  frontDoor: {{listen: "127.0.0.1:{door}", queueLimit: 1024}}
"#
        )
    }

    /// The front door.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.door)
    }

    pub(crate) fn model(&self) -> String {
        format!("{}-model", self.name)
    }

    /// Every port that it may use.
    pub(crate) fn all_ports(&self) -> impl Iterator<Item = u16> + use<> {
        (self.ports..self.ports + ENGINE_PORTS).chain([self.door])
    }
}

/// Whether nobody listens there.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// A directory that goes with its test, and stays when the test fails.
pub(crate) struct Directory(Option<TempDir>);

impl Directory {
    pub(crate) fn new() -> Directory {
        Directory(Some(tempfile::Builder::new().prefix("infer-it-").tempdir().unwrap()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Some(directory) = self.0.take().filter(|_| std::thread::panicking()) {
            eprintln!("kept for inspection: {}", directory.keep().display());
        }
    }
}

/// A decider with one fleet, ready when `initial` replicas are and have reported.
pub(crate) async fn start(directory: &Directory, fleet: &Fleet) -> (Decider, Client) {
    let decider = Decider::start(Options::new(directory.path(), fleet.yaml()))
        .await
        .unwrap();
    let client = decider.client().await.unwrap();
    ready(&client, fleet.name, fleet.initial).await;
    (decider, client)
}

/// Waits until exactly so many replicas serve, all of them have reported, and nothing else is going on.
pub(crate) async fn ready(client: &Client, target: &str, replicas: u32) -> Target {
    let settled = |target: &Target| {
        let now = target.replicas.unwrap_or_default();
        (now.ready, now.spec) == (replicas, replicas)
            && now.starting + now.draining + now.failed == 0
            && target.pods.iter().all(|pod| pod.gauges.is_some())
    };
    for_target(client, target, SOON, &format!("{replicas} ready replicas"), settled)
        .await
        .unwrap()
}

pub(crate) async fn status(client: &Client) -> Status {
    client
        .clone()
        .get_status(GetStatusRequest {})
        .await
        .unwrap()
        .into_inner()
}

/// Waits until the decider's health is so and its problems are as wanted.
pub(crate) async fn health(client: &Client, health: &str, problem: &str) -> Status {
    until(SOON, &format!("health {health:?} {problem:?}"), || async {
        let status = status(client).await;
        let told = problem.is_empty() || status.problems.iter().any(|have| have.contains(problem));
        if status.health == health && told {
            Ok(status)
        } else {
            Err(format!("{}: {:?}", status.health, status.problems))
        }
    })
    .await
    .unwrap()
}

/// The newest tick's record.
pub(crate) async fn explain(client: &Client, target: &str) -> (Explanation, serde_json::Value) {
    let what = Some(explain_request::What::Target(target.to_owned()));
    let explanation = client
        .clone()
        .explain(ExplainRequest { what })
        .await
        .unwrap()
        .into_inner();
    assert!(explanation.recomputed_equal);
    let record = serde_json::from_str(&explanation.record_json).unwrap();
    (explanation, record)
}

/// Looks on for `time_s` seconds of the decider's own time: `holds` is true of every decision's (rule, mode, replicas).
pub(crate) async fn holds_for(client: &Client, target: &str, time_s: i64, holds: impl Fn(&str, &str, u32) -> bool) {
    let mut began = None;
    let look = async |began: &mut Option<i64>| {
        let (explanation, record) = explain(client, target).await;
        let decision = explanation.decision.unwrap_or_default();
        let (rule, mode, replicas) = (&decision.bound_by, &decision.mode, decision.replicas_after);
        assert!(
            holds(rule, mode, replicas),
            "{mode}, {replicas} wanted, bound by {rule}: {}",
            decision.reason
        );
        let now = record["inputs"]["now"].as_i64().unwrap();
        now - *began.get_or_insert(now) >= time_s * 1000
    };
    let watch = async {
        while !look(&mut began).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, watch).await.expect("no decisions any more");
}

/// Everything that was counted in the last ten minutes.
pub(crate) async fn windows(client: &Client, target: &str) -> Windows {
    let request = GetWindowsRequest {
        target: target.to_owned(),
        window_s: 600,
        quantiles: Vec::new(),
    };
    client.clone().get_windows(request).await.unwrap().into_inner()
}

/// A counter of the windows.
pub(crate) fn counted(windows: &Windows, name: &str) -> u64 {
    windows
        .counters
        .iter()
        .find(|counter| counter.name == name)
        .map_or(0, |counter| counter.count)
}

/// Observations of a signal in the windows.
pub(crate) fn observed(windows: &Windows, signal: infer_proto::v1::Signal) -> u64 {
    windows
        .histograms
        .iter()
        .find(|histogram| histogram.signal() == signal)
        .map_or(0, |histogram| histogram.count)
}

/// One HTTP exchange.
pub(crate) async fn ask(method: Method, url: &str, body: String) -> Result<(StatusCode, Bytes), String> {
    let request = Request::builder()
        .method(method)
        .uri(url)
        .header("content-type", "application/json");
    let request = request
        .body(Full::<Bytes>::from(body))
        .map_err(|error| error.to_string())?;
    let client = legacy::Client::builder(TokioExecutor::new()).build_http();
    let exchange = async {
        let response = client.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes()))
    };
    tokio::time::timeout(ANSWER, exchange)
        .await
        .map_err(|_| format!("no answer from {url}"))?
}

/// Makes an engine fail, or with "none" ends its failures.
pub(crate) async fn fail(endpoint: &str, kind: &str) {
    let body = format!(r#"{{"kind":"{kind}"}}"#);
    let (status, body) = ask(Method::POST, &format!("{endpoint}/sim/failure"), body)
        .await
        .unwrap();
    assert!(status.is_success(), "{status}: {body:?}");
}

/// One completion, not streamed.
pub(crate) async fn complete(url: &str, model: &str, max_tokens: u32) -> Result<(StatusCode, Bytes), String> {
    let body = format!(r#"{{"model":"{model}","prompt":"one two three","max_tokens":{max_tokens}}}"#);
    ask(Method::POST, &format!("{url}/v1/completions"), body).await
}

/// An engine's own sum over a family.
pub(crate) async fn engine_total(endpoint: &str, family: &str) -> u64 {
    let (status, body) = ask(Method::GET, &format!("{endpoint}/metrics"), String::new())
        .await
        .unwrap();
    assert_eq!(status, StatusCode::OK);
    let text = String::from_utf8(body.to_vec()).unwrap();
    let samples = text
        .lines()
        .filter_map(|line| line.strip_prefix(family))
        .filter(|rest| rest.starts_with(['{', ' ']));
    samples
        .map(|rest| rest.split(' ').next_back().unwrap().parse::<f64>().unwrap() as u64)
        .sum()
}

/// Streaming requests at a steady pace, until told to stop. On a machine that cannot keep up they do not pile up:
/// what would exceed the cap is not sent.
pub(crate) struct Load {
    pub(crate) ok: Arc<AtomicU64>,
    shutdown: Shutdown,
    task: JoinHandle<Report>,
}

impl Load {
    pub(crate) fn start(url: &str, model: &str, rate_rps: f64, output_tokens: u32, in_flight_max: usize) -> Load {
        let mut options = infer_load::Options::new(url, model);
        options.timeout = Duration::from_secs(60);
        options.in_flight_max = in_flight_max;
        let lengths = Lengths::new(20.0, f64::from(output_tokens), 0.3).unwrap();
        // Longer than any test; it is told to stop.
        let curve = rate::Curve::constant(rate_rps, 600.0).unwrap();
        let plan = rate::plan(curve, rate::Process::Gamma { cv: 0.4 }, lengths, 1);
        Load::play(options, plan)
    }

    fn play(options: infer_load::Options, plan: Plan) -> Load {
        let (ok, shutdown) = (Arc::new(AtomicU64::new(0)), Shutdown::default());
        let done = Arc::clone(&ok);
        let observer = move |event: &Event| {
            if let Event::Finished(outcome) = event
                && outcome.is_ok()
            {
                done.fetch_add(1, Ordering::Relaxed);
            }
        };
        let run = infer_load::run(options, plan, observer, shutdown.clone());
        Load {
            ok,
            shutdown,
            task: tokio::spawn(async move { run.await.unwrap() }),
        }
    }

    /// Waits until this many more requests have been answered in full.
    pub(crate) async fn answered(&self, more: u64) {
        let wanted = self.ok.load(Ordering::Relaxed) + more;
        until(SOON, &format!("{more} more answers"), || async {
            let have = self.ok.load(Ordering::Relaxed);
            if have >= wanted {
                Ok(())
            } else {
                Err(format!("{have} of {wanted}"))
            }
        })
        .await
        .unwrap();
    }

    /// Sends no more and waits for the last answer.
    pub(crate) async fn stop(self) -> Report {
        self.shutdown.stop();
        self.task.await.unwrap()
    }
}

/// Requests that were sent and not answered in full.
pub(crate) fn failed(report: &Report) -> u64 {
    report.requests.failed - report.failures.get(&Class::InFlightCap).copied().unwrap_or(0)
}

/// The engines among processes, by port.
pub(crate) fn engines(processes: &[Process]) -> BTreeMap<u16, u32> {
    let port = |command: &str| {
        let mut words = command.split(' ').skip_while(|word| *word != "--port");
        words.nth(1).and_then(|port| port.parse().ok())
    };
    let engines = processes
        .iter()
        .filter(|process| process.command.contains("infersim engine"));
    engines
        .filter_map(|process| Some((port(&process.command)?, process.pid)))
        .collect()
}

/// A port of a replica.
pub(crate) fn port_of(target: &Target, replica: &str) -> u16 {
    let pod = target.pods.iter().find(|pod| pod.name == replica).unwrap();
    pod.endpoint.rsplit(':').next().unwrap().parse().unwrap()
}

/// Runs a program to its end.
pub(crate) async fn output(program: &str, arguments: &[&str]) -> (i32, String, String) {
    let binaries = Binaries::find().unwrap();
    let run = tokio::process::Command::new(binaries.path(program))
        .args(arguments)
        .env("PATH", binaries.search_path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let Output { status, stdout, stderr } = tokio::time::timeout(ANSWER, run).await.expect("it never ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// A decider at addresses that stay the same over `kill -9`: agents find it again.
pub(crate) struct Rooted {
    directory: PathBuf,
    grpc: u16,
    http: u16,
    mark: String,
    child: Option<Child>,
}

impl Rooted {
    pub(crate) fn new(directory: &Directory, fleet: &Fleet) -> Rooted {
        fs::write(directory.path().join("fleet.yaml"), fleet.yaml()).unwrap();
        let mark = format!("{}-{:016x}", std::process::id(), fastrand::u64(..));
        let (grpc, http) = (ports(1), ports(1));
        Rooted {
            directory: directory.path().to_owned(),
            grpc,
            http,
            mark,
            child: None,
        }
    }

    /// Starts it, or starts it again, and connects.
    pub(crate) async fn launch(&mut self) -> Client {
        let binaries = Binaries::find().unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("decider.log"))
            .unwrap();
        let mut command = Command::new(binaries.path("infer-decider"));
        command
            .arg("run")
            .arg("--state-dir")
            .arg(&self.directory)
            .arg("--config")
            .arg(self.directory.join("fleet.yaml"));
        command.args(["--listen", &format!("127.0.0.1:{}", self.grpc)]);
        command.args(["--http-listen", &format!("127.0.0.1:{}", self.http)]);
        command.env("PATH", binaries.search_path()).env(MARK, &self.mark);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        self.child = Some(command.spawn().unwrap());
        let url = format!("http://{}", SocketAddr::from((Ipv4Addr::LOCALHOST, self.grpc)));
        let endpoint = Endpoint::from_shared(url).unwrap();
        let connect = || async { endpoint.connect().await.map_err(|error| format!("{error:?}")) };
        let channel = until(SOON, "the decider's start", connect).await.unwrap();
        Client::new(channel).max_decoding_message_size(64 << 20)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Everything of it that lives.
    pub(crate) fn processes(&self) -> Vec<Process> {
        marked(&self.mark)
    }
}

impl Drop for Rooted {
    fn drop(&mut self) {
        self.kill();
        if let Ok(binaries) = Binaries::find() {
            let mut cleanup = Command::new(binaries.path("infer-decider"));
            cleanup.arg("cleanup").arg("--state-dir").arg(&self.directory);
            let _ = cleanup
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}
