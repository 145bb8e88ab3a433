//! Windows over time.

use infer_core::{
    TimeMs,
    window::{
        Averaging, MaxTimeWindow, MaxWindow, TimedBuckets, round_to_digits, smoothing_coefficient, weighted_average,
    },
};
use serde::Deserialize;

use super::{EXACT, Verdict, expect, expect_near};

#[derive(Deserialize)]
pub(super) struct Buckets {
    config: BucketsConfig,
    ops: Vec<BucketOp>,
}

#[derive(Deserialize)]
pub(super) struct BucketsConfig {
    kind: String,
    window_s: f64,
    granularity_s: f64,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum BucketOp {
    Record {
        t_s: f64,
        value: f64,
    },
    Avg {
        t_s: f64,
        expect: f64,
        round_digits: Option<i32>,
    },
    Sum {
        t_s: f64,
        expect: f64,
    },
    IsEmpty {
        t_s: f64,
        expect: bool,
    },
    NonzeroBuckets {
        t_s: f64,
        expect: std::collections::BTreeMap<String, f64>,
    },
    Resize {
        window_s: f64,
        wall_now_s: f64,
        expect_buckets: usize,
    },
    FirstWriteEqualsLastWrite {
        expect: bool,
    },
    FirstWriteIsZero {
        expect: bool,
    },
}

pub(super) fn buckets(case: Buckets) -> Verdict {
    let averaging = match case.config.kind.as_str() {
        "linear" => Averaging::Linear,
        "weighted" => Averaging::WeightedExponential,
        other => return Err(format!("kind {other:?}")),
    };
    let granularity_ms = (case.config.granularity_s * 1000.0) as i64;
    let mut window = TimedBuckets::new(averaging, case.config.window_s, granularity_ms);
    for (index, op) in case.ops.into_iter().enumerate() {
        let at = |what: &str| format!("op {} {what}", index + 1);
        match op {
            BucketOp::Record { t_s, value } => {
                window.record(TimeMs::from_s(t_s), value);
            }
            BucketOp::Avg {
                t_s,
                expect: want,
                round_digits,
            } => {
                let got = window.window_average(TimeMs::from_s(t_s));
                let got = round_digits.map_or(got, |digits| round_to_digits(digits, got));
                expect_near(&at("avg"), got, want, EXACT)?;
            }
            BucketOp::Sum { t_s, expect: want } => {
                expect_near(&at("sum"), window.sum(TimeMs::from_s(t_s)), want, EXACT)?;
            }
            BucketOp::IsEmpty { t_s, expect: want } => {
                expect(&at("is_empty"), window.is_empty(TimeMs::from_s(t_s)), want)?;
            }
            BucketOp::NonzeroBuckets { t_s, expect: want } => {
                let buckets = window
                    .newest_first(TimeMs::from_s(t_s))
                    .filter(|(_, value)| *value != 0.0);
                let got = buckets
                    .map(|(start, value)| ((start.0 / 1000).to_string(), value))
                    .collect();
                expect(&at("nonzero_buckets"), got, want)?;
            }
            BucketOp::Resize {
                window_s,
                wall_now_s,
                expect_buckets,
            } => {
                window.resize(window_s, TimeMs::from_s(wall_now_s));
                expect(&at("buckets"), window.bucket_count(), expect_buckets)?;
            }
            BucketOp::FirstWriteEqualsLastWrite { expect: want } => {
                let equal = window.first_write().is_some() && window.first_write() == window.last_write();
                expect(&at("first write is last write"), equal, want)?;
            }
            BucketOp::FirstWriteIsZero { expect: want } => {
                expect(&at("first write is unset"), window.first_write().is_none(), want)?;
            }
        }
    }
    Ok(())
}

#[derive(Deserialize)]
pub(super) struct RoundNDigits {
    input: RoundNDigitsInput,
    expect: f64,
}

#[derive(Deserialize)]
pub(super) struct RoundNDigitsInput {
    digits: i32,
    value: f64,
}

pub(super) fn round_n_digits(case: RoundNDigits) -> Verdict {
    expect_near(
        "rounded",
        round_to_digits(case.input.digits, case.input.value),
        case.expect,
        EXACT,
    )
}

#[derive(Deserialize)]
pub(super) struct Smoothing {
    input: SmoothingInput,
    expect: f64,
    tolerance: f64,
}

#[derive(Deserialize)]
pub(super) struct SmoothingInput {
    buckets: usize,
}

pub(super) fn smoothing(case: Smoothing) -> Verdict {
    expect_near(
        "coefficient",
        smoothing_coefficient(case.input.buckets),
        case.expect,
        case.tolerance,
    )
}

#[derive(Deserialize)]
pub(super) struct Weighted {
    input: WeightedInput,
    expect: f64,
}

#[derive(Deserialize)]
pub(super) struct WeightedInput {
    values_oldest_first: Vec<f64>,
    coefficient: f64,
}

pub(super) fn weighted(case: Weighted) -> Verdict {
    let newest_first = case.input.values_oldest_first.into_iter().rev();
    expect_near(
        "average",
        weighted_average(newest_first, case.input.coefficient),
        case.expect,
        EXACT,
    )
}

#[derive(Deserialize)]
pub(super) struct MaxWindowCase {
    config: MaxWindowConfig,
    input: MaxWindowInput,
    expect: Vec<u32>,
}

#[derive(Deserialize)]
pub(super) struct MaxWindowConfig {
    size: i64,
}

#[derive(Deserialize)]
pub(super) struct MaxWindowInput {
    indexes: Vec<i64>,
    values: Vec<u32>,
}

pub(super) fn max_window(case: MaxWindowCase) -> Verdict {
    let mut window = MaxWindow::new(case.config.size);
    let records = case.input.indexes.into_iter().zip(case.input.values);
    let got: Vec<u32> = records
        .map(|(index, value)| {
            window.record(index, value);
            window.current()
        })
        .collect();
    expect("maxima", got, case.expect)
}

#[derive(Deserialize)]
pub(super) struct MaxTimeWindowCase {
    config: MaxTimeWindowConfig,
    input: Vec<TimedValue>,
    expect: u32,
}

#[derive(Deserialize)]
pub(super) struct MaxTimeWindowConfig {
    window_s: f64,
    granularity_s: f64,
}

#[derive(Deserialize)]
pub(super) struct TimedValue {
    t_s: f64,
    value: u32,
}

pub(super) fn max_time_window(case: MaxTimeWindowCase) -> Verdict {
    let mut window = MaxTimeWindow::new(case.config.window_s, (case.config.granularity_s * 1000.0) as i64);
    for record in case.input {
        window.record(TimeMs::from_s(record.t_s), record.value);
    }
    expect("maximum", window.current(), case.expect)
}
