//! From parts to fleets and back: what replicas there are, and how their number is changed.
//!
//! Watches tell what there is (Pods as a whole, targets by their metadata); a count is read when its object's
//! specification has changed, and only then. Everything that can be thought without I/O is: where a Pod is in its life
//! (`pod`), which Pods are one replica (`replica`), who goes first (`victims`), how a total is spread over parts
//! (`spread`), when a drain has ended (`machine`). `state` puts it together behind one lock; `shared` and `apply` do
//! what it says.

mod api;
mod apply;
mod entry;
mod health;
mod kinds;
mod listener;
mod machine;
mod managers;
mod path;
mod plan;
mod pod;
mod pods;
mod problems;
mod read;
mod replica;
mod selector;
mod shared;
mod spread;
mod state;
mod types;
mod victims;
mod watch;

use std::{collections::BTreeSet, sync::Arc};

use infer_core::decision::Plan;
use kube::Client;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use types::{ApplyError, Detail, DrainSpec, Fleet, ForeignChange, Options, Part, PartState, Problem, TargetRef};

use crate::Agents;
use listener::Listener;
use shared::{CLOSE_TIMEOUT, Shared};

/// Every target that is tracked. Cheap to clone; its tasks end when [`Targets::close`] has been called or the last
/// clone is gone.
#[derive(Clone)]
pub struct Targets {
    shared: Arc<Shared>,
    _guard: Arc<DropGuard>,
}

/// Keys whose fleet or problems have changed, each once however often it has. See [`Targets::subscribe`].
pub struct Changes {
    listener: Arc<Listener>,
    cancel: CancellationToken,
}

impl Changes {
    /// Keys that have changed since the last call; waits until there is one. `None` when nothing can change any more.
    pub async fn next(&mut self) -> Option<BTreeSet<String>> {
        self.listener.next(&self.cancel).await
    }
}

impl Targets {
    /// Starts watching; to be called inside a tokio runtime. Returns at once; [`Targets::fleet`] is `None` until a
    /// target is known.
    pub fn start(client: Client, options: Options, agents: Arc<dyn Agents>) -> Targets {
        let shared = Shared::new(client, options, agents);
        shared.start();
        Targets {
            _guard: Arc::new(shared.cancel.clone().drop_guard()),
            shared,
        }
    }

    /// Looks at a target from now on. The same parts again change nothing; others take the place of those before.
    pub fn track(&self, key: &str, parts: Vec<Part>, drain: DrainSpec) {
        self.let_go(key, |state| state.track(key, parts, drain));
    }

    /// Forgets a target. A drain under way is cancelled.
    pub fn untrack(&self, key: &str) {
        self.let_go(key, |state| state.untrack(key));
    }

    fn let_go(&self, key: &str, change: impl FnOnce(&mut state::State) -> Vec<machine::Action>) {
        let (namespaces, released) = self.shared.with(|state| {
            let parts = state
                .entries
                .get(key)
                .map(|entry| entry.parts.as_slice())
                .unwrap_or_default();
            let namespaces: Vec<String> = parts.iter().map(|part| part.namespace().to_owned()).collect();
            (namespaces, change(state))
        });
        if !released.is_empty() {
            let task = Arc::clone(&self.shared).release(key.to_owned(), namespaces, released);
            self.shared.tasks.spawn(task);
        }
    }

    /// What there is of a target; `None` until every part has been seen, and while one is gone.
    pub fn fleet(&self, key: &str) -> Option<Fleet> {
        self.shared.with(|state| state.fleet(key))
    }

    /// What is wrong with a target's parts.
    pub fn problems(&self, key: &str) -> Vec<Problem> {
        self.shared.with(|state| state.problems(key))
    }

    /// The key of the target that a Pod is part of, for agents that only know their Pod.
    pub fn key_of(&self, namespace: &str, pod: &str) -> Option<String> {
        self.shared
            .with(|state| Some(state.pods.part_of(namespace, pod)?.0.to_string()))
    }

    /// Applies a plan. More replicas: when the API server has taken it. Fewer: when the drain has begun; it goes on by
    /// itself. Applying the same plan twice changes nothing. The change goes on when the returned future is dropped.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn apply(&self, plan: Plan, plan_id: String) -> Result<(), ApplyError> {
        let task = Arc::clone(&self.shared).apply(plan, plan_id);
        match self.shared.tasks.spawn(task).await {
            Ok(outcome) => outcome,
            Err(error) => Err(ApplyError::Backend(format!("the task has ended: {error}"))),
        }
    }

    /// Tells of changed targets from now on.
    pub fn subscribe(&self) -> Changes {
        Changes {
            listener: self.shared.listen(),
            cancel: self.shared.cancel.clone(),
        }
    }

    /// Counts that somebody else has changed, from now on. One that reads too slowly loses the oldest and is told so.
    pub fn foreign_changes(&self) -> broadcast::Receiver<ForeignChange> {
        self.shared.foreign.subscribe()
    }

    /// Cancels every drain (agents serve again, annotations are taken back) and ends all tasks. Bounded to a few
    /// seconds. Changes no replica count.
    pub async fn close(&self) {
        let keys: Vec<Arc<str>> = self.shared.with(|state| state.entries.keys().cloned().collect());
        for key in keys {
            self.untrack(&key);
        }
        self.shared.tasks.close();
        // What is under way now is the freeing of victims, besides what never ends by itself.
        self.shared.cancel.cancel();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.shared.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("not every drain could be taken back in time");
        }
    }
}
