//! Requests that wait at a gateway while no replica runs: what wakes a target at zero.
//!
//! Either the gateway's metrics are read (once a second per address, however many bindings name it), or the gateway
//! tells. A number that was not renewed is no number: what is not known is never taken for "nobody waits".

mod page;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use infer_api::{Demand, PrometheusDemand};
use kube::client::ConfigExt as _;
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use page::sums;

/// Pace and limits.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// From one reading to the next.
    pub interval: Duration,
    /// A gateway that has not answered by then has failed.
    pub timeout: Duration,
    /// A number counts for so long.
    pub fresh_for: Duration,
    /// The longest page that is read, in bytes.
    pub page_bytes_max: usize,
    /// Pages read at a time.
    pub at_once: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            // Two readings may fail.
            fresh_for: Duration::from_secs(5),
            // A gateway with a thousand pools has about 1 MiB.
            page_bytes_max: 8 << 20,
            at_once: 16,
        }
    }
}

/// The longest pause after a row of failures: a gateway that comes back is heard within this.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Why what a gateway told was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PushError {
    /// There is no such binding here.
    #[error("there is no binding {0:?} that this decider decides on")]
    Unknown(String),
    /// Its demand is read, or it has none.
    #[error("binding {0:?} does not ask to be told: it has no spec.demand.http")]
    NotAsked(String),
    /// The body is no number of requests.
    #[error("{0}; send {{\"waiting\": 3}}")]
    Malformed(String),
}

/// What waits for whom. Cheap to clone; readings end with the last clone.
#[derive(Clone)]
pub struct Demands(Arc<Inner>);

struct Inner {
    options: Options,
    fetch: Fetch,
    turn: Semaphore,
    state: Mutex<State>,
}

type Fetch = Box<dyn Fn(Uri) -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

#[derive(Default)]
struct State {
    targets: HashMap<String, Entry>,
    readers: HashMap<String, AbortHandle>,
}

struct Entry {
    demand: Demand,
    waiting: Option<(f64, Instant)>,
    problem: Option<String>,
}

impl Entry {
    fn url(&self) -> Option<&str> {
        self.demand.prometheus.as_ref().map(|source| source.url.as_str())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.readers.values().for_each(AbortHandle::abort);
    }
}

impl Demands {
    /// Nobody's demand yet. To be called within a tokio runtime, as [`Demands::set`].
    pub fn new(options: Options) -> Self {
        Demands::with_fetch(options, fetcher(options))
    }

    fn with_fetch(options: Options, fetch: Fetch) -> Self {
        Demands(Arc::new(Inner {
            turn: Semaphore::new(options.at_once.max(1)),
            options,
            fetch,
            state: Mutex::default(),
        }))
    }

    /// From now on, this is where a target's waiting requests are counted; `None`: nowhere. The same again changes
    /// nothing.
    pub fn set(&self, key: &str, demand: Option<Demand>) {
        let mut state = self.0.lock();
        match demand {
            Some(demand) if state.targets.get(key).is_some_and(|entry| entry.demand == demand) => return,
            Some(demand) => {
                let entry = Entry {
                    demand,
                    waiting: None,
                    problem: None,
                };
                state.targets.insert(key.to_owned(), entry);
            }
            None => drop(state.targets.remove(key)),
        }
        let State { targets, readers } = &mut *state;
        readers.retain(|url, reader| {
            let is_used = targets.values().any(|entry| entry.url() == Some(url));
            if !is_used {
                reader.abort();
            }
            is_used
        });
        let url = targets.get(key).and_then(Entry::url);
        if let Some(url) = url.filter(|url| !readers.contains_key(*url)) {
            let reading = tokio::spawn(read_on(Arc::downgrade(&self.0), url.to_owned()));
            readers.insert(url.to_owned(), reading.abort_handle());
        }
    }

    /// Requests that wait for a target; `None` when it has no demand or there is no fresh number.
    pub fn waiting(&self, key: &str) -> Option<f64> {
        let (waiting, at) = self.0.lock().targets.get(key)?.waiting?;
        (at.elapsed() <= self.0.options.fresh_for).then_some(waiting)
    }

    /// Why there is no number, in words.
    pub fn problem(&self, key: &str) -> Option<String> {
        let state = self.0.lock();
        let entry = state.targets.get(key)?;
        let is_fresh = |(_, at): (f64, Instant)| at.elapsed() <= self.0.options.fresh_for;
        match (&entry.problem, entry.waiting.is_some_and(is_fresh)) {
            (Some(problem), _) => Some(problem.clone()),
            (None, true) => None,
            (None, false) if entry.demand.http.is_some() => Some("the gateway has told nothing lately".to_owned()),
            (None, false) => Some("the gateway's metrics have not been read yet".to_owned()),
        }
    }

    /// What a gateway tells: `binding` is `namespace/name`, `body` is `{"waiting": 3}`. It counts for every role of the
    /// binding, and for a few seconds. Whether the sender may tell is the caller's to find out.
    ///
    /// # Errors
    /// See [`PushError`].
    pub fn push(&self, binding: &str, body: &[u8]) -> Result<(), PushError> {
        #[derive(Deserialize)]
        struct Body {
            waiting: f64,
        }
        let body: Body = serde_json::from_slice(body).map_err(|error| PushError::Malformed(error.to_string()))?;
        if !body.waiting.is_finite() || body.waiting < 0.0 {
            return Err(PushError::Malformed(format!(
                "{} is no number of requests",
                body.waiting
            )));
        }
        let is_of = |key: &str| {
            key.strip_prefix(binding)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let now = Instant::now();
        let mut state = self.0.lock();
        let mut is_known = false;
        let mut is_asked = false;
        for (_, entry) in state.targets.iter_mut().filter(|(key, _)| is_of(key)) {
            is_known = true;
            if entry.demand.http.is_some() {
                is_asked = true;
                entry.waiting = Some((body.waiting, now));
            }
        }
        match (is_known, is_asked) {
            (_, true) => Ok(()),
            (true, false) => Err(PushError::NotAsked(binding.to_owned())),
            (false, _) => Err(PushError::Unknown(binding.to_owned())),
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, url: &str) -> Result<String, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{url} is no address: {error}"))?;
        let answer = timeout(self.options.timeout, async {
            let _turn = self.turn.acquire().await;
            (self.fetch)(uri).await
        });
        match answer.await {
            Ok(result) => result.map_err(|problem| format!("{url}: {problem}")),
            Err(_) => Err(format!("{url} has not answered in time")),
        }
    }

    /// Whether it went well.
    fn take(&self, url: &str, page: Result<String, String>) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let entries = state.targets.values_mut().filter(|entry| entry.url() == Some(url));
        let page = match page {
            Ok(page) => page,
            Err(problem) => {
                entries.for_each(|entry| entry.problem = Some(problem.clone()));
                return false;
            }
        };
        let mut wanted: Vec<&mut Entry> = entries.collect();
        let sources: Vec<PrometheusDemand> = wanted
            .iter()
            .filter_map(|entry| entry.demand.prometheus.clone())
            .collect();
        for (entry, sum) in wanted.iter_mut().zip(sums(&page, &sources)) {
            entry.problem = None;
            match sum {
                Some(sum) => entry.waiting = Some((sum, now)),
                None => {
                    let metric = entry
                        .demand
                        .prometheus
                        .as_ref()
                        .map_or("", |source| source.metric.as_str());
                    entry.problem = Some(format!("{url} has no series of {metric} with these labels"));
                }
            }
        }
        true
    }
}

async fn read_on(inner: Weak<Inner>, url: String) {
    let mut failures: u32 = 0;
    loop {
        // Not held while it sleeps: the last clone of `Demands` ends this.
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let page = inner.read(&url).await;
        let interval = inner.options.interval;
        failures = if inner.take(&url, page) {
            0
        } else {
            failures.saturating_add(1)
        };
        drop(inner);
        let pause = interval
            .saturating_mul(1 << failures.min(8))
            .min(BACKOFF_MAX.max(interval));
        sleep(if failures == 0 { interval } else { pause }).await;
    }
}

fn fetcher(options: Options) -> Fetch {
    // The connector of the Kubernetes client, without a cluster: it speaks TLS with the system's authorities.
    let connector = kube::Config::new(Uri::from_static("http://localhost")).rustls_https_connector();
    let connector = match connector {
        Ok(connector) => connector,
        Err(error) => {
            let problem = format!("no gateway can be read: {error}");
            return Box::new(move |_| {
                let problem = problem.clone();
                Box::pin(async { Err(problem) })
            });
        }
    };
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(1)
        .build(connector);
    let most = options.page_bytes_max;
    Box::new(move |uri| {
        let client = client.clone();
        Box::pin(async move {
            let request = Request::get(uri)
                .header(header::ACCEPT, "text/plain;version=0.0.4")
                .body(Empty::new())
                .map_err(|error| error.to_string())?;
            let answer = client.request(request).await.map_err(|error| with_cause(&error))?;
            if !answer.status().is_success() {
                return Err(format!("HTTP status {}", answer.status()));
            }
            let body = Limited::new(answer.into_body(), most).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            String::from_utf8(body.into()).map_err(|_| "the page is no text".to_owned())
        })
    })
}

fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use infer_api::HttpDemand;

    use super::*;

    fn read(url: &str, metric: &str, labels: &[(&str, &str)]) -> Demand {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Demand {
            prometheus: Some(PrometheusDemand {
                url: url.to_owned(),
                metric: metric.to_owned(),
                labels: labels.collect(),
            }),
            http: None,
        }
    }

    fn told() -> Demand {
        Demand {
            prometheus: None,
            http: Some(HttpDemand {}),
        }
    }

    const PAGE: &str = "queue{pool=\"chat\"} 7.5\nplain 7\n";

    #[tokio::test(start_paused = true)]
    async fn what_is_told_counts_for_all_roles_and_not_for_long() {
        let demands = Demands::new(Options::default());
        demands.set("ml/pd/prefill", Some(told()));
        demands.set("ml/pd/decode", Some(told()));
        demands.set("ml/pdx", Some(told()));
        demands.set("ml/read", Some(read("http://127.0.0.1:1/", "queue", &[])));
        demands.push("ml/pd", br#"{"waiting": 3}"#).unwrap();
        for (key, expected) in [
            ("ml/pd/prefill", Some(3.0)),
            ("ml/pd/decode", Some(3.0)),
            ("ml/pdx", None),
        ] {
            assert_eq!(demands.waiting(key), expected, "{key}");
        }
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(demands.waiting("ml/pd/prefill"), None);
        assert!(demands.problem("ml/pd/prefill").is_some());
        for (binding, body, expected) in [
            (
                "ml/no",
                &br#"{"waiting": 3}"#[..],
                PushError::Unknown("ml/no".to_owned()),
            ),
            (
                "ml/read",
                br#"{"waiting": 3}"#,
                PushError::NotAsked("ml/read".to_owned()),
            ),
            (
                "ml/pd",
                br#"{"waiting": -3}"#,
                PushError::Malformed("-3 is no number of requests".to_owned()),
            ),
        ] {
            assert_eq!(demands.push(binding, body), Err(expected));
        }
        assert!(matches!(demands.push("ml/pd", b"3"), Err(PushError::Malformed(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn one_reading_serves_all_that_name_the_address_and_a_silent_gateway_is_no_zero() {
        let pages: Arc<Mutex<Vec<Result<&str, &str>>>> = Arc::default();
        let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let fetch: Fetch = {
            let (pages, count) = (Arc::clone(&pages), Arc::clone(&count));
            Box::new(move |_| {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let page = pages.lock().unwrap().last().copied().unwrap_or(Err("down"));
                Box::pin(async move { page.map(str::to_owned).map_err(str::to_owned) })
            })
        };
        let demands = Demands::with_fetch(Options::default(), fetch);
        pages.lock().unwrap().push(Ok(PAGE));
        demands.set("ml/a", Some(read("http://g/m", "queue", &[("pool", "chat")])));
        demands.set("ml/b", Some(read("http://g/m", "plain", &[])));
        demands.set("ml/b", Some(read("http://g/m", "plain", &[])));
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(
            (demands.waiting("ml/a"), demands.waiting("ml/b")),
            (Some(7.5), Some(7.0))
        );
        assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 3);
        pages.lock().unwrap().push(Err("down"));
        sleep(Duration::from_secs(8)).await;
        assert_eq!(demands.waiting("ml/a"), None);
        assert_eq!(demands.problem("ml/a").as_deref(), Some("http://g/m: down"));
        demands.set("ml/a", None);
        demands.set("ml/b", None);
        let before = count.load(std::sync::atomic::Ordering::Relaxed);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(
            count.load(std::sync::atomic::Ordering::Relaxed),
            before,
            "nobody asks any more"
        );
    }
}
