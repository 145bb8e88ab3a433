//! The one task that draws consequences.

mod writing;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use infer_api::{ForeignChanges, ResolvedBound};
use kube::Client;
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    FLUSH, Inner,
    events::Events,
    index::{Id, Settled, State},
    lock,
    pace::{Limits, Pace},
    status::{Latest, memory_of},
    types::{Bound, Change, Options},
    watch::{FOREIGN, Input, Kind, Source, Told},
};
use crate::{
    lease_task::Moved,
    targets::{Changes, DrainSpec, ForeignChange, Part, TargetRef},
};
use writing::{Outcome, Status, Written};

/// Reports are looked at together, this often.
const MAIL_EVERY: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Actor {
    client: Client,
    events: Events,
    inner: Arc<Inner>,
    tell: mpsc::Sender<Change>,
    drain_quiet_s: f64,
    request_timeout: Duration,
    origin: Instant,
    /// Sources that have not told everything yet.
    unsynced: BTreeSet<Source>,
    namespaces: Vec<Option<String>>,
    is_discovered: bool,
    /// Sources that do not work now, and why.
    failing: BTreeMap<Source, String>,
    /// What the decider was told, by key.
    told: HashMap<String, ResolvedBound>,
    /// Keys of a binding that the decider was told of.
    keys: HashMap<Id, Vec<String>>,
    latest: HashMap<String, Latest>,
    written: HashMap<Written, (Status, String)>,
    pace: Pace<Written>,
    writes: JoinSet<Outcome>,
    changes: Option<Changes>,
    foreign: broadcast::Receiver<ForeignChange>,
}

/// What happened next.
enum Next {
    Inputs,
    Moved(Option<Moved>),
    Targets(Option<BTreeSet<String>>),
    Foreign(Result<ForeignChange, broadcast::error::RecvError>),
    Mail,
    Written(Box<Outcome>),
    Due,
    End,
}

impl Actor {
    pub(super) fn new(
        client: Client,
        options: &Options,
        identity: String,
        inner: Arc<Inner>,
        namespaces: Vec<Option<String>>,
        tell: mpsc::Sender<Change>,
    ) -> Self {
        let own = [Kind::Policy, Kind::Binding].into_iter();
        let unsynced = own.flat_map(|kind| {
            let sources = namespaces.iter().cloned();
            sources.map(move |namespace| Source { kind, namespace })
        });
        let limits = Limits {
            interval: options.status_interval,
            per_s: options.status_writes_per_s,
            burst: options.status_writes_per_s.max(1.0),
            // At 5 ms a write, enough for far more than the bucket gives; and little enough to leave an API server in
            // trouble in peace.
            at_once: 8,
        };
        Actor {
            events: Events::start(client.clone(), identity, options.request_timeout),
            tell,
            drain_quiet_s: DrainSpec::default().quiet_s,
            request_timeout: options.request_timeout,
            origin: Instant::now(),
            unsynced: unsynced.collect(),
            namespaces,
            is_discovered: false,
            failing: BTreeMap::new(),
            told: HashMap::new(),
            keys: HashMap::new(),
            latest: HashMap::new(),
            written: HashMap::new(),
            pace: Pace::new(limits),
            writes: JoinSet::new(),
            changes: Some(inner.targets.subscribe()),
            foreign: inner.targets.foreign_changes(),
            client,
            inner,
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut moves: mpsc::Receiver<Moved>) {
        let mut batch = Vec::new();
        let mut mail_at: Option<Instant> = None;
        loop {
            let due_at = self.pace.next_at(self.now()).map(|at| self.origin + at);
            let inner = Arc::clone(&self.inner);
            let next = tokio::select! {
                () = inner.releasing.cancelled() => Next::End,
                () = self.tell.closed() => Next::End,
                // Orders before news: who owns what decides what the rest means.
                moved = moves.recv() => Next::Moved(moved),
                count = inputs.recv_many(&mut batch, 256) => if count == 0 { Next::End } else { Next::Inputs },
                keys = next_keys(&mut self.changes) => Next::Targets(keys),
                change = self.foreign.recv() => Next::Foreign(change),
                () = inner.has_mail.notified(), if mail_at.is_none() => {
                    mail_at = Some(Instant::now() + MAIL_EVERY);
                    continue;
                }
                () = until(mail_at) => Next::Mail,
                Some(Ok(outcome)) = self.writes.join_next() => Next::Written(Box::new(outcome)),
                () = until(due_at) => Next::Due,
            };
            match next {
                Next::Inputs => self.take(std::mem::take(&mut batch)).await,
                Next::Moved(Some(moved)) => self.moved(moved).await,
                // The leases' task ends only after this one has.
                Next::Moved(None) | Next::End => break,
                Next::Targets(Some(keys)) => self.targets_changed(&keys),
                Next::Targets(None) => self.changes = None,
                Next::Foreign(change) => self.foreign_change(change),
                Next::Mail => {
                    mail_at = None;
                    self.read_mail();
                }
                Next::Written(outcome) => self.wrote(*outcome),
                Next::Due => self.write_due(),
            }
        }
        self.end().await;
    }

    /// Stops deciding first, then writes what is owed, and only then lets others begin.
    async fn end(&mut self) {
        let keys: Vec<String> = self.told.keys().cloned().collect();
        for key in keys {
            self.tell.send(Change::Gone(key)).await.ok();
        }
        self.read_mail();
        let deadline = Instant::now() + FLUSH;
        while !self.pace.is_idle() && Instant::now() < deadline {
            self.write_due();
            let due_at = self.pace.next_at(self.now()).map_or(deadline, |at| self.origin + at);
            tokio::select! {
                Some(Ok(outcome)) = self.writes.join_next() => self.wrote(outcome),
                () = sleep_until(due_at.min(deadline)) => {}
            }
        }
        self.inner.flushed.cancel();
    }

    async fn take(&mut self, batch: Vec<Input>) {
        let inner = Arc::clone(&self.inner);
        let settled = {
            let mut index = inner.write();
            for input in batch {
                match input {
                    Input::Discovered(kinds) => self.discovered(&kinds),
                    Input::Watch(source, told) => {
                        self.note(&source, &told);
                        index.tell(&source, told);
                    }
                }
            }
            index.settle()
        };
        self.say_what_is_missing();
        if !self.is_synced() {
            return;
        }
        if !inner.is_synced.swap(true, Ordering::Relaxed) {
            return self.everything().await;
        }
        self.settled(&settled).await;
    }

    fn discovered(&mut self, kinds: &HashSet<usize>) {
        // Later ones are younger than what is bound already: nothing waits for them.
        if !std::mem::replace(&mut self.is_discovered, true) {
            for kind in kinds.iter().copied().map(Kind::Foreign) {
                for namespace in self.namespaces.clone() {
                    self.unsynced.insert(Source { kind, namespace });
                }
            }
        }
    }

    fn note(&mut self, source: &Source, told: &Told) {
        match told {
            Told::Complete => {
                self.failing.remove(source);
                self.unsynced.remove(source);
            }
            Told::Is(_) | Told::Gone { .. } => drop(self.failing.remove(source)),
            Told::Begins => {}
            Told::Fails(problem) => {
                let kind = source.kind.name();
                let namespace = source.namespace.as_deref().unwrap_or("all namespaces");
                tracing::warn!(kind, namespace, problem, "the watch has failed, it is tried again");
                // Whoever may not read them goes on without: two autoscalers on one target are then not noticed.
                if let Kind::Foreign(index) = source.kind
                    && self.unsynced.remove(source)
                {
                    let group = FOREIGN.get(index).map_or("", |(group, _)| group);
                    tracing::warn!(kind, group, "conflicts with these will not be noticed");
                }
                self.failing.insert(source.clone(), problem.clone());
            }
        }
    }

    fn is_synced(&self) -> bool {
        self.unsynced.is_empty() && self.is_discovered
    }

    fn say_what_is_missing(&self) {
        let mut missing = Vec::new();
        for source in &self.unsynced {
            let kind = source.kind.name();
            missing.push(match self.failing.get(source) {
                Some(problem) => format!("{kind} objects cannot be read: {problem}"),
                None => format!("{kind} objects have not been read yet"),
            });
        }
        if !self.is_discovered {
            missing.push("the kinds of the API server have not been read yet".to_owned());
        }
        *lock(&self.inner.missing) = missing;
    }

    async fn moved(&mut self, moved: Moved) {
        match moved {
            Moved::Acquired(_) if self.is_synced() => self.everything().await,
            Moved::Acquired(_) => {}
            Moved::Lost(shard) => {
                let inner = Arc::clone(&self.inner);
                let ids: Vec<Id> = self.keys.keys().cloned().collect();
                for id in ids.iter().filter(|id| inner.shards.shard_of(&id.0, &id.1) == shard) {
                    self.let_go(id, &[]).await;
                }
                let lost: Vec<Written> = self.written.keys().cloned().collect();
                for object in lost {
                    let (namespace, name) = object.id();
                    if inner.shards.shard_of(namespace, name) == shard {
                        self.pace.forget(&object);
                        self.written.remove(&object);
                    }
                }
            }
        }
    }

    /// Looks at all there is: after everything was read, and when a shard has come.
    async fn everything(&mut self) {
        let settled = {
            let index = self.inner.read();
            Settled {
                bindings: index.bindings().map(|(id, _)| id.clone()).collect(),
                policies: index.policies().cloned().collect(),
            }
        };
        self.settled(&settled).await;
    }

    async fn settled(&mut self, settled: &Settled) {
        for id in &settled.bindings {
            if self.inner.shards.is_held(self.inner.shards.shard_of(&id.0, &id.1)) {
                self.binding(id).await;
            }
        }
        for id in &settled.policies {
            if self.inner.shards.is_held(self.inner.shards.shard_of(&id.0, &id.1)) {
                self.mark(Written::Policy(id.clone()), false);
            }
        }
    }

    /// Brings what the decider knows of a binding in line with what it means now.
    async fn binding(&mut self, id: &Id) {
        let inner = Arc::clone(&self.inner);
        let found = {
            let index = inner.read();
            index.binding(id).map(|binding| {
                let bounds = match &binding.state {
                    State::Active(bounds) if !binding.meta.is_going => bounds.clone(),
                    _ => Vec::new(),
                };
                let memories: Vec<_> = bounds.iter().map(|bound| memory_of(&binding.status, bound)).collect();
                (bounds, memories)
            })
        };
        let Some((bounds, memories)) = found else {
            self.let_go(id, &[]).await;
            let object = Written::Binding(id.clone());
            self.pace.forget(&object);
            self.written.remove(&object);
            return;
        };
        let keys: Vec<&str> = bounds.iter().map(|bound| bound.key.as_str()).collect();
        self.let_go(id, &keys).await;
        for (bound, memory) in bounds.iter().zip(memories) {
            let known = self.told.get(&bound.key);
            if known == Some(bound) {
                continue;
            }
            let memory = memory.filter(|_| known.is_none());
            let parts = parts_of(&id.0, bound);
            let drain = DrainSpec {
                timeout_s: bound.drain_timeout.as_secs_f64(),
                quiet_s: self.drain_quiet_s,
            };
            inner.targets.track(&bound.key, parts.clone(), drain);
            let change = Bound {
                key: bound.key.clone(),
                namespace: id.0.clone(),
                binding: id.1.clone(),
                role: bound.role.clone(),
                policy_name: bound.policy_name.clone(),
                policy: Arc::new(bound.policy.clone()),
                bounds: bound.bounds,
                control: bound.control(),
                parts,
                drain,
                foreign_changes: bound.foreign_changes,
                demand: bound.demand.clone(),
                memory,
                ratio: bound.ratio.clone(),
            };
            self.told.insert(bound.key.clone(), bound.clone());
            self.keys.entry(id.clone()).or_default().push(bound.key.clone());
            self.tell.send(Change::Bound(Box::new(change))).await.ok();
        }
        if let Some(keys) = self.keys.get_mut(id) {
            keys.sort();
            keys.dedup();
        }
        self.mark(Written::Binding(id.clone()), false);
    }

    /// Tells that the keys of a binding are gone, but for those.
    async fn let_go(&mut self, id: &Id, but: &[&str]) {
        let Some(keys) = self.keys.get_mut(id) else {
            return;
        };
        let (kept, gone) = std::mem::take(keys)
            .into_iter()
            .partition(|key| but.contains(&key.as_str()));
        *keys = kept;
        if keys.is_empty() {
            self.keys.remove(id);
        }
        let gone: Vec<String> = gone;
        for key in gone {
            self.told.remove(&key);
            self.latest.remove(&key);
            self.tell.send(Change::Gone(key.clone())).await.ok();
            self.inner.targets.untrack(&key);
        }
    }

    fn targets_changed(&mut self, keys: &BTreeSet<String>) {
        let ids: BTreeSet<Id> = keys.iter().filter_map(|key| self.id_of(key)).collect();
        for id in ids {
            self.mark(Written::Binding(id), false);
        }
    }

    /// The binding of a key that the decider was told of.
    fn id_of(&self, key: &str) -> Option<Id> {
        self.told.contains_key(key).then_some(())?;
        let mut words = key.splitn(3, '/');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    }

    fn read_mail(&mut self) {
        let mail = std::mem::take(&mut *lock(&self.inner.inbox));
        for (key, reports) in mail {
            let Some(id) = self.id_of(&key) else {
                continue;
            };
            let mut is_visible = false;
            let mut is_decision = false;
            for report in reports {
                let before = self
                    .latest
                    .get(&key)
                    .and_then(|latest| latest.last.as_ref())
                    .map(|last| last.id);
                let decision = report.decision.filter(|_| report.changed.is_some());
                let is_new = decision.is_some_and(|(number, _)| i64::try_from(number).ok() != before);
                if is_new {
                    self.tell_of_decision(&id, &report);
                }
                is_decision |= is_new;
                match self.latest.get_mut(&key) {
                    Some(latest) => is_visible |= latest.take(report),
                    None => {
                        self.latest.insert(key.clone(), Latest::new(report));
                        is_visible = true;
                    }
                }
            }
            if is_visible {
                self.mark(Written::Binding(id), is_decision);
            }
        }
    }

    fn foreign_change(&mut self, change: Result<ForeignChange, broadcast::error::RecvError>) {
        let change = match change {
            Ok(change) => change,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "changes of replicas by others went untold");
                return;
            }
            Err(broadcast::error::RecvError::Closed) => {
                // Nothing will come any more; a receiver of a channel that is never used waits for ever.
                self.foreign = broadcast::channel(1).1;
                return;
            }
        };
        let (Some(id), Some(bound)) = (self.id_of(&change.key), self.told.get(&change.key)) else {
            return;
        };
        let who = match change.manager.as_str() {
            "" => "somebody else".to_owned(),
            manager => manager.to_owned(),
        };
        let then = match bound.foreign_changes {
            ForeignChanges::Adopt => "decisions go on from there",
            ForeignChanges::Correct => "it is corrected",
        };
        let note = format!(
            "{who} changed {} from {} to {} replicas; {then}",
            change.target, change.from, change.to
        );
        self.happened(&id, false, "Observe", "ReplicasChangedByOther", note);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // However this ended: nobody waits for it.
        self.inner.flushed.cancel();
        *lock(&self.inner.missing) = vec!["the bindings are not watched any more".to_owned()];
        self.inner.is_synced.store(false, Ordering::Relaxed);
    }
}

async fn next_keys(changes: &mut Option<Changes>) -> Option<BTreeSet<String>> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn parts_of(namespace: &str, bound: &ResolvedBound) -> Vec<Part> {
    let parts = bound.parts.iter().map(|part| Part {
        name: part.name.clone(),
        target: TargetRef {
            replicas_path: part.replicas_path.clone(),
            ..TargetRef::scale(namespace, &part.api_version, &part.kind, &part.target_name)
        },
        min: part.min,
        max: part.max,
        cost: part.cost,
    });
    parts.collect()
}
