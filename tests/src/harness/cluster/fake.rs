//! Engines of which only the numbers exist: `/health`, and `/metrics` in vLLM's words with the load a test wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::AbortHandle};

use super::Error;

/// What an engine says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Requests in the batch.
    pub running: u32,
    /// Requests in the queue.
    pub waiting: u32,
}

/// The loads of the engines of one fleet: a total, shared evenly as a router would, or what a test says of single ones.
#[derive(Debug, Clone, Default)]
pub struct Loads(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    total: Load,
    /// The total is shared among so many at least.
    sharing_min: usize,
    own: BTreeMap<String, Load>,
    engines: BTreeSet<String>,
}

impl Loads {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So much over all engines, however many there are and will be. Forgets what was said of single ones.
    pub fn set_total(&self, load: Load) {
        let mut table = self.table();
        table.own.clear();
        table.total = load;
    }

    /// While fewer engines than that are there, the rest of the total is nobody's: the first of three that start does not
    /// have it all for a moment.
    pub fn share_among(&self, engines: usize) {
        self.table().sharing_min = engines;
    }

    /// One Pod's own, which takes no share of the total.
    pub fn set(&self, pod: &str, load: Load) {
        self.table().own.insert(pod.to_owned(), load);
    }

    /// What a Pod's engine says now.
    pub fn of(&self, pod: &str) -> Load {
        let table = self.table();
        if let Some(own) = table.own.get(pod) {
            return *own;
        }
        let sharing = || table.engines.iter().filter(|engine| !table.own.contains_key(*engine));
        let (count, place) = (sharing().count(), sharing().position(|engine| engine == pod));
        let share = |total: u32| {
            let (count, place) = (
                u32::try_from(count.max(table.sharing_min)).ok()?.max(1),
                u32::try_from(place?).ok()?,
            );
            Some(total / count + u32::from(place < total % count))
        };
        Load {
            running: share(table.total.running).unwrap_or(0),
            waiting: share(table.total.waiting).unwrap_or(0),
        }
    }
}

/// A listening engine; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    pod: String,
    loads: Loads,
    task: AbortHandle,
}

impl Fake {
    pub(super) async fn listen(pod: &str, loads: &Loads) -> Result<Self, Error> {
        let failed = || Error::io("listen on", Path::new("127.0.0.1"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        let (pod, loads) = (pod.to_owned(), loads.clone());
        loads.table().engines.insert(pod.clone());
        let (own_pod, own_loads) = (pod.clone(), loads.clone());
        let task = tokio::spawn(async move {
            // Of one agent and perhaps a test; it ends with the test.
            while let Ok((stream, _)) = listener.accept().await {
                let (pod, loads) = (pod.clone(), loads.clone());
                let service = service_fn(move |request| {
                    let answer = answer(&request, loads.of(&pod));
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(Fake {
            address,
            pod: own_pod,
            loads: own_loads,
            task: task.abort_handle(),
        })
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
        self.loads.table().engines.remove(&self.pod);
    }
}

fn answer(request: &Request<Incoming>, load: Load) -> Response<Full<Bytes>> {
    let (status, body) = match request.uri().path() {
        "/health" => (StatusCode::OK, String::new()),
        "/metrics" | "/metrics/" => (StatusCode::OK, metrics(load)),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

fn metrics(load: Load) -> String {
    let Load { running, waiting } = load;
    let labels = r#"{engine="0",model_name="test"}"#;
    format!(
        "# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{labels} {running}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{labels} {waiting}
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{labels} 0.1
"
    )
}
