//! From an HTTP request to its answer.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use tokio::{sync::Semaphore, time::timeout};

use crate::{Cluster, Counters, Injector, mutate::mutate, review, validate::validate};

/// The largest body taken: what an API server takes itself.
pub const BODY_MAX_BYTES: usize = 3 * 1024 * 1024;
/// A body that takes longer is given up. The API server waits 10 s at most by default for the whole answer.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bodies being read at the same time, in all. A Pod's review is about 20 KiB, so this is some 1,600 of them; whoever
/// sends more than that gets 503 at once, rather than the decider the out-of-memory killer.
const BODIES_MAX_KIB: usize = 32 * 1024;

/// Which of the two webhooks a review is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /mutate-pods`
    MutatePods,
    /// `POST /validate`
    Validate,
}

/// Bytes that are no review.
pub type Unreadable = review::Error;

/// The two webhooks. Cheap to clone.
#[derive(Clone)]
pub struct Webhook(Arc<Inner>);

struct Inner {
    injector: Box<dyn Injector>,
    cluster: Box<dyn Cluster>,
    counters: Arc<Counters>,
    bodies_kib: Semaphore,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("counters", &self.0.counters)
            .finish_non_exhaustive()
    }
}

impl Webhook {
    /// Webhooks that inject with `injector` and judge by `cluster`.
    pub fn new(injector: impl Injector, cluster: impl Cluster) -> Self {
        Webhook(Arc::new(Inner {
            injector: Box::new(injector),
            cluster: Box::new(cluster),
            counters: Arc::default(),
            bodies_kib: Semaphore::new(BODIES_MAX_KIB),
        }))
    }

    /// What the webhooks have done.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.0.counters)
    }

    /// Answers the bytes of an AdmissionReview with those of another.
    pub fn review(&self, endpoint: Endpoint, body: &[u8]) -> Result<Vec<u8>, Unreadable> {
        let counters = &*self.0.counters;
        let start = Instant::now();
        let request = review::read(body)?;
        if request.dry_run {
            counters.dry_run.fetch_add(1, Relaxed);
        }
        let (response, latency) = match endpoint {
            Endpoint::MutatePods => {
                let response = mutate(&request, &*self.0.injector, counters);
                (response, &counters.mutate_latency)
            }
            Endpoint::Validate => {
                let response = validate(&request, &*self.0.cluster);
                if !request.dry_run {
                    counters.validated.fetch_add(1, Relaxed);
                    counters.refused.fetch_add(u64::from(!response.allowed), Relaxed);
                }
                (response, &counters.validate_latency)
            }
        };
        let answer = response.into_review();
        latency.observe(start.elapsed());
        Ok(answer)
    }

    /// Answers an HTTP request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: fmt::Display,
    {
        let endpoint = match (request.method(), request.uri().path()) {
            (&Method::POST, "/mutate-pods") => Endpoint::MutatePods,
            (&Method::POST, "/validate") => Endpoint::Validate,
            (&Method::GET | &Method::HEAD, "/healthz") => return text(StatusCode::OK, "ok\n".to_owned()),
            (_, "/mutate-pods" | "/validate") => {
                return self.bad(StatusCode::METHOD_NOT_ALLOWED, "only POST\n".to_owned());
            }
            _ => {
                let there_is = "there are POST /mutate-pods, POST /validate and GET /healthz\n";
                return self.bad(StatusCode::NOT_FOUND, there_is.to_owned());
            }
        };
        let mut body = request.into_body();
        let read = timeout(BODY_TIMEOUT, self.read(&mut body)).await;
        let bytes = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err((status, problem))) => return self.bad(status, problem),
            Err(_) => {
                let seconds = BODY_TIMEOUT.as_secs();
                let problem = format!("the body took longer than {seconds} s\n");
                return self.bad(StatusCode::REQUEST_TIMEOUT, problem);
            }
        };
        match self.review(endpoint, &bytes) {
            Ok(answer) => {
                let mut response = Response::new(Full::new(Bytes::from(answer)));
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
            Err(error) => self.bad(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    async fn read<B>(&self, body: &mut B) -> Result<Bytes, (StatusCode, String)>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: fmt::Display,
    {
        let too_large = || {
            let problem = format!("the body is larger than {BODY_MAX_BYTES} bytes\n");
            (StatusCode::PAYLOAD_TOO_LARGE, problem)
        };
        // The API server says the length beforehand, and then nothing of a body that is too large needs to be read.
        let announced = body.size_hint().lower();
        if announced > BODY_MAX_BYTES as u64 {
            return Err(too_large());
        }
        let mut bytes = BytesMut::new();
        // Taken as bytes come: who announces much and sends nothing holds nothing.
        let mut room = None;
        let mut room_bytes = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, format!("the body broke off: {error}\n")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > BODY_MAX_BYTES {
                return Err(too_large());
            }
            let missing_kib = (bytes.len() + data.len()).saturating_sub(room_bytes).div_ceil(1024);
            if missing_kib > 0 {
                // At most 3,072, as the length has just been checked.
                let more = self.0.bodies_kib.try_acquire_many(missing_kib as u32).map_err(|_| {
                    let problem = "too many requests at once; try again\n".to_owned();
                    (StatusCode::SERVICE_UNAVAILABLE, problem)
                })?;
                room_bytes += missing_kib * 1024;
                match &mut room {
                    None => room = Some(more),
                    Some(room) => room.merge(more),
                }
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    }

    fn bad(&self, status: StatusCode, problem: String) -> Response<Full<Bytes>> {
        self.0.counters.bad_requests.fetch_add(1, Relaxed);
        tracing::debug!(%status, problem = problem.trim_end(), "not a review");
        text(status, problem)
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
