//! `infer-decider kubernetes`: the service in a cluster. Everything is bound before anything is started.

mod backend;
mod glue;
mod metrics;
mod options;
mod trust;
mod webhooks;

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use infer_api::ForeignChanges;
use infer_kube::{Bindings, Change, Targets, auth::Authenticator, demand::Demands, targets::ForeignChange};
use infer_trust::{ALPN_GRPC, server_config, tls_incoming};
use infer_webhook::{AgentInjector, Webhook};
use kube::{Client, Config, config::KubeConfigOptions};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{
        broadcast::{self, error::RecvError},
        mpsc, watch,
    },
    task::JoinHandle,
};

use crate::{
    actuate::Actuator,
    bind::Inherited,
    clock::Clock,
    hooks::{Hooks, Ownership},
    http,
    journal::{self, Journal},
    service::{self, FLUSH_TIMEOUT, listen},
    state::Shared,
    stopped, tick,
};

pub use options::{AgentUser, Options};

/// Another decider takes a Lease that is given back when its watch tells, and is then ready for the agents: they are let go only
/// then, so that they need not knock twice.
const TAKEOVER: Duration = Duration::from_millis(500);
/// Endpoints of a Service change everywhere within a few seconds after a Pod begins to end; until then the webhooks answer.
const WEBHOOKS_LINGER: Duration = Duration::from_secs(5);

/// Why the decider could not start or ended badly.
#[derive(Debug, Error)]
pub enum Error {
    /// A mistake in the options.
    #[error("{0}")]
    Usage(String),
    /// The kubeconfig or the Pod's service account.
    #[error("cannot find out how to reach the API server: {0}")]
    Config(String),
    /// The client.
    #[error("cannot talk to the API server: {0}")]
    Client(#[from] kube::Error),
    /// The certificate authority's Secret.
    #[error(transparent)]
    Authority(#[from] infer_kube::ca::Error),
    /// Certificates.
    #[error(transparent)]
    Trust(#[from] infer_trust::Error),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// Servers and ticks.
    #[error(transparent)]
    Service(#[from] service::Error),
}

async fn client(options: &Options) -> Result<Client, Error> {
    let wrong = |error: &dyn std::fmt::Display| Error::Config(error.to_string());
    let chosen = KubeConfigOptions {
        context: options.context.clone(),
        ..KubeConfigOptions::default()
    };
    let mut config = match (&options.kubeconfig, &options.context) {
        (Some(path), _) => {
            let file = kube::config::Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
            Config::from_custom_kubeconfig(file, &chosen)
                .await
                .map_err(|error| wrong(&error))?
        }
        (None, Some(_)) => Config::from_kubeconfig(&chosen).await.map_err(|error| wrong(&error))?,
        (None, None) => Config::infer().await.map_err(|error| wrong(&error))?,
    };
    // Each request has its own rules.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Listeners of the process.
struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
    webhooks: Option<TcpListener>,
}

impl Listeners {
    async fn bind(options: &Options) -> Result<Listeners, service::Error> {
        Ok(Listeners {
            grpc: listen(options.listen, "gRPC").await?,
            http: listen(options.http_listen, "metrics").await?,
            webhooks: match options.no_webhooks {
                true => None,
                false => Some(listen(options.webhook_listen, "webhooks").await?),
            },
        })
    }

    /// Where everything listens: read by tools that were told port 0.
    fn write(&self, options: &Options) {
        let address = |listener: &TcpListener| listener.local_addr().ok();
        let addresses = serde_json::json!({
            "grpc": address(&self.grpc),
            "http": address(&self.http),
            "webhooks": self.webhooks.as_ref().and_then(address),
        });
        let path = options.state_dir.join("addresses.json");
        if let Err(error) = std::fs::write(path, format!("{addresses}\n")) {
            tracing::warn!(%error, "cannot write addresses.json");
        }
    }
}

/// Runs a decider in a cluster until `shutdown` completes; then hands its targets over.
///
/// # Errors
/// Everything that keeps it from starting; and what went wrong at the end.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let names = options.certificate_names().map_err(Error::Usage)?;
    let (journal, recovered) = Journal::open(&options.state_dir.join("journal"))?;
    let listeners = Listeners::bind(&options).await?;
    listeners.write(&options);
    let client = client(&options).await?;
    let mut shutdown = std::pin::pin!(shutdown);
    let trust = tokio::select! {
        trust = trust::Trust::establish(client.clone(), &options, names) => trust?,
        () = &mut shutdown => return Ok(()),
    };
    let certificates = trust.certificates.clone();

    let shared = Shared::new(Clock::start(), "kubernetes", Vec::new(), journal, recovered);
    shared.state().number_from(first_number(shared.clock.started().0));
    let agents = Arc::new(glue::Link(Arc::clone(&shared)));
    let targets = Targets::start(
        client.clone(),
        infer_kube::targets::Options {
            namespaces: options.namespaces.clone(),
            ..infer_kube::targets::Options::default()
        },
        agents,
    );
    let changes = targets.subscribe();
    let foreign = targets.foreign_changes();
    let (bindings, bound) = Bindings::start(client.clone(), binding_options(&options), targets.clone());
    let ownership: Arc<dyn Ownership> = Arc::new(glue::Leases(bindings.clone()));

    let (stop, stopping) = watch::channel(false);
    let (stop_webhooks, webhooks_stopping) = watch::channel(false);
    let incoming = tls_incoming(
        listeners.grpc,
        server_config(&certificates, ALPN_GRPC)?,
        wait(stopping.clone()),
    );
    let injector = listeners
        .webhooks
        .as_ref()
        .map(|_| AgentInjector::new(injection(&options, trust.bundle())));
    let webhook = injector
        .clone()
        .map(|injector| Webhook::new(injector, webhooks::InCluster(bindings.clone())));
    let metrics = metrics::Metrics {
        certificates: certificates.clone(),
        handshakes: incoming.counters(),
        webhooks: webhook.as_ref().map(Webhook::counters),
    };
    let demands = Demands::new(infer_kube::demand::Options::default());
    let ready = bindings.clone();
    shared.surround(Hooks {
        ownership: Arc::clone(&ownership),
        authenticate: Arc::new(glue::Tokens(Authenticator::new(client.clone(), Default::default()))),
        observe: Some(Arc::new(glue::Reports(bindings.clone()))),
        readiness: Arc::new(move || ready.missing()),
        metrics: Some(Arc::new(move |encoder| metrics.encode(encoder))),
        demand: Some(Arc::new(glue::Told {
            demands: demands.clone(),
            bindings: bindings.clone(),
        })),
    });

    let mut server = tokio::spawn(service::serve_incoming(incoming, Arc::clone(&shared), stopping.clone()));
    tokio::spawn(http::serve(listeners.http, Arc::clone(&shared), stopping.clone()));
    let webhook_server = listeners.webhooks.zip(webhook).map(|(listener, webhook)| {
        let (certificates, stopping) = (certificates.clone(), webhooks_stopping.clone());
        tokio::spawn(async move {
            let options = infer_webhook::Options::default();
            let served = infer_webhook::serve(listener, &certificates, webhook, options, wait(stopping)).await;
            if let Err(error) = served {
                tracing::error!(%error, "the webhooks have ended");
            }
        })
    });
    tokio::spawn(trust.keep(injector, stopping.clone()));
    let (handing_over, given_up) = watch::channel(false);
    tokio::spawn(follow(Arc::clone(&shared), demands.clone(), bound, foreign, given_up));
    let backend: Arc<dyn Actuator> = Arc::new(backend::Backend {
        targets: targets.clone(),
        bindings: bindings.clone(),
        demands,
        changes: Arc::new(tokio::sync::Mutex::new(changes)),
    });
    // Ticks end before Leases are given up: nobody decides on what is not his.
    let (stop_ticks, ticks_stopping) = watch::channel(false);
    let mut ticks = tokio::spawn(tick::run(Arc::clone(&shared), backend, ticks_stopping));
    tracing::info!(
        decider_id = shared.decider_id,
        advertise = options.advertise,
        "decider is up"
    );

    let failure = tokio::select! {
        () = &mut shutdown => None,
        ended = &mut ticks => Some(service::Error::Ticks(ended.err().map_or_else(
            || "nobody asked it to".to_owned(),
            |panic| panic.to_string(),
        ))),
        ended = &mut server => match ended {
            Ok(Err(error)) => Some(error),
            Ok(Ok(())) | Err(_) => Some(service::Error::Ticks("the gRPC server has ended".to_owned())),
        },
    };
    tracing::info!(targets = shared.state().targets.len(), "stopping");
    let began = tokio::time::Instant::now();
    let _ = stop_ticks.send(true);
    if !ticks.is_finished() {
        let _ = ticks.await;
    }
    let _ = handing_over.send(true);
    hand_over(&shared, &targets, &bindings).await;
    let _ = stop.send(true);
    end_server(server).await;
    tokio::time::sleep_until(began + WEBHOOKS_LINGER).await;
    let _ = stop_webhooks.send(true);
    if let Some(server) = webhook_server {
        let _ = server.await;
    }
    let journal = shared.journal.clone();
    let _ = tokio::task::spawn_blocking(move || journal.flush()).await;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// Decisions of several deciders and of their Pods one after the other are told apart by their numbers, although their journals
/// do not outlive them: a decider begins where none before it can have got to, at 16 decisions a second on average since 2025.
fn first_number(now_unix_ms: i64) -> u64 {
    const Y2025_UNIX_S: i64 = 1_735_689_600;
    u64::try_from((now_unix_ms / 1000 - Y2025_UNIX_S).max(0)).unwrap_or(0) * 16 + 1
}

fn binding_options(options: &Options) -> infer_kube::bindings::Options {
    let namespace = options.own_namespace();
    infer_kube::bindings::Options {
        shards: options.shards,
        namespaces: options.namespaces.clone(),
        ..infer_kube::bindings::Options::new(&options.identity, &options.advertise, &namespace)
    }
}

fn injection(options: &Options, bundle: &str) -> infer_inject::Options {
    let usual = infer_inject::Options::default();
    infer_inject::Options {
        decider_url: options.agent_decider_url(),
        ca_pem: Some(bundle.to_owned()),
        agent_image: options.agent_image.clone().unwrap_or(usual.agent_image),
        image_pull_policy: options.agent_image_pull_policy.clone(),
        native_sidecar: !options.no_native_sidecars,
        run_as_user: match options.agent_user {
            AgentUser::Image => None,
            AgentUser::Id(id) => Some(id),
        },
    }
}

/// Takes on and gives up what the bindings say, and takes note of counts that somebody else has set. Once `given_up` is true it
/// only listens: the handover gives up everything in its own time.
async fn follow(
    shared: Arc<Shared>,
    demands: Demands,
    mut changes: mpsc::Receiver<Change>,
    mut foreign: broadcast::Receiver<ForeignChange>,
    given_up: watch::Receiver<bool>,
) {
    // Targets at which counts of others do not count.
    let mut corrected = BTreeSet::new();
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                None => return,
                Some(_) if *given_up.borrow() => {}
                Some(Change::Bound(mut bound)) => {
                    match bound.foreign_changes {
                        ForeignChanges::Correct => corrected.insert(bound.key.clone()),
                        ForeignChanges::Adopt => corrected.remove(&bound.key),
                    };
                    demands.set(&bound.key, bound.demand.take());
                    let memory = bound.memory.take().map(Box::new);
                    shared.bind(glue::spec(*bound), Inherited::Predecessor(memory));
                }
                Some(Change::Gone(key)) => {
                    corrected.remove(&key);
                    demands.set(&key, None);
                    shared.unbind(&key);
                }
            },
            change = foreign.recv() => match change {
                Ok(change) => shared.foreign_change(&change.key, !corrected.contains(&change.key)),
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "counts were changed faster than they were read");
                }
                // Without targets there is nothing to be bound to either.
                Err(RecvError::Closed) => return,
            },
        }
    }
}

/// Gives every target to its next owner: drains are called off, Leases are free at once, agents are sent on.
async fn hand_over(shared: &Shared, targets: &Targets, bindings: &Bindings) {
    let count = shared.state().targets.len();
    targets.close().await;
    bindings.release().await;
    if count == 0 {
        return;
    }
    tokio::time::sleep(TAKEOVER).await;
    shared.give_up_all();
    tracing::info!(targets = count, "targets handed over");
}

async fn end_server(mut server: JoinHandle<Result<(), service::Error>>) {
    if server.is_finished() {
        return;
    }
    match tokio::time::timeout(FLUSH_TIMEOUT, &mut server).await {
        Ok(Ok(Err(error))) => tracing::error!(%error, "the gRPC server ended badly"),
        Ok(_) => {}
        Err(_) => tracing::warn!("connections were cut off at the end"),
    }
}

async fn wait(mut stopping: watch::Receiver<bool>) {
    stopped(&mut stopping).await;
}
