//! The running engine: models driven in real time, their statistics, and the requests that wait for tokens.
//!
//! One task (`Engine::run`) sleeps until the next iteration ends and hands its tokens out; handlers submit and abort
//! under the same lock, which is never held across an await. Iterations that end while the task is late are caught up
//! with their own times, so lateness does not slow the simulated engine down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::exposition::{Dialect, encode};
use super::http_stats::HttpStats;
use super::model::{self, Config, Event, Model, Request, RequestId};
use super::stats::{FinishReason, Histogram, Meta, Stats};
use super::view::{Lora, Rank, Sleep, View};
use super::{sglang, vllm, vllm_rust};

/// Which server's manners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Flavor {
    /// vLLM 0.32 with the Python front end.
    Vllm,
    /// vLLM 0.32 with the Rust front end.
    VllmRust,
    /// SGLang 0.5.23.
    Sglang,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Manners.
    pub flavor: Flavor,
    /// Each rank's engine.
    pub model: Config,
    /// Names the model answers to; the first is the one in the metrics. Not empty.
    pub served_model_names: Vec<String>,
    /// Data-parallel ranks, at least 1.
    pub data_parallel: u32,
    /// Front-end processes vLLM would run; several switch its metrics to multiprocess mode.
    pub api_servers: u32,
    /// Refuse requests when this many are queued.
    pub max_num_queued_reqs: Option<usize>,
    /// LoRA adapters that may be named as model; empty means LoRA is off.
    pub lora_adapters: Vec<String>,
    /// Most adapters in one batch, as the metrics say; the model does not slow down for adapters.
    pub max_loras: u32,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine cannot serve it.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The queue limit is reached.
    #[error("the queue holds {waiting} requests, its limit is {limit}")]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
        /// `max_num_queued_reqs`.
        limit: usize,
    },
}

/// A request as the front end hands it over.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Prompt length, tokens.
    pub prompt_tokens: u32,
    /// Output length, tokens.
    pub output_tokens: u32,
    /// Whether its tokens are streamed.
    pub streaming: bool,
    /// When the HTTP handler got it.
    pub arrival: Instant,
    /// LoRA adapter.
    pub adapter: Option<String>,
}

/// One output token on its way to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// 1 for the first. 0 with a finish reason when the engine aborted.
    pub index: u32,
    /// Set on the last.
    pub finish: Option<FinishReason>,
}

/// A request in the engine. Dropping it aborts the request if it has not finished.
#[derive(Debug)]
pub struct Ticket {
    id: RequestId,
    engine: Engine,
    /// Its tokens, as they come.
    pub tokens: mpsc::Receiver<Token>,
}

impl Ticket {
    /// Its number.
    pub fn id(&self) -> RequestId {
        self.id
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.engine.abort(&[self.id]);
    }
}

#[derive(Debug)]
struct Live {
    rank: usize,
    meta: Meta,
    adapter: Option<String>,
    output_tokens: u32,
    /// None for synthetic requests. Holds as many tokens as the request will ever have plus an abort, so that sending
    /// never waits and never fails for want of room.
    tokens: Option<mpsc::Sender<Token>>,
}

#[derive(Debug)]
struct State {
    ranks: Vec<Rank>,
    live: HashMap<RequestId, Live>,
    next_id: RequestId,
    rejections: u64,
    sleep: Sleep,
    lora: Lora,
    http: HttpStats,
    /// Scratch space of `advance`.
    events: Vec<Event>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
    start: Instant,
    start_unix_s: f64,
    options: Options,
}

/// Handle of a running engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Shared>);

impl Engine {
    /// An idle engine. Nothing moves until `run` is polled.
    pub fn new(options: Options) -> Self {
        let (bounds, publish_every) = match options.flavor {
            Flavor::Vllm => (vllm::bounds(options.model.max_model_len), 1),
            Flavor::VllmRust => (vllm_rust::bounds(), 1),
            Flavor::Sglang => (sglang::bounds(), sglang::DECODE_LOG_INTERVAL),
        };
        let ranks = (0..options.data_parallel.max(1))
            .map(|rank| {
                let seed = options.model.seed.wrapping_add(u64::from(rank));
                let config = Config {
                    seed,
                    ..options.model.clone()
                };
                Rank {
                    model: Model::new(config),
                    stats: Stats::new(&bounds, publish_every),
                }
            })
            .collect();
        let lora = Lora {
            adapters: options.lora_adapters.clone(),
            max_loras: options.max_loras,
            ..Lora::default()
        };
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                ranks,
                live: HashMap::new(),
                next_id: 1,
                rejections: 0,
                sleep: Sleep::default(),
                lora,
                http: HttpStats::default(),
                events: Vec::new(),
            }),
            wake: Notify::new(),
            start: Instant::now(),
            start_unix_s: unix_s(),
            options,
        }))
    }

    /// What runs.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Drives the models for ever.
    pub async fn run(&self) {
        loop {
            let next_ns = {
                let mut state = self.lock();
                self.advance(&mut state);
                state.ranks.iter().filter_map(|rank| rank.model.next_ns()).min()
            };
            let wake = self.0.wake.notified();
            match next_ns {
                Some(next_ns) => {
                    let at = self.0.start + Duration::from_nanos(next_ns.min(FAR_NS));
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = wake => {}
                    }
                }
                None => wake.await,
            }
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// It can never fit, or the queue is full.
    pub fn submit(&self, submission: Submission) -> Result<Ticket, Error> {
        let mut state = self.lock();
        self.advance(&mut state);
        if let Some(limit) = self.0.options.max_num_queued_reqs {
            let waiting: usize = state.ranks.iter().map(|r| r.model.waiting()).sum();
            if waiting >= limit {
                state.rejections += 1;
                return Err(Error::QueueFull { waiting, limit });
            }
        }
        let (sender, tokens) = mpsc::channel(submission.output_tokens as usize + 1);
        let id = self.enqueue(&mut state, submission, Some(sender))?;
        drop(state);
        self.0.wake.notify_one();
        Ok(Ticket {
            id,
            engine: self.clone(),
            tokens,
        })
    }

    /// Makes at least `waiting` requests wait by really submitting that many more than there are free seats. They run
    /// until aborted. Returns their names.
    pub fn fill_queue(&self, waiting: usize, prompt_tokens: u32) -> Vec<RequestId> {
        let mut state = self.lock();
        self.advance(&mut state);
        let free = |rank: &Rank| {
            (rank.model.config().max_num_seqs as usize).saturating_sub(rank.model.running() + rank.model.waiting())
        };
        let count = waiting + state.ranks.iter().map(free).sum::<usize>();
        let limit_tokens = state.ranks.first().map_or(0, |r| r.model.limit_tokens());
        let prompt_tokens = prompt_tokens
            .max(1)
            .min(u32::try_from(limit_tokens / 2).unwrap_or(u32::MAX));
        let output_tokens = u32::try_from(limit_tokens).unwrap_or(u32::MAX) - prompt_tokens;
        let arrival = Instant::now();
        let ids = (0..count)
            .filter_map(|_| {
                let submission = Submission {
                    prompt_tokens,
                    output_tokens,
                    streaming: true,
                    arrival,
                    adapter: None,
                };
                self.enqueue(&mut state, submission, None).ok()
            })
            .collect();
        drop(state);
        self.0.wake.notify_one();
        ids
    }

    /// Forgets requests that have not finished; they are counted nowhere.
    pub fn abort(&self, ids: &[RequestId]) {
        let mut state = self.lock();
        if !ids.iter().any(|id| state.live.contains_key(id)) {
            return;
        }
        self.advance(&mut state);
        let state = &mut *state;
        for id in ids {
            if let Some(live) = state.live.remove(id) {
                state.ranks[live.rank].model.abort(*id);
            }
        }
        let now_ns = self.now_ns();
        for rank in &mut state.ranks {
            rank.stats.publish(&rank.model, &[], now_ns);
        }
        self.0.wake.notify_one();
    }

    /// The engine makes no progress until then.
    pub fn stall_until(&self, until: Instant) {
        let mut state = self.lock();
        self.advance(&mut state);
        let until_ns = self.ns(until);
        for rank in &mut state.ranks {
            rank.model.stall_until(until_ns);
        }
        drop(state);
        self.0.wake.notify_one();
    }

    /// Aborts everything and stops (vLLM's sleep mode). Requests that come now wait until `wake_up`.
    pub fn sleep(&self, level: u8) {
        let begun = Instant::now();
        let mut state = self.lock();
        self.advance(&mut state);
        let state = &mut *state;
        let now_ns = self.now_ns();
        for (id, live) in state.live.drain() {
            let rank = &mut state.ranks[live.rank];
            rank.model.abort(id);
            rank.stats.engine_aborts += 1;
            if let Some(tokens) = live.tokens {
                // The receiver may be gone, in which case nobody needs to know.
                let _ = tokens.try_send(Token {
                    index: 0,
                    finish: Some(FinishReason::Abort),
                });
            }
        }
        for rank in &mut state.ranks {
            rank.model.set_paused(now_ns, true);
            rank.stats.publish(&rank.model, &[], now_ns);
        }
        state.sleep.level = level.clamp(1, 2);
        count_operation(&mut state.sleep, "sleep", begun);
    }

    /// Resumes after `sleep`.
    pub fn wake_up(&self) {
        let begun = Instant::now();
        let mut state = self.lock();
        let now_ns = self.now_ns();
        for rank in &mut state.ranks {
            rank.model.set_paused(now_ns, false);
        }
        state.sleep.level = 0;
        count_operation(&mut state.sleep, "wake_up", begun);
        drop(state);
        self.0.wake.notify_one();
    }

    /// True while asleep.
    pub fn is_sleeping(&self) -> bool {
        self.lock().sleep.level > 0
    }

    /// Requests in the batch and in the queue, over all ranks.
    pub fn load(&self) -> (usize, usize) {
        let state = self.lock();
        state.ranks.iter().fold((0, 0), |(r, w), rank| {
            (r + rank.model.running(), w + rank.model.waiting())
        })
    }

    /// SGLang's `/v1/loads`.
    pub fn sglang_loads(&self) -> serde_json::Value {
        sglang::loads(&self.lock().ranks, &format!("{:.6}", unix_s()))
    }

    /// Updates what the HTTP server counts about itself.
    pub fn count_http(&self, update: impl FnOnce(&mut HttpStats)) {
        update(&mut self.lock().http);
    }

    /// The metrics page. `wanted` restricts it to the samples of these names.
    pub fn metrics(&self, dialect: Dialect, wanted: Option<&[String]>) -> String {
        let mut state = self.lock();
        self.advance(&mut state);
        let view = View {
            model_name: self.0.options.served_model_names.first().map_or("", String::as_str),
            ranks: &state.ranks,
            rejections: state.rejections,
            http: &state.http,
            created_s: self.0.start_unix_s,
            uptime_s: self.0.start.elapsed().as_secs_f64(),
            sleep: &state.sleep,
            lora: &state.lora,
            multiprocess: self.is_multiprocess(),
        };
        let families = match self.0.options.flavor {
            Flavor::Vllm => vllm::families(&view),
            Flavor::VllmRust => vllm_rust::families(&view),
            Flavor::Sglang => sglang::families(&view),
        };
        drop(state);
        encode(&families, dialect, wanted)
    }

    /// Whether the metrics come out of several processes' files.
    pub fn is_multiprocess(&self) -> bool {
        match self.0.options.flavor {
            Flavor::Vllm => self.0.options.api_servers > 1,
            Flavor::VllmRust => false,
            Flavor::Sglang => true,
        }
    }

    /// Unix time at which the engine came up, s.
    pub fn start_unix_s(&self) -> f64 {
        self.0.start_unix_s
    }

    fn enqueue(
        &self,
        state: &mut State,
        submission: Submission,
        tokens: Option<mpsc::Sender<Token>>,
    ) -> Result<RequestId, Error> {
        // vLLM's balancer: a waiting request weighs as much as four running ones.
        let rank = (0..state.ranks.len())
            .min_by_key(|i| 4 * state.ranks[*i].model.waiting() + state.ranks[*i].model.running())
            .unwrap_or(0);
        let Submission {
            prompt_tokens,
            output_tokens,
            streaming,
            arrival,
            adapter,
        } = submission;
        let id = state.next_id;
        state.ranks[rank].model.submit(
            self.now_ns(),
            Request {
                id,
                prompt_tokens,
                output_tokens,
            },
        )?;
        state.next_id += 1;
        let meta = Meta {
            arrival_ns: self.ns(arrival),
            streaming,
            prompt_tokens,
            cached_tokens: 0,
        };
        state.live.insert(
            id,
            Live {
                rank,
                meta,
                adapter,
                output_tokens,
                tokens,
            },
        );
        Ok(id)
    }

    /// Runs the models up to now, counts what happened and hands tokens out.
    fn advance(&self, state: &mut State) {
        let now_ns = self.now_ns();
        let mut any = false;
        for rank in &mut state.ranks {
            state.events.clear();
            rank.model.step(now_ns, &mut state.events);
            for event in &state.events {
                deliver(&mut state.live, &mut rank.stats, event, now_ns);
            }
            rank.stats.publish(&rank.model, &state.events, now_ns);
            any |= !state.events.is_empty();
        }
        if any && !state.lora.adapters.is_empty() {
            let running = adapters(state, |model| model.running_ids().collect());
            let waiting = adapters(state, |model| model.waiting_ids().collect());
            state.lora.seen.insert((running, waiting), unix_s());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ns(&self) -> u64 {
        self.ns(Instant::now())
    }

    fn ns(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0.start).as_nanos()).unwrap_or(FAR_NS)
    }
}

/// Further than any run and within what timers can hold, ns: 20 years.
const FAR_NS: u64 = 20 * 365 * 86_400 * 1_000_000_000;

fn unix_s() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

fn count_operation(sleep: &mut Sleep, operation: &'static str, begun: Instant) {
    let histogram = sleep
        .operations
        .entry(operation)
        .or_insert_with(|| Histogram::new(vllm::SLEEP_OPERATION_S));
    histogram.observe(begun.elapsed().as_secs_f64());
}

fn deliver(live: &mut HashMap<RequestId, Live>, stats: &mut Stats, event: &Event, now_ns: u64) {
    let id = match *event {
        Event::Scheduled { id, cached_tokens, .. } => {
            if let Some(live) = live.get_mut(&id) {
                live.meta.cached_tokens = cached_tokens;
            }
            id
        }
        Event::Preempted { id, .. } | Event::Token { id, .. } | Event::Finished { id, .. } => id,
        Event::Iteration { .. } => {
            stats.apply(event, None, now_ns);
            return;
        }
    };
    let Some(request) = live.get(&id) else { return };
    stats.apply(event, Some(request.meta), now_ns);
    match *event {
        Event::Token { index, .. } => {
            if let Some(tokens) = &request.tokens {
                let finish = (index == request.output_tokens).then_some(FinishReason::Length);
                // Never full (see `Live`); closed only when the ticket is being dropped, which aborts the request.
                let _ = tokens.try_send(Token { index, finish });
            }
        }
        Event::Finished { .. } => {
            live.remove(&id);
        }
        _ => {}
    }
}

/// The distinct adapters of some requests, comma-separated.
fn adapters(state: &State, ids: impl Fn(&Model) -> Vec<RequestId>) -> String {
    let mut names: Vec<&str> = state
        .ranks
        .iter()
        .flat_map(|rank| ids(&rank.model))
        .filter_map(|id| state.live.get(&id)?.adapter.as_deref())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.join(",")
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
