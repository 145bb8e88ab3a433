//! How many replicas of which variant make up a total.

use std::collections::BTreeMap;

use infer_core::packing::{Variant, greedy_expansion};
use serde::Deserialize;

use super::{Verdict, expect};

#[derive(Deserialize)]
pub(super) struct GreedyDoubling {
    input: Input,
    expect: Expected,
}

#[derive(Deserialize)]
struct Input {
    targets: Vec<Target>,
    cost_expansion_rate_percent: u32,
    total_replicas: u32,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    cost: f64,
    min: u32,
    max: u32,
}

#[derive(Deserialize)]
struct Expected {
    replicas: BTreeMap<String, u32>,
}

pub(super) fn greedy_doubling(case: GreedyDoubling) -> Verdict {
    let Input {
        targets,
        cost_expansion_rate_percent: expansion_percent,
        total_replicas: total,
    } = case.input;
    let variants: Vec<Variant> = targets
        .iter()
        .map(|target| Variant {
            min: target.min,
            max: target.max,
            cost: target.cost,
        })
        .collect();
    let names = targets.into_iter().map(|target| target.name);
    let got: BTreeMap<String, u32> = names
        .zip(greedy_expansion(total, &variants, expansion_percent))
        .collect();
    expect("replicas", got, case.expect.replicas)
}
