//! What the exposition of every flavour is made from, and the small helpers that make families.

use std::collections::BTreeMap;

use super::exposition::{Data, Family, Labels, Value};
use super::http_stats::HttpStats;
use super::model::Model;
use super::stats::{Histogram, Stats};

/// One data-parallel rank.
#[derive(Debug)]
pub struct Rank {
    /// Its engine.
    pub model: Model,
    /// What it has counted.
    pub stats: Stats,
}

/// Sleep mode as vLLM shows it.
#[derive(Debug, Clone, Default)]
pub struct Sleep {
    /// 0 awake, 1 weights offloaded, 2 everything discarded.
    pub level: u8,
    /// Durations of sleep and wake-up calls so far, by operation.
    pub operations: BTreeMap<&'static str, Histogram>,
}

/// LoRA adapters as vLLM shows them.
#[derive(Debug, Clone, Default)]
pub struct Lora {
    /// Adapters that may be requested by name; none means LoRA is off.
    pub adapters: Vec<String>,
    /// Most adapters in one batch.
    pub max_loras: u32,
    /// Unix time at which a combination of running and waiting adapters was last seen.
    pub seen: BTreeMap<(String, String), f64>,
}

/// Everything a scrape shows, borrowed for the time of writing it.
#[derive(Debug)]
pub struct View<'a> {
    /// First served model name.
    pub model_name: &'a str,
    /// The ranks.
    pub ranks: &'a [Rank],
    /// Requests refused because the queue was full.
    pub rejections: u64,
    /// The HTTP server's own counters.
    pub http: &'a HttpStats,
    /// Unix time at which the engine came up.
    pub created_s: f64,
    /// Time the engine has been up, s.
    pub uptime_s: f64,
    /// Sleep mode.
    pub sleep: &'a Sleep,
    /// LoRA.
    pub lora: &'a Lora,
    /// Whether the front end runs in several processes (no `process_*`, no `_created`).
    pub multiprocess: bool,
}

impl View<'_> {
    /// `model_name`, `engine` of one rank.
    pub fn rank_labels(&self, rank: usize) -> Labels {
        vec![("model_name", self.model_name.to_owned()), ("engine", rank.to_string())]
    }

    /// One value per rank.
    pub fn per_rank<V: Into<Value>>(&self, value: impl Fn(&Rank) -> V) -> Vec<(Labels, Value)> {
        self.ranks
            .iter()
            .enumerate()
            .map(|(i, rank)| (self.rank_labels(i), value(rank).into()))
            .collect()
    }

    /// One value per rank and value of one more label.
    pub fn per_rank_and(
        &self,
        label: &'static str,
        values: &[&str],
        value: impl Fn(&Rank, &str) -> Value,
    ) -> Vec<(Labels, Value)> {
        let mut series = Vec::with_capacity(values.len() * self.ranks.len());
        for name in values {
            for (i, rank) in self.ranks.iter().enumerate() {
                let mut labels = self.rank_labels(i);
                labels.push((label, (*name).to_owned()));
                series.push((labels, value(rank, name)));
            }
        }
        series
    }

    /// One histogram per rank.
    pub fn histograms(&self, pick: impl Fn(&Stats) -> Histogram) -> Vec<(Labels, Histogram)> {
        self.ranks
            .iter()
            .enumerate()
            .map(|(i, rank)| (self.rank_labels(i), pick(&rank.stats)))
            .collect()
    }
}

/// Collects families in order.
#[derive(Debug)]
pub struct Families {
    list: Vec<Family>,
    created_s: Option<f64>,
}

impl Families {
    /// An empty list whose series were made at `created_s`.
    pub fn new(created_s: Option<f64>) -> Self {
        Self {
            list: Vec::with_capacity(128),
            created_s,
        }
    }

    fn push(&mut self, name: &'static str, help: &'static str, data: Data) {
        self.list.push(Family {
            name,
            help,
            data,
            created_s: self.created_s,
        });
    }

    /// Adds a counter family; `name` is without `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str, series: Vec<(Labels, Value)>) {
        self.push(name, help, Data::Counter(series));
    }

    /// Adds a counter family whose creation times are not written (the library's own platform counters).
    pub fn bare_counter(&mut self, name: &'static str, help: &'static str, series: Vec<(Labels, Value)>) {
        self.list.push(Family {
            name,
            help,
            data: Data::Counter(series),
            created_s: None,
        });
    }

    /// Adds a gauge family.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, series: Vec<(Labels, Value)>) {
        self.push(name, help, Data::Gauge(series));
    }

    /// Adds a histogram family.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, series: Vec<(Labels, Histogram)>) {
        self.push(name, help, Data::Histogram(series));
    }

    /// Adds a summary family.
    pub fn summary(&mut self, name: &'static str, help: &'static str, series: Vec<(Labels, u64, f64)>) {
        self.push(name, help, Data::Summary(series));
    }

    /// The families.
    pub fn into_inner(self) -> Vec<Family> {
        self.list
    }
}

/// `1, 2, 5, 10, 20, 50, ...` up to and including `max`, vLLM's bounds for lengths in tokens.
pub fn one_two_five(max: u32) -> Vec<f64> {
    let mut bounds = Vec::new();
    let mut decade = 1u64;
    loop {
        for mantissa in [1, 2, 5] {
            let bound = mantissa * decade;
            if bound > u64::from(max) {
                return bounds;
            }
            bounds.push(bound as f64);
        }
        decade *= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_two_five_ends_at_the_longest_request() {
        assert_eq!(one_two_five(2048).len(), 11);
        assert_eq!(one_two_five(2048).last(), Some(&2000.0));
        assert_eq!(one_two_five(5), [1.0, 2.0, 5.0]);
    }
}
