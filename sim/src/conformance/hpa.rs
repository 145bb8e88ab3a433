//! HPA's behaviour: stabilisation and rates.

use infer_core::{
    behavior::{self, Limit, Recommendation, ScaleEvent, ScaleEvents},
    policy::{Bounds, RateKind, RatePolicy, ScalingRules, SelectPolicy},
};
use serde::Deserialize;

use super::{NOW, Verdict, expect};

#[derive(Deserialize, Clone)]
pub(super) struct Rules {
    select: Option<String>,
    #[serde(default)]
    stabilization_window_s: f64,
    policies: Vec<RulePolicy>,
}

#[derive(Deserialize, Clone)]
pub(super) struct RulePolicy {
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
pub(super) struct Event {
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
pub(super) struct BehaviorRate {
    input: BehaviorRateInput,
    expect: BehaviorRateExpect,
}

#[derive(Deserialize)]
pub(super) struct BehaviorRateInput {
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
pub(super) struct BehaviorRateExpect {
    replicas: u32,
    condition: String,
}

pub(super) fn behavior_rate(case: BehaviorRate) -> Verdict {
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
pub(super) struct ScaleLimit {
    input: ScaleLimitInput,
    expect: u32,
}

#[derive(Deserialize)]
pub(super) struct ScaleLimitInput {
    direction: String,
    current: u32,
    rules: Rules,
    up_events: Vec<Event>,
    down_events: Vec<Event>,
}

pub(super) fn scale_limit(case: ScaleLimit) -> Verdict {
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
pub(super) struct StoreEvents {
    input: StoreEventsInput,
    expect: StoreEventsExpect,
}

#[derive(Deserialize)]
pub(super) struct StoreEventsInput {
    prev: Vec<Event>,
    rules: Option<Rules>,
    replica_change: u32,
    period_s: f64,
}

#[derive(Deserialize)]
pub(super) struct StoreEventsExpect {
    change_in_period: u32,
    stored: Vec<Stored>,
}

#[derive(Deserialize, Debug, PartialEq)]
pub(super) struct Stored {
    change: u32,
    outdated: bool,
}

pub(super) fn store_events(case: StoreEvents) -> Verdict {
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
pub(super) struct Past {
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
pub(super) struct StabilizeBehavior {
    input: StabilizeBehaviorInput,
    expect: StabilizeBehaviorExpect,
}

#[derive(Deserialize)]
pub(super) struct StabilizeBehaviorInput {
    recommendations: Vec<Past>,
    current: u32,
    desired: u32,
    up_window_s: f64,
    down_window_s: f64,
}

#[derive(Deserialize)]
pub(super) struct StabilizeBehaviorExpect {
    replicas: u32,
    stored: Option<Vec<u32>>,
}

pub(super) fn stabilize_behavior(case: StabilizeBehavior) -> Verdict {
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
pub(super) struct StabilizeNoBehavior {
    config: StabilizeNoBehaviorConfig,
    input: StabilizeNoBehaviorInput,
    expect: StabilizeNoBehaviorExpect,
}

#[derive(Deserialize)]
pub(super) struct StabilizeNoBehaviorConfig {
    downscale_stabilization_s: f64,
}

#[derive(Deserialize)]
pub(super) struct StabilizeNoBehaviorInput {
    recommendations: Vec<Past>,
    desired: u32,
}

#[derive(Deserialize)]
pub(super) struct StabilizeNoBehaviorExpect {
    replicas: u32,
    log_length: usize,
}

pub(super) fn stabilize_no_behavior(case: StabilizeNoBehavior) -> Verdict {
    let mut list = recommendations(&case.input.recommendations);
    let window_s = case.config.downscale_stabilization_s;
    let replicas = behavior::stabilize_down_only(&mut list, NOW, case.input.desired, window_s);
    expect("replicas", replicas, case.expect.replicas)?;
    expect("log length", list.len(), case.expect.log_length)
}
