//! What all tasks share, and the tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use infer_core::TimeMs;
use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ForeignChange, Options,
    api::{Api, Failure, Gvk, JSON, META, META_LIST, collection},
    health::Stream,
    kinds::{KindProblem, RawObject, Resource, Resources},
    listener::Listener,
    pod::RawPod,
    state::State,
    watch::{Event, Source},
};
use crate::Agents;

/// Counts that are read at the same time: a start with thousands of targets takes seconds and does not flood anybody.
const READS_AT_ONCE: usize = 16;
/// Discovery of a kind that is not there: first and longest wait. Its definition's appearance ends the wait.
const DISCOVERY_WAIT: Duration = Duration::from_millis(500);
const DISCOVERY_WAIT_MAX: Duration = Duration::from_secs(30);
/// A kind that was there is missed for this long before it counts as gone: an API server that has just started does
/// not know all kinds at once.
const KIND_MISSED: Duration = Duration::from_secs(10);
/// Events about definitions come in bursts.
const DISCOVERY_GAP: Duration = Duration::from_millis(200);
/// Changes that a slow listener may fall behind: people change counts by hand, not by the hundred.
const FOREIGN_BACKLOG: usize = 256;
/// Ending drains takes no longer.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Unix time when it was first asked for, monotonic from there on, as the decider's own clock: an adjusted system clock
/// neither voids plans nor lengthens drains.
pub(super) fn now() -> TimeMs {
    static START: OnceLock<(Instant, f64)> = OnceLock::new();
    let (start, unix_s) = START.get_or_init(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), since.as_secs_f64())
    });
    TimeMs::from_s(unix_s + start.elapsed().as_secs_f64())
}

/// See the module.
pub(super) struct Shared {
    pub(super) api: Api,
    pub(super) options: Options,
    pub(super) agents: Arc<dyn Agents>,
    pub(super) foreign: broadcast::Sender<ForeignChange>,
    pub(super) cancel: CancellationToken,
    pub(super) tasks: TaskTracker,
    state: Mutex<State>,
    listeners: Mutex<Vec<Weak<Listener>>>,
    reads_due: Notify,
    drives_due: Notify,
    kinds_due: Notify,
    /// Bumped when a definition has come, gone or changed.
    definitions: watch::Sender<u64>,
    /// Bumped when connections may be dead.
    reconnect: watch::Sender<u64>,
    /// Kinds that are not there.
    missing_kinds: watch::Sender<usize>,
}

impl Shared {
    pub(super) fn new(client: kube::Client, options: Options, agents: Arc<dyn Agents>) -> Arc<Self> {
        Arc::new(Shared {
            api: Api {
                client,
                manager: options.field_manager.clone(),
                timeout: options.request_timeout,
            },
            state: Mutex::new(State::new(&options)),
            options,
            agents,
            foreign: broadcast::channel(FOREIGN_BACKLOG).0,
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
            listeners: Mutex::default(),
            reads_due: Notify::new(),
            drives_due: Notify::new(),
            kinds_due: Notify::new(),
            definitions: watch::channel(0).0,
            reconnect: watch::channel(0).0,
            missing_kinds: watch::channel(0).0,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at or changes the state, and wakes whoever has something to do then.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let changed = std::mem::take(&mut state.changed);
        let foreign = std::mem::take(&mut state.foreign);
        let is_due = (
            !state.to_read.is_empty(),
            !state.to_drive.is_empty(),
            std::mem::take(&mut state.kinds_changed),
        );
        drop(state);
        if !changed.is_empty() {
            let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.retain(|listener| match listener.upgrade() {
                Some(listener) => {
                    listener.add(changed.iter());
                    true
                }
                None => false,
            });
        }
        for change in foreign {
            // Without a listener there is nobody to tell.
            let _ = self.foreign.send(change);
        }
        if is_due.0 {
            self.reads_due.notify_one();
        }
        if is_due.1 {
            self.drives_due.notify_one();
        }
        if is_due.2 {
            self.kinds_due.notify_one();
        }
        result
    }

    pub(super) fn listen(&self) -> Arc<Listener> {
        let listener = Arc::new(Listener::default());
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.push(Arc::downgrade(&listener));
        listener
    }

    /// Starts everything.
    pub(super) fn start(self: &Arc<Self>) {
        let scopes: Vec<Option<String>> = match self.options.namespaces.as_slice() {
            [] => vec![None],
            some => some.iter().cloned().map(Some).collect(),
        };
        for scope in &scopes {
            self.spawn(Arc::clone(self).watch_pods(scope.clone()));
        }
        self.spawn(Arc::clone(self).keep_kinds(scopes));
        self.spawn(Arc::clone(self).keep_reading());
        self.spawn(Arc::clone(self).keep_driving());
        self.spawn(Arc::clone(self).keep_probing());
        self.spawn(Arc::clone(self).watch_definitions());
    }

    /// A task that ends with all others.
    pub(super) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = task => {}
            }
        });
    }

    async fn watch_pods(self: Arc<Self>, scope: Option<String>) {
        let source = Source {
            path: collection("/api/v1", "pods", scope.as_deref()),
            accept_list: JSON,
            accept: JSON,
        };
        let stream = Stream::Pods(scope.clone());
        loop {
            let scope = scope.clone();
            let sink = |event: Event<RawPod>| {
                match event {
                    Event::All(pods) => self.with(|state| state.all_pods(scope.clone(), pods)),
                    Event::Applied(pod) => self.alive(|state| state.apply_pod(pod)),
                    Event::Deleted(pod) => self.alive(|state| state.delete_pod(&pod)),
                    other => self.note(&stream, &other, None),
                }
                true
            };
            super::watch::run(&self.api, &source, self.reconnect.subscribe(), sink).await;
            // Pods are never missing for good.
            tokio::time::sleep(DISCOVERY_WAIT_MAX).await;
        }
    }

    fn alive(&self, change: impl FnOnce(&mut State)) {
        self.with(|state| {
            state.health.contact(now());
            change(state);
        });
    }

    /// Whether a watch is up to date.
    fn note<T>(&self, stream: &Stream, event: &Event<T>, resource: Option<&str>) {
        match event {
            Event::Connected => self.with(|state| {
                state.set_stream(stream, true, now());
                if let Stream::Kind(gvk, _) = stream {
                    state.kind_failed(gvk, None);
                }
            }),
            Event::Broken(failure) => {
                tracing::debug!(?stream, why = failure.message(), "watch interrupted");
                self.with(|state| {
                    state.set_stream(stream, false, now());
                    match (stream, failure) {
                        // Its definition may be gone; discovery will tell.
                        (_, Failure::NotFound(_) | Failure::Gone | Failure::Busy(..)) => {}
                        (Stream::Kind(gvk, scope), failure) => {
                            let problem = KindProblem::of(failure, resource.unwrap_or_default(), scope.as_deref());
                            state.kind_failed(gvk, Some(problem));
                        }
                        (Stream::Pods(scope), failure) => {
                            let problem = KindProblem::of(failure, "pods", scope.as_deref());
                            state.set_pods_problem(Some(problem));
                        }
                    }
                    if failure.is_an_answer() {
                        state.health.contact(now());
                    }
                });
            }
            Event::Alive => self.with(|state| state.health.contact(now())),
            Event::Unreadable(why) => tracing::warn!(?stream, why, "an object can not be read and is left out"),
            Event::All(_) | Event::Applied(_) | Event::Deleted(_) => {}
        }
        if let (Stream::Pods(_), Event::Connected) = (stream, event) {
            self.with(|state| state.set_pods_problem(None));
        }
    }

    /// One task per kind that is in use.
    async fn keep_kinds(self: Arc<Self>, scopes: Vec<Option<String>>) {
        let mut running: BTreeMap<Gvk, CancellationToken> = BTreeMap::new();
        loop {
            let used: BTreeSet<Gvk> = self.with(|state| {
                state.kinds.retain(|_, kind| kind.users > 0);
                state.kinds.keys().cloned().collect()
            });
            running.retain(|gvk, cancel| {
                let is_used = used.contains(gvk);
                if !is_used {
                    cancel.cancel();
                }
                is_used
            });
            for gvk in used {
                if running.contains_key(&gvk) {
                    continue;
                }
                let cancel = self.cancel.child_token();
                running.insert(gvk.clone(), cancel.clone());
                let task = Arc::clone(&self).keep_kind(gvk.clone(), scopes.clone());
                let shared = Arc::clone(&self);
                let scopes = scopes.clone();
                self.tasks.spawn(async move {
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        () = task => {}
                    }
                    shared.with(|state| {
                        for scope in scopes {
                            state.health.forget(&Stream::Kind(gvk.clone(), scope));
                        }
                    });
                });
            }
            self.kinds_due.notified().await;
        }
    }

    /// Finds out about a kind and watches it, for ever.
    async fn keep_kind(self: Arc<Self>, gvk: Gvk, scopes: Vec<Option<String>>) {
        loop {
            let resource = self.discover(&gvk).await;
            let watches = scopes
                .iter()
                .map(|scope| Box::pin(self.watch_kind(&gvk, &resource.plural, scope.clone())));
            tokio::select! {
                // The first that ends tells that the kind is gone.
                _ = futures_util::future::select_all(watches) => {}
                () = self.recheck_scale(&gvk, &resource) => {}
            }
        }
    }

    /// Asks until there is an answer.
    async fn discover(&self, gvk: &Gvk) -> Resource {
        let mut definitions = self.definitions.subscribe();
        let mut wait = DISCOVERY_WAIT;
        let mut missing = None;
        let was_known = self.with(|state| state.kinds.get(gvk).is_some_and(|kind| kind.resource.is_some()));
        let missed_until = tokio::time::Instant::now() + KIND_MISSED;
        loop {
            definitions.borrow_and_update();
            let found = self.resource_of(gvk).await;
            if was_known && found.is_err() && tokio::time::Instant::now() < missed_until {
                tokio::time::sleep(DISCOVERY_WAIT).await;
                continue;
            }
            self.with(|state| state.resolved(gvk, found.clone()));
            match found {
                Ok(resource) if resource.namespaced => return resource,
                Err(KindProblem::Unknown) if missing.is_none() => {
                    missing = Some(Missing::new(&self.missing_kinds));
                }
                _ => {}
            }
            tokio::select! {
                () = tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64())) => wait = (wait * 2).min(DISCOVERY_WAIT_MAX),
                _ = definitions.changed() => tokio::time::sleep(DISCOVERY_GAP).await,
            }
        }
    }

    async fn resource_of(&self, gvk: &Gvk) -> Result<Resource, KindProblem> {
        if !gvk.is_plain() {
            return Err(KindProblem::Unknown);
        }
        match self
            .api
            .get::<Resources>(&gvk.root(), JSON, self.options.request_timeout)
            .await
        {
            Ok(resources) => resources.find(&gvk.kind).ok_or(KindProblem::Unknown),
            Err(Failure::NotFound(_)) => Err(KindProblem::Unknown),
            Err(failure) => Err(KindProblem::Failed(format!(
                "{} can not be looked up: {}",
                gvk.api_version(),
                failure.message()
            ))),
        }
    }

    /// Completes when a kind's scale subresource that somebody waits for has appeared, or it has changed otherwise.
    async fn recheck_scale(&self, gvk: &Gvk, resource: &Resource) {
        let mut definitions = self.definitions.subscribe();
        loop {
            tokio::select! {
                () = tokio::time::sleep(DISCOVERY_WAIT_MAX) => {}
                _ = definitions.changed() => tokio::time::sleep(DISCOVERY_GAP).await,
            }
            if self.with(|state| state.lacks_scale(gvk)) {
                let found = self.resource_of(gvk).await;
                if found.is_ok_and(|found| found != *resource) {
                    return;
                }
            }
        }
    }

    async fn watch_kind(&self, gvk: &Gvk, plural: &str, scope: Option<String>) {
        let source = Source {
            path: collection(&gvk.root(), plural, scope.as_deref()),
            accept_list: META_LIST,
            accept: META,
        };
        let stream = Stream::Kind(gvk.clone(), scope.clone());
        let sink = |event: Event<RawObject>| {
            match event {
                Event::All(objects) => self.with(|state| state.all_objects(gvk, scope.clone(), objects)),
                Event::Applied(object) => self.alive(|state| state.apply_object(gvk, object)),
                Event::Deleted(object) => {
                    let meta = object.metadata;
                    self.alive(|state| state.delete_object(gvk, &meta.namespace, &meta.name));
                }
                other => self.note(&stream, &other, Some(plural)),
            }
            true
        };
        super::watch::run(&self.api, &source, self.reconnect.subscribe(), sink).await;
    }

    /// Watches definitions, while somebody waits for a kind. A missing rule only makes the wait longer.
    async fn watch_definitions(self: Arc<Self>) {
        let source = Source {
            path: "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".to_owned(),
            accept_list: META_LIST,
            accept: META,
        };
        let mut missing = self.missing_kinds.subscribe();
        loop {
            if missing.wait_for(|missing| *missing > 0).await.is_err() {
                return;
            };
            let sink = |event: Event<RawObject>| {
                if matches!(event, Event::Applied(_) | Event::Deleted(_)) {
                    self.definitions.send_modify(|count| *count += 1);
                }
                true
            };
            let watching = super::watch::run(&self.api, &source, self.reconnect.subscribe(), sink);
            tokio::select! {
                () = watching => tokio::time::sleep(DISCOVERY_WAIT_MAX).await,
                () = async { missing.wait_for(|missing| *missing == 0).await.map_or((), |_| ()) } => {}
            }
        }
    }

    /// Reads counts that are due.
    async fn keep_reading(self: Arc<Self>) {
        let slots = Arc::new(Semaphore::new(READS_AT_ONCE));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let Some(job) = self.with(State::next_read) else {
                drop(slot);
                self.reads_due.notified().await;
                continue;
            };
            let shared = Arc::clone(&self);
            self.spawn(async move {
                let seen = super::read::read(&shared.api, &job).await;
                let follow = shared.with(|state| state.read(&job, seen, now()));
                drop(slot);
                shared.perform(&job.id.0, follow.actions).await;
                if let Some(wait) = follow.retry {
                    tokio::time::sleep(wait).await;
                    shared.with(|state| state.to_read.insert(job.id));
                }
            });
        }
    }

    /// One task per target that has a drain.
    async fn keep_driving(self: Arc<Self>) {
        loop {
            while let Some(key) = self.with(|state| state.to_drive.pop_first()) {
                self.spawn(Arc::clone(&self).drive(key));
            }
            self.drives_due.notified().await;
        }
    }

    /// Asks the API server whether it is there when it has been silent.
    async fn keep_probing(self: Arc<Self>) {
        let interval = self.options.probe_interval;
        loop {
            tokio::time::sleep(interval).await;
            if self.with(|state| state.health.silence_s(now())) < interval.as_secs_f64() {
                self.reachable(true);
                continue;
            }
            let mut is_ready = self.api.is_ready().await;
            if !is_ready {
                // Once may be bad luck.
                is_ready = self.api.is_ready().await;
            }
            self.reachable(is_ready);
        }
    }

    fn reachable(&self, is_ready: bool) {
        let is_news = self.with(|state| {
            let is_silent = !is_ready || state.health.silence_s(now()) >= self.options.probe_interval.as_secs_f64();
            let is_news = if is_silent || state.health.is_unreachable() {
                state.health.set_reachable(is_ready, now())
            } else {
                false
            };
            if is_news {
                state.changed.extend(state.entries.keys().cloned());
            }
            is_news
        });
        if is_news && is_ready {
            // Connections from before may be dead without anybody having noticed.
            self.reconnect.send_modify(|count| *count += 1);
        }
    }
}

/// Counts a kind that is not there for as long as it lives.
struct Missing<'a>(&'a watch::Sender<usize>);

impl<'a> Missing<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Missing(count)
    }
}

impl Drop for Missing<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}
