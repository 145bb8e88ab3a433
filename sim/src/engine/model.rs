//! The engine itself: calibrated continuous batching as a pure, deterministic state machine.
//!
//! It schedules as vLLM's V1 scheduler does: every iteration first serves the running sequences in admission order (one
//! token each when decoding, a chunk of the prompt when prefilling) within a token budget, preempts the youngest when
//! the KV cache has no block left, then admits from a FIFO queue. Time is an argument; nothing here reads a clock. The
//! laws it keeps and its cost are in `sim/README.md`.

use std::collections::VecDeque;

pub use super::model_types::{Config, Error, Event, Request, RequestId, Summary};
use super::profile::Batch;

#[derive(Debug, Clone)]
struct Sequence {
    request: Request,
    queued_ns: u64,
    scheduled_ns: Option<u64>,
    first_token_ns: u64,
    last_token_ns: u64,
    cached_tokens: u32,
    generated_tokens: u32,
    /// Tokens whose KV entries exist.
    computed_tokens: u32,
    blocks: u64,
    /// Tokens being computed by the iteration in flight.
    in_flight_tokens: u32,
    preemptions: u32,
}

impl Sequence {
    fn known_tokens(&self) -> u32 {
        self.request.prompt_tokens + self.generated_tokens
    }

    fn is_decoding(&self) -> bool {
        self.generated_tokens > 0 && self.known_tokens() - self.computed_tokens == 1
    }
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    start_ns: u64,
    end_ns: u64,
    batch: Batch,
}

/// A simulated engine. See the module's text.
#[derive(Debug, Clone)]
pub struct Model {
    config: Config,
    rng: fastrand::Rng,
    capacity_blocks: u64,
    free_blocks: u64,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    in_flight: Option<InFlight>,
    /// When the last iteration ended: no iteration starts before it.
    clock_ns: u64,
    stalled_until_ns: u64,
    paused: bool,
}

impl Model {
    /// An idle engine.
    pub fn new(config: Config) -> Self {
        let capacity_blocks = (config.kv_capacity_tokens / u64::from(config.block_tokens.max(1))).max(1);
        Self {
            rng: fastrand::Rng::with_seed(config.seed),
            capacity_blocks,
            free_blocks: capacity_blocks,
            waiting: VecDeque::new(),
            running: Vec::new(),
            in_flight: None,
            clock_ns: 0,
            stalled_until_ns: 0,
            paused: false,
            config,
        }
    }

    /// What the engine is like.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Most tokens that prompt and output of one request may have together.
    pub fn limit_tokens(&self) -> u64 {
        u64::from(self.config.max_model_len).min(self.capacity_blocks * u64::from(self.config.block_tokens))
    }

    /// Queues a request at `now_ns`, which must not be earlier than any time given before. The caller steps the model
    /// to `now_ns` first, so that iterations which have already started do not see it.
    ///
    /// # Errors
    /// The request is empty or can never fit.
    pub fn submit(&mut self, now_ns: u64, request: Request) -> Result<(), Error> {
        let Request {
            prompt_tokens,
            output_tokens,
            ..
        } = request;
        if prompt_tokens == 0 || output_tokens == 0 {
            return Err(Error::Empty);
        }
        let limit_tokens = self.limit_tokens();
        if u64::from(prompt_tokens) + u64::from(output_tokens) > limit_tokens {
            return Err(Error::TooLong {
                prompt_tokens,
                output_tokens,
                limit_tokens,
            });
        }
        self.waiting.push_back(Sequence {
            request,
            queued_ns: now_ns,
            scheduled_ns: None,
            first_token_ns: 0,
            last_token_ns: 0,
            cached_tokens: self.cached_tokens(prompt_tokens),
            generated_tokens: 0,
            computed_tokens: 0,
            blocks: 0,
            in_flight_tokens: 0,
            preemptions: 0,
        });
        Ok(())
    }

    /// Forgets a request wherever it is; false when it is not there (never was, or finished).
    pub fn abort(&mut self, id: RequestId) -> bool {
        if let Some(index) = self.running.iter().position(|s| s.request.id == id) {
            let sequence = self.running.remove(index);
            self.free_blocks += sequence.blocks;
            return true;
        }
        match self.waiting.iter().position(|s| s.request.id == id) {
            Some(index) => self.waiting.remove(index).is_some(),
            None => false,
        }
    }

    /// Runs every iteration that ends by `now_ns` and appends what happened to `events`.
    pub fn step(&mut self, now_ns: u64, events: &mut Vec<Event>) {
        while let Some(at_ns) = self.next_ns()
            && at_ns <= now_ns
        {
            match self.in_flight {
                Some(iteration) => self.finish_iteration(
                    InFlight {
                        end_ns: at_ns,
                        ..iteration
                    },
                    events,
                ),
                None => self.start_iteration(at_ns, events),
            }
        }
    }

    /// When something happens next, ns; none while there is nothing to do or the engine is paused.
    pub fn next_ns(&self) -> Option<u64> {
        if self.paused {
            return None;
        }
        if let Some(iteration) = self.in_flight {
            return Some(iteration.end_ns.max(self.stalled_until_ns));
        }
        let ready_ns = match (self.running.is_empty(), self.waiting.front()) {
            (false, _) => self.clock_ns,
            (true, Some(head)) => head.queued_ns.max(self.clock_ns),
            (true, None) => return None,
        };
        Some(ready_ns.max(self.stalled_until_ns))
    }

    /// Nothing happens before `until_ns`: the iteration in flight, or the next one, is held back. A later call with an
    /// earlier time releases it.
    pub fn stall_until(&mut self, until_ns: u64) {
        self.stalled_until_ns = until_ns;
    }

    /// Stops (sleep) or resumes (wake up) all work at `now_ns`. The time in between does not count as computing.
    pub fn set_paused(&mut self, now_ns: u64, paused: bool) {
        if self.paused && !paused {
            self.clock_ns = self.clock_ns.max(now_ns);
            if let Some(iteration) = &mut self.in_flight {
                iteration.end_ns = iteration.end_ns.max(now_ns);
            }
        }
        self.paused = paused;
    }

    /// True between `set_paused(_, true)` and `set_paused(_, false)`.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences in the queue, preempted ones included.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests in the batch, oldest first.
    pub fn running_ids(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.running.iter().map(|s| s.request.id)
    }

    /// Requests in the queue, the next to be admitted first.
    pub fn waiting_ids(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.waiting.iter().map(|s| s.request.id)
    }

    /// Prompt tokens in the queue that are not in the prefix cache.
    pub fn waiting_uncached_tokens(&self) -> u64 {
        self.waiting
            .iter()
            .map(|s| u64::from(s.known_tokens() - s.cached_tokens))
            .sum()
    }

    /// Sum of the running sequences' contexts, tokens.
    pub fn running_context_tokens(&self) -> u64 {
        self.running.iter().map(|s| u64::from(s.computed_tokens)).sum()
    }

    /// Size of the KV cache, blocks.
    pub fn capacity_blocks(&self) -> u64 {
        self.capacity_blocks
    }

    /// KV blocks in use.
    pub fn used_blocks(&self) -> u64 {
        self.capacity_blocks - self.free_blocks
    }

    /// Share of the KV cache in use, 0 to 1.
    pub fn kv_usage(&self) -> f64 {
        self.used_blocks() as f64 / self.capacity_blocks as f64
    }

    /// Whole blocks, and never the whole prompt: the last token must be computed to get the first output.
    fn cached_tokens(&self, prompt_tokens: u32) -> u32 {
        let wanted = (f64::from(prompt_tokens) * self.config.prefix_hit_share.clamp(0.0, 1.0)) as u32;
        let block = self.config.block_tokens;
        wanted.min(prompt_tokens - 1) / block * block
    }

    fn blocks_for(&self, tokens: u32) -> u64 {
        u64::from(tokens.div_ceil(self.config.block_tokens))
    }

    fn start_iteration(&mut self, start_ns: u64, events: &mut Vec<Event>) {
        let mut batch = Batch::default();
        let mut budget_tokens = self.config.max_num_batched_tokens;
        let preempted = self.serve_running(start_ns, &mut budget_tokens, &mut batch, events);
        // A queue that moved up while a running sequence had to go would take the block it just gave back.
        if !preempted {
            self.admit(start_ns, &mut budget_tokens, &mut batch, events);
        }
        let mut iteration_ms = self.config.profile.iteration_ms(&batch);
        if self.config.jitter_share > 0.0 {
            iteration_ms *= 1.0 + self.config.jitter_share * (2.0 * self.rng.f64() - 1.0);
        }
        // At least one nanosecond, so that time always moves.
        let iteration_ns = (iteration_ms * 1e6 / self.config.speed).max(1.0) as u64;
        self.in_flight = Some(InFlight {
            start_ns,
            end_ns: start_ns + iteration_ns,
            batch,
        });
    }

    /// Gives every running sequence its tokens, oldest first, preempting the youngest where blocks are short. The oldest
    /// always gets its share because any request fits an empty cache. True when something was preempted.
    fn serve_running(
        &mut self,
        start_ns: u64,
        budget_tokens: &mut u32,
        batch: &mut Batch,
        events: &mut Vec<Event>,
    ) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() && *budget_tokens > 0 {
            let sequence = &self.running[index];
            let tokens = (sequence.known_tokens() - sequence.computed_tokens).min(*budget_tokens);
            let missing = self
                .blocks_for(sequence.computed_tokens + tokens)
                .saturating_sub(sequence.blocks);
            while missing > self.free_blocks && index < self.running.len() {
                self.preempt_youngest(start_ns, events);
                preempted = true;
            }
            if index < self.running.len() {
                self.free_blocks -= missing;
                let sequence = &mut self.running[index];
                sequence.blocks += missing;
                schedule(sequence, tokens, batch);
                *budget_tokens -= tokens;
                index += 1;
            }
        }
        preempted
    }

    fn preempt_youngest(&mut self, at_ns: u64, events: &mut Vec<Event>) {
        if let Some(mut victim) = self.running.pop() {
            self.free_blocks += victim.blocks;
            victim.blocks = 0;
            victim.computed_tokens = 0;
            victim.preemptions += 1;
            events.push(Event::Preempted {
                id: victim.request.id,
                at_ns,
            });
            self.waiting.push_front(victim);
        }
    }

    /// Takes from the head of the queue while there is a seat, a token and room for the whole prompt. One block in a
    /// hundred stays free for the sequences that are already decoding (vLLM's watermark).
    fn admit(&mut self, start_ns: u64, budget_tokens: &mut u32, batch: &mut Batch, events: &mut Vec<Event>) {
        while self.running.len() < self.config.max_num_seqs as usize && *budget_tokens > 0 {
            let Some(head) = self.waiting.front() else { break };
            let reserve = if self.running.is_empty() {
                0
            } else {
                self.capacity_blocks.div_ceil(100)
            };
            if head.queued_ns > start_ns || self.blocks_for(head.known_tokens()) + reserve > self.free_blocks {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else {
                break;
            };
            sequence.computed_tokens = sequence.cached_tokens;
            let tokens = (sequence.known_tokens() - sequence.computed_tokens).min(*budget_tokens);
            sequence.blocks = self.blocks_for(sequence.computed_tokens + tokens);
            self.free_blocks -= sequence.blocks;
            *budget_tokens -= tokens;
            schedule(&mut sequence, tokens, batch);
            events.push(Event::Scheduled {
                id: sequence.request.id,
                at_ns: start_ns,
                first: sequence.scheduled_ns.is_none(),
                cached_tokens: sequence.cached_tokens,
            });
            sequence.scheduled_ns.get_or_insert(start_ns);
            self.running.push(sequence);
        }
    }

    fn finish_iteration(&mut self, iteration: InFlight, events: &mut Vec<Event>) {
        let at_ns = iteration.end_ns;
        let mut emitted_tokens = 0;
        let mut first_token_prompt_tokens = 0;
        let mut freed_blocks = 0;
        self.running.retain_mut(|sequence| {
            let tokens = std::mem::take(&mut sequence.in_flight_tokens);
            sequence.computed_tokens += tokens;
            if tokens == 0 || sequence.computed_tokens < sequence.known_tokens() {
                return true;
            }
            sequence.generated_tokens += 1;
            emitted_tokens += 1;
            let first = sequence.generated_tokens == 1;
            if first {
                sequence.first_token_ns = at_ns;
                first_token_prompt_tokens += sequence.request.prompt_tokens - sequence.cached_tokens;
            }
            let id = sequence.request.id;
            let gap_ns = (!first).then(|| at_ns - sequence.last_token_ns);
            sequence.last_token_ns = at_ns;
            events.push(Event::Token {
                id,
                at_ns,
                index: sequence.generated_tokens,
                gap_ns,
            });
            let finished = sequence.generated_tokens == sequence.request.output_tokens;
            if finished {
                freed_blocks += sequence.blocks;
                events.push(Event::Finished {
                    id,
                    at_ns,
                    summary: summary(sequence),
                });
            }
            !finished
        });
        self.free_blocks += freed_blocks;
        self.in_flight = None;
        self.clock_ns = at_ns;
        events.push(Event::Iteration {
            start_ns: iteration.start_ns,
            end_ns: at_ns,
            batch: iteration.batch,
            emitted_tokens,
            first_token_prompt_tokens,
        });
    }
}

fn schedule(sequence: &mut Sequence, tokens: u32, batch: &mut Batch) {
    if sequence.is_decoding() {
        batch.decode_seqs += 1;
        batch.decode_kv_tokens += u64::from(sequence.computed_tokens);
    } else {
        batch.prefill_tokens += tokens;
        batch.prefill_context_product +=
            f64::from(tokens) * (f64::from(sequence.computed_tokens) + f64::from(tokens) / 2.0);
    }
    sequence.in_flight_tokens = tokens;
}

fn summary(sequence: &Sequence) -> Summary {
    Summary {
        queued_ns: sequence.queued_ns,
        scheduled_ns: sequence.scheduled_ns.unwrap_or(sequence.queued_ns),
        first_token_ns: sequence.first_token_ns,
        last_token_ns: sequence.last_token_ns,
        prompt_tokens: sequence.request.prompt_tokens,
        cached_tokens: sequence.cached_tokens,
        output_tokens: sequence.request.output_tokens,
        preemptions: sequence.preemptions,
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
