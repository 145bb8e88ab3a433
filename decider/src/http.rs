//! The decider's own metrics and health, over plain HTTP: `GET /metrics`, `/livez`, `/readyz`; and where gateways tell of waiting
//! requests.

use std::{convert::Infallible, fmt::Write as _, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::{net::TcpListener, sync::Semaphore, sync::watch};

use crate::{
    auth::Access,
    state::{Shared, count},
    stopped, view,
};

/// Scrapers and probes; more wait.
const CONNECTIONS_MAX: usize = 64;
/// Prefix of the path of numbers of waiting requests, and what one may be long.
const DEMAND: &str = "/demand/";
const DEMAND_BYTES_MAX: usize = 4096;
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `shutdown` turns true.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, mut shutdown: watch::Receiver<bool>) {
    let registry = Arc::new(registry(&shared));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stopped(&mut shutdown) => return,
        };
        let (shared, registry) = (Arc::clone(&shared), Arc::clone(&registry));
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<Incoming>| {
                let (shared, registry) = (Arc::clone(&shared), Arc::clone(&registry));
                async move {
                    let path = request.uri().path().to_owned();
                    Ok::<_, Infallible>(match path.strip_prefix(DEMAND) {
                        Some(binding) => demand(binding, request, &shared).await,
                        None => answer(&request, &shared, &registry),
                    })
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            // A scraper that hangs up is no event.
            let _ = connection.await;
        });
    }
}

/// `POST /demand/NAMESPACE/BINDING` with `{"waiting": 3}` and the token of somebody who may change the binding: so many requests
/// wait at a gateway.
async fn demand(binding: &str, request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let Some(take) = &shared.hooks().demand else {
        return text(
            StatusCode::NOT_FOUND,
            "nothing takes numbers of waiting requests here\n".to_owned(),
        );
    };
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n".to_owned());
    }
    let namespace = binding.split_once('/').map_or("", |(namespace, _)| namespace);
    let token = crate::auth::bearer(request.headers());
    let allowed = shared
        .hooks()
        .authenticate
        .person(token, Access::Write, namespace.to_owned());
    if let Err(status) = allowed.await {
        count(&shared.counters.unauthenticated);
        let code = match status.code() {
            tonic::Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            tonic::Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::FORBIDDEN,
        };
        return text(code, format!("{}\n", status.message()));
    }
    let body = Limited::new(request.into_body(), DEMAND_BYTES_MAX).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) | Err(_) => {
            let message = format!("the body was not read: at most {DEMAND_BYTES_MAX} bytes within 5 s\n");
            return text(StatusCode::BAD_REQUEST, message);
        }
    };
    match take.told(binding, &body) {
        Ok(()) => {
            shared.waits(binding);
            text(StatusCode::OK, "ok\n".to_owned())
        }
        Err((status, message)) => text(status, format!("{message}\n")),
    }
}

fn answer(request: &Request<Incoming>, shared: &Shared, registry: &Registry) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => {
            let mut body = String::new();
            if encode(&mut body, registry).is_err() {
                return text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "metrics could not be written\n".to_owned(),
                );
            }
            let mut response = Response::new(Full::new(Bytes::from(body)));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
            response
        }
        "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => {
            let mut body = String::new();
            let missing = (shared.hooks().readiness)();
            for missing in &missing {
                let _ = writeln!(body, "not ready: {missing}");
            }
            for problem in view::problems(shared) {
                let _ = writeln!(body, "degraded: {problem}");
            }
            // Degraded is still deciding: it stays in service.
            let status = if missing.is_empty() {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            text(status, if body.is_empty() { "ok\n".to_owned() } else { body })
        }
        path => text(
            StatusCode::NOT_FOUND,
            format!("no {path} here; there are /metrics, /livez and /readyz\n"),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

fn registry(shared: &Arc<Shared>) -> Registry {
    let mut registry = Registry::with_prefix("infer_decider");
    registry.register_collector(Box::new(Service(Arc::clone(shared))));
    registry
}

/// Reads the service's counters and targets at each scrape.
struct Service(Arc<Shared>);

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

impl Collector for Service {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        use std::sync::atomic::Ordering::Relaxed;
        let (counters, journal) = (&self.0.counters, self.0.journal.health());
        for (name, help, value) in [
            (
                "samples_applied",
                "Samples taken into windows",
                &counters.samples_applied,
            ),
            (
                "samples_duplicate",
                "Samples seen before and not taken twice",
                &counters.samples_duplicate,
            ),
            (
                "samples_late",
                "Samples too old for every window",
                &counters.samples_late,
            ),
            (
                "samples_missing",
                "Sequence numbers that never came",
                &counters.samples_missing,
            ),
            (
                "streams_refused",
                "Agents' streams closed because of what they sent",
                &counters.streams_refused,
            ),
            (
                "unauthenticated",
                "Agents and people refused because of their token",
                &counters.unauthenticated,
            ),
            ("redirects", "Agents sent to another decider", &counters.redirects),
            (
                "drain_orders",
                "Orders to replicas to drain or to stop draining",
                &counters.drain_orders,
            ),
            ("ticks", "Ticks at the fixed pace", &counters.ticks),
            ("early_ticks", "Ticks woken by an event", &counters.early_ticks),
            ("plans_applied", "Plans the backend has taken", &counters.plans_applied),
            (
                "plans_refused",
                "Plans the checker has refused",
                &counters.plans_refused,
            ),
            (
                "plans_failed",
                "Plans the backend has refused or failed",
                &counters.plans_failed,
            ),
            (
                "journal_entries_written",
                "Journal entries on disk since the start",
                &journal.written,
            ),
            (
                "journal_entries_lost",
                "Journal entries lost to a slow or full disk",
                &journal.lost,
            ),
        ] {
            let counter = ConstCounter::new(value.load(Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let tick_s = counters.tick_us.load(Relaxed) as f64 / 1e6;
        let healthy = i64::from(view::problems(&self.0).is_empty());
        let connected = counters.agents_connected.load(Relaxed) as i64;
        gauge(
            &mut encoder,
            "last_tick_seconds",
            "Time the last tick took to look, decide and check",
            ConstGauge::new(tick_s),
        )?;
        gauge(
            &mut encoder,
            "healthy",
            "1 when nothing is degraded",
            ConstGauge::new(healthy),
        )?;
        gauge(
            &mut encoder,
            "agents_connected",
            "Agents' streams open now",
            ConstGauge::new(connected),
        )?;
        gauge(
            &mut encoder,
            "plans_in_flight",
            "Plans that the backend has not answered yet",
            ConstGauge::new(counters.plans_in_flight.load(Relaxed) as i64),
        )?;
        gauge(
            &mut encoder,
            "ready",
            "1 when nothing is missing for this decider to be of use",
            ConstGauge::new(i64::from((self.0.hooks().readiness)().is_empty())),
        )?;
        if let Some(metrics) = &self.0.hooks().metrics {
            metrics(&mut encoder)?;
        }
        self.targets(&mut encoder)
    }
}

pub(crate) fn gauge<N>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    gauge: ConstGauge<N>,
) -> std::fmt::Result
where
    ConstGauge<N>: EncodeMetric,
{
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

impl Service {
    fn targets(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        // Copied out, so that the lock is not held while text is written.
        let targets: Vec<_> = {
            let state = self.0.state();
            let latest = state
                .targets
                .iter()
                .filter_map(|(name, entity)| Some((name, entity.latest.as_ref()?)));
            latest
                .map(|(name, record)| {
                    (
                        name.clone(),
                        record.inputs.replicas,
                        record.inputs.data,
                        record.outcome.desired,
                        record.outcome.mode,
                    )
                })
                .collect()
        };
        let mut family = encoder.encode_descriptor(
            "target_replicas",
            "Replicas of a target by state",
            None,
            ConstGauge::new(0i64).metric_type(),
        )?;
        for (name, replicas, _, desired, _) in &targets {
            for (state, count) in [
                ("desired", *desired),
                ("spec", replicas.spec),
                ("ready", replicas.ready),
                ("starting", replicas.starting),
                ("draining", replicas.draining),
                ("failed", replicas.failed),
            ] {
                let labels = [("target", name.as_str()), ("state", state)];
                ConstGauge::new(i64::from(count)).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "target_mode",
            "1 for the mode a target is in",
            None,
            ConstGauge::new(0i64).metric_type(),
        )?;
        for (name, _, _, _, mode) in &targets {
            let labels = [("target", name.as_str()), ("mode", mode.name())];
            ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "target_data_completeness",
            "Share of samples present in the stable window",
            None,
            ConstGauge::new(0i64).metric_type(),
        )?;
        for (name, _, data, _, _) in &targets {
            let labels = [("target", name.as_str())];
            ConstGauge::new(data.completeness).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
