//! The decider put together: documents in, everything bound before anything starts, run, and end in order.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use infer_api::{BindingMode, Documents};
use infer_core::decision::Control;
use infer_local::{Shutdown, StateDir};
use infer_proto::v1::{decisions_server::DecisionsServer, telemetry_server::TelemetryServer};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::transport::{Server, server::Connected};

use crate::{
    actuate::Actuator,
    clock::Clock,
    http,
    ingest::Ingest,
    journal::{self, Journal},
    local::{self, LocalBackend, RunningLookup, Surroundings},
    query::Queries,
    state::{Shared, TargetSpec, Wishes},
    tick,
};

/// A sample is a few hundred bytes; a hello with long names a few thousand.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// A Pod that is gone answers no ping.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// One connection carries one agent's stream, or a few questions.
const STREAMS_PER_CONNECTION: u32 = 32;
/// Agents that flush at the end are given this long.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// What a decider is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Policies, bindings and fleets.
    pub documents: Documents,
    /// Journal, registry and logs.
    pub state_dir: PathBuf,
    /// gRPC for agents and for people.
    pub listen: SocketAddr,
    /// Own metrics and health; `None` for neither.
    pub http_listen: Option<SocketAddr>,
    /// At a stop let engines run on, for the next decider to take over.
    pub leave_engines: bool,
}

/// Why the decider could not start or ended badly.
#[derive(Debug, Error)]
pub enum Error {
    /// An address is taken.
    #[error("cannot listen on {address} ({what}): {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The local backend.
    #[error(transparent)]
    Local(#[from] local::Error),
    /// The gRPC server.
    #[error("gRPC server: {0}")]
    Server(#[from] tonic::transport::Error),
    /// Nothing would be decided any more.
    #[error("the task that decides has ended: {0}")]
    Ticks(String),
    /// gRPC reflection.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl From<infer_local::Error> for Error {
    fn from(error: infer_local::Error) -> Self {
        Error::Local(error.into())
    }
}

/// The documents' targets in the service's terms.
pub fn target_specs(documents: &Documents) -> Vec<TargetSpec> {
    let spec = |target: infer_api::ResolvedTarget<'_>| TargetSpec {
        name: target.bound.name.to_owned(),
        namespace: String::new(),
        binding: target.bound.binding.metadata.name.clone(),
        policy_name: target.bound.policy_name.to_owned(),
        policy: Arc::new(target.bound.policy),
        bounds: target.bound.bounds,
        control: match target.bound.mode {
            BindingMode::Auto => Control::Auto,
            BindingMode::Advisory => Control::Advisory,
            BindingMode::Paused => Control::Paused,
        },
        wishes: Wishes {
            interval_ms: u32::try_from(target.fleet.spec.agent.interval_milliseconds).unwrap_or(1000),
            fast_interval_ms: u32::try_from(target.fleet.spec.agent.fast_interval_milliseconds).unwrap_or(0),
            ..Wishes::default()
        },
        coupling: None,
    };
    documents.targets().into_iter().map(spec).collect()
}

pub(crate) async fn listen(address: SocketAddr, what: &'static str) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, what, source })
}

/// Where a decider that is running listens: read by tools that were told port 0.
pub(crate) fn write_addresses(state_dir: &Path, grpc: SocketAddr, http: Option<SocketAddr>) {
    let addresses = serde_json::json!({ "grpc": grpc, "http": http });
    if let Err(error) = std::fs::write(state_dir.join("addresses.json"), format!("{addresses}\n")) {
        tracing::warn!(%error, "cannot write addresses.json");
    }
}

/// Runs a decider with the local backend until `shutdown` completes.
///
/// # Errors
/// Everything that keeps it from starting; and what went wrong at the end.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let state_dir = Arc::new(StateDir::lock(&options.state_dir)?);
    let (journal, recovered) = Journal::open(&options.state_dir.join("journal"))?;
    if recovered.torn > 0 {
        tracing::warn!(
            lines = recovered.torn,
            "passed over journal lines that a crash has torn"
        );
    }
    let grpc = listen(options.listen, "gRPC").await?;
    let http = match options.http_listen {
        Some(address) => Some(listen(address, "metrics").await?),
        None => None,
    };
    let local_address = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
    let address = local_address(&grpc, options.listen);
    let http_address = http
        .as_ref()
        .zip(options.http_listen)
        .map(|(http, asked)| local_address(http, asked));

    let shared = Shared::new(
        Clock::start(),
        "local",
        target_specs(&options.documents),
        journal,
        recovered,
    );
    let surroundings = Surroundings {
        state_dir: &state_dir,
        decider: address,
        running: running(&shared),
    };
    let mut fleets = Vec::new();
    for fleet in &options.documents.fleets {
        fleets.push(local::prepare(fleet, &surroundings).await?);
    }

    let (stop, stopped) = watch::channel(false);
    let (stop_fleets, fleets_stopped) = watch::channel(None);
    let server = tokio::spawn(serve(grpc, Arc::clone(&shared), stopped.clone()));
    if let Some(http) = http {
        tokio::spawn(http::serve(http, Arc::clone(&shared), stopped.clone()));
    }
    write_addresses(&options.state_dir, address, http_address);
    tracing::info!(%address, decider_id = shared.decider_id, targets = shared.state().targets.len(), "decider is up");

    let mut tasks = JoinSet::new();
    let backend: Arc<dyn Actuator> = Arc::new(LocalBackend::start(fleets, &mut tasks, &fleets_stopped).await);
    // Ticks end before fleets do: a stopping fleet is nothing to decide on.
    let (stop_ticks, ticks_stopped) = watch::channel(false);
    let mut ticks = tokio::spawn(tick::run(Arc::clone(&shared), backend, ticks_stopped));

    tokio::pin!(shutdown);
    let mut failure = None;
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            ended = &mut ticks => {
                let problem = ended.err().map_or_else(|| "nobody asked it to".to_owned(), |panic| panic.to_string());
                tracing::error!(problem, "the task that decides has ended");
                failure = Some(Error::Ticks(problem));
                break;
            }
            Some(ended) = tasks.join_next() => {
                let problem = match ended {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error,
                    Err(panic) => local::Error::Fleet { fleet: "?".to_owned(), problem: panic.to_string() },
                };
                tracing::error!(error = %problem, "a fleet's task has ended");
                failure = Some(problem.into());
                break;
            }
        }
    }
    tracing::info!(leave_engines = options.leave_engines, "stopping");
    let _ = stop_ticks.send(true);
    if !matches!(failure, Some(Error::Ticks(_))) {
        let _ = ticks.await;
    }
    let how = if options.leave_engines {
        Shutdown::Leave
    } else {
        Shutdown::Stop
    };
    let _ = stop_fleets.send(Some(how));
    let fleets_end = async {
        while let Some(ended) = tasks.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::error!(%error, "a fleet did not end well");
            }
        }
    };
    if tokio::time::timeout(local::STOP_TIMEOUT, fleets_end).await.is_err() {
        tracing::error!("fleets did not end in time; `infer-decider cleanup` ends what is left");
    }
    let _ = stop.send(true);
    match tokio::time::timeout(FLUSH_TIMEOUT, server).await {
        Ok(Ok(served)) => served?,
        Ok(Err(_)) | Err(_) => tracing::warn!("connections were cut off at the end"),
    }
    let journal = shared.journal.clone();
    // The journal's writer is a thread; waiting for it must not hold up the runtime.
    let _ = tokio::task::spawn_blocking(move || journal.flush()).await;
    failure.map_or(Ok(()), Err)
}

/// What an engine's agent last said of its requests.
fn running(shared: &Arc<Shared>) -> RunningLookup {
    let shared = Arc::clone(shared);
    Arc::new(move |target, replica| shared.load(target, replica))
}

/// Serves agents and people on `listener` until `stopped` turns true.
///
/// # Errors
/// When the server fails.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, stopped: watch::Receiver<bool>) -> Result<(), Error> {
    serve_incoming(TcpListenerStream::new(listener), shared, stopped).await
}

/// Likewise on connections that something else has accepted, such as a TLS server.
///
/// # Errors
/// When the server fails.
pub async fn serve_incoming<I, IO, E>(
    incoming: I,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Error>
where
    I: Stream<Item = Result<IO, E>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<TelemetryServer<Ingest>>().await;
    health.set_serving::<DecisionsServer<Queries>>().await;
    let reflect = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(infer_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let ingest = Ingest::new(Arc::clone(&shared), stopped.clone());
    let queries = Queries::new(shared, stopped.clone());
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .tcp_nodelay(true)
        .add_service(health_service)
        .add_service(reflect().build_v1()?)
        // Tools of before 2023 ask for this one.
        .add_service(reflect().build_v1alpha()?)
        .add_service(TelemetryServer::new(ingest).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(DecisionsServer::new(queries).max_decoding_message_size(MESSAGE_BYTES_MAX));
    let stop = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    Ok(router.serve_with_incoming_shutdown(incoming, stop).await?)
}
