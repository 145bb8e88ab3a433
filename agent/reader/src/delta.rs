//! What happened between two readings.
//!
//! | since the last body | what follows |
//! |---|---|
//! | first body ever | gauges only: what was counted before we looked is nobody's interval |
//! | first body after [`Reader::expect_restart`] | the process is new, so everything it has counted is new |
//! | a series that was not there before | counts from 0: engines create series with their first observation |
//! | a series that is gone | not zero and not reset: it is absent, and goes on from its last value if it comes back |
//! | a counter or a bucket fell, or the process start time moved | restart: the new value is the delta |
//! | a better family of a signal is born ([`engine::Rule::rank`]) | it starts anew, from 0 only if the other one was 0 |
//! | other bucket bounds, no restart | the histogram starts anew, without a delta, and is counted |
//! | the body cannot be used | an [`Error`]; nothing changes, the next delta covers both intervals |
//!
//! A restart is the process's, unless several data-parallel engines are told apart by a label and only some of them
//! fell: then it is theirs, so that one engine's restart does not count the others' whole past again.

use infer_proto::v1;

use crate::{
    engine::{self, COUNTERS, Catalogue, Counter, FrontEnd, Instance, LATENCIES, Latency, Reading},
    exposition,
    histogram::Observations,
    mapping::Mapping,
};

/// How to read.
#[derive(Debug, Clone, Default)]
pub struct ReaderOptions {
    /// Read the engine this file describes; without it, vLLM and SGLang are recognised.
    pub mapping: Option<Mapping>,
}

/// Why a body was not used. None of these changes the reader's state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The last line does not end.
    #[error("the body of {bytes} bytes ends in the middle of a line: it was cut and is not used")]
    Truncated {
        /// Length of what came.
        bytes: usize,
    },
    /// OpenMetrics without its end mark, from an engine that sent it before.
    #[error(
        "the body of {bytes} bytes lacks the end mark `# EOF` that this engine sent before: it was cut and is not used"
    )]
    NoEndMark {
        /// Length of what came.
        bytes: usize,
    },
    /// Nothing in it is a sample.
    #[error("not a metrics exposition: line {line} begins {start:?}")]
    Malformed {
        /// First line that is no sample, from 1.
        line: usize,
        /// Its beginning.
        start: String,
    },
    /// The answer to a fast path is not the JSON expected.
    #[error("not the load report expected: {0}")]
    MalformedLoads(String),
    /// A good exposition, of something else.
    #[error("no family of {expected} among {samples} lines: {advice}")]
    NoEngine {
        /// What was looked for.
        expected: String,
        /// Lines there were.
        samples: usize,
        /// What may be wrong.
        advice: &'static str,
    },
}

impl Error {
    /// The protocol's word for it.
    pub fn outcome(&self) -> v1::scrape::Outcome {
        match self {
            Self::NoEngine { .. } => v1::scrape::Outcome::NoEngine,
            Self::Truncated { .. } | Self::NoEndMark { .. } | Self::Malformed { .. } | Self::MalformedLoads(_) => {
                v1::scrape::Outcome::Malformed
            }
        }
    }
}

/// What one body added.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Advance {
    /// As the body says.
    pub gauges: v1::Gauges,
    /// Since the body before; all absent when there was none.
    pub counters: v1::Counters,
    /// Since the body before; signals with at least one observation.
    pub histograms: Vec<v1::HistogramDelta>,
    /// A counter or bucket fell, the process start time moved, or a restart was announced.
    pub engine_restarted: bool,
    /// Histograms that started anew with other bounds.
    pub layout_changes: u32,
    /// Lines and values passed over.
    pub skipped: u32,
    /// [`Reader::engine`] is not what it was.
    pub engine_changed: bool,
}

/// A cheap look at the queue.
#[derive(Debug, Clone, Copy)]
pub enum FastBody<'a> {
    /// Answer to [`engine::vllm::FAST_PATH`].
    VllmFiltered(&'a [u8]),
    /// Answer to [`engine::sglang::FAST_PATH`].
    SglangLoads(&'a [u8]),
    /// A whole exposition, read for its gauges only: the next [`Reader::advance`] still covers the interval.
    Full(&'a [u8]),
}

/// How to take a cheap look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FastPath {
    /// GET [`engine::vllm::FAST_PATH`]: 545 bytes, an eighth of the cost of the whole.
    VllmFilter,
    /// GET [`engine::sglang::FAST_PATH`]: live JSON.
    SglangLoads,
    /// The whole exposition is cheap (vLLM's Rust front end: 0.4 ms of CPU).
    FullBody,
}

impl FastPath {
    /// Path and query to ask for; `None`: the path of the whole exposition.
    pub fn path(self) -> Option<&'static str> {
        match self {
            Self::VllmFilter => Some(engine::vllm::FAST_PATH),
            Self::SglangLoads => Some(engine::sglang::FAST_PATH),
            Self::FullBody => None,
        }
    }
}

/// Remembers the last reading of one engine.
#[derive(Debug)]
pub struct Reader {
    catalogue: Catalogue,
    expected: String,
    baseline: Option<Baseline>,
    expect_restart: bool,
    engine: Option<v1::Engine>,
    front_end: Option<FrontEnd>,
    /// The last body ended with `# EOF`.
    end_mark: bool,
    single_process: bool,
    filter_unsupported: bool,
}

#[derive(Debug, Default)]
struct Baseline {
    kind: i32,
    process_start_s: Option<f64>,
    instances: Vec<Instance>,
}

/// What happened in an interval, not yet encoded.
#[derive(Debug, Clone)]
pub(crate) struct Delta {
    pub(crate) reading: Reading,
    pub(crate) counters: [Option<u64>; COUNTERS],
    /// By [`Latency`]; present where the engine has the signal and there is a baseline.
    pub(crate) latencies: [Option<Observations>; LATENCIES],
    pub(crate) engine_restarted: bool,
    pub(crate) layout_changes: u32,
    pub(crate) engine_changed: bool,
}

/// Two start times further apart than this are two processes; closer ones are rounding.
const SAME_START_S: f64 = 0.5;

impl Reader {
    /// A reader that has seen nothing.
    pub fn new(options: ReaderOptions) -> Self {
        let (catalogue, expected) = match options.mapping {
            Some(mapping) => {
                let expected = format!("the mapping {:?}", mapping.name);
                (Catalogue::mapped(mapping), expected)
            }
            None => (Catalogue::known(), "vLLM or SGLang".to_owned()),
        };
        Self {
            catalogue,
            expected,
            baseline: None,
            expect_restart: false,
            engine: None,
            front_end: None,
            end_mark: false,
            single_process: false,
            filter_unsupported: false,
        }
    }

    /// Reads one whole exposition.
    pub fn advance(&mut self, body: &[u8]) -> Result<Advance, Error> {
        let delta = self.advance_raw(body)?;
        let histograms = Latency::ALL
            .into_iter()
            .filter_map(|latency| delta.latencies[latency as usize].as_ref()?.to_proto(latency.signal()))
            .collect();
        Ok(Advance {
            counters: counters(&delta.counters),
            histograms,
            engine_restarted: delta.engine_restarted,
            layout_changes: delta.layout_changes,
            skipped: skipped(&delta.reading),
            engine_changed: delta.engine_changed,
            gauges: delta.reading.gauges,
        })
    }

    /// Reads a cheap look. `Ok(None)`: this engine does not answer it (an empty body is not a zero); then
    /// [`Reader::fast_path`] no longer offers it.
    pub fn advance_fast(&mut self, body: FastBody<'_>) -> Result<Option<v1::Gauges>, Error> {
        let gauges = match body {
            FastBody::SglangLoads(body) if body.trim_ascii().is_empty() => None,
            FastBody::SglangLoads(body) => {
                engine::sglang::loads(body).map_err(|error| Error::MalformedLoads(error.to_string()))?
            }
            FastBody::VllmFiltered(body) | FastBody::Full(body) if body.trim_ascii().is_empty() => None,
            FastBody::VllmFiltered(body) | FastBody::Full(body) => {
                let reading = self.read(body)?;
                let found = reading.gauges.running.is_some() || reading.gauges.waiting.is_some();
                found.then_some(reading.gauges)
            }
        };
        if gauges.is_none() && !matches!(body, FastBody::Full(_)) {
            self.filter_unsupported = true;
        }
        Ok(gauges)
    }

    /// The next reading comes from a process known to be new (connection refused in between, another pid): everything
    /// it has counted is new.
    pub fn expect_restart(&mut self) {
        self.expect_restart = true;
        // Another process may have another front end, and may be configured differently.
        self.end_mark = false;
        self.filter_unsupported = false;
    }

    /// What is being read; `None` until a body was.
    pub fn engine(&self) -> Option<&v1::Engine> {
        self.engine.as_ref()
    }

    /// The cheap look this engine answers, if any.
    pub fn fast_path(&self) -> Option<FastPath> {
        let engine = self.engine.as_ref()?;
        match (engine.kind(), self.front_end) {
            (v1::engine::Kind::Sglang, _) if !self.filter_unsupported => Some(FastPath::SglangLoads),
            (v1::engine::Kind::Vllm, Some(FrontEnd::Rust)) => Some(FastPath::FullBody),
            // Several API servers answer the filter with nothing; they also lack process_start_time_seconds.
            (v1::engine::Kind::Vllm, Some(FrontEnd::Python)) if self.single_process && !self.filter_unsupported => {
                Some(FastPath::VllmFilter)
            }
            _ => None,
        }
    }

    /// Reads and judges a body, without changing anything.
    fn read(&self, body: &[u8]) -> Result<Reading, Error> {
        if !exposition::ends_well(body) {
            return Err(Error::Truncated { bytes: body.len() });
        }
        let reading = engine::read(&self.catalogue, body);
        if reading.engine.is_some() {
            let cut = self.end_mark && !reading.summary.saw_eof && reading.front_end == self.front_end;
            return if cut {
                Err(Error::NoEndMark { bytes: body.len() })
            } else {
                Ok(reading)
            };
        }
        // Lines of unwanted names are not looked at closely; for the verdict they are.
        let all = exposition::for_each_sample(body, |_| {});
        match all.first_skipped_line {
            Some(line) if all.samples == 0 => {
                let text = body.split(|&b| b == b'\n').nth(line - 1).unwrap_or_default();
                let start = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
                Err(Error::Malformed { line, start })
            }
            _ => Err(Error::NoEngine {
                expected: self.expected.clone(),
                samples: all.samples,
                advice: advice(body),
            }),
        }
    }

    pub(crate) fn advance_raw(&mut self, body: &[u8]) -> Result<Delta, Error> {
        let reading = self.read(body)?;
        let kind = reading.engine.as_ref().map_or(0, |e| e.kind);
        let known = self.baseline.is_some();
        let before = self.baseline.take().unwrap_or_default();
        let moved = |now: Option<f64>, then: Option<f64>| matches!((now, then), (Some(now), Some(then)) if (now - then).abs() > SAME_START_S);
        let new_process = self.expect_restart
            || (known && (before.kind != kind || moved(reading.process_start_s, before.process_start_s)));
        let fallen: Vec<bool> = reading
            .instances
            .iter()
            .map(|now| {
                let then = before.instances.iter().find(|then| then.key == now.key);
                then.is_some_and(|then| moved(now.created_s, then.created_s) || fell(now, then))
            })
            .collect();
        let restarted = restarted(&reading.instances, &fallen, new_process);

        let mut delta = Delta {
            engine_restarted: known && (new_process || restarted.contains(&true)),
            counters: [None; COUNTERS],
            latencies: Default::default(),
            layout_changes: 0,
            engine_changed: self.engine != reading.engine,
            reading,
        };
        if known || self.expect_restart {
            for (now, &restarted) in delta.reading.instances.iter().zip(&restarted) {
                let then = before.instances.iter().find(|then| then.key == now.key && !restarted);
                add_counters(&mut delta.counters, now, then);
                delta.layout_changes += add_latencies(&mut delta.latencies, now, then);
            }
        }

        self.commit(&delta.reading, before, kind, &restarted, new_process);
        Ok(delta)
    }

    fn commit(&mut self, reading: &Reading, before: Baseline, kind: i32, restarted: &[bool], new_process: bool) {
        let mut instances = reading.instances.clone();
        if !new_process {
            for mut then in before.instances {
                match instances.iter().position(|now| now.key == then.key) {
                    Some(at) if restarted[at] => {}
                    // A series that is missing this time keeps its last value.
                    Some(at) => {
                        let now = &mut instances[at];
                        for (now, then) in now.counters.iter_mut().zip(&mut then.counters) {
                            *now = now.take().or(then.take());
                        }
                        for (now, then) in now.histograms.iter_mut().zip(&mut then.histograms) {
                            *now = now.take().or(then.take());
                        }
                        now.created_s = now.created_s.or(then.created_s);
                    }
                    None if instances.len() < engine::MAX_INSTANCES => instances.push(then),
                    None => {}
                }
            }
        }
        let process_start_s = reading
            .process_start_s
            .or(before.process_start_s.filter(|_| !new_process));
        self.baseline = Some(Baseline {
            kind,
            process_start_s,
            instances,
        });
        self.expect_restart = false;
        self.front_end = reading.front_end;
        self.end_mark = reading.summary.saw_eof;
        self.single_process = reading.process_start_s.is_some();
        self.engine.clone_from(&reading.engine);
    }
}

/// Lines and values passed over.
pub(crate) fn skipped(reading: &Reading) -> u32 {
    reading
        .skipped_values
        .saturating_add(u32::try_from(reading.summary.skipped_lines).unwrap_or(u32::MAX))
}

fn advice(body: &[u8]) -> &'static str {
    if body.trim_ascii().is_empty() {
        "the body is empty"
    } else if memchr::memmem::find(body, b"http_request").is_some() {
        "is it an engine started with --disable-log-stats, or without --enable-metrics?"
    } else {
        "is it the engine's port and path? Other engines need a mapping file"
    }
}

/// Whether anything `now` is below what it was `then`.
fn fell(now: &Instance, then: &Instance) -> bool {
    let counters = now.counters.iter().zip(&then.counters);
    let histograms = now.histograms.iter().zip(&then.histograms);
    counters
        .into_iter()
        .any(|pair| matches!(pair, (Some(now), Some(then)) if now.rank == then.rank && now.value < then.value))
        || histograms.into_iter().any(|pair| {
            matches!(pair, (Some(now), Some(then))
            if now.rank == then.rank && now.value.same_layout(&then.value) && now.value.fell_below(&then.value))
        })
}

/// Which instances count from 0.
fn restarted(instances: &[Instance], fallen: &[bool], new_process: bool) -> Vec<bool> {
    let labelled = instances.iter().filter(|i| !i.key.is_empty()).count();
    let fallen_labelled = instances
        .iter()
        .zip(fallen)
        .filter(|(i, fell)| !i.key.is_empty() && **fell)
        .count();
    // What has no engine label belongs to the server in front: if that fell, all of it was restarted.
    let server_fell = instances.iter().zip(fallen).any(|(i, fell)| i.key.is_empty() && *fell);
    if new_process || server_fell || (labelled > 0 && fallen_labelled == labelled) {
        vec![true; instances.len()]
    } else {
        fallen.to_vec()
    }
}

fn add_counters(into: &mut [Option<u64>; COUNTERS], now: &Instance, then: Option<&Instance>) {
    for (index, (into, now)) in into.iter_mut().zip(&now.counters).enumerate() {
        let Some(now) = now else { continue };
        let before = match then.and_then(|then| then.counters[index].as_ref()) {
            // A better family was born (the Rust front end creates them late). What the other one has counted is
            // reported already, and the two need not agree: this interval's count is lost, unless there was none.
            Some(then) if then.rank != now.rank && then.value > 0.0 => now.value,
            Some(then) if then.rank == now.rank => then.value,
            _ => 0.0,
        };
        *into = Some(
            into.unwrap_or(0)
                .saturating_add((now.value - before).max(0.0).round() as u64),
        );
    }
}

/// Returns how many histograms have changed their layout.
fn add_latencies(into: &mut [Option<Observations>; LATENCIES], now: &Instance, then: Option<&Instance>) -> u32 {
    let mut layout_changes = 0;
    for (index, (into, now)) in into.iter_mut().zip(&now.histograms).enumerate() {
        let Some(now) = now else { continue };
        let into = into.get_or_insert_with(Observations::new);
        match then.and_then(|then| then.histograms[index].as_ref()) {
            // As with counters.
            Some(then) if then.rank != now.rank && then.value.count() == 0 => into.add(&now.value, None),
            Some(then) if then.rank != now.rank => {}
            Some(then) if !now.value.same_layout(&then.value) => layout_changes += 1,
            then => into.add(&now.value, then.map(|then| &then.value)),
        }
    }
    layout_changes
}

/// As the protocol's message.
pub(crate) fn counters(counts: &[Option<u64>; COUNTERS]) -> v1::Counters {
    let of = |counter: Counter| counts[counter as usize];
    v1::Counters {
        prompt_tokens: of(Counter::PromptTokens),
        prompt_tokens_cached: of(Counter::PromptTokensCached),
        generation_tokens: of(Counter::GenerationTokens),
        requests: of(Counter::Requests),
        requests_failed: of(Counter::RequestsFailed),
        requests_rejected: of(Counter::RequestsRejected),
        preemptions: of(Counter::Preemptions),
    }
}
