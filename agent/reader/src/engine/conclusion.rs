//! The end of a pass: from cells to a [`Reading`].

use infer_proto::v1;

use super::{
    Aggregate, Counter, GAUGES, Gauge, Latency, Rule, Target,
    catalogue::Engines,
    reading::{Cell, FrontEnd, Instance, Kind, Pass, Reading, Sourced, merge},
    sglang, vllm,
};
use crate::{
    exposition::Summary,
    histogram::{Buckets, micros},
};

impl Pass<'_> {
    pub(super) fn finish(mut self, summary: Summary) -> Reading {
        let rules = &self.catalogue.rules;
        let mut gauges = [None; GAUGES];
        let instances: Vec<Instance> = self
            .instances
            .iter()
            .map(|cells| {
                let mut instance = Instance {
                    key: cells.key.clone(),
                    ..Instance::default()
                };
                for target in targets() {
                    let present = || rules.iter().zip(&cells.cells).filter(|(rule, _)| rule.target == target);
                    let with_value = || {
                        present().filter_map(|(rule, cell)| {
                            let cell = cell.as_ref()?;
                            let value = match (cell.value, cell.pid_max) {
                                (Some(a), Some(b)) => a + b,
                                (a, b) => a.or(b)?,
                            };
                            Some((rule, value * rule.scale))
                        })
                    };
                    match target {
                        Target::Gauge(gauge) => {
                            combine(with_value(), &mut gauges[gauge as usize]);
                        }
                        Target::Counter(counter) => {
                            let mut value = None;
                            let rank = combine(with_value(), &mut value);
                            instance.counters[counter as usize] =
                                value.zip(rank).map(|(value, rank)| Sourced { value, rank });
                            for created in present().filter_map(|(_, cell)| cell.as_ref()?.created) {
                                merge(&mut instance.created_s, created, f64::min);
                            }
                        }
                        Target::Latency(latency) => {
                            let best = present()
                                .filter_map(|(rule, cell)| Some((rule, cell.as_ref()?)))
                                .filter(|(_, cell)| !cell.buckets.is_empty())
                                .min_by_key(|(rule, _)| rule.rank);
                            if let Some((rule, cell)) = best {
                                let buckets = buckets(rule, cell);
                                self.skipped += u32::from(buckets.is_none());
                                instance.histograms[latency as usize] =
                                    buckets.map(|value| Sourced { value, rank: rule.rank });
                            }
                        }
                    }
                }
                instance
            })
            .collect();
        let mut reading = Reading {
            front_end: (self.kind == Some(Kind::Vllm)).then(|| self.front_end()),
            gauges: self.gauges(&gauges),
            process_start_s: self.process_start_s,
            lora: self.lora.take().map(|(_, lora)| lora),
            skipped_values: self.skipped,
            instances,
            summary,
            engine: None,
        };
        reading.engine = self.engine(&reading);
        reading
    }

    fn gauges(&self, gauges: &[Option<f64>; GAUGES]) -> v1::Gauges {
        let gauge = |gauge: Gauge| gauges[gauge as usize];
        let kv_capacity = gauge(Gauge::KvCapacityTokens)
            .or(self.kv_tokens)
            .or(self.kv_tokens_of_blocks);
        v1::Gauges {
            running: gauge(Gauge::Running),
            waiting: gauge(Gauge::Waiting),
            kv_usage: gauge(Gauge::KvUsage),
            kv_capacity_tokens: kv_capacity.map(|v| v.round() as u64),
            in_flight: gauge(Gauge::InFlight),
            // Asleep only when no engine of the process is awake.
            asleep: gauge(Gauge::Awake).map(|awake| awake == 0.0),
            max_running: gauge(Gauge::MaxRunning).map(|v| v.round() as u64),
        }
    }

    /// The Rust front end writes `model_name` before `engine`, prometheus_client sorts labels. V0 never had `engine`,
    /// early V1 neither, but that had prefix cache counters.
    fn front_end(&self) -> FrontEnd {
        match (self.engine_label, self.model_before_engine, self.hint) {
            (true, true, _) => FrontEnd::Rust,
            (true, false, _) | (false, _, Some(_)) => FrontEnd::Python,
            (false, _, None) => FrontEnd::V0,
        }
    }

    fn engine(&self, reading: &Reading) -> Option<v1::Engine> {
        let at_least = |since: &str| format!(">={since}");
        let (kind, name, version) = match (self.kind?, &self.catalogue.engines) {
            (Kind::Mapped, Engines::Mapped(mapping)) => {
                (v1::engine::Kind::Mapped, mapping.name.as_str(), String::new())
            }
            (Kind::Mapped, Engines::Known) => return None,
            (Kind::Sglang, _) => {
                let version = self
                    .hint
                    .map_or(String::new(), |hint| at_least(sglang::HINTS[hint].since));
                (v1::engine::Kind::Sglang, "sglang", version)
            }
            (Kind::Vllm, _) => {
                let long_ttft = reading.instances.iter().any(|i| {
                    let ttft = i.histograms[Latency::Ttft as usize].as_ref();
                    ttft.is_some_and(|h| h.value.bounds_us.last().is_some_and(|&last| last >= 2560e6))
                });
                let version = match self.hint {
                    Some(hint) => at_least(vllm::HINTS[hint].since),
                    None if long_ttft => at_least(vllm::LONG_BUCKETS_SINCE),
                    None => format!("<{}", vllm::V0_UNTIL),
                };
                (v1::engine::Kind::Vllm, "vllm", version)
            }
        };
        let engines = reading.instances.iter().filter(|i| !i.key.is_empty()).count().max(1);
        Some(v1::Engine {
            kind: kind.into(),
            name: name.to_owned(),
            version,
            model: self.model.clone().unwrap_or_default(),
            engines: engines as u32,
            front_end: reading.front_end.map_or("", FrontEnd::name).to_owned(),
        })
    }
}

/// Adds what the rules of the lowest rank say to `into`; returns that rank.
fn combine<'r>(values: impl Iterator<Item = (&'r Rule, f64)> + Clone, into: &mut Option<f64>) -> Option<u8> {
    let rank = values.clone().map(|(rule, _)| rule.rank).min()?;
    for (rule, value) in values.filter(|(rule, _)| rule.rank == rank) {
        match rule.aggregate {
            Aggregate::Sum => merge(into, value, |a, b| a + b),
            Aggregate::Max => merge(into, value, f64::max),
        }
    }
    Some(rank)
}

fn buckets(rule: &Rule, cell: &Cell) -> Option<Buckets> {
    // Series of unlike layouts added up are right only at the bounds they all have; fewer bounds are still bounds.
    let series = cell.buckets.iter().map(|b| b.2).max()?;
    let mut cumulative: Vec<(f64, f64)> = cell
        .buckets
        .iter()
        .filter(|b| b.2 == series)
        .map(|&(le, n, _)| (micros(le, rule.scale), n))
        .collect();
    if !cumulative.iter().any(|b| b.0 == f64::INFINITY) {
        cumulative.push((f64::INFINITY, cell.count?));
    }
    Buckets::from_cumulative(cumulative, cell.sum.filter(|s| s.is_finite()).map(|s| s * rule.scale))
}

fn targets() -> impl Iterator<Item = Target> {
    use Counter as C;
    let gauges = [
        Gauge::Running,
        Gauge::Waiting,
        Gauge::KvUsage,
        Gauge::KvCapacityTokens,
        Gauge::InFlight,
        Gauge::MaxRunning,
        Gauge::Awake,
    ];
    let counters = [
        C::PromptTokens,
        C::PromptTokensCached,
        C::GenerationTokens,
        C::Requests,
        C::RequestsFailed,
        C::RequestsRejected,
        C::Preemptions,
    ];
    (gauges.into_iter().map(Target::Gauge))
        .chain(counters.into_iter().map(Target::Counter))
        .chain(Latency::ALL.into_iter().map(Target::Latency))
}
