//! From custom resources to targets, and the truth back.
//!
//! Watches tell an index ([`index`]) what there is; the index says, without a clock or a network, which binding means what
//! and who gives way to whom ([`conflict`]). One task ([`actor`]) draws the consequences: it tells the decider of
//! [`Change`]s for the shards that this decider has, tracks their targets, and writes status ([`status`], [`pace`]) and
//! Events ([`events`]).

mod actor;
mod conflict;
mod events;
mod index;
mod pace;
mod status;
mod types;
mod watch;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use infer_api::{BindingSpec, PolicySpec};
use kube::Client;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    lease_task::{self, Shards},
    targets::Targets,
};
use index::Index;

pub use types::{Bound, Change, Options, Ownership, Ratio, Report};

/// Changes that wait for the decider. A cold start tells one per target, and the decider takes them as fast as it can
/// make room for a target: this much ahead of it is enough.
const CHANGES_MAX: usize = 256;
/// What watches may be ahead of the index: one page of a list.
const INPUTS_MAX: usize = 512;
/// Pods that were sent elsewhere a while ago. As many as agents may come at once.
const SENT_MAX: usize = 20_000;
/// A Pod of unknown target is not sent on to others more often than this.
const SENT_FOR: Duration = Duration::from_secs(30);
/// How long the last status writes may hold up a handover.
const FLUSH: Duration = Duration::from_secs(2);

/// All bindings, policies and what comes of them. Cheap to clone; everything ends with [`Bindings::release`] or when the
/// receiver of changes is dropped.
#[derive(Clone)]
pub struct Bindings(Arc<Inner>);

struct Inner {
    shards: Arc<Shards>,
    targets: Targets,
    index: RwLock<Index>,
    /// What was reported since it was last looked at.
    inbox: Mutex<HashMap<String, Vec<Report>>>,
    has_mail: Notify,
    /// What keeps this decider from being of use.
    missing: Mutex<Vec<String>>,
    is_synced: AtomicBool,
    /// Pods of unknown target, and when they were sent to another decider.
    sent: Mutex<HashMap<(String, String), Instant>>,
    /// Release has been asked for.
    releasing: CancellationToken,
    /// Everything has been told and written, the leases may go.
    flushed: CancellationToken,
    released: CancellationToken,
}

impl Bindings {
    /// Starts watching and contending for leases. Tells of nothing before everything there is has been read.
    ///
    /// The client's own retries should be off (`Config::default_retry = false`): each request here has its own rules.
    pub fn start(client: Client, options: Options, targets: Targets) -> (Bindings, mpsc::Receiver<Change>) {
        let (tell, changes) = mpsc::channel(CHANGES_MAX);
        let shards = Arc::new(Shards::new(options.shards));
        let inner = Arc::new(Inner {
            shards: Arc::clone(&shards),
            targets: targets.clone(),
            index: RwLock::default(),
            inbox: Mutex::default(),
            has_mail: Notify::new(),
            missing: Mutex::new(vec!["policies and bindings have not been read yet".to_owned()]),
            is_synced: AtomicBool::new(false),
            sent: Mutex::default(),
            releasing: CancellationToken::new(),
            flushed: CancellationToken::new(),
            released: CancellationToken::new(),
        });
        let (input, inputs) = mpsc::channel(INPUTS_MAX);
        let namespaces = scopes(&options.namespaces);
        for kind in [watch::Kind::Policy, watch::Kind::Binding] {
            for namespace in namespaces.clone() {
                let source = watch::Source { kind, namespace };
                let resource = watch::resource_of(kind);
                tokio::spawn(watch::run(client.clone(), resource, source, false, input.clone()));
            }
        }
        tokio::spawn(watch::discover(client.clone(), namespaces.clone(), input));
        // One per shard and change of owner; both sides are quick.
        let (moved, moves) = mpsc::channel(64);
        // Two processes of one Pod, one of them given up for dead, must not take each other for themselves.
        let identity = format!("{}_{:08x}", options.identity, fastrand::u32(..));
        let setting = lease_task::Setting {
            namespace: options.lease_namespace.clone(),
            identity: identity.clone(),
            endpoint: options.endpoint.clone(),
            timing: options.timing,
        };
        let leases = lease_task::keep(client.clone(), setting, shards, moved, inner.flushed.clone());
        let released = inner.released.clone();
        tokio::spawn(async move {
            leases.await;
            released.cancel();
        });
        let actor = actor::Actor::new(client, &options, identity, Arc::clone(&inner), namespaces, tell);
        tokio::spawn(actor.run(inputs, moves));
        (Bindings(inner), changes)
    }

    /// What a tick came to. Never waits.
    pub fn report(&self, report: Report) {
        let inner = &self.0;
        {
            let mut inbox = lock(&inner.inbox);
            let waiting = inbox.entry(report.key.clone()).or_default();
            // Of reports that decided nothing, the last is enough. Those that did are few, and none is left out while
            // they are fewer than the ticks of half a minute.
            let is_plain = |report: &Report| report.changed.is_none();
            if waiting.last().is_some_and(is_plain) || waiting.len() >= 32 {
                waiting.pop();
            }
            waiting.push(report);
        }
        inner.has_mail.notify_one();
    }

    /// Who decides on a Pod's target, for agents. One whose target is not known is sent to whoever may know it, but not
    /// in circles.
    pub fn owner_of(&self, namespace: &str, pod: &str) -> Ownership {
        let inner = &self.0;
        if let Some(key) = inner.targets.key_of(namespace, pod) {
            return self.owner_of_target(&key);
        }
        let others = inner.shards.others();
        if others.is_empty() {
            return Ownership::Unknown;
        }
        if inner.shards.held() > 0 && !inner.may_send(namespace, pod) {
            return Ownership::Unknown;
        }
        let chosen = fastrand::usize(..others.len());
        match others.into_iter().nth(chosen) {
            Some(endpoint) => Ownership::Other { endpoint },
            None => Ownership::Unknown,
        }
    }

    /// Who decides on a target, by its key.
    pub fn owner_of_target(&self, key: &str) -> Ownership {
        let shards = &self.0.shards;
        let shard = self.0.shard_of(key);
        match shards.other(shard) {
            _ if shards.is_held(shard) => Ownership::Mine,
            Some(endpoint) => Ownership::Other { endpoint },
            None => Ownership::Unknown,
        }
    }

    /// Whether what is decided on a target now may be done. False when the lease could not be renewed in time: another
    /// decider may have it soon. The target is kept until one has, as the API server's silence is more often the reason.
    pub fn may_act(&self, key: &str) -> bool {
        self.0.shards.may_act(self.0.shard_of(key))
    }

    /// Whether everything there is has been read, so that standing by is of use.
    pub fn is_ready(&self) -> bool {
        self.0.is_synced.load(Ordering::Relaxed) && self.0.shards.is_known()
    }

    /// What keeps this decider from being ready, in words; empty when it is.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = lock(&self.0.missing).clone();
        if !self.0.shards.is_known() {
            missing.push("the Leases have not been read yet".to_owned());
        }
        missing
    }

    /// How many shards this decider has, and how many there are.
    pub fn shards(&self) -> (u32, u32) {
        (self.0.shards.held(), self.0.shards.count())
    }

    /// Who else scales a target of `binding`: kind and name. For admission; from memory.
    pub fn other_owner(&self, namespace: &str, binding: &str, target: &infer_api::TargetRef) -> Option<String> {
        self.0.read().other_owner(namespace, binding, target)
    }

    /// An AutoscalingPolicy. For admission; from memory.
    pub fn policy(&self, namespace: &str, name: &str) -> Option<PolicySpec> {
        let index = self.0.read();
        let policy = index.policy(&(namespace.to_owned(), name.to_owned()))?;
        policy.spec.as_ref().ok().cloned()
    }

    /// Name and spec of the bindings that refer to a policy. For admission; from memory.
    pub fn dependents(&self, namespace: &str, policy: &str) -> Vec<(String, BindingSpec)> {
        let index = self.0.read();
        let dependents = index.dependents(namespace, policy);
        let named = dependents.filter_map(|((_, name), binding)| Some((name.clone(), binding.spec.clone().ok()?)));
        named.collect()
    }

    /// Hands over: tells [`Change::Gone`] of everything, writes what status is still owed (bounded to two seconds), gives
    /// the leases back so that nobody has to wait for them, and ends all tasks. Changes no replica count.
    pub async fn release(&self) {
        self.0.releasing.cancel();
        self.0.released.cancelled().await;
    }
}

impl Inner {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard of a key: that of its binding.
    fn shard_of(&self, key: &str) -> u32 {
        let mut words = key.splitn(3, '/');
        let (namespace, binding) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        self.shards.shard_of(namespace, binding)
    }

    fn may_send(&self, namespace: &str, pod: &str) -> bool {
        let now = Instant::now();
        let mut sent = lock(&self.sent);
        let key = (namespace.to_owned(), pod.to_owned());
        if sent.get(&key).is_some_and(|at| now - *at < SENT_FOR) {
            return false;
        }
        if sent.len() >= SENT_MAX {
            sent.retain(|_, at| now - *at < SENT_FOR);
        }
        let has_room = sent.len() < SENT_MAX;
        if has_room {
            sent.insert(key, now);
        }
        has_room
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where to look: everywhere, or in each of these namespaces.
fn scopes(namespaces: &[String]) -> Vec<Option<String>> {
    match namespaces {
        [] => vec![None],
        namespaces => namespaces.iter().cloned().map(Some).collect(),
    }
}
