//! What one engine rank has counted: the numbers behind `/metrics`, fed by the model's events.
//!
//! Times are taken where the real engines take them: time to first token and end-to-end latency where the front end
//! sees the token (so a late front end shows), everything else on the engine's own clock.

use std::borrow::Cow;

use super::model::{Event, Model, Summary};

/// A Prometheus classic histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: Cow<'static, [f64]>,
    /// One per bound, and one above the last. Not cumulative.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// An empty histogram with these upper bounds, ascending, without the infinite one.
    pub fn new(bounds: impl Into<Cow<'static, [f64]>>) -> Self {
        let bounds = bounds.into();
        Self {
            counts: vec![0; bounds.len() + 1],
            bounds,
            sum: 0.0,
        }
    }

    /// Counts one value.
    pub fn observe(&mut self, value: f64) {
        let index = self.bounds.partition_point(|bound| *bound < value);
        self.counts[index] += 1;
        self.sum += value;
    }

    /// Adds another histogram over the same bounds.
    pub fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.bounds, other.bounds);
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// `(upper bound, values up to it)`, the last bound being infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().scan(0, |total, count| {
            *total += count;
            Some(*total)
        }))
    }
}

/// Bucket bounds, which differ between engines.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Time to first token, s.
    pub ttft_s: Cow<'static, [f64]>,
    /// Inter-token latency and time per output token, s.
    pub itl_s: Cow<'static, [f64]>,
    /// End-to-end latency, s.
    pub e2e_s: Cow<'static, [f64]>,
    /// Queue time, s.
    pub queue_s: Cow<'static, [f64]>,
    /// Phases of a request (inference, prefill, decode), s.
    pub phase_s: Cow<'static, [f64]>,
    /// Request lengths, tokens.
    pub tokens: Cow<'static, [f64]>,
}

/// Upper bounds of vLLM's iteration-size histogram, tokens.
const ITERATION_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
const PARAMS_N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// Why a request left the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// All its tokens are out.
    Length,
    /// The engine threw it out (sleep). Client disconnects are counted nowhere, as in vLLM.
    Abort,
}

/// What the front end knows about a request and the model does not.
#[derive(Debug, Clone, Copy)]
pub struct Meta {
    /// When the HTTP handler got it, ns on the engine clock.
    pub arrival_ns: u64,
    /// Whether its tokens are streamed.
    pub streaming: bool,
    /// Prompt length, tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens found in the prefix cache, known once it is scheduled.
    pub cached_tokens: u32,
}

/// Gauges as last written. vLLM writes them after every step, SGLang more rarely.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences in the queue.
    pub waiting: usize,
    /// KV blocks in use.
    pub used_blocks: u64,
    /// Sum of running contexts, tokens.
    pub context_tokens: u64,
    /// Output tokens per second since the previous writing.
    pub generation_tokens_per_s: f64,
}

/// Everything one rank has counted since it started. Arrays of two are indexed by whether the request streams.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Prompt tokens of requests that have their first token.
    pub prompt_tokens: [u64; 2],
    /// Output tokens.
    pub generation_tokens: [u64; 2],
    /// Finished requests.
    pub finished: [u64; 2],
    /// Requests the engine aborted.
    pub engine_aborts: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Of these, found.
    pub prefix_hits: u64,
    /// Cached prompt tokens of requests that have their first token.
    pub cached_prompt_tokens: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Prompt tokens computed, recomputation included.
    pub computed_prefill_tokens: u64,
    /// Iterations with prefill in them.
    pub prefill_iterations: u64,
    /// Iterations that only decoded.
    pub decode_iterations: u64,
    /// Time in iterations, ns.
    pub busy_ns: u64,
    /// Time to first token, s.
    pub ttft_s: [Histogram; 2],
    /// End-to-end latency, s.
    pub e2e_s: [Histogram; 2],
    /// Time per output token of a request, s.
    pub tpot_s: [Histogram; 2],
    /// Gap between two tokens of a request, s.
    pub itl_s: Histogram,
    /// From queued to first scheduled, s.
    pub queue_s: Histogram,
    /// From first scheduled to last token, s.
    pub inference_s: Histogram,
    /// From first scheduled to first token, s.
    pub prefill_s: Histogram,
    /// From first to last token, s.
    pub decode_s: Histogram,
    /// From the handler to the queue, s.
    pub request_process_s: Histogram,
    /// Prompt lengths of finished requests.
    pub request_prompt_tokens: Histogram,
    /// Output lengths of finished requests.
    pub request_generation_tokens: Histogram,
    /// Computed prompt lengths of finished requests.
    pub request_computed_tokens: Histogram,
    /// Requested output lengths.
    pub request_max_tokens: Histogram,
    /// The `n` parameter.
    pub params_n: Histogram,
    /// Preemptions per finished request.
    pub request_preemptions: Histogram,
    /// Tokens per iteration.
    pub iteration_tokens: Histogram,
    /// Gauges as last written.
    pub gauges: Gauges,
    publish_every_decode: u64,
    published_ns: u64,
    tokens_since_publish: u64,
}

impl Stats {
    /// Nothing counted yet. Gauges are written on every prefill, on going idle and on every `publish_every_decode`-th
    /// decode-only iteration (1 for vLLM, 40 for SGLang).
    pub fn new(bounds: &Bounds, publish_every_decode: u64) -> Self {
        let histogram = |bounds: &Cow<'static, [f64]>| Histogram::new(bounds.clone());
        let both = |bounds: &Cow<'static, [f64]>| [histogram(bounds), histogram(bounds)];
        Self {
            prompt_tokens: [0; 2],
            generation_tokens: [0; 2],
            finished: [0; 2],
            engine_aborts: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            cached_prompt_tokens: 0,
            preemptions: 0,
            computed_prefill_tokens: 0,
            prefill_iterations: 0,
            decode_iterations: 0,
            busy_ns: 0,
            ttft_s: both(&bounds.ttft_s),
            e2e_s: both(&bounds.e2e_s),
            tpot_s: both(&bounds.itl_s),
            itl_s: histogram(&bounds.itl_s),
            queue_s: histogram(&bounds.queue_s),
            inference_s: histogram(&bounds.phase_s),
            prefill_s: histogram(&bounds.phase_s),
            decode_s: histogram(&bounds.phase_s),
            request_process_s: histogram(&bounds.phase_s),
            request_prompt_tokens: histogram(&bounds.tokens),
            request_generation_tokens: histogram(&bounds.tokens),
            request_computed_tokens: histogram(&bounds.tokens),
            request_max_tokens: histogram(&bounds.tokens),
            params_n: Histogram::new(PARAMS_N),
            request_preemptions: Histogram::new(PREEMPTIONS),
            iteration_tokens: Histogram::new(ITERATION_TOKENS),
            gauges: Gauges::default(),
            publish_every_decode,
            published_ns: 0,
            tokens_since_publish: 0,
        }
    }

    /// Counts one event. `meta` is the request's, absent for `Event::Iteration`; `observed_ns` is when the front end
    /// handles the event, which in a simulation without a front end is the event's own time.
    pub fn apply(&mut self, event: &Event, meta: Option<Meta>, observed_ns: u64) {
        let streaming = usize::from(meta.is_some_and(|m| m.streaming));
        let arrival_ns = meta.map_or(observed_ns, |m| m.arrival_ns);
        let prompt_tokens = meta.map_or(0, |m| m.prompt_tokens);
        match *event {
            Event::Scheduled {
                first: true,
                cached_tokens,
                ..
            } => {
                self.prefix_queries += u64::from(prompt_tokens);
                self.prefix_hits += u64::from(cached_tokens);
            }
            Event::Scheduled { .. } => {}
            Event::Preempted { .. } => self.preemptions += 1,
            Event::Token { index, gap_ns, .. } => {
                self.generation_tokens[streaming] += 1;
                match gap_ns {
                    Some(gap_ns) => self.itl_s.observe(seconds(gap_ns)),
                    None => {
                        debug_assert_eq!(index, 1);
                        self.prompt_tokens[streaming] += u64::from(prompt_tokens);
                        self.cached_prompt_tokens += meta.map_or(0, |m| u64::from(m.cached_tokens));
                        self.ttft_s[streaming].observe(seconds(observed_ns.saturating_sub(arrival_ns)));
                    }
                }
            }
            Event::Finished { summary, .. } => {
                self.finished[streaming] += 1;
                self.e2e_s[streaming].observe(seconds(observed_ns.saturating_sub(arrival_ns)));
                self.request_process_s
                    .observe(seconds(summary.queued_ns.saturating_sub(arrival_ns)));
                self.finish(&summary, streaming);
            }
            Event::Iteration {
                start_ns,
                end_ns,
                batch,
                emitted_tokens,
                first_token_prompt_tokens,
            } => {
                self.busy_ns += end_ns - start_ns;
                self.computed_prefill_tokens += u64::from(batch.prefill_tokens);
                self.tokens_since_publish += u64::from(emitted_tokens);
                if batch.prefill_tokens > 0 {
                    self.prefill_iterations += 1;
                } else {
                    self.decode_iterations += 1;
                }
                if emitted_tokens > 0 {
                    self.iteration_tokens
                        .observe(f64::from(emitted_tokens + first_token_prompt_tokens));
                }
            }
        }
    }

    fn finish(&mut self, summary: &Summary, streaming: usize) {
        let prompt = f64::from(summary.prompt_tokens);
        let output = f64::from(summary.output_tokens);
        self.queue_s.observe(seconds(summary.scheduled_ns - summary.queued_ns));
        self.prefill_s
            .observe(seconds(summary.first_token_ns - summary.scheduled_ns));
        self.inference_s
            .observe(seconds(summary.last_token_ns - summary.scheduled_ns));
        let decode_s = seconds(summary.last_token_ns - summary.first_token_ns);
        self.decode_s.observe(decode_s);
        // A request of one token counts as 0, which is what vLLM does.
        self.tpot_s[streaming].observe(if output > 1.0 { decode_s / (output - 1.0) } else { 0.0 });
        self.request_prompt_tokens.observe(prompt);
        self.request_generation_tokens.observe(output);
        self.request_computed_tokens
            .observe(prompt - f64::from(summary.cached_tokens));
        self.request_max_tokens.observe(output);
        self.params_n.observe(1.0);
        self.request_preemptions.observe(f64::from(summary.preemptions));
    }

    /// Writes the gauges if the last events call for it. Call it after the events of a step, with the model they came from.
    pub fn publish(&mut self, model: &Model, events: &[Event], now_ns: u64) {
        let due = events.iter().any(|event| match event {
            Event::Iteration { batch, .. } => {
                batch.prefill_tokens > 0 || self.decode_iterations.is_multiple_of(self.publish_every_decode)
            }
            _ => false,
        });
        if due || self.publish_every_decode == 1 || (model.running() == 0 && model.waiting() == 0) {
            let since_s = seconds(now_ns.saturating_sub(self.published_ns));
            let busy = model.running() > 0;
            let rate = if since_s > 0.0 {
                self.tokens_since_publish as f64 / since_s
            } else {
                0.0
            };
            self.gauges = Gauges {
                running: model.running(),
                waiting: model.waiting(),
                used_blocks: model.used_blocks(),
                context_tokens: model.running_context_tokens(),
                generation_tokens_per_s: if busy { rate } else { 0.0 },
            };
            self.published_ns = now_ns;
            self.tokens_since_publish = 0;
        }
    }
}

/// The sum of a pair indexed by streaming.
pub fn total(pair: [u64; 2]) -> u64 {
    pair[0] + pair[1]
}

/// Both halves of a pair indexed by streaming.
pub fn merged(pair: &[Histogram; 2]) -> Histogram {
    let mut both = pair[0].clone();
    both.merge(&pair[1]);
    both
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_below_it() {
        let mut histogram = Histogram::new(&[1.0, 2.0][..]);
        for value in [0.5, 1.0, 1.5, 2.0, 9.0] {
            histogram.observe(value);
        }
        assert_eq!(
            histogram.cumulative().collect::<Vec<_>>(),
            [(1.0, 2), (2.0, 4), (f64::INFINITY, 5)]
        );
        assert_eq!((histogram.count(), histogram.sum()), (5, 14.0));
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        assert_eq!((twice.count(), twice.sum()), (10, 28.0));
    }
}
