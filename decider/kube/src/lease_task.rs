//! The Leases of all shards, kept by tasks; see [`crate::lease`] for the rules.
//!
//! Whoever has a lease writes it once per renewal; whoever has not only watches, and asks nothing of the API server.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::PostParams,
    core::ObjectMeta,
    runtime::watcher::{self, watcher},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    GROUP,
    failure::{Failure, within},
    lease::{Lease, Now, Record, Step, Timing, Write, Wrote},
};

/// A shard has come or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    Acquired(u32),
    Lost(u32),
}

/// What is known of who has which shard.
pub(crate) struct Shards {
    origin: Instant,
    states: Vec<Mutex<State>>,
    held: AtomicU32,
    /// Ms since `origin` until which Leases of another number of shards are in use.
    blocked_until_ms: AtomicU64,
}

#[derive(Debug, Clone, Default)]
struct State {
    known: bool,
    /// Was acquired and is not known to be lost. Outlives `mine_until` while the API server is silent.
    held: bool,
    mine_until: Option<Now>,
    /// Endpoint of somebody else who has it.
    other: Option<String>,
}

impl Shards {
    pub(crate) fn new(count: u32) -> Self {
        Shards {
            origin: Instant::now(),
            states: (0..count.max(1)).map(|_| Mutex::default()).collect(),
            held: AtomicU32::new(0),
            blocked_until_ms: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Now {
        self.origin.elapsed()
    }

    /// The shard of a binding: FNV-1a over `namespace/name`, the same for ever and everywhere.
    pub(crate) fn shard_of(&self, namespace: &str, name: &str) -> u32 {
        let bytes = namespace.bytes().chain([b'/']).chain(name.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // The low bits of FNV mix badly for short names of one pattern.
        let mixed = hash ^ (hash >> 32);
        u32::try_from(mixed % self.states.len() as u64).unwrap_or_default()
    }

    /// Whether what is done now is surely done by the only owner.
    pub(crate) fn may_act(&self, shard: u32) -> bool {
        let now = self.now();
        self.with(shard, |state| {
            state.held && state.mine_until.is_some_and(|until| now < until)
        })
        .unwrap_or_default()
    }

    /// Whether it is this decider's, as far as anybody knows.
    pub(crate) fn is_held(&self, shard: u32) -> bool {
        self.with(shard, |state| state.held).unwrap_or_default()
    }

    /// Where somebody else has it.
    pub(crate) fn other(&self, shard: u32) -> Option<String> {
        self.with(shard, |state| state.other.clone()).flatten()
    }

    /// Endpoints of everybody else who has a shard, each once, in order.
    pub(crate) fn others(&self) -> Vec<String> {
        let mut others: Vec<String> = (0..self.count()).filter_map(|shard| self.other(shard)).collect();
        others.sort();
        others.dedup();
        others
    }

    /// Whether every Lease has been looked at.
    pub(crate) fn is_known(&self) -> bool {
        (0..self.count()).all(|shard| self.with(shard, |state| state.known).unwrap_or_default())
    }

    pub(crate) fn held(&self) -> u32 {
        self.held.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.states.len()).unwrap_or(u32::MAX)
    }

    fn with<T>(&self, shard: u32, read: impl FnOnce(&mut State) -> T) -> Option<T> {
        let state = self.states.get(usize::try_from(shard).ok()?)?;
        Some(read(&mut state.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Takes over what the machine says; tells whether the shard has come or gone.
    fn publish(&self, shard: u32, lease: &Lease) -> Option<Moved> {
        let now = self.now();
        let moved = self.with(shard, |state| {
            state.known |= lease.is_seen();
            state.mine_until = lease.mine_until();
            state.other = lease
                .record()
                .filter(|_| lease.is_others(now))
                .map(|record| record.endpoint.clone())
                .filter(|endpoint| !endpoint.is_empty());
            let held = lease.is_mine(now) || state.held && lease.is_named() && !lease.is_released();
            let moved = match (state.held, held) {
                (false, true) => Some(Moved::Acquired(shard)),
                (true, false) => Some(Moved::Lost(shard)),
                _ => None,
            };
            state.held = held;
            moved
        })?;
        match moved {
            Some(Moved::Acquired(_)) => drop(self.held.fetch_add(1, Ordering::Relaxed)),
            Some(Moved::Lost(_)) => drop(self.held.fetch_sub(1, Ordering::Relaxed)),
            None => {}
        }
        moved
    }
}

/// What the tasks are started with.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) namespace: String,
    pub(crate) identity: String,
    pub(crate) endpoint: String,
    pub(crate) timing: Timing,
}

const LABEL: &str = "lease";
const LABEL_VALUE: &str = "shard";

fn name_of(shard: u32) -> String {
    format!("infer-decider-shard-{shard}")
}

/// Keeps all leases until `release`; then gives them back and ends.
pub(crate) async fn keep(
    client: Client,
    setting: Setting,
    shards: Arc<Shards>,
    moved: mpsc::Sender<Moved>,
    release: CancellationToken,
) {
    let api: Api<LeaseObject> = Api::namespaced(client, &setting.namespace);
    let mut tasks = JoinSet::new();
    let mut told = HashMap::new();
    for shard in 0..shards.count() {
        // A record a renewal at most; a reader that is in the middle of a request is back within its timeout.
        let (tell, objects) = mpsc::channel(16);
        told.insert(name_of(shard), tell);
        let keeper = Keeper {
            api: api.clone(),
            setting: setting.clone(),
            shards: Arc::clone(&shards),
            moved: moved.clone(),
            release: release.clone(),
            shard,
            lease: Lease::new(setting.timing, &setting.identity, &setting.endpoint),
            metadata: ObjectMeta::default(),
            acquired: jiff::Timestamp::now(),
            was_refused: false,
        };
        tasks.spawn(keeper.run(objects));
    }
    drop(moved);
    let watching = watch(api, Arc::clone(&shards), setting.timing, told);
    tokio::select! {
        () = watching => {}
        () = async { while tasks.join_next().await.is_some() {} } => {}
    }
}

/// Tells each keeper of its record, and everybody of Leases that mean another division.
async fn watch(
    api: Api<LeaseObject>,
    shards: Arc<Shards>,
    timing: Timing,
    told: HashMap<String, mpsc::Sender<Option<Box<LeaseObject>>>>,
) {
    let selector = format!("{GROUP}/{LABEL}={LABEL_VALUE}");
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default().labels(&selector).timeout(120)));
    let mut failures = 0;
    while let Some(event) = stream.next().await {
        let (object, is_gone) = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => (object, false),
            Ok(watcher::Event::Delete(object)) => (object, true),
            Ok(watcher::Event::Init) => continue,
            Ok(watcher::Event::InitDone) => {
                failures = 0;
                continue;
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(%error, "the watch of Leases has failed, it goes on");
                }
                failures += 1;
                crate::backoff(failures, Duration::from_secs(2)).await;
                continue;
            }
        };
        failures = 0;
        let name = object.metadata.name.clone().unwrap_or_default();
        let record = record_of(&object);
        let divided_by = divided_by(&object);
        if !is_gone && !record.holder.is_empty() && divided_by.is_some_and(|count| count != shards.count()) {
            let until = shards.now() + record.duration.max(timing.duration);
            let until_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
            shards.blocked_until_ms.fetch_max(until_ms, Ordering::Relaxed);
            tracing::warn!(
                lease = name,
                theirs = divided_by,
                ours = shards.count(),
                "another decider divides the bindings by another number; nothing is taken while it lives"
            );
        }
        if let Some(tell) = told.get(&name) {
            // Full: the keeper is waiting for an answer. It reads what it has missed when a write does not fit.
            tell.try_send((!is_gone).then(|| Box::new(object))).ok();
        }
    }
}

struct Keeper {
    api: Api<LeaseObject>,
    setting: Setting,
    shards: Arc<Shards>,
    moved: mpsc::Sender<Moved>,
    release: CancellationToken,
    shard: u32,
    lease: Lease,
    /// Of the object last seen: labels of others stay as they are.
    metadata: ObjectMeta,
    acquired: jiff::Timestamp,
    was_refused: bool,
}

impl Keeper {
    async fn run(mut self, mut objects: mpsc::Receiver<Option<Box<LeaseObject>>>) {
        while !self.release.is_cancelled() {
            self.publish().await;
            let now = self.shards.now();
            let blocked = Duration::from_millis(self.shards.blocked_until_ms.load(Ordering::Relaxed));
            match self.lease.step(now, self.hesitation()) {
                Step::Write(write) if write.takes && now < blocked => {
                    self.wait(blocked, &mut objects).await;
                }
                Step::Write(write) => {
                    let result = self.write(&write).await;
                    self.lease.wrote(self.shards.now(), &write, result);
                }
                Step::Read => {
                    let read = within(self.timeout(), self.api.get_opt(&name_of(self.shard))).await;
                    match read {
                        Ok(object) => self.observe(object),
                        Err(failure) => {
                            self.complain(&failure);
                            self.lease.failed_to_read(self.shards.now());
                        }
                    }
                }
                Step::Wait(until) => self.wait(until, &mut objects).await,
            }
        }
        let write = self.lease.release(self.shards.now());
        self.publish().await;
        if let Some(write) = write {
            self.write(&write).await;
        }
    }

    /// Leaves a free lease to those who have fewer, so that deciders that start together share.
    fn hesitation(&self) -> Duration {
        Duration::from_millis(500).saturating_mul(self.shards.held())
    }

    /// An answer that comes later than the next renewal is due is of no use.
    fn timeout(&self) -> Duration {
        self.setting.timing.renew
    }

    async fn wait(&mut self, until: Now, objects: &mut mpsc::Receiver<Option<Box<LeaseObject>>>) {
        // Looked at again at least that often: leases of others run out, and `until` may be for ever.
        let soon = self.shards.now() + self.setting.timing.renew;
        let until = self.shards.origin + until.min(soon);
        let object = tokio::select! {
            () = sleep_until(until) => return,
            () = self.release.cancelled() => return,
            object = objects.recv() => object,
        };
        match object {
            Some(object) => self.observe(object.map(|object| *object)),
            // The watch has ended, which it does with everything else.
            None => sleep_until(until).await,
        }
    }

    fn observe(&mut self, object: Option<LeaseObject>) {
        self.lease.observe(self.shards.now(), object.as_ref().map(record_of));
        self.metadata = object.map(|object| object.metadata).unwrap_or_default();
    }

    async fn publish(&self) {
        if let Some(moved) = self.shards.publish(self.shard, &self.lease) {
            match moved {
                Moved::Acquired(shard) => tracing::info!(shard, "this decider has the shard"),
                Moved::Lost(shard) => tracing::info!(shard, "this decider has the shard no more"),
            }
            // Told in time or not at all: a receiver that does not listen must not keep the lease from being renewed.
            timeout(self.setting.timing.renew, self.moved.send(moved)).await.ok();
        }
    }

    async fn write(&mut self, write: &Write) -> Wrote {
        let name = name_of(self.shard);
        if write.takes {
            self.acquired = jiff::Timestamp::now();
        }
        let object = object_of(&name, self.shards.count(), write, &self.metadata, self.acquired);
        let params = PostParams {
            field_manager: Some(crate::FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let answer = match write.expect {
            None => within(self.timeout(), self.api.create(&params, &object)).await,
            Some(_) => within(self.timeout(), self.api.replace(&name, &params, &object)).await,
        };
        match answer {
            Ok(written) => {
                self.was_refused = false;
                let version = written.metadata.resource_version.clone().unwrap_or_default();
                self.metadata = written.metadata;
                Wrote::Done(version)
            }
            Err(Failure::Api(status)) if matches!(status.code, 404 | 409) && !is_missing_namespace(&status) => {
                Wrote::Conflict
            }
            Err(failure) => {
                self.complain(&failure);
                Wrote::Failed
            }
        }
    }

    fn complain(&mut self, failure: &Failure) {
        if !std::mem::replace(&mut self.was_refused, true) {
            tracing::warn!(
                lease = format!("{}/{}", self.setting.namespace, name_of(self.shard)),
                %failure,
                "the Lease could not be read or written; it is tried again"
            );
        }
    }
}

/// A create into a namespace that is not there is "not found" as well, and reading again does not help.
fn is_missing_namespace(status: &kube::core::Status) -> bool {
    status.code == 404
        && status
            .details
            .as_ref()
            .is_some_and(|details| details.kind == "namespaces")
}

fn divided_by(object: &LeaseObject) -> Option<u32> {
    let annotations = object.metadata.annotations.as_ref()?;
    annotations.get(&format!("{GROUP}/shards"))?.parse().ok()
}

fn record_of(object: &LeaseObject) -> Record {
    let spec = object.spec.clone().unwrap_or_default();
    let annotations = object.metadata.annotations.as_ref();
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        endpoint: annotations
            .and_then(|annotations| annotations.get(&format!("{GROUP}/endpoint")).cloned())
            .unwrap_or_default(),
        duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
        transitions: u32::try_from(spec.lease_transitions.unwrap_or_default()).unwrap_or_default(),
        version: object.metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// The object that replaces the one with that metadata. The times in it are for people.
fn object_of(name: &str, shards: u32, write: &Write, before: &ObjectMeta, acquired: jiff::Timestamp) -> LeaseObject {
    let record = &write.record;
    let seconds = record.duration.as_secs().max(1);
    let mut labels = before.labels.clone().unwrap_or_default();
    labels.insert(format!("{GROUP}/{LABEL}"), LABEL_VALUE.to_owned());
    let mut annotations = before.annotations.clone().unwrap_or_default();
    annotations.insert(format!("{GROUP}/endpoint"), record.endpoint.clone());
    annotations.insert(format!("{GROUP}/shards"), shards.to_string());
    LeaseObject {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: write.expect.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: before.owner_references.clone(),
            finalizers: before.finalizers.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(record.holder.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            lease_transitions: Some(i32::try_from(record.transitions).unwrap_or(i32::MAX)),
            acquire_time: Some(MicroTime(acquired)),
            renew_time: Some(MicroTime(jiff::Timestamp::now())),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bindings must not all fall on one decider, and never move by themselves.
    #[test]
    fn shards_are_even_and_fixed() {
        let shards = Shards::new(4);
        assert_eq!(shards.shard_of("default", "chat"), 3, "as in every version");
        let mut counts = [0_u32; 4];
        for n in 0..1000 {
            let shard = shards.shard_of("team", &format!("model-{n}"));
            counts[usize::try_from(shard).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (180..=320).contains(count)), "{counts:?}");
        assert_eq!(Shards::new(1).shard_of("a", "b"), 0);
    }
}
