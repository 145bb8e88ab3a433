//! A decider that says what it was told to.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use infer_core::TimeMs;
use infer_core::decision::{self, Control, DataState, Inputs, Measured, Memory, Record};
use infer_core::evaluate::evaluate;
use infer_core::policy::{Bounds, KpaPolicy, Metric, MetricTarget, Policy, ScalingRules};
use infer_proto::v1::decisions_server::{Decisions, DecisionsServer};
use infer_proto::v1::{
    CounterWindow, Decision, Engine, ExplainRequest, Explanation, GaugeWindow, Gauges, GetStatusRequest,
    GetWindowsRequest, HistogramWindow, ListDecisionsRequest, ListDecisionsResponse, ListTargetsRequest,
    ListTargetsResponse, MetricState, OverrideRequest, PauseRequest, Pod, Quantile, Replicas, ResumeRequest, Signal,
    Status as DeciderStatus, Step, Target, WatchDecisionsRequest, WatchTargetsRequest, Windows, engine,
    explain_request::What,
};
use infer_trust::{ALPN_GRPC, Authority, Certificates, server_config, tls_incoming};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

/// Five and a half hours before the tests run: far from where "5 h ago" changes.
pub(crate) fn some_time_ago() -> i64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    now.as_millis() as i64 - 19_800_000
}

/// The token of who may ask [`Server::secure`]; "nobody" has one that is good and no rights.
pub(crate) const TOKEN: &str = "good";

/// A decider on a port of its own, for as long as this lives.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) canned: Arc<Canned>,
    _runtime: Runtime,
}

impl Server {
    /// A decider with these targets.
    pub(crate) fn start(targets: &[&str]) -> Self {
        let (runtime, listener, address) = listen();
        let canned = Arc::new(Canned::new(targets, None));
        let service = DecisionsServer::from_arc(canned.clone());
        let incoming = TcpListenerStream::new(listener);
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        Server {
            address,
            canned,
            _runtime: runtime,
        }
    }

    /// A decider as in a cluster: TLS with a certificate of `authority` for `names`, and a token is asked for: [`TOKEN`], or any
    /// that looks like one of Kubernetes. Of other targets it says that `elsewhere` decides on them.
    pub(crate) fn secure(targets: &[&str], authority: &Authority, names: &[&str], elsewhere: Option<&str>) -> Self {
        let (runtime, listener, address) = listen();
        let canned = Arc::new(Canned::new(targets, elsewhere));
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let certificates = Certificates::issue(authority.clone(), names, SystemTime::now()).expect("a certificate");
        let config = server_config(&certificates, ALPN_GRPC).expect("TLS");
        let tokens = canned.clone();
        let service = InterceptedService::new(DecisionsServer::from_arc(canned.clone()), move |request: Request<()>| {
            let header = request.metadata().get("authorization").map(|value| value.to_str());
            let token = header.and_then(|header| header.expect("ASCII").strip_prefix("Bearer "));
            tokens.tokens.lock().expect("no panic").extend(token.map(str::to_owned));
            match token {
                None => Err(Status::unauthenticated("a token is missing")),
                Some("nobody") => Err(Status::permission_denied("nobody may not get this")),
                Some(token) if token == TOKEN || token.starts_with("ey") => Ok(request),
                Some(_) => Err(Status::unauthenticated("the token was not accepted")),
            }
        });
        runtime.spawn(async move {
            let incoming = tls_incoming(listener, config, std::future::pending());
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await
        });
        Server {
            address,
            canned,
            _runtime: runtime,
        }
    }
}

fn listen() -> (Runtime, tokio::net::TcpListener, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    (runtime, listener, address)
}

pub(crate) struct Canned {
    targets: Vec<Target>,
    elsewhere: Option<String>,
    /// Every request that mattered, as Debug.
    pub(crate) asked: Mutex<Vec<String>>,
    /// Of every request that had one.
    pub(crate) tokens: Mutex<Vec<String>>,
}

impl Canned {
    fn new(targets: &[&str], elsewhere: Option<&str>) -> Self {
        Canned {
            targets: targets.iter().map(|name| target(name)).collect(),
            elsewhere: elsewhere.map(str::to_owned),
            asked: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    fn note(&self, request: &impl std::fmt::Debug) {
        self.asked.lock().expect("no panic").push(format!("{request:?}"));
    }

    /// The last request.
    pub(crate) fn last(&self) -> String {
        self.asked.lock().expect("no panic").last().cloned().unwrap_or_default()
    }

    fn find(&self, name: &str) -> Result<Target, Status> {
        self.targets
            .iter()
            .find(|target| target.name == name)
            .cloned()
            .ok_or_else(|| {
                if let Some(endpoint) = &self.elsewhere {
                    let message = format!("target {name:?} is decided on by another decider: ask {endpoint}");
                    return Status::failed_precondition(message);
                }
                let known: Vec<&str> = self.targets.iter().map(|target| target.name.as_str()).collect();
                Status::not_found(format!("there is no target {name:?}; known: {}", known.join(", ")))
            })
    }
}

pub(crate) fn target(name: &str) -> Target {
    Target {
        name: name.to_owned(),
        binding: format!("{name}-binding"),
        policy: "interactive".to_owned(),
        replicas: Some(Replicas {
            desired: 5,
            spec: 5,
            ready: 3,
            starting: 2,
            draining: 1,
            failed: 0,
            min: 1,
            max: 8,
        }),
        mode: "panic".to_owned(),
        control: "auto".to_owned(),
        override_replicas: None,
        control_expires_unix_ms: None,
        last_decision_id: 42,
        last_decision_unix_ms: some_time_ago(),
        reason: "12 requests wait, 4 per replica are wanted".to_owned(),
        metrics: vec![
            MetricState {
                name: "waiting".to_owned(),
                target_per_replica: 4.0,
                load_stable: Some(12.25),
                load_panic: Some(18.0),
                desired_stable: Some(4),
                desired_panic: Some(5),
            },
            MetricState {
                name: "ttft p95".to_owned(),
                target_per_replica: 400.0,
                ..MetricState::default()
            },
        ],
        pods: vec![
            Pod {
                name: format!("{name}-0"),
                phase: "ready".to_owned(),
                sample_age_ms: Some(250),
                engine: Some(Engine {
                    kind: engine::Kind::Vllm.into(),
                    name: "vllm".to_owned(),
                    version: ">=0.10.2".to_owned(),
                    model: "tiny".to_owned(),
                    engines: 1,
                    front_end: String::new(),
                }),
                gauges: Some(Gauges {
                    running: Some(8.0),
                    waiting: Some(3.0),
                    kv_usage: Some(0.834),
                    ..Gauges::default()
                }),
                problem: String::new(),
                startup_ms: Some(41_000),
                endpoint: "127.0.0.1:18000".to_owned(),
            },
            Pod {
                name: format!("{name}-1"),
                phase: "starting".to_owned(),
                problem: "connection\x1b[31m refused".to_owned(),
                ..Pod::default()
            },
        ],
        gateway_waiting: Some(9.0),
    }
}

pub(crate) fn decision(id: u64, target: &str) -> Decision {
    Decision {
        id,
        target: target.to_owned(),
        unix_ms: some_time_ago(),
        replicas_before: 3,
        replicas_after: 5,
        mode: "panic".to_owned(),
        bound_by: "rate".to_owned(),
        reason: "the panic window wants 6 replicas, 2 per 15 s are allowed".to_owned(),
        applied: id.is_multiple_of(2),
        not_applied: if id.is_multiple_of(2) {
            String::new()
        } else {
            "paused".to_owned()
        },
    }
}

const RECORD: &str = r#"{
  "target": "chat",
  "policy": {"kpa": {"stable_window_s": 60.0, "panic_window_percent": 10.0}},
  "inputs": {
    "bounds": {"min": 1, "max": 8},
    "replicas": {"spec": 3, "ready": 3, "starting": 0, "draining": 1, "failed": 0},
    "data": {"expected": 3, "fresh": 2, "completeness": 0.95},
    "gateway_waiting": 9.0
  },
  "outcome": {
    "metrics": [{"name": "waiting", "target": 4.0, "stable": 12.25, "panic": 24.0, "wants_stable": 3.0625, "wants_panic": 6.0}]
  }
}"#;

/// A record as the decider's core writes it.
fn real_record() -> String {
    let metric = MetricTarget {
        metric: Metric::Waiting,
        target: 4.0,
    };
    let policy = Policy {
        metrics: vec![metric],
        tolerance: 0.1,
        kpa: KpaPolicy::default(),
        scale_up: ScalingRules::default_up(),
        scale_down: ScalingRules::default_down(),
        scale_to_zero_grace_s: 30.0,
    };
    let inputs = Inputs {
        now: TimeMs(60_000),
        bounds: Bounds { min: 1, max: 8 },
        fewest: 0,
        control: Control::Auto,
        replicas: decision::Replicas {
            spec: 3,
            ready: 2,
            starting: 1,
            draining: 0,
            failed: 0,
        },
        data: DataState {
            expected: 2,
            fresh: 1,
            completeness: 0.5,
        },
        metrics: vec![Measured::Load {
            stable: 12.25,
            panic: 24.0,
        }],
        gateway_waiting: Some(9.0),
        busy: true,
    };
    let memory = Memory::start(&policy, 2, TimeMs(0));
    let (memory_after, outcome) = evaluate(&policy, &memory, &inputs);
    let target = "chat".to_owned();
    let record = Record {
        target,
        policy: Arc::new(policy),
        memory,
        inputs,
        outcome,
        memory_after,
    };
    serde_json::to_string(&record).expect("JSON")
}

fn explanation(id: u64, target: &str) -> Explanation {
    let step = |rule: &str, before: f64, after: f64, words: &str| Step {
        rule: rule.to_owned(),
        before,
        after,
        words: words.to_owned(),
    };
    Explanation {
        decision: Some(decision(id, target)),
        steps: vec![
            step("demand", 3.0, 3.0625, "12.25 waiting / 4 per replica"),
            step("stablePanic", 3.0625, 6.0, "panic: 6 wanted is 200 % of 3 ready"),
            step("rate", 6.0, 5.0, "at most 2 more per 15 s"),
        ],
        record_json: if id == 41 { real_record() } else { RECORD.to_owned() },
        recomputed_equal: id != 13,
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Decisions for Canned {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Answer<DeciderStatus> {
        Ok(Response::new(DeciderStatus {
            decider_id: "d-1".to_owned(),
            version: "0.1.0".to_owned(),
            started_unix_ms: some_time_ago(),
            health: "degraded".to_owned(),
            problems: vec!["no agent for chat-1".to_owned()],
            targets: 2,
            agents_connected: 3,
            samples_applied: 1000,
            samples_duplicate: 1,
            samples_late: 2,
            samples_missing: 3,
            decisions: 42,
            backend: "local".to_owned(),
        }))
    }

    async fn list_targets(&self, _: Request<ListTargetsRequest>) -> Answer<ListTargetsResponse> {
        Ok(Response::new(ListTargetsResponse {
            targets: self.targets.clone(),
        }))
    }

    type WatchTargetsStream = Answers<Target>;

    /// Every target, then one of them changed, then the end; for "live" no end.
    async fn watch_targets(&self, request: Request<WatchTargetsRequest>) -> Answer<Self::WatchTargetsStream> {
        let name = request.into_inner().target;
        if name == "live" {
            let endless = tokio_stream::iter([Ok(target("live"))]).chain(tokio_stream::pending());
            return Ok(Response::new(Box::pin(endless)));
        }
        let mut targets = match name.as_str() {
            "" => self.targets.clone(),
            name => vec![self.find(name)?],
        };
        if let Some(mut changed) = targets.first().cloned() {
            changed.mode = "stable".to_owned();
            targets.push(changed);
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(targets.into_iter().map(Ok)))))
    }

    async fn list_decisions(&self, request: Request<ListDecisionsRequest>) -> Answer<ListDecisionsResponse> {
        let request = request.into_inner();
        self.note(&request);
        if !request.target.is_empty() {
            self.find(&request.target)?;
        }
        let decisions = if self.targets.is_empty() {
            vec![]
        } else {
            vec![decision(42, "chat"), decision(41, "chat")]
        };
        Ok(Response::new(ListDecisionsResponse { decisions }))
    }

    type WatchDecisionsStream = Answers<Decision>;

    /// Three decisions and the end; without end for "flood"; broken off for "broken".
    async fn watch_decisions(&self, request: Request<WatchDecisionsRequest>) -> Answer<Self::WatchDecisionsStream> {
        let request = request.into_inner();
        self.note(&request);
        let stream: Self::WatchDecisionsStream = match request.target.as_str() {
            "flood" => Box::pin(tokio_stream::iter(1..).map(|id| Ok(decision(id, "flood")))),
            "broken" => Box::pin(tokio_stream::iter([
                Ok(decision(1, "broken")),
                Err(Status::internal("the journal is gone")),
            ])),
            _ => Box::pin(tokio_stream::iter(40..43).map(|id| Ok(decision(id, "chat")))),
        };
        Ok(Response::new(stream))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Answer<Explanation> {
        let request = request.into_inner();
        self.note(&request);
        match request.what {
            Some(What::DecisionId(id @ (13 | 41 | 42))) => Ok(Response::new(explanation(id, "chat"))),
            Some(What::DecisionId(id)) => Err(Status::not_found(format!(
                "there is no decision {id}; the newest is 42"
            ))),
            Some(What::Target(name)) => Ok(Response::new(explanation(42, &self.find(&name)?.name))),
            None => Err(Status::invalid_argument("explain what?")),
        }
    }

    async fn get_windows(&self, request: Request<GetWindowsRequest>) -> Answer<Windows> {
        let request = request.into_inner();
        self.note(&request);
        self.find(&request.target)?;
        let quantile = |q, low_ms, high_ms, estimate_ms| Quantile {
            q,
            low_ms,
            high_ms,
            estimate_ms,
        };
        Ok(Response::new(Windows {
            target: request.target,
            window_s: 60,
            completeness: 0.95,
            gauges: vec![
                GaugeWindow {
                    name: "waiting".to_owned(),
                    average: Some(12.25),
                    latest: Some(18.0),
                },
                GaugeWindow {
                    name: "kv usage".to_owned(),
                    average: None,
                    latest: None,
                },
            ],
            counters: vec![CounterWindow {
                name: "generation tokens".to_owned(),
                count: 6000,
                per_second: 100.0,
            }],
            histograms: vec![HistogramWindow {
                signal: Signal::Ttft.into(),
                count: 240,
                mean_ms: Some(181.5),
                quantiles: vec![
                    quantile(0.5, 100.0, Some(250.0), 160.0),
                    quantile(0.999, 10_000.0, None, 10_000.0),
                ],
            }],
        }))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Answer<Target> {
        let request = request.into_inner();
        self.note(&request);
        let mut target = self.find(&request.target)?;
        target.control = "paused".to_owned();
        target.control_expires_unix_ms = (request.for_s > 0).then(|| some_time_ago() + 19_800_000 + 30_000_000);
        Ok(Response::new(target))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Answer<Target> {
        let request = request.into_inner();
        self.note(&request);
        Ok(Response::new(self.find(&request.target)?))
    }

    async fn r#override(&self, request: Request<OverrideRequest>) -> Answer<Target> {
        let request = request.into_inner();
        self.note(&request);
        let mut target = self.find(&request.target)?;
        if request.replicas > 8 {
            return Err(Status::invalid_argument(
                "9 replicas are more than the maximum of chat, 8",
            ));
        }
        target.control = "override".to_owned();
        target.override_replicas = Some(request.replicas);
        target.control_expires_unix_ms = Some(some_time_ago() + 19_800_000 + 30_000_000);
        Ok(Response::new(target))
    }
}
