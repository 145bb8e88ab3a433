//! A decider in this process: real gRPC, real journal, real ticks; only the backend is a table.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hdrhistogram::{
    Histogram,
    serialization::{Serializer, V2Serializer},
};
use infer_core::{
    decision::{Control, Plan},
    histogram::HIGHEST_US,
    policy::{Bounds, KpaPolicy, Metric, MetricTarget, Policy, ScalingRules},
    target::{FleetView, Phase, PodView},
};
use infer_decider::{
    actuate::{self, Actuator, BoxFuture, Fleet},
    clock::Clock,
    hooks::Hooks,
    journal::Journal,
    service,
    state::{Shared, TargetSpec, Wishes},
    tick,
};
use infer_proto::v1::{
    self, AgentMessage, DeciderMessage, agent_message::Body, decider_message::Body as Answer,
    decisions_client::DecisionsClient, telemetry_client::TelemetryClient,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// A backend that does at once what it is told, except for the targets in `hanging`.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) fleets: Mutex<BTreeMap<String, Fleet>>,
    pub(crate) applied: Mutex<Vec<(Plan, String)>>,
    /// Plans for these are taken when they are let go.
    pub(crate) hanging: watch::Sender<BTreeSet<String>>,
    pub(crate) changes: Mutex<Vec<String>>,
    pub(crate) change: Notify,
    /// Targets looked at, in order.
    pub(crate) looks: Mutex<Vec<String>>,
}

impl Table {
    pub(crate) fn set(&self, target: &str, ready: u32) {
        let since = Some(infer_core::TimeMs(0));
        let pods = (0..ready).map(|index| PodView {
            name: format!("{target}-{index}"),
            uid: format!("uid-{index}"),
            phase: Phase::Ready,
            ready_since: since,
        });
        let view = FleetView {
            spec: ready,
            pods: pods.collect(),
        };
        self.fleets.lock().unwrap().insert(
            target.to_owned(),
            Fleet {
                view,
                ..Fleet::default()
            },
        );
    }
}

/// The table, as the decider has it.
struct Handle(Arc<Table>);

impl Actuator for Handle {
    fn fleet(&self, target: &str) -> Option<Fleet> {
        self.0.looks.lock().unwrap().push(target.to_owned());
        self.0.fleets.lock().unwrap().get(target).cloned()
    }

    fn apply(&self, plan: Plan, plan_id: String) -> BoxFuture<Result<(), actuate::Error>> {
        let table = Arc::clone(&self.0);
        Box::pin(async move {
            let mut hanging = table.hanging.subscribe();
            table.applied.lock().unwrap().push((plan.clone(), plan_id));
            let _ = hanging.wait_for(|hanging| !hanging.contains(&plan.target)).await;
            table.set(&plan.target, plan.to);
            Ok(())
        })
    }

    fn changed(&self) -> BoxFuture<Vec<String>> {
        let table = Arc::clone(&self.0);
        Box::pin(async move {
            loop {
                let names = std::mem::take(&mut *table.changes.lock().unwrap());
                if !names.is_empty() {
                    return names;
                }
                table.change.notified().await;
            }
        })
    }
}

pub(crate) struct Decider {
    pub(crate) shared: Arc<Shared>,
    pub(crate) table: Arc<Table>,
    pub(crate) address: String,
    stop: watch::Sender<bool>,
    ticks: JoinHandle<()>,
}

pub(crate) fn spec(name: &str, control: Control) -> TargetSpec {
    let policy = Policy {
        metrics: vec![MetricTarget {
            metric: Metric::Concurrency,
            target: 10.0,
        }],
        tolerance: 0.1,
        kpa: KpaPolicy::default(),
        scale_up: ScalingRules::default_up(),
        scale_down: ScalingRules::default_down(),
        scale_to_zero_grace_s: 30.0,
    };
    TargetSpec {
        name: name.to_owned(),
        namespace: name.split_once('/').map_or("", |(namespace, _)| namespace).to_owned(),
        binding: format!("{name}-binding"),
        policy_name: "policy".to_owned(),
        policy: Arc::new(policy),
        bounds: Bounds { min: 1, max: 20 },
        control,
        wishes: Wishes::default(),
        coupling: None,
    }
}

impl Decider {
    /// Targets "chat" (auto) and "draft" (advisory), one ready replica each.
    pub(crate) async fn start(directory: &Path) -> Decider {
        let table = Arc::new(Table::default());
        table.set("chat", 1);
        table.set("draft", 1);
        Decider::start_with(directory, table).await
    }

    pub(crate) async fn start_with(directory: &Path, table: Arc<Table>) -> Decider {
        let specs = vec![spec("chat", Control::Auto), spec("draft", Control::Advisory)];
        Decider::start_among(directory, table, specs, Hooks::default()).await
    }

    pub(crate) async fn start_among(
        directory: &Path,
        table: Arc<Table>,
        specs: Vec<TargetSpec>,
        hooks: Hooks,
    ) -> Decider {
        let (journal, recovered) = Journal::open(&directory.join("journal")).unwrap();
        let shared = Shared::new(Clock::start(), "table", specs, journal, recovered);
        shared.surround(hooks);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(service::serve(listener, Arc::clone(&shared), stopped.clone()));
        let backend: Arc<dyn Actuator> = Arc::new(Handle(Arc::clone(&table)));
        let ticks = tokio::spawn(tick::run(Arc::clone(&shared), backend, stopped));
        let decider = Decider {
            shared,
            table,
            address,
            stop,
            ticks,
        };
        decider
            .until("the first tick", |shared| {
                shared.state().targets.values().all(|entity| entity.latest.is_some())
            })
            .await;
        decider
    }

    pub(crate) async fn ask(&self) -> DecisionsClient<Channel> {
        DecisionsClient::new(self.channel().await)
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.address.clone())
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// Waits for a condition, looking after each tick.
    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut(&Shared) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            while !condition(&self.shared) {
                let _ = tokio::time::timeout(Duration::from_millis(50), changed.changed()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("waited in vain for {what}"));
    }

    pub(crate) fn stop(self) {
        self.shared.journal.flush();
        self.stop.send(true).unwrap();
    }

    /// Stops, and hands back the task that decides.
    pub(crate) fn stop_and_wait(self) -> JoinHandle<()> {
        self.stop.send(true).unwrap();
        self.ticks
    }
}

/// An agent that says what it is told to say.
pub(crate) struct Agent {
    outgoing: mpsc::Sender<AgentMessage>,
    incoming: Streaming<DeciderMessage>,
    started: Instant,
}

pub(crate) fn hello(target: &str, pod: &str, boot: &str, started_unix_ms: i64) -> Body {
    let identity = v1::PodIdentity {
        name: pod.to_owned(),
        target: target.to_owned(),
        ..Default::default()
    };
    hello_of(identity, boot, started_unix_ms)
}

/// A Pod's agent that leaves it to the decider to find the target.
pub(crate) fn hello_from(namespace: &str, pod: &str, boot: &str) -> Body {
    let identity = v1::PodIdentity {
        namespace: namespace.to_owned(),
        name: pod.to_owned(),
        ..Default::default()
    };
    hello_of(identity, boot, 1)
}

fn hello_of(pod: v1::PodIdentity, boot: &str, started_unix_ms: i64) -> Body {
    Body::Hello(v1::Hello {
        agent_version: "test".to_owned(),
        pod: Some(pod),
        boot: Some(v1::Boot {
            id: boot.to_owned(),
            started_unix_ms,
        }),
        ..Default::default()
    })
}

impl Agent {
    pub(crate) async fn connect(decider: &Decider) -> Agent {
        Agent::connect_with(decider, None).await
    }

    pub(crate) async fn connect_with(decider: &Decider, token: Option<&str>) -> Agent {
        let (outgoing, receiver) = mpsc::channel(64);
        let mut client = TelemetryClient::new(decider.channel().await);
        let mut request = Request::new(ReceiverStream::new(receiver));
        if let Some(token) = token {
            let header = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", header);
        }
        let incoming = client.report(request).await.unwrap().into_inner();
        Agent {
            outgoing,
            incoming,
            started: Instant::now(),
        }
    }

    /// Connected and welcomed.
    pub(crate) async fn greet(
        decider: &Decider,
        target: &str,
        pod: &str,
        boot: &str,
        started: i64,
    ) -> (Agent, v1::Welcome) {
        let mut agent = Agent::connect(decider).await;
        agent.send(hello(target, pod, boot, started)).await;
        match agent.receive().await {
            Ok(Answer::Welcome(welcome)) => (agent, welcome),
            other => panic!("{other:?}"),
        }
    }

    /// The agent's own clock, long since started.
    pub(crate) fn clock_ms(&self) -> u64 {
        1_000_000 + self.started.elapsed().as_millis() as u64
    }

    pub(crate) async fn send(&mut self, body: Body) {
        self.send_at(self.clock_ms(), Some(body)).await;
    }

    pub(crate) async fn send_at(&mut self, sent_ms: u64, body: Option<Body>) {
        let message = AgentMessage { sent_ms, body };
        // A stream that the decider has closed takes nothing more.
        let _ = self.outgoing.send(message).await;
    }

    pub(crate) async fn receive(&mut self) -> Result<Answer, Status> {
        let message = tokio::time::timeout(Duration::from_secs(10), self.incoming.message())
            .await
            .expect("no answer");
        match message? {
            Some(message) => Ok(message.body.unwrap()),
            None => Err(Status::ok("the stream has ended")),
        }
    }

    /// Sends a sample and waits for its acknowledgement.
    pub(crate) async fn report(&mut self, sample: v1::Sample) -> Result<(), Status> {
        let sequence = sample.sequence;
        self.send(Body::Sample(sample)).await;
        match self.receive().await? {
            Answer::Ack(ack) if ack.sequence == sequence => Ok(()),
            other => panic!("{other:?}"),
        }
    }
}

/// A good sample that ends `age_ms` before it is sent.
pub(crate) fn sample(agent: &Agent, sequence: u64, age_ms: u64, running: f64, waiting: f64) -> v1::Sample {
    v1::Sample {
        sequence,
        end_ms: agent.clock_ms() - age_ms,
        interval_ms: 1000,
        scrape: Some(v1::Scrape {
            outcome: v1::scrape::Outcome::Ok.into(),
            ..Default::default()
        }),
        gauges: Some(v1::Gauges {
            running: Some(running),
            waiting: Some(waiting),
            ..Default::default()
        }),
        counters: Some(v1::Counters {
            requests: Some(3),
            ..Default::default()
        }),
        histograms: vec![ttft(100_000, 250_000, 4)],
        ..Default::default()
    }
}

pub(crate) fn ttft(low_us: u64, high_us: u64, count: u64) -> v1::HistogramDelta {
    let encode = |value: u64| {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, HIGHEST_US, 3).unwrap();
        histogram.record_n(value, count).unwrap();
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&histogram, &mut bytes).unwrap();
        bytes
    };
    let signal = v1::Signal::Ttft.into();
    v1::HistogramDelta {
        signal,
        lower: encode(low_us),
        upper: encode(high_us),
        count,
        sum_ms: Some(200.0 * count as f64),
    }
}
