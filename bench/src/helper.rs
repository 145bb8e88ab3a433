//! What stands around a measured process, each in a process of its own: says where it listens on the first line of
//! stdout, and with SIGTERM what it has seen, as JSON, on the second.

use std::{
    collections::HashMap,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::Subcommand;
use infer_proto::v1::{
    Ack, AgentMessage, DeciderMessage, Wanted, Welcome,
    agent_message::Body,
    decider_message::Body as Answer,
    telemetry_server::{Telemetry, TelemetryServer},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{body::MovingBody, http, ingest};

/// Kinds of helper.
#[derive(Debug, Subcommand)]
pub(crate) enum Helper {
    /// An engine's port: serves a moving body at `/<client>/metrics`, one step further with each full scrape.
    Engine {
        /// Where the captures are.
        directory: PathBuf,
    },
    /// A decider's port: acknowledges every sample.
    Sink {
        /// Samples of each agent that are wanted five times a second, to fill its replay buffer; then once a second.
        #[arg(long)]
        fill: u64,
    },
    /// A remote-write receiver: accepts everything.
    RemoteWrite,
    /// A decider's ingest and tick with a fleet that stands still.
    Decider(ingest::Standing),
}

/// Runs one until SIGTERM.
pub(crate) fn run(helper: Helper) -> anyhow::Result<()> {
    let runtime = match helper {
        // As infer-decider is built.
        Helper::Decider(_) => tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
    };
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let seen = match helper {
            Helper::Engine { directory } => engine(listener, MovingBody::load(&directory)?).await?,
            Helper::Sink { fill } => sink(listener, fill).await?,
            Helper::RemoteWrite => remote_write(listener).await?,
            Helper::Decider(standing) => ingest::decider(listener, standing).await?,
        };
        print(&seen.to_string());
        Ok(())
    })
}

#[allow(clippy::print_stdout, reason = "what a helper says is its result")]
fn print(line: &str) {
    use std::io::Write as _;
    println!("{line}");
    // The other end reads line by line.
    let _ = std::io::stdout().flush();
}

/// Says that this helper can be reached.
pub(crate) fn say_address(listener: &TcpListener) -> anyhow::Result<()> {
    print(&listener.local_addr()?.to_string());
    Ok(())
}

/// Completes with SIGTERM.
pub(crate) async fn asked_to_end() -> anyhow::Result<()> {
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}

async fn engine(listener: TcpListener, body: MovingBody) -> anyhow::Result<serde_json::Value> {
    say_address(&listener)?;
    let body = Arc::new(body);
    let steps: Arc<Mutex<HashMap<String, (u32, u32)>>> = Arc::default();
    let counts = Arc::clone(&steps);
    let answer = move |request: &http::Request| {
        let Some((client, rest)) = request.target.get(1..).and_then(|target| target.split_once('/')) else {
            return (404, Vec::new());
        };
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (full, fast) = counts.entry(client.to_owned()).or_default();
        if rest == "metrics" {
            *full += 1;
            (200, body.at(*full).into_bytes())
        } else if let Some(names) = rest.strip_prefix("metrics/?") {
            *fast += 1;
            let names: Vec<&str> = names
                .split('&')
                .filter_map(|name| name.strip_prefix("name[]="))
                .collect();
            let page = body.at(*full);
            let wanted = |line: &&str| {
                names.iter().any(|name| {
                    line.trim_start_matches("# HELP ")
                        .trim_start_matches("# TYPE ")
                        .starts_with(name)
                })
            };
            (
                200,
                page.lines()
                    .filter(wanted)
                    .flat_map(|line| [line, "\n"])
                    .collect::<String>()
                    .into_bytes(),
            )
        } else {
            (404, Vec::new())
        }
    };
    tokio::select! {
        served = http::serve(listener, answer) => served?,
        ended = asked_to_end() => ended?,
    }
    let steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
    let clients = steps
        .iter()
        .map(|(client, (full, fast))| (client.clone(), json!({ "full": full, "fast": fast })));
    Ok(serde_json::Value::Object(clients.collect()))
}

async fn remote_write(listener: TcpListener) -> anyhow::Result<serde_json::Value> {
    say_address(&listener)?;
    let seen: Arc<(AtomicU64, AtomicU64)> = Arc::default();
    let counts = Arc::clone(&seen);
    let answer = move |request: &http::Request| {
        counts.0.fetch_add(1, Ordering::Relaxed);
        counts.1.fetch_add(request.body_bytes as u64, Ordering::Relaxed);
        (204, Vec::new())
    };
    tokio::select! {
        served = http::serve(listener, answer) => served?,
        ended = asked_to_end() => ended?,
    }
    Ok(json!({ "requests": seen.0.load(Ordering::Relaxed), "bytes": seen.1.load(Ordering::Relaxed) }))
}

/// Acknowledges everything.
struct Sink {
    fill: u64,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    samples: AtomicU64,
    urgent: AtomicU64,
    with_histograms: AtomicU64,
}

async fn sink(listener: TcpListener, fill: u64) -> anyhow::Result<serde_json::Value> {
    say_address(&listener)?;
    let seen = Arc::<Seen>::default();
    let service = TelemetryServer::new(Sink {
        fill,
        seen: Arc::clone(&seen),
    });
    let server = Server::builder().tcp_nodelay(true).add_service(service);
    tokio::select! {
        served = server.serve_with_incoming(TcpListenerStream::new(listener)) => served?,
        ended = asked_to_end() => ended?,
    }
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(json!({
        "samples": load(&seen.samples),
        "urgent": load(&seen.urgent),
        "with_histograms": load(&seen.with_histograms),
    }))
}

/// What the sink wants: as a decider does, with another interval while buffers fill.
fn wanted(interval_ms: u32) -> Wanted {
    Wanted {
        interval_ms,
        fast_interval_ms: 250,
        replay_horizon_ms: 600_000,
        wake_on_waiting_rise: 2,
    }
}

#[tonic::async_trait]
impl Telemetry for Sink {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<DeciderMessage, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::ReportStream>, Status> {
        let (answers, receiver) = mpsc::channel(16);
        let mut inbound = request.into_inner();
        let (seen, fill) = (Arc::clone(&self.seen), self.fill);
        tokio::spawn(async move {
            let say = async |body| answers.send(Ok(DeciderMessage { body: Some(body) })).await.is_ok();
            while let Some(Ok(message)) = inbound.next().await {
                let fine = match message.body {
                    Some(Body::Hello(_)) => {
                        let wanted = Some(wanted(if fill > 0 { 200 } else { 1000 }));
                        say(Answer::Welcome(Welcome {
                            decider_id: "sink".to_owned(),
                            resume_after: 0,
                            wanted,
                        }))
                        .await
                    }
                    Some(Body::Sample(sample)) => {
                        seen.samples.fetch_add(1, Ordering::Relaxed);
                        seen.urgent.fetch_add(u64::from(sample.urgent), Ordering::Relaxed);
                        seen.with_histograms
                            .fetch_add(u64::from(!sample.histograms.is_empty()), Ordering::Relaxed);
                        let acked = say(Answer::Ack(Ack {
                            sequence: sample.sequence,
                        }))
                        .await;
                        acked && (sample.sequence != fill || say(Answer::Wanted(wanted(1000))).await)
                    }
                    Some(Body::Goodbye(goodbye)) => {
                        say(Answer::Ack(Ack {
                            sequence: goodbye.newest_sequence,
                        }))
                        .await;
                        false
                    }
                    None => false,
                };
                if !fine {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
