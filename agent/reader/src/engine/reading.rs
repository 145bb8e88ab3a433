//! One pass over one body: from samples to the absolute numbers of an engine.

use infer_proto::v1;

use super::{
    Aggregate, COUNTERS, Catalogue, LATENCIES, Rule, Target,
    catalogue::{Engines, Part},
    sglang, vllm,
};
use crate::{
    exposition::{self, LabelValue, Sample, Summary, Visitor},
    histogram::Buckets,
};

/// Data-parallel engines read from one body. Real ones have at most some dozens; the limit keeps a hostile body from
/// making the agent remember without end. Series beyond it are counted as skipped.
pub(crate) const MAX_INSTANCES: usize = 256;

/// Bounds read per histogram. Engines have 20 to 50; fewer bounds than there are still make a right histogram.
const MAX_BOUNDS: usize = 512;

/// The HTTP server in front of a vLLM engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontEnd {
    /// The usual one of V1.
    Python,
    /// `vllm-rs`: always OpenMetrics, series born with their first observation.
    Rust,
    /// The engine before V1, with a Python server.
    V0,
}

impl FrontEnd {
    /// As the protocol says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Rust => "rust",
            Self::V0 => "v0",
        }
    }
}

/// vLLM's newest word on LoRA adapters.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Lora {
    /// Adapters a batch can hold.
    pub max: Option<u64>,
    /// Adapters of running requests, sorted.
    pub running: Vec<String>,
    /// Adapters of waiting requests, sorted.
    pub waiting: Vec<String>,
}

/// A number with the rank of the rules it comes from: another rank is another family, whose numbers do not compare.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sourced<T> {
    /// The number.
    pub value: T,
    /// See [`Rule::rank`].
    pub rank: u8,
}

/// What one data-parallel engine, or the process as a whole (empty key), has counted since it started.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Instance {
    /// Value of the label that tells engines apart; empty for series without it.
    pub key: Box<[u8]>,
    /// When the oldest counter was created, seconds since 1970, where the engine says it.
    pub created_s: Option<f64>,
    /// By [`super::Counter`]; absent where there is no series.
    pub counters: [Option<Sourced<f64>>; COUNTERS],
    /// By [`super::Latency`]; absent where there is no series.
    pub histograms: [Option<Sourced<Buckets>>; LATENCIES],
}

/// Everything a body says, as absolute numbers.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// The engine; absent when no family of one was seen.
    pub engine: Option<v1::Engine>,
    /// vLLM's front end.
    pub front_end: Option<FrontEnd>,
    /// Gauges that are there, of all engines of the process together.
    pub gauges: v1::Gauges,
    /// What was counted.
    pub instances: Vec<Instance>,
    /// `process_start_time_seconds`. prometheus_client leaves it out in multiprocess mode.
    pub process_start_s: Option<f64>,
    /// vLLM's LoRA adapters.
    pub lora: Option<Lora>,
    /// Values passed over: NaN, infinite, negative, histograms that are none. Lines are in `summary`.
    pub skipped_values: u32,
    /// How the text was.
    pub summary: Summary,
}

/// Reads `body` with the rules of `catalogue`. Never fails: whether a body can be used is for the caller to judge.
pub fn read(catalogue: &Catalogue, body: &[u8]) -> Reading {
    let mut pass = Pass::new(catalogue);
    let summary = exposition::visit(body, &mut pass);
    pass.finish(summary)
}

/// Of one rule in one instance. `key` ranks series that tell the same: see [`Pass::sample`].
#[derive(Clone, Default)]
pub(super) struct Cell {
    key: u64,
    /// Sum (or maximum) of the series without a `pid`.
    pub(super) value: Option<f64>,
    /// In multiprocess mode some gauges have a series per process, of which all but one may be stale.
    pub(super) pid_max: Option<f64>,
    pub(super) created: Option<f64>,
    /// `(le, cumulative count, series it was seen in)`
    pub(super) buckets: Vec<(f64, f64, u32)>,
    pub(super) sum: Option<f64>,
    pub(super) count: Option<f64>,
}

pub(super) struct Cells {
    pub(super) key: Box<[u8]>,
    pub(super) cells: Vec<Option<Cell>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Vllm,
    Sglang,
    Mapped,
}

pub(super) struct Pass<'c> {
    pub(super) catalogue: &'c Catalogue,
    parts: &'c [(u16, Part)],
    pub(super) kind: Option<Kind>,
    pub(super) instances: Vec<Cells>,
    pub(super) hint: Option<usize>,
    pub(super) model: Option<String>,
    pub(super) engine_label: bool,
    pub(super) model_before_engine: bool,
    pub(super) process_start_s: Option<f64>,
    pub(super) kv_tokens: Option<f64>,
    pub(super) kv_tokens_of_blocks: Option<f64>,
    pub(super) lora: Option<(f64, Lora)>,
    pub(super) skipped: u32,
}

/// The labels of a sample that mean something to us.
#[derive(Default)]
struct Seen<'a> {
    instance: Option<LabelValue<'a>>,
    le: Option<LabelValue<'a>>,
    has_pid: bool,
    /// See [`Pass::sample`].
    key: u64,
}

impl<'c> Pass<'c> {
    fn new(catalogue: &'c Catalogue) -> Self {
        Self {
            catalogue,
            parts: &[],
            kind: None,
            instances: Vec::new(),
            hint: None,
            model: None,
            engine_label: false,
            model_before_engine: false,
            process_start_s: None,
            kv_tokens: None,
            kv_tokens_of_blocks: None,
            lora: None,
            skipped: 0,
        }
    }

    fn labels<'a>(&mut self, sample: &Sample<'a>) -> Seen<'a> {
        let (instance_label, model_label): (&[u8], &[u8]) = match (&self.catalogue.engines, self.kind) {
            (Engines::Mapped(mapping), _) => (
                mapping.engine_label.as_deref().unwrap_or("").as_bytes(),
                mapping.model_label.as_bytes(),
            ),
            (Engines::Known, Some(Kind::Sglang)) => (b"dp_rank", b"model_name"),
            (Engines::Known, _) => (b"engine", b"model_name"),
        };
        let mut seen = Seen::default();
        let mut model_seen = false;
        for (name, value) in sample.labels.iter() {
            // Of series that tell the same, the one with the lowest key is read: totals (no priority, or an empty one)
            // before their parts, then the lowest pipeline, tensor and expert rank.
            match name {
                b"le" => seen.le = Some(value),
                b"pid" => seen.has_pid = true,
                b"priority" if !value.raw().is_empty() => seen.key |= 1 << 48,
                b"pp_rank" => seen.key |= rank(value) << 32,
                b"tp_rank" => seen.key |= rank(value) << 16,
                b"moe_ep_rank" => seen.key |= rank(value),
                _ if name == instance_label => {
                    seen.instance = Some(value);
                    self.engine_label = true;
                    self.model_before_engine |= model_seen;
                }
                _ if name == model_label => {
                    model_seen = true;
                    if self.model.is_none() && !value.raw().is_empty() {
                        self.model = Some(value.text());
                    }
                }
                _ => {}
            }
        }
        seen
    }

    fn cell(&mut self, seen: &Seen<'_>, rule: u16) -> Option<&mut Cell> {
        let key = seen.instance.map_or(&b""[..], |v| v.raw());
        let index = match self.instances.iter().position(|i| *i.key == *key) {
            Some(index) => index,
            None if self.instances.len() < MAX_INSTANCES => {
                let cells = vec![None; self.catalogue.rules.len()];
                self.instances.push(Cells { key: key.into(), cells });
                self.instances.len() - 1
            }
            None => {
                self.skipped += 1;
                return None;
            }
        };
        let cell = self.instances[index].cells.get_mut(usize::from(rule))?;
        let cell = cell.get_or_insert_with(|| Cell {
            key: seen.key,
            ..Cell::default()
        });
        if seen.key < cell.key {
            *cell = Cell {
                key: seen.key,
                ..Cell::default()
            };
        }
        (seen.key == cell.key).then_some(cell)
    }

    fn rule_part(&mut self, rule_index: u16, part: Part, sample: &Sample<'_>, seen: &Seen<'_>) {
        let catalogue = self.catalogue;
        let Some(rule) = catalogue.rules.get(usize::from(rule_index)) else {
            return;
        };
        if !matches(rule, sample) {
            return;
        }
        let value = sample.value;
        if !(value.is_finite() && value >= 0.0) {
            // A sum may be negative when observations are; everything else is no number of ours.
            if part != Part::Sum {
                self.skipped += 1;
                return;
            }
        }
        let is_gauge = matches!(rule.target, Target::Gauge(_));
        let le = match part {
            Part::Bucket => match seen.le.and_then(|le| exposition::float(&le.unescaped())) {
                Some(le) if !le.is_nan() => le,
                _ => {
                    self.skipped += 1;
                    return;
                }
            },
            _ => 0.0,
        };
        let Some(cell) = self.cell(seen, rule_index) else {
            return;
        };
        match part {
            Part::Value if seen.has_pid && is_gauge => merge(&mut cell.pid_max, value, f64::max),
            Part::Value => match rule.aggregate {
                Aggregate::Sum => merge(&mut cell.value, value, |a, b| a + b),
                Aggregate::Max => merge(&mut cell.value, value, f64::max),
            },
            Part::Created => merge(&mut cell.created, value, f64::min),
            Part::Bucket => match cell.buckets.iter().position(|b| b.0 == le) {
                Some(at) => {
                    cell.buckets[at].1 += value;
                    cell.buckets[at].2 += 1;
                }
                None if cell.buckets.len() < MAX_BOUNDS => cell.buckets.push((le, value, 1)),
                None => self.skipped += 1,
            },
            Part::Sum => merge(&mut cell.sum, value, |a, b| a + b),
            Part::Count => merge(&mut cell.count, value, |a, b| a + b),
            Part::ProcessStart | Part::CacheConfig | Part::Lora => {}
        }
    }

    fn cache_config(&mut self, sample: &Sample<'_>) {
        let number = |label: &[u8]| {
            sample
                .labels
                .get(label)
                .and_then(|v| exposition::float(v.raw()))
                .filter(|v| v.is_finite() && *v > 0.0)
        };
        if let Some(tokens) = number(b"kv_cache_size_tokens") {
            merge(&mut self.kv_tokens, tokens, |a, b| a + b);
        }
        if let (Some(size), Some(blocks)) = (number(b"block_size"), number(b"num_gpu_blocks")) {
            merge(&mut self.kv_tokens_of_blocks, size * blocks, f64::max);
        }
    }

    fn lora(&mut self, sample: &Sample<'_>) {
        // One series per combination of adapters there has ever been; its value is when it was last true.
        if sample.value.is_nan() || self.lora.as_ref().is_some_and(|(newest, _)| *newest >= sample.value) {
            return;
        }
        let list = |label: &[u8]| {
            let text = sample.labels.get(label).map(|v| v.text()).unwrap_or_default();
            let mut names: Vec<String> = text
                .split(',')
                .map(str::trim)
                .filter(|n| !n.is_empty())
                .map(str::to_owned)
                .collect();
            names.sort();
            names
        };
        let max = sample.labels.get(b"max_lora").and_then(|v| v.text().parse().ok());
        let lora = Lora {
            max,
            running: list(b"running_lora_adapters"),
            waiting: list(b"waiting_lora_adapters"),
        };
        self.lora = Some((sample.value, lora));
    }
}

impl<'a> Visitor<'a> for Pass<'_> {
    fn wanted(&mut self, name: &'a [u8]) -> bool {
        self.parts = &[];
        if let Engines::Known = self.catalogue.engines {
            let kind = if has_prefix(name, vllm::PREFIX) {
                Some(Kind::Vllm)
            } else if has_prefix(name, sglang::PREFIX) {
                Some(Kind::Sglang)
            } else {
                None
            };
            // The first engine seen is the one: there is no process that is two.
            match (kind, self.kind) {
                (None, _) if name != b"process_start_time_seconds" => return false,
                (Some(kind), Some(before)) if kind != before => return false,
                (Some(kind), None) => self.kind = Some(kind),
                _ => {}
            }
        }
        let Some(entry) = self.catalogue.get(name) else {
            return false;
        };
        if let Some(hint) = entry.hint {
            self.hint = Some(self.hint.map_or(hint, |best| best.min(hint)));
        }
        self.parts = &entry.parts;
        !self.parts.is_empty()
    }

    fn sample(&mut self, sample: Sample<'a>) {
        let parts = self.parts;
        match parts {
            [(_, Part::ProcessStart)] => self.process_start_s = Some(sample.value).filter(|v| v.is_finite()),
            [(_, Part::Lora)] => self.lora(&sample),
            [(_, Part::CacheConfig)] => {
                self.labels(&sample);
                self.cache_config(&sample);
            }
            _ => {
                if matches!(self.catalogue.engines, Engines::Mapped(_)) {
                    self.kind = Some(Kind::Mapped);
                }
                let seen = self.labels(&sample);
                for &(rule, part) in parts {
                    self.rule_part(rule, part, &sample, &seen);
                }
            }
        }
    }
}

/// `vllm:` or `vllm_`.
fn has_prefix(name: &[u8], prefix: &str) -> bool {
    let (stem, len) = (&prefix.as_bytes()[..prefix.len() - 1], prefix.len());
    name.len() > len && name.starts_with(stem) && matches!(name[len - 1], b':' | b'_')
}

fn rank(value: LabelValue<'_>) -> u64 {
    exposition::float(value.raw()).map_or(0xffff, |r| (r as u64).min(0xffff))
}

pub(super) fn merge(into: &mut Option<f64>, value: f64, how: impl Fn(f64, f64) -> f64) {
    *into = Some(into.map_or(value, |old| how(old, value)));
}

fn matches(rule: &Rule, sample: &Sample<'_>) -> bool {
    rule.filters.iter().all(|(label, values)| {
        let value = sample
            .labels
            .get(label.as_bytes())
            .map(|v| v.unescaped())
            .unwrap_or_default();
        values.iter().any(|v| v.as_bytes() == &*value)
    })
}
