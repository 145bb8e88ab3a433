//! `Decisions`: what people and tools ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
};

use infer_core::{TimeMs, decision::Control};
use infer_proto::v1::{self, decisions_server::Decisions, explain_request::What};
use tokio::sync::{broadcast::error::RecvError, mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::{
    auth::{Access, bearer},
    hooks::Owner,
    journal::Entry,
    state::{Entity, Shared, State, Word, count},
    stopped, view,
};

/// Messages not yet taken by a watcher's transport; then the watcher waits, not the decider.
const WATCH_QUEUE: usize = 64;
const LIST_DEFAULT: usize = 50;
const LIST_MAX: usize = 1000;
/// Nobody overrides for longer than a day.
const OVERRIDE_S_MAX: u32 = 86_400;
const REASON_MAX: usize = 512;
/// Quantiles per question; each costs a walk over the window's histograms while everybody else waits.
const QUANTILES_MAX: usize = 32;

type Watch<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub struct Queries {
    shared: Arc<Shared>,
    shutdown: watch::Receiver<bool>,
}

impl Queries {
    /// `shutdown` turning true ends every watch.
    pub fn new(shared: Arc<Shared>, shutdown: watch::Receiver<bool>) -> Self {
        Queries { shared, shutdown }
    }

    /// Whether the asker may do that with a target (empty: with all of them), and whether it is here.
    async fn admit(&self, metadata: &MetadataMap, access: Access, target: &str) -> Result<(), Status> {
        let hooks = self.shared.hooks();
        let namespace = target.split_once('/').map_or("", |(namespace, _)| namespace);
        let allowed = hooks
            .authenticate
            .person(bearer(metadata.as_ref()), access, namespace.to_owned())
            .await;
        allowed.inspect_err(|_| count(&self.shared.counters.unauthenticated))?;
        if target.is_empty() || self.shared.state().targets.contains_key(target) {
            return Ok(());
        }
        match hooks.ownership.of_target(target) {
            Owner::Other { endpoint } => Err(Status::failed_precondition(format!(
                "target {target:?} is decided on by another decider: ask {endpoint}"
            ))),
            Owner::Mine | Owner::Unknown => find(&mut self.shared.state(), target).map(|_| ()),
        }
    }

    /// Empty for a decision that is not kept (any more).
    fn target_of_decision(&self, id: u64) -> String {
        let state = self.shared.state();
        let found = state.decisions.iter().find(|decision| decision.id == id);
        found.map_or_else(String::new, |decision| decision.record.target.clone())
    }

    /// Sets or ends a person's word on a target.
    fn speak(&self, name: &str, word: Option<Word>) -> Result<Response<v1::Target>, Status> {
        let now = self.shared.clock.now();
        let answer = {
            let mut state = self.shared.state();
            let entity = find(&mut state, name)?;
            entity.word = word;
            entity.target.set_control(entity.control());
            entity.dirty = true;
            self.shared
                .journal
                .append(Entry::Control(Word::to_entry(name, entity.word.as_ref())));
            tracing::info!(target_name = name, word = ?entity.word, "told by a person");
            view::target(entity, now)
        };
        self.shared.wake.notify_one();
        self.shared.publish();
        Ok(Response::new(answer))
    }

    fn expiry(&self, for_s: u32) -> Option<TimeMs> {
        (for_s > 0).then(|| self.shared.clock.now().plus_s(f64::from(for_s)))
    }
}

fn find<'a>(state: &'a mut State, name: &str) -> Result<&'a mut Entity, Status> {
    let names = state.names();
    state
        .targets
        .get_mut(name)
        .ok_or_else(|| Status::not_found(format!("no target {name:?}; targets here: {names}")))
}

fn check_reason(reason: &str) -> Result<(), Status> {
    if reason.len() > REASON_MAX {
        return Err(Status::invalid_argument(format!(
            "reason has {} bytes, at most {REASON_MAX}",
            reason.len()
        )));
    }
    Ok(())
}

#[tonic::async_trait]
impl Decisions for Queries {
    type WatchTargetsStream = Watch<v1::Target>;
    type WatchDecisionsStream = Watch<v1::Decision>;

    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Result<Response<v1::Status>, Status> {
        self.admit(request.metadata(), Access::Read, "").await?;
        Ok(Response::new(view::status(&self.shared)))
    }

    async fn list_targets(
        &self,
        request: Request<v1::ListTargetsRequest>,
    ) -> Result<Response<v1::ListTargetsResponse>, Status> {
        self.admit(request.metadata(), Access::Read, "").await?;
        let now = self.shared.clock.now();
        let state = self.shared.state();
        let targets = state.targets.values().map(|entity| view::target(entity, now)).collect();
        Ok(Response::new(v1::ListTargetsResponse { targets }))
    }

    async fn watch_targets(
        &self,
        request: Request<v1::WatchTargetsRequest>,
    ) -> Result<Response<Self::WatchTargetsStream>, Status> {
        self.admit(request.metadata(), Access::Read, &request.get_ref().target)
            .await?;
        let only = request.into_inner().target;
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        let shared = Arc::clone(&self.shared);
        let mut changed = shared.changed.subscribe();
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let mut sent: BTreeMap<String, v1::Target> = BTreeMap::new();
            loop {
                let now = shared.clock.now();
                let targets: Vec<_> = {
                    let state = shared.state();
                    let wanted = state
                        .targets
                        .values()
                        .filter(|entity| only.is_empty() || entity.spec.name == only);
                    wanted.map(|entity| view::target(entity, now)).collect()
                };
                for target in targets {
                    // Ages alone are no change.
                    let mut ageless = target.clone();
                    ageless.pods.iter_mut().for_each(|pod| pod.sample_age_ms = None);
                    if sent.get(&target.name) == Some(&ageless) {
                        continue;
                    }
                    sent.insert(target.name.clone(), ageless);
                    if sender.send(Ok(target)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    seen = changed.changed() => if seen.is_err() { return },
                    () = sender.closed() => return,
                    () = stopped(&mut shutdown) => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_decisions(
        &self,
        request: Request<v1::ListDecisionsRequest>,
    ) -> Result<Response<v1::ListDecisionsResponse>, Status> {
        self.admit(request.metadata(), Access::Read, &request.get_ref().target)
            .await?;
        let request = request.into_inner();
        let state = self.shared.state();
        let limit = if request.limit == 0 {
            LIST_DEFAULT
        } else {
            (request.limit as usize).min(LIST_MAX)
        };
        let wanted = state.decisions.iter().rev().filter(|decision| {
            (request.target.is_empty() || decision.record.target == request.target)
                && (request.before_id == 0 || decision.id < request.before_id)
        });
        let decisions = wanted.take(limit).map(|decision| view::decision(decision)).collect();
        Ok(Response::new(v1::ListDecisionsResponse { decisions }))
    }

    async fn watch_decisions(
        &self,
        request: Request<v1::WatchDecisionsRequest>,
    ) -> Result<Response<Self::WatchDecisionsStream>, Status> {
        self.admit(request.metadata(), Access::Read, &request.get_ref().target)
            .await?;
        let request = request.into_inner();
        let mut news = self.shared.decisions.subscribe();
        let backlog: Vec<_> = {
            let state = self.shared.state();
            let wanted = state.decisions.iter().rev();
            let wanted =
                wanted.filter(|decision| request.target.is_empty() || decision.record.target == request.target);
            wanted.take((request.backlog as usize).min(LIST_MAX)).cloned().collect()
        };
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            // Between subscribing and listing one may be in both.
            let told: BTreeSet<u64> = backlog.iter().map(|decision| decision.id).collect();
            for decision in backlog.into_iter().rev() {
                if sender.send(Ok(view::decision(&decision))).await.is_err() {
                    return;
                }
            }
            loop {
                let decision = tokio::select! {
                    news = news.recv() => match news {
                        Ok(decision) => decision,
                        Err(RecvError::Lagged(missed)) => {
                            let status = Status::data_loss(format!("{missed} decisions were missed: read faster, or list them"));
                            let _ = sender.send(Err(status)).await;
                            return;
                        }
                        Err(RecvError::Closed) => return,
                    },
                    () = sender.closed() => return,
                    () = stopped(&mut shutdown) => return,
                };
                let wanted = request.target.is_empty() || decision.record.target == request.target;
                if wanted && !told.contains(&decision.id) && sender.send(Ok(view::decision(&decision))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::Explanation>, Status> {
        let target = match &request.get_ref().what {
            Some(What::Target(name)) => name.clone(),
            Some(What::DecisionId(id)) => self.target_of_decision(*id),
            None => String::new(),
        };
        // A decision outlives its target here.
        let here = matches!(request.get_ref().what, Some(What::Target(_)));
        let access = Access::Read;
        match self.admit(request.metadata(), access, &target).await {
            Err(status) if here || status.code() != tonic::Code::NotFound => return Err(status),
            _ => {}
        }
        let decision = {
            let mut state = self.shared.state();
            match request.into_inner().what {
                Some(What::DecisionId(id)) => {
                    let oldest = state.decisions.front().map_or(0, |decision| decision.id);
                    let found = state.decisions.iter().find(|decision| decision.id == id).cloned();
                    found.ok_or_else(|| {
                        Status::not_found(format!("no decision {id}; the oldest still kept is {oldest}"))
                    })?
                }
                Some(What::Target(name)) => {
                    let record = find(&mut state, &name)?.latest.clone();
                    let record = record.ok_or_else(|| Status::unavailable(format!("no decision on {name:?} yet")))?;
                    let now = record.inputs.now.0;
                    let numbered = state
                        .decisions
                        .iter()
                        .rev()
                        .find(|decision| decision.record.target == name);
                    match numbered.filter(|decision| decision.unix_ms == now) {
                        Some(decision) => Arc::clone(decision),
                        None => Arc::new(view::unnumbered(&record)),
                    }
                }
                None => return Err(Status::invalid_argument("say decision_id or target")),
            }
        };
        Ok(Response::new(view::explanation(&decision)))
    }

    async fn get_windows(&self, request: Request<v1::GetWindowsRequest>) -> Result<Response<v1::Windows>, Status> {
        self.admit(request.metadata(), Access::Read, &request.get_ref().target)
            .await?;
        let request = request.into_inner();
        if let Some(q) = request.quantiles.iter().find(|q| !(0.0..=1.0).contains(*q)) {
            return Err(Status::invalid_argument(format!("quantile {q} is not between 0 and 1")));
        }
        if request.quantiles.len() > QUANTILES_MAX {
            let message = format!(
                "{} quantiles asked for, at most {QUANTILES_MAX}",
                request.quantiles.len()
            );
            return Err(Status::invalid_argument(message));
        }
        let now = self.shared.clock.now();
        let mut state = self.shared.state();
        let entity = find(&mut state, &request.target)?;
        Ok(Response::new(view::windows(
            entity,
            now,
            request.window_s,
            &request.quantiles,
        )))
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::Target>, Status> {
        self.admit(request.metadata(), Access::Write, &request.get_ref().target)
            .await?;
        let request = request.into_inner();
        check_reason(&request.reason)?;
        let expires = self.expiry(request.for_s);
        self.speak(
            &request.target,
            Some(Word {
                control: Control::Paused,
                expires,
                reason: request.reason,
            }),
        )
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::Target>, Status> {
        self.admit(request.metadata(), Access::Write, &request.get_ref().target)
            .await?;
        self.speak(&request.into_inner().target, None)
    }

    async fn r#override(&self, request: Request<v1::OverrideRequest>) -> Result<Response<v1::Target>, Status> {
        self.admit(request.metadata(), Access::Write, &request.get_ref().target)
            .await?;
        let request = request.into_inner();
        check_reason(&request.reason)?;
        if request.for_s == 0 || request.for_s > OVERRIDE_S_MAX {
            let message = format!("for_s must be 1 to {OVERRIDE_S_MAX}: an override always ends");
            return Err(Status::invalid_argument(message));
        }
        let max = find(&mut self.shared.state(), &request.target)?.spec.bounds.max;
        if request.replicas > max {
            let message = format!(
                "replicas {} is more than the binding's maxReplicas {max}",
                request.replicas
            );
            return Err(Status::invalid_argument(message));
        }
        let expires = self.expiry(request.for_s);
        let control = Control::Override(request.replicas);
        self.speak(
            &request.target,
            Some(Word {
                control,
                expires,
                reason: request.reason,
            }),
        )
    }
}
