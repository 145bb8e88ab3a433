//! One agent: a sampler and a link, from start to goodbye.

use std::{
    fs::File,
    future::Future,
    io::Read as _,
    net::TcpListener,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use infer_proto::v1::Boot;
use tokio::sync::{oneshot, watch};

use crate::{
    Credentials, HttpSource, Options, Source, clock::Clock, drain, endpoint, link::Link, probes::Server,
    sampler::Sampler, shared::Shared,
};

/// Why an agent does not run. All of these are mistakes in its configuration: everything that can go wrong later is
/// something it reports or gets over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine cannot be asked at this address.
    #[error("engine URL {url:?}: {reason}; write http://HOST:PORT")]
    EngineUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The metrics path is not a path.
    #[error("metrics path {path:?}: it must start with / and hold no spaces, like /metrics")]
    MetricsPath {
        /// As given.
        path: String,
    },
    /// The decider cannot be reached at this address.
    #[error("decider endpoint {url:?}: {reason}; write http://HOST:PORT or https://HOST:PORT")]
    DeciderUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What the decider's certificate is checked against.
    #[error("{reason}")]
    Ca {
        /// Which certificate, and what is wrong with it.
        reason: String,
    },
    /// The listener for probes and `/drain` cannot be used.
    #[error("the HTTP listener cannot be used: {0}")]
    Listener(std::io::Error),
    /// Without a name the decider does not know whose samples these are.
    #[error("the Pod has no name: give --pod-name or set INFER_AGENT_POD_NAME")]
    NoPodName,
}

/// What an agent did in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Samples made.
    pub samples: u64,
    /// Everything up to this number was acknowledged by the last decider.
    pub acked: u64,
    /// Samples that had to make room before any decider had them.
    pub lost: u64,
    /// Times a decider answered `Welcome`.
    pub connections: u64,
    /// Whether the goodbye was said and everything acknowledged in time.
    pub drained: bool,
}

/// The sidecar. Many may run in one process.
#[derive(Debug)]
pub struct Agent {
    options: Options,
    http: Option<TcpListener>,
}

impl Agent {
    /// An agent with these options; [`Agent::run`] checks them.
    pub fn new(options: Options) -> Self {
        Self { options, http: None }
    }

    /// Serves `/livez`, `/readyz`, `/drain` and `/metrics` there. The agent then also outlives its `shutdown` for as long
    /// as somebody waits for an answer to `/drain`.
    #[must_use]
    pub fn with_http(self, listener: TcpListener) -> Self {
        Self {
            http: Some(listener),
            ..self
        }
    }

    /// Samples the engine and reports to the decider until `shutdown` is ready, then says goodbye.
    ///
    /// # Errors
    /// [`Error`] when the options cannot work, before anything is started.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<Summary, Error> {
        let options = &self.options;
        let mapped_path = options.mapping.as_ref().map(|mapping| mapping.path.as_str());
        let metrics_path = options.metrics_path.as_deref().or(mapped_path).unwrap_or("/metrics");
        let source = HttpSource::new(&options.engine_url, metrics_path, options.max_body_bytes)?;
        self.run_with(source, shutdown).await
    }

    /// Like [`Agent::run`], with bodies from `source` instead of an engine's HTTP port.
    ///
    /// # Errors
    /// [`Error`] when the options cannot work, before anything is started.
    pub async fn run_with(
        self,
        source: impl Source,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<Summary, Error> {
        let options = self.options;
        endpoint::check(&options.decider, &options.credentials)?;
        // Of the file only the agent's connections have to tell: it may be there later, and it changes.
        let from_environment = Credentials {
            ca_file: None,
            ..options.credentials.clone()
        };
        from_environment.tls().map_err(|reason| Error::Ca { reason })?;
        if options.pod.name.is_empty() {
            return Err(Error::NoPodName);
        }
        let shared = Shared::new(Clock::start(), options.settings, options.replay_max_bytes);
        let shared = Arc::new(shared);
        let settle = Duration::from_millis(u64::from(options.drain_settle_ms));
        let http = self.http.map(|listener| Server::new(listener, shared.clone(), settle));
        let http = http.transpose().map_err(Error::Listener)?;
        let waits_for_drains = http.is_some();
        let (stop, stopping) = watch::channel(false);
        let sampler = Sampler::new(source, &options, &shared, stopping.clone());
        let mut link = Link::new(&options, boot(), &shared, stopping);

        let shutdown = async {
            shutdown.await;
            if waits_for_drains {
                drain::linger(&shared).await;
            }
            tracing::info!("stopping: last scrape, then goodbye");
            // Both receivers live until both futures below are done.
            let _ = stop.send(true);
        };
        let (done, is_done) = oneshot::channel::<()>();
        let work = async {
            let ((), drained, ()) = tokio::join!(sampler.run(), link.run(), shutdown);
            drop(done);
            drained
        };
        let serve = async {
            if let Some(http) = http {
                http.run(async { drop(is_done.await) }).await;
            }
        };
        let (drained, ()) = tokio::join!(work, serve);

        let state = shared.state();
        let replay = &state.replay;
        Ok(Summary {
            samples: replay.newest(),
            acked: replay.acked(),
            lost: replay.lost(),
            connections: state.connections,
            drained,
        })
    }
}

fn boot() -> Boot {
    let mut random = [0u8; 16];
    // The generator of the process is seeded with 64 bits only; two agents of one Pod must never share an id.
    if File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .is_err()
    {
        random = fastrand::u128(..).to_ne_bytes();
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Boot {
        id: format!("{:032x}", u128::from_ne_bytes(random)),
        started_unix_ms: i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX),
    }
}
