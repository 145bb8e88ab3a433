//! The brain on stdin and stdout: the lockstep protocol, one line in, one line out, time only from the messages.
//!
//! Each variant is a target of its own, scaled by the binding of its name (or by the only binding there is). It lets
//! any fleet simulator drive the decider's core, tick by tick and deterministically.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, Write},
    sync::Arc,
};

use infer_api::{BindingMode, Documents};
use infer_core::{
    TimeMs,
    decision::{Control, Mode},
    histogram::BoundedHistogram,
    policy::{Bounds, Policy},
    sample::{Counters, Gauges, Sample},
    signal::Signal,
    target::{Boot, FleetView, Phase, PodView, Target},
};
use serde::{Deserialize, Serialize};

/// Only one agent ever speaks for a simulated Pod.
const BOOT: &str = "lockstep";

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Message {
    Init(Init),
    Observe(Observe),
    End,
}

#[derive(Deserialize)]
struct Init {
    t_s: f64,
    variants: Vec<InitVariant>,
}

#[derive(Deserialize)]
struct InitVariant {
    name: String,
    min: u32,
    max: u32,
    replicas: u32,
}

#[derive(Deserialize)]
struct Observe {
    t_s: f64,
    variants: Vec<Variant>,
    gateway: Option<Gateway>,
}

#[derive(Deserialize)]
struct Gateway {
    waiting: f64,
}

#[derive(Deserialize)]
struct Variant {
    name: String,
    spec: u32,
    ready: u32,
    starting: u32,
    #[serde(default)]
    pods: Vec<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    name: String,
    fresh: bool,
    running: Option<f64>,
    waiting: Option<f64>,
    kv_usage: Option<f64>,
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    generation_tokens: u64,
    #[serde(default)]
    requests: u64,
    #[serde(default)]
    ttft_ms: Vec<(Bound, u64)>,
    #[serde(default)]
    itl_ms: Vec<(Bound, u64)>,
    #[serde(default)]
    e2e_ms: Vec<(Bound, u64)>,
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Bound {
    Ms(f64),
    Word(String),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Answer {
    Ready,
    Decide {
        t_s: f64,
        replicas: BTreeMap<String, u32>,
        mode: &'static str,
        reason: String,
    },
    Error {
        message: String,
    },
}

/// Speaks the protocol until `end` or the end of the input.
///
/// # Errors
/// The message that was also written as the last line: what is malformed, and in which line.
pub fn run(documents: &Documents, input: impl BufRead, mut output: impl Write) -> Result<(), String> {
    let result = converse(documents, input, &mut output);
    if let Err(message) = &result {
        // The other side may be gone already; the exit code says it too.
        let _ = answer(
            &mut output,
            &Answer::Error {
                message: message.clone(),
            },
        );
    }
    result
}

fn converse(documents: &Documents, input: impl BufRead, output: &mut impl Write) -> Result<(), String> {
    let mut brain: Option<Brain> = None;
    for (index, line) in input.lines().enumerate() {
        let number = index + 1;
        let wrong = |problem: String| format!("line {number}: {problem}");
        let line = line.map_err(|error| wrong(error.to_string()))?;
        let message = serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
        let reply = match (message, &mut brain) {
            (Message::Init(init), None) => {
                brain = Some(Brain::new(documents, init).map_err(wrong)?);
                Answer::Ready
            }
            (Message::Init(_), Some(_)) => return Err(wrong("a second init".to_owned())),
            (Message::Observe(observe), Some(brain)) => brain.decide(observe).map_err(wrong)?,
            (Message::Observe(_), None) => return Err(wrong("observe before init".to_owned())),
            (Message::End, _) => return Ok(()),
        };
        answer(output, &reply).map_err(|error| format!("writing the answer: {error}"))?;
    }
    Err("the input ended without {\"type\":\"end\"}".to_owned())
}

fn answer(output: &mut impl Write, answer: &Answer) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, answer)?;
    output.write_all(b"\n")?;
    output.flush()
}

/// Every variant's target.
struct Brain {
    targets: BTreeMap<String, Scaled>,
    now: TimeMs,
}

struct Scaled {
    target: Target,
    sequence: u64,
    /// When each Pod was first listed, and the end of its last fresh line.
    pods: BTreeMap<String, (TimeMs, TimeMs)>,
}

fn time(t_s: f64) -> Result<TimeMs, String> {
    if t_s.is_finite() && t_s.abs() < 1e12 {
        Ok(TimeMs::from_s(t_s))
    } else {
        Err(format!("t_s is {t_s}"))
    }
}

/// Who scales a variant: the binding of its name, the only binding, or the only policy within the variant's own limits.
fn policy_of(documents: &Documents, variant: &InitVariant, alone: bool) -> Result<(Policy, Bounds, Control), String> {
    let targets = documents.bound_targets();
    let named = targets.iter().find(|target| target.name == variant.name);
    let bound = named.or_else(|| targets.first().filter(|_| alone && targets.len() == 1));
    let own = Bounds {
        min: variant.min,
        max: variant.max.max(1),
    };
    if let Some(bound) = bound {
        let min = bound.bounds.min.max(own.min);
        let bounds = Bounds {
            min: min.min(own.max),
            max: bound.bounds.max.min(own.max).max(min),
        };
        let control = match bound.mode {
            BindingMode::Auto => Control::Auto,
            BindingMode::Advisory => Control::Advisory,
            BindingMode::Paused => Control::Paused,
        };
        return Ok((bound.policy.clone(), bounds, control));
    }
    match (targets.as_slice(), documents.policies.as_slice()) {
        ([], [policy]) => Ok((policy.spec.to_core(), own, Control::Auto)),
        _ => {
            let names: Vec<_> = targets.iter().map(|target| target.name).collect();
            Err(format!(
                "no binding scales variant {:?}; bindings are for: {}",
                variant.name,
                names.join(", ")
            ))
        }
    }
}

impl Brain {
    fn new(documents: &Documents, init: Init) -> Result<Self, String> {
        let now = time(init.t_s)?;
        let alone = init.variants.len() == 1;
        let mut targets = BTreeMap::new();
        for variant in &init.variants {
            let (policy, bounds, control) = policy_of(documents, variant, alone)?;
            let mut target = Target::new(&variant.name, Arc::new(policy), bounds, None, now);
            target.set_control(control);
            target.observe_fleet(FleetView {
                spec: variant.replicas,
                pods: Vec::new(),
            });
            let scaled = Scaled {
                target,
                sequence: 0,
                pods: BTreeMap::new(),
            };
            if targets.insert(variant.name.clone(), scaled).is_some() {
                return Err(format!("two variants are named {:?}", variant.name));
            }
        }
        Ok(Brain { targets, now })
    }

    fn decide(&mut self, observe: Observe) -> Result<Answer, String> {
        let now = time(observe.t_s)?;
        if now < self.now {
            return Err(format!("t_s {} is before the line before it", observe.t_s));
        }
        self.now = now;
        // One gateway before several targets: an equal share each, as a router without further knowledge would send.
        let share = observe
            .gateway
            .map(|gateway| gateway.waiting / self.targets.len().max(1) as f64);
        let mut replicas = BTreeMap::new();
        let mut mode = "stable";
        let mut reasons = Vec::new();
        for variant in &observe.variants {
            let scaled = self
                .targets
                .get_mut(&variant.name)
                .ok_or(format!("variant {:?} was not in init", variant.name))?;
            scaled.observe(variant, now)?;
            scaled.target.observe_gateway(share);
            let (record, _) = scaled.target.decide(now);
            if matches!(record.inputs.control, Control::Auto | Control::Override(_)) {
                replicas.insert(variant.name.clone(), record.outcome.desired);
            }
            if record.outcome.mode == Mode::Panic {
                mode = "panic";
            }
            reasons.push(if observe.variants.len() == 1 {
                record.outcome.reason
            } else {
                format!("{}: {}", variant.name, record.outcome.reason)
            });
        }
        Ok(Answer::Decide {
            t_s: observe.t_s,
            replicas,
            mode,
            reason: reasons.join(" | "),
        })
    }
}

impl Scaled {
    fn observe(&mut self, variant: &Variant, now: TimeMs) -> Result<(), String> {
        if variant.ready.saturating_add(variant.starting) > variant.spec {
            let Variant {
                name,
                spec,
                ready,
                starting,
                ..
            } = variant;
            return Err(format!(
                "variant {name:?}: {ready} ready and {starting} starting are more than spec {spec}"
            ));
        }
        let listed: BTreeSet<&str> = variant.pods.iter().map(|pod| pod.name.as_str()).collect();
        if listed.len() < variant.pods.len() {
            return Err(format!("variant {:?} lists a Pod twice", variant.name));
        }
        self.pods.retain(|name, _| listed.contains(name.as_str()));
        // Draining Pods may still be listed, and nothing says which they are: those beyond the ready ones, in order.
        let listed = variant.pods.iter().enumerate().map(|(index, pod)| {
            let (since, _) = *self.pods.entry(pod.name.clone()).or_insert((now, now));
            PodView {
                name: pod.name.clone(),
                uid: pod.name.clone(),
                phase: if index < variant.ready as usize {
                    Phase::Ready
                } else {
                    Phase::Draining
                },
                ready_since: Some(since),
            }
        });
        let starting = (0..variant.starting).map(|index| PodView {
            name: format!("\u{0}starting-{index}"),
            uid: String::new(),
            phase: Phase::Starting,
            ready_since: None,
        });
        self.target.observe_fleet(FleetView {
            spec: variant.spec,
            pods: listed.chain(starting).collect(),
        });
        self.sequence += 1;
        for pod in variant.pods.iter().filter(|pod| pod.fresh) {
            let (since, last) = self.pods.get(&pod.name).copied().unwrap_or((now, now));
            self.pods.insert(pod.name.clone(), (since, now));
            let sample = pod
                .sample(self.sequence, last, now)
                .map_err(|problem| format!("Pod {:?}: {problem}", pod.name))?;
            self.target.claim(
                &pod.name,
                &pod.name,
                Boot {
                    id: BOOT.to_owned(),
                    started_unix_ms: 0,
                },
                now,
            );
            self.target.observe(&pod.name, BOOT, &sample, now);
        }
        Ok(())
    }
}

impl Pod {
    fn sample(&self, sequence: u64, last: TimeMs, now: TimeMs) -> Result<Sample, String> {
        for (name, value) in [
            ("running", self.running),
            ("waiting", self.waiting),
            ("kv_usage", self.kv_usage),
        ] {
            if value.is_some_and(|value| !value.is_finite() || value < 0.0) {
                return Err(format!("{name} is {value:?}"));
            }
        }
        let mut histograms = Vec::new();
        for (signal, name, cells) in [
            (Signal::Ttft, "ttft_ms", &self.ttft_ms),
            (Signal::Itl, "itl_ms", &self.itl_ms),
            (Signal::E2e, "e2e_ms", &self.e2e_ms),
        ] {
            let histogram = histogram(cells).map_err(|problem| format!("{name}: {problem}"))?;
            if histogram.count() > 0 {
                histograms.push((signal, histogram));
            }
        }
        Ok(Sample {
            sequence,
            end: now,
            interval_ms: u32::try_from(now.0 - last.0).unwrap_or(u32::MAX),
            gauges: Some(Gauges {
                running: self.running,
                waiting: self.waiting,
                kv_usage: self.kv_usage,
                asleep: false,
            }),
            counters: Counters {
                prompt_tokens: self.prompt_tokens,
                generation_tokens: self.generation_tokens,
                requests: self.requests,
                ..Counters::default()
            },
            histograms,
        })
    }
}

fn histogram(cells: &[(Bound, u64)]) -> Result<BoundedHistogram, String> {
    let mut histogram = BoundedHistogram::default();
    let mut low_ms = 0.0;
    for (index, (bound, count)) in cells.iter().enumerate() {
        match bound {
            Bound::Ms(high_ms) if *high_ms >= low_ms && high_ms.is_finite() => {
                histogram.record(low_ms, Some(*high_ms), *count);
                low_ms = *high_ms;
            }
            Bound::Word(word) if word == "inf" && index + 1 == cells.len() => histogram.record(low_ms, None, *count),
            Bound::Ms(high_ms) => return Err(format!("bound {high_ms} does not ascend from {low_ms}")),
            Bound::Word(word) => return Err(format!("{word:?} is no bound; \"inf\" closes the list")),
        }
    }
    Ok(histogram)
}
