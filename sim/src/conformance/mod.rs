//! Replays conformance vectors: inputs and expected numbers as facts, against the very functions the decider runs.
//!
//! A family that this build does not know is counted as unsupported, never as passed.

mod hpa;
mod kpa;
mod packing;
mod windows;

use std::path::Path;

use infer_core::TimeMs;
use serde::Deserialize;
use serde_json::Value;

/// Ages in vectors are before "now"; any now will do.
const NOW: TimeMs = TimeMs(1_000_000_000);
/// For floats that should be equal but for the order of additions.
const EXACT: f64 = 1e-9;

/// What replaying a file came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Cases whose every expectation was met.
    pub passed: usize,
    /// One line per failed case.
    pub failures: Vec<String>,
    /// Cases of families this build does not know, by family.
    pub unsupported: std::collections::BTreeMap<String, usize>,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        for (family, count) in other.unsupported {
            *self.unsupported.entry(family).or_default() += count;
        }
    }
}

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    family: String,
    #[serde(flatten)]
    body: Value,
}

/// Replays one file.
///
/// # Errors
/// A sentence with the file's name when it cannot be read as vectors at all.
pub fn replay_file(path: &Path) -> Result<Tally, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let file: File = serde_json::from_str(&text)
        .map_err(|error| format!("{}:{}:{}: {error}", path.display(), error.line(), error.column()))?;
    let mut tally = Tally::default();
    for case in &file.cases {
        match replay(case) {
            Some(Ok(())) => tally.passed += 1,
            Some(Err(why)) => tally.failures.push(format!("{}: {why}", case.id)),
            None => *tally.unsupported.entry(case.family.clone()).or_default() += 1,
        }
    }
    Ok(tally)
}

type Verdict = Result<(), String>;

fn replay(case: &Case) -> Option<Verdict> {
    let body = &case.body;
    Some(match case.family.as_str() {
        "kpa_scale" => typed(body, kpa::kpa_scale),
        "kpa_start" => typed(body, kpa::kpa_start),
        "kpa_windows" => typed(body, kpa::kpa_windows),
        "hpa_behavior_rate" => typed(body, hpa::behavior_rate),
        "hpa_scale_limit" => typed(body, hpa::scale_limit),
        "hpa_store_events" => typed(body, hpa::store_events),
        "hpa_stabilize_behavior" => typed(body, hpa::stabilize_behavior),
        "hpa_stabilize_no_behavior" => typed(body, hpa::stabilize_no_behavior),
        "buckets" => typed(body, windows::buckets),
        "round_n_digits" => typed(body, windows::round_n_digits),
        "smoothing_coeff" => typed(body, windows::smoothing),
        "weighted_example" => typed(body, windows::weighted),
        "max_window" => typed(body, windows::max_window),
        "max_time_window" => typed(body, windows::max_time_window),
        "greedy_doubling" => typed(body, packing::greedy_doubling),
        _ => return None,
    })
}

fn typed<T: for<'a> Deserialize<'a>>(body: &Value, run: impl FnOnce(T) -> Verdict) -> Verdict {
    let case = serde_json::from_value(body.clone()).map_err(|error| format!("not of its family's form: {error}"))?;
    run(case)
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Verdict {
    if got == want {
        Ok(())
    } else {
        Err(format!("{what}: got {got:?}, expected {want:?}"))
    }
}

fn expect_near(what: &str, got: f64, want: f64, tolerance: f64) -> Verdict {
    if (got - want).abs() <= tolerance {
        Ok(())
    } else {
        Err(format!("{what}: got {got}, expected {want} ± {tolerance}"))
    }
}
