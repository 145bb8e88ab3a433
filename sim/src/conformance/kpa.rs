//! Knative's stable/panic machine.

use infer_core::{
    TimeMs,
    kpa::{self, KpaInput, KpaMemory},
    policy::KpaPolicy,
};
use serde::Deserialize;
use serde_json::Value;

use super::{NOW, Verdict, expect, expect_near};

#[derive(Deserialize)]
pub(super) struct KpaScale {
    config: KpaConfig,
    initial: KpaInitial,
    steps: Vec<KpaStep>,
}

#[derive(Deserialize)]
pub(super) struct KpaConfig {
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
pub(super) struct KpaInitial {
    ready_at_creation: u32,
    panic_since_s: Option<f64>,
    max_panic_pods: Option<u32>,
}

#[derive(Deserialize)]
pub(super) struct KpaStep {
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
pub(super) struct KpaExpect {
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

pub(super) fn kpa_scale(case: KpaScale) -> Verdict {
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
pub(super) struct KpaStart {
    input: KpaStartInput,
    expect: KpaStartExpect,
}

#[derive(Deserialize)]
pub(super) struct KpaStartInput {
    ready_at_creation: Option<u32>,
}

#[derive(Deserialize)]
pub(super) struct KpaStartExpect {
    in_panic: Option<bool>,
    max_panic_pods: Option<u32>,
}

pub(super) fn kpa_start(case: KpaStart) -> Verdict {
    let memory = KpaMemory::start(&KpaPolicy::default(), case.input.ready_at_creation.unwrap_or(0), NOW);
    if let Some(in_panic) = case.expect.in_panic {
        expect("in_panic", memory.in_panic(), in_panic)?;
    }
    case.expect
        .max_panic_pods
        .map_or(Ok(()), |most| expect("max_panic_pods", memory.max_panic_replicas, most))
}

#[derive(Deserialize)]
pub(super) struct KpaWindows {
    input: KpaWindowsInput,
    expect: KpaWindowsExpect,
}

#[derive(Deserialize)]
pub(super) struct KpaWindowsInput {
    stable_window_s: f64,
    panic_window_pct: f64,
}

#[derive(Deserialize)]
pub(super) struct KpaWindowsExpect {
    stable_window_s: f64,
    panic_window_s: f64,
}

pub(super) fn kpa_windows(case: KpaWindows) -> Verdict {
    let policy = KpaPolicy {
        stable_window_s: case.input.stable_window_s,
        panic_window_percent: case.input.panic_window_pct,
        ..KpaPolicy::default()
    };
    expect("stable window", policy.stable_window_s, case.expect.stable_window_s)?;
    expect("panic window", policy.panic_window_s(), case.expect.panic_window_s)
}
