//! Replays conformance vectors: inputs and expected numbers as facts, against the very functions the decider runs.
//!
//! A family that this build does not know is counted as unsupported, never as passed.

use std::path::Path;

use infer_core::{
    TimeMs,
    behavior::{self, Limit, Recommendation, ScaleEvent, ScaleEvents},
    kpa::{self, KpaInput, KpaMemory},
    policy::{Bounds, KpaPolicy, RateKind, RatePolicy, ScalingRules, SelectPolicy},
    window::{
        Averaging, MaxTimeWindow, MaxWindow, TimedBuckets, round_to_digits, smoothing_coefficient, weighted_average,
    },
};
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
        "kpa_scale" => typed(body, kpa_scale),
        "kpa_start" => typed(body, kpa_start),
        "kpa_windows" => typed(body, kpa_windows),
        "hpa_behavior_rate" => typed(body, behavior_rate),
        "hpa_scale_limit" => typed(body, scale_limit),
        "hpa_store_events" => typed(body, store_events),
        "hpa_stabilize_behavior" => typed(body, stabilize_behavior),
        "hpa_stabilize_no_behavior" => typed(body, stabilize_no_behavior),
        "buckets" => typed(body, buckets),
        "round_n_digits" => typed(body, round_n_digits),
        "smoothing_coeff" => typed(body, smoothing),
        "weighted_example" => typed(body, weighted),
        "max_window" => typed(body, max_window),
        "max_time_window" => typed(body, max_time_window),
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

// --- Knative's stable/panic machine ---

#[derive(Deserialize)]
struct KpaScale {
    config: KpaConfig,
    initial: KpaInitial,
    steps: Vec<KpaStep>,
}

#[derive(Deserialize)]
struct KpaConfig {
    target: f64,
    total: f64,
    target_burst_capacity: f64,
    panic_threshold: f64,
    max_scale_up_rate: f64,
    max_scale_down_rate: f64,
    stable_window_s: f64,
    activation_scale: u32,
    scale_down_delay_s: f64,
    reachable: bool,
}

#[derive(Deserialize)]
struct KpaInitial {
    ready_at_creation: u32,
    panic_since_s: Option<f64>,
    max_panic_pods: Option<u32>,
}

#[derive(Deserialize)]
struct KpaStep {
    t_s: f64,
    ready: u32,
    stable: f64,
    panic: f64,
    metric_error: Option<String>,
    pod_count_error: Option<String>,
    update_config: Option<Value>,
    expect: KpaExpect,
}

#[derive(Deserialize)]
struct KpaExpect {
    valid: bool,
    desired: Option<u32>,
    ebc: Option<f64>,
    in_panic: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    panic_since_s: Option<Option<f64>>,
}

/// Tells `null` from a missing field.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn kpa_scale(case: KpaScale) -> Verdict {
    let KpaScale {
        config: mut current,
        initial,
        steps,
    } = case;
    let mut memory = KpaMemory::start(&current.policy(), initial.ready_at_creation, TimeMs(0));
    if let Some(since_s) = initial.panic_since_s {
        memory.panic_since = Some(TimeMs::from_s(since_s));
    }
    if let Some(most) = initial.max_panic_pods {
        memory.max_panic_replicas = most;
    }
    for (index, step) in steps.into_iter().enumerate() {
        let at = |what: &str| format!("step {} {what}", index + 1);
        if let Some(update) = &step.update_config {
            current.update(update)?;
        }
        // Without data or without a count there is no decision at all: the brain holds before it asks the machine.
        if step.metric_error.is_some() || step.pod_count_error.is_some() {
            expect(&at("valid"), false, step.expect.valid)?;
            continue;
        }
        let policy = current.policy();
        let now = TimeMs::from_s(step.t_s);
        let input = KpaInput {
            now,
            ready: step.ready,
            stable: step.stable / current.target,
            panic: step.panic / current.target,
            reachable: current.reachable,
        };
        let output = kpa::step(&policy, &mut memory, input);
        expect(&at("valid"), true, step.expect.valid)?;
        if let Some(desired) = step.expect.desired {
            expect(&at("desired"), output.desired, desired)?;
        }
        if let Some(ebc) = step.expect.ebc {
            let got = kpa::excess_burst_capacity(step.ready, current.total, current.target_burst_capacity, step.panic);
            expect_near(&at("excess burst capacity"), got, ebc, 1.0)?;
        }
        if let Some(in_panic) = step.expect.in_panic {
            expect(&at("in_panic"), output.in_panic, in_panic)?;
        }
        if let Some(since) = step.expect.panic_since_s {
            expect(&at("panic_since"), memory.panic_since, since.map(TimeMs::from_s))?;
        }
    }
    Ok(())
}

impl KpaConfig {
    fn policy(&self) -> KpaPolicy {
        KpaPolicy {
            stable_window_s: self.stable_window_s,
            panic_threshold_percent: self.panic_threshold * 100.0,
            max_scale_up_rate: self.max_scale_up_rate,
            max_scale_down_rate: self.max_scale_down_rate,
            scale_down_delay_s: self.scale_down_delay_s,
            activation_scale: self.activation_scale,
            ..KpaPolicy::default()
        }
    }

    fn update(&mut self, update: &Value) -> Verdict {
        for (field, value) in update.as_object().ok_or("update_config is not an object")? {
            let number = || value.as_f64().ok_or(format!("update_config.{field} is not a number"));
            match field.as_str() {
                "reachable" => self.reachable = value.as_bool().ok_or("update_config.reachable is not a boolean")?,
                "target" => self.target = number()?,
                "activation_scale" => self.activation_scale = number()? as u32,
                "max_scale_up_rate" => self.max_scale_up_rate = number()?,
                "max_scale_down_rate" => self.max_scale_down_rate = number()?,
                "panic_threshold" => self.panic_threshold = number()?,
                "target_burst_capacity" => self.target_burst_capacity = number()?,
                other => return Err(format!("update_config.{other} is not known")),
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct KpaStart {
    input: KpaStartInput,
    expect: KpaStartExpect,
}

#[derive(Deserialize)]
struct KpaStartInput {
    ready_at_creation: Option<u32>,
}

#[derive(Deserialize)]
struct KpaStartExpect {
    in_panic: Option<bool>,
    max_panic_pods: Option<u32>,
}

fn kpa_start(case: KpaStart) -> Verdict {
    let memory = KpaMemory::start(&KpaPolicy::default(), case.input.ready_at_creation.unwrap_or(0), NOW);
    if let Some(in_panic) = case.expect.in_panic {
        expect("in_panic", memory.in_panic(), in_panic)?;
    }
    case.expect
        .max_panic_pods
        .map_or(Ok(()), |most| expect("max_panic_pods", memory.max_panic_replicas, most))
}

#[derive(Deserialize)]
struct KpaWindows {
    input: KpaWindowsInput,
    expect: KpaWindowsExpect,
}

#[derive(Deserialize)]
struct KpaWindowsInput {
    stable_window_s: f64,
    panic_window_pct: f64,
}

#[derive(Deserialize)]
struct KpaWindowsExpect {
    stable_window_s: f64,
    panic_window_s: f64,
}

fn kpa_windows(case: KpaWindows) -> Verdict {
    let policy = KpaPolicy {
        stable_window_s: case.input.stable_window_s,
        panic_window_percent: case.input.panic_window_pct,
        ..KpaPolicy::default()
    };
    expect("stable window", policy.stable_window_s, case.expect.stable_window_s)?;
    expect("panic window", policy.panic_window_s(), case.expect.panic_window_s)
}

// --- HPA's behaviour ---

#[derive(Deserialize, Clone)]
struct Rules {
    select: Option<String>,
    #[serde(default)]
    stabilization_window_s: f64,
    policies: Vec<RulePolicy>,
}

#[derive(Deserialize, Clone)]
struct RulePolicy {
    #[serde(rename = "type")]
    kind: String,
    value: u32,
    period_s: f64,
}

impl Rules {
    fn core(&self) -> Result<ScalingRules, String> {
        let policies = self.policies.iter().map(|policy| {
            let kind = match policy.kind.as_str() {
                "Pods" => RateKind::Pods,
                "Percent" => RateKind::Percent,
                other => return Err(format!("policy type {other:?}")),
            };
            Ok(RatePolicy {
                kind,
                value: policy.value,
                period_s: policy.period_s,
            })
        });
        Ok(ScalingRules {
            stabilization_window_s: self.stabilization_window_s,
            select: match self.select.as_deref() {
                None | Some("Max") => SelectPolicy::Max,
                Some("Min") => SelectPolicy::Min,
                Some("Disabled") => SelectPolicy::Disabled,
                Some(other) => return Err(format!("select policy {other:?}")),
            },
            policies: policies.collect::<Result<_, _>>()?,
        })
    }
}

#[derive(Deserialize, Clone, Copy)]
struct Event {
    change: u32,
    age_s: f64,
}

fn events(list: &[Event]) -> Vec<ScaleEvent> {
    list.iter()
        .map(|event| ScaleEvent {
            at: NOW.plus_s(-event.age_s),
            change: event.change,
            outdated: false,
        })
        .collect()
}

#[derive(Deserialize)]
struct BehaviorRate {
    input: BehaviorRateInput,
    expect: BehaviorRateExpect,
}

#[derive(Deserialize)]
struct BehaviorRateInput {
    current: u32,
    desired: u32,
    min: u32,
    max: u32,
    scale_up: Option<Rules>,
    scale_down: Option<Rules>,
    up_events: Vec<Event>,
    down_events: Vec<Event>,
}

#[derive(Deserialize)]
struct BehaviorRateExpect {
    replicas: u32,
    condition: String,
}

fn behavior_rate(case: BehaviorRate) -> Verdict {
    let input = case.input;
    let up = input
        .scale_up
        .map_or_else(|| Ok(ScalingRules::default_up()), |rules| rules.core())?;
    let down = input
        .scale_down
        .map_or_else(|| Ok(ScalingRules::default_down()), |rules| rules.core())?;
    let past = ScaleEvents {
        up: events(&input.up_events),
        down: events(&input.down_events),
    };
    let bounds = Bounds {
        min: input.min,
        max: input.max,
    };
    let (replicas, why) = behavior::limit_rate(&up, &down, &past, NOW, bounds, input.current, input.desired);
    expect("replicas", replicas, case.expect.replicas)?;
    let why = match why {
        Limit::DesiredWithinRange => "DesiredWithinRange",
        Limit::TooManyReplicas => "TooManyReplicas",
        Limit::TooFewReplicas => "TooFewReplicas",
        Limit::ScaleUpLimit => "ScaleUpLimit",
        Limit::ScaleDownLimit => "ScaleDownLimit",
    };
    expect("condition", why, case.expect.condition.as_str())
}

#[derive(Deserialize)]
struct ScaleLimit {
    input: ScaleLimitInput,
    expect: u32,
}

#[derive(Deserialize)]
struct ScaleLimitInput {
    direction: String,
    current: u32,
    rules: Rules,
    up_events: Vec<Event>,
    down_events: Vec<Event>,
}

fn scale_limit(case: ScaleLimit) -> Verdict {
    let input = case.input;
    let past = ScaleEvents {
        up: events(&input.up_events),
        down: events(&input.down_events),
    };
    let rules = input.rules.core()?;
    let got = match input.direction.as_str() {
        "up" => behavior::scale_up_limit(&rules, &past, NOW, input.current),
        "down" => behavior::scale_down_limit(&rules, &past, NOW, input.current),
        other => return Err(format!("direction {other:?}")),
    };
    expect("limit", got, case.expect)
}

#[derive(Deserialize)]
struct StoreEvents {
    input: StoreEventsInput,
    expect: StoreEventsExpect,
}

#[derive(Deserialize)]
struct StoreEventsInput {
    prev: Vec<Event>,
    rules: Option<Rules>,
    replica_change: u32,
    period_s: f64,
}

#[derive(Deserialize)]
struct StoreEventsExpect {
    change_in_period: u32,
    stored: Vec<Stored>,
}

#[derive(Deserialize, Debug, PartialEq)]
struct Stored {
    change: u32,
    outdated: bool,
}

fn store_events(case: StoreEvents) -> Verdict {
    let input = case.input;
    let mut list = events(&input.prev);
    let changed = behavior::changed_within(&list, NOW, input.period_s);
    expect("change in period", changed, case.expect.change_in_period)?;
    // Without a behaviour HPA keeps no events: there is no rate to keep to.
    if let Some(rules) = input.rules {
        behavior::store_event(&mut list, &rules.core()?, NOW, input.replica_change);
    }
    let stored: Vec<_> = list
        .iter()
        .map(|event| Stored {
            change: event.change,
            outdated: event.outdated,
        })
        .collect();
    expect("stored", stored, case.expect.stored)
}

#[derive(Deserialize)]
struct Past {
    value: u32,
    age_s: f64,
}

fn recommendations(list: &[Past]) -> Vec<Recommendation> {
    list.iter()
        .map(|past| Recommendation {
            at: NOW.plus_s(-past.age_s),
            replicas: past.value,
        })
        .collect()
}

#[derive(Deserialize)]
struct StabilizeBehavior {
    input: StabilizeBehaviorInput,
    expect: StabilizeBehaviorExpect,
}

#[derive(Deserialize)]
struct StabilizeBehaviorInput {
    recommendations: Vec<Past>,
    current: u32,
    desired: u32,
    up_window_s: f64,
    down_window_s: f64,
}

#[derive(Deserialize)]
struct StabilizeBehaviorExpect {
    replicas: u32,
    stored: Option<Vec<u32>>,
}

fn stabilize_behavior(case: StabilizeBehavior) -> Verdict {
    let input = case.input;
    let mut list = recommendations(&input.recommendations);
    let (up_s, down_s) = (input.up_window_s, input.down_window_s);
    let replicas = behavior::stabilize(&mut list, NOW, input.current, input.desired, up_s, down_s);
    expect("replicas", replicas, case.expect.replicas)?;
    match case.expect.stored {
        Some(stored) => expect("stored", list.iter().map(|kept| kept.replicas).collect(), stored),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
struct StabilizeNoBehavior {
    config: StabilizeNoBehaviorConfig,
    input: StabilizeNoBehaviorInput,
    expect: StabilizeNoBehaviorExpect,
}

#[derive(Deserialize)]
struct StabilizeNoBehaviorConfig {
    downscale_stabilization_s: f64,
}

#[derive(Deserialize)]
struct StabilizeNoBehaviorInput {
    recommendations: Vec<Past>,
    desired: u32,
}

#[derive(Deserialize)]
struct StabilizeNoBehaviorExpect {
    replicas: u32,
    log_length: usize,
}

fn stabilize_no_behavior(case: StabilizeNoBehavior) -> Verdict {
    let mut list = recommendations(&case.input.recommendations);
    let window_s = case.config.downscale_stabilization_s;
    let replicas = behavior::stabilize_down_only(&mut list, NOW, case.input.desired, window_s);
    expect("replicas", replicas, case.expect.replicas)?;
    expect("log length", list.len(), case.expect.log_length)
}

// --- Windows ---

#[derive(Deserialize)]
struct Buckets {
    config: BucketsConfig,
    ops: Vec<BucketOp>,
}

#[derive(Deserialize)]
struct BucketsConfig {
    kind: String,
    window_s: f64,
    granularity_s: f64,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum BucketOp {
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

fn buckets(case: Buckets) -> Verdict {
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
struct RoundNDigits {
    input: RoundNDigitsInput,
    expect: f64,
}

#[derive(Deserialize)]
struct RoundNDigitsInput {
    digits: i32,
    value: f64,
}

fn round_n_digits(case: RoundNDigits) -> Verdict {
    expect_near(
        "rounded",
        round_to_digits(case.input.digits, case.input.value),
        case.expect,
        EXACT,
    )
}

#[derive(Deserialize)]
struct Smoothing {
    input: SmoothingInput,
    expect: f64,
    tolerance: f64,
}

#[derive(Deserialize)]
struct SmoothingInput {
    buckets: usize,
}

fn smoothing(case: Smoothing) -> Verdict {
    expect_near(
        "coefficient",
        smoothing_coefficient(case.input.buckets),
        case.expect,
        case.tolerance,
    )
}

#[derive(Deserialize)]
struct Weighted {
    input: WeightedInput,
    expect: f64,
}

#[derive(Deserialize)]
struct WeightedInput {
    values_oldest_first: Vec<f64>,
    coefficient: f64,
}

fn weighted(case: Weighted) -> Verdict {
    let newest_first = case.input.values_oldest_first.into_iter().rev();
    expect_near(
        "average",
        weighted_average(newest_first, case.input.coefficient),
        case.expect,
        EXACT,
    )
}

#[derive(Deserialize)]
struct MaxWindowCase {
    config: MaxWindowConfig,
    input: MaxWindowInput,
    expect: Vec<u32>,
}

#[derive(Deserialize)]
struct MaxWindowConfig {
    size: i64,
}

#[derive(Deserialize)]
struct MaxWindowInput {
    indexes: Vec<i64>,
    values: Vec<u32>,
}

fn max_window(case: MaxWindowCase) -> Verdict {
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
struct MaxTimeWindowCase {
    config: MaxTimeWindowConfig,
    input: Vec<TimedValue>,
    expect: u32,
}

#[derive(Deserialize)]
struct MaxTimeWindowConfig {
    window_s: f64,
    granularity_s: f64,
}

#[derive(Deserialize)]
struct TimedValue {
    t_s: f64,
    value: u32,
}

fn max_time_window(case: MaxTimeWindowCase) -> Verdict {
    let mut window = MaxTimeWindow::new(case.config.window_s, (case.config.granularity_s * 1000.0) as i64);
    for record in case.input {
        window.record(TimeMs::from_s(record.t_s), record.value);
    }
    expect("maximum", window.current(), case.expect)
}
