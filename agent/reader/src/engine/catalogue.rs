//! Every sample name of interest, by name.

use std::collections::HashMap;

use super::{Hint, Rule, Target, sglang, vllm};
use crate::mapping::Mapping;

/// What a sample of a known name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Value of a rule's gauge or counter.
    Value,
    /// When a rule's counter was created.
    Created,
    /// Of a rule's histogram.
    Bucket,
    Sum,
    Count,
    /// `process_start_time_seconds`.
    ProcessStart,
    /// vLLM's `cache_config_info`.
    CacheConfig,
    /// vLLM's `lora_requests_info`.
    Lora,
}

#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) parts: Vec<(u16, Part)>,
    /// Index into the hints of the engine that the name belongs to.
    pub(super) hint: Option<usize>,
}

/// Which engines a catalogue describes.
#[derive(Debug)]
pub(super) enum Engines {
    /// vLLM and SGLang, told apart by what is seen.
    Known,
    Mapped(Mapping),
}

/// Rules with an index by sample name.
#[derive(Debug)]
pub struct Catalogue {
    pub(super) rules: Vec<Rule>,
    pub(super) engines: Engines,
    index: HashMap<Box<[u8]>, Entry>,
}

impl Catalogue {
    /// vLLM and SGLang.
    pub fn known() -> Self {
        let mut rules = vllm::rules();
        rules.extend(sglang::rules());
        let mut catalogue = Self::build(rules, Engines::Known);
        for hints in [vllm::HINTS, sglang::HINTS] {
            for (index, hint) in hints.iter().enumerate() {
                catalogue.hint(index, hint);
            }
        }
        for (name, part) in [
            ("vllm:cache_config_info", Part::CacheConfig),
            ("vllm:lora_requests_info", Part::Lora),
        ] {
            catalogue.part(name, (0, part));
        }
        catalogue
    }

    /// The engine a mapping file describes, and no other.
    pub fn mapped(mapping: Mapping) -> Self {
        Self::build(mapping.rules.clone(), Engines::Mapped(mapping))
    }

    fn build(rules: Vec<Rule>, engines: Engines) -> Self {
        let mut catalogue = Self {
            rules: Vec::new(),
            engines,
            index: HashMap::new(),
        };
        for (index, rule) in rules.iter().enumerate() {
            let of = |part| (index as u16, part);
            let family = rule.family.as_str();
            match rule.target {
                Target::Gauge(_) => catalogue.part(family, of(Part::Value)),
                Target::Counter(_) => {
                    // Which of the two names a counter has depends on the dialect.
                    let base = family.strip_suffix("_total").unwrap_or(family);
                    catalogue.part(base, of(Part::Value));
                    catalogue.part(&format!("{base}_total"), of(Part::Value));
                    catalogue.part(&format!("{base}_created"), of(Part::Created));
                }
                Target::Latency(_) => {
                    for (suffix, part) in [("_bucket", Part::Bucket), ("_sum", Part::Sum), ("_count", Part::Count)] {
                        catalogue.part(&format!("{family}{suffix}"), of(part));
                    }
                }
            }
        }
        catalogue.part("process_start_time_seconds", (0, Part::ProcessStart));
        catalogue.rules = rules;
        catalogue
    }

    fn part(&mut self, name: &str, part: (u16, Part)) {
        for name in spellings(name) {
            self.index.entry(name).or_default().parts.push(part);
        }
    }

    fn hint(&mut self, index: usize, hint: &Hint) {
        for suffix in ["", "_total", "_count"] {
            for name in spellings(&format!("{}{suffix}", hint.family)) {
                self.index.entry(name).or_default().hint = Some(index);
            }
        }
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&Entry> {
        self.index.get(name)
    }
}

/// The name, and with `_` for `:`, which is what prometheus_client sends to whoever asks for OpenMetrics.
fn spellings(name: &str) -> impl Iterator<Item = Box<[u8]>> {
    let underscored = name
        .contains(':')
        .then(|| name.replace(':', "_").into_bytes().into_boxed_slice());
    [Some(name.as_bytes().into()), underscored].into_iter().flatten()
}
