//! From policy, memory and inputs to an outcome: the rules, one after the other. Pure; the same arguments give the
//! same outcome, bit for bit.

use std::borrow::Cow;

use crate::{
    behavior::{self, Limit, Recommendation},
    decision::{Control, Inputs, Measured, Memory, MetricOutcome, Mode, Outcome, Rule, Step},
    kpa::{self, KpaInput},
    policy::{Metric, MetricTarget, Policy, SelectPolicy},
};

/// A percentile says that it is too slow, not by how many replicas: one step is at most a doubling, and at least a
/// halving.
const LATENCY_RATIO: (f64, f64) = (0.5, 2.0);
/// Bounds are widened by up to this share in the histograms: an objective on a bucket's edge is outside of both buckets
/// beside it, not inside.
const HDR_ROUNDING: f64 = 1.0 / 1024.0;
/// Below this share of samples the window is called half filled and nothing shrinks on it.
pub const COMPLETENESS_MIN: f64 = 0.9;

/// Decides once. Returns the memory for the next tick and the outcome.
pub fn evaluate(policy: &Policy, memory: &Memory, inputs: &Inputs) -> (Memory, Outcome) {
    let mut evaluation = Evaluation {
        policy,
        inputs,
        memory: memory.clone(),
        current: inputs.replicas.spec,
        desired: inputs.replicas.spec,
        bound_by: Rule::Demand,
        mode: Mode::Stable,
        waking: false,
        steps: Vec::with_capacity(8),
    };
    if inputs.busy {
        evaluation.memory.last_busy = inputs.now;
    }
    let metrics = evaluation.measure();
    match demand(&metrics) {
        Some(demand) => evaluation.follow_demand(demand),
        None => evaluation.hold_without_data(),
    }
    evaluation.wake_from_zero();
    evaluation.keep_last();
    evaluation.guard_shrinking(&metrics);
    evaluation.stabilize();
    evaluation.limit_rate();
    evaluation.keep_ratio();
    evaluation.clamp_to_bounds();
    evaluation.obey_override();
    evaluation.remember_change();
    evaluation.finish(metrics)
}

/// The largest wish per window, and whose it is.
struct Demand<'a> {
    stable: f64,
    panic: f64,
    by: &'a MetricOutcome,
}

fn demand(metrics: &[MetricOutcome]) -> Option<Demand<'_>> {
    let mut demand: Option<Demand<'_>> = None;
    for metric in metrics {
        let (Some(stable), Some(panic)) = (metric.wants_stable, metric.wants_panic) else {
            continue;
        };
        match &mut demand {
            None => {
                demand = Some(Demand {
                    stable,
                    panic,
                    by: metric,
                })
            }
            Some(largest) => {
                if stable.max(panic) > largest.stable.max(largest.panic) {
                    largest.by = metric;
                }
                largest.stable = largest.stable.max(stable);
                largest.panic = largest.panic.max(panic);
            }
        }
    }
    demand
}

struct Evaluation<'a> {
    policy: &'a Policy,
    inputs: &'a Inputs,
    memory: Memory,
    current: u32,
    desired: u32,
    bound_by: Rule,
    mode: Mode,
    /// Whether somebody waits at the front door of a fleet of none.
    waking: bool,
    steps: Vec<Step>,
}

impl Evaluation<'_> {
    /// Takes a rule's result; a step is noted when it changed the number or has something to say.
    fn turn(&mut self, rule: Rule, after: u32, words: impl FnOnce() -> String) {
        if after != self.desired {
            self.bound_by = rule;
            self.note(rule, after, words());
        }
    }

    fn note(&mut self, rule: Rule, after: u32, words: String) {
        self.steps.push(Step {
            rule,
            before: f64::from(self.desired),
            after: f64::from(after),
            words,
        });
        self.desired = after;
    }

    fn measure(&self) -> Vec<MetricOutcome> {
        self.policy
            .metrics
            .iter()
            .zip(&self.inputs.metrics)
            .map(|(metric, measured)| self.want(metric, measured))
            .collect()
    }

    fn want(&self, metric: &MetricTarget, measured: &Measured) -> MetricOutcome {
        let mut outcome = MetricOutcome {
            name: metric.metric.name(),
            target: metric.target,
            stable: None,
            panic: None,
            wants_stable: None,
            wants_panic: None,
        };
        match *measured {
            Measured::Absent => {}
            // A number that is none says nothing.
            Measured::Load { stable, panic } if stable.is_nan() || panic.is_nan() => {}
            Measured::Load { stable, panic } => {
                (outcome.stable, outcome.panic) = (Some(stable), Some(panic));
                outcome.wants_stable = Some(stable / metric.target);
                outcome.wants_panic = Some(panic / metric.target);
            }
            Measured::Latency { stable, panic } => {
                outcome.stable = stable.map(|bounds| bounds.estimate_ms);
                outcome.panic = panic.map(|bounds| bounds.estimate_ms);
                let want = |bounds: Option<crate::histogram::QuantileBounds>| match bounds {
                    // Nobody was served. Without anybody waiting that is idleness, else it says nothing.
                    None if self.inputs.busy => None,
                    None => Some(0.0),
                    // Those who have served are gone: nothing to count from.
                    Some(_) if self.inputs.replicas.ready == 0 => None,
                    Some(bounds) => {
                        // The ratio counts from the replicas that served, never from those asked for: while more are
                        // starting it stays the same number, so it cannot run away.
                        let straddles = bounds.low_ms < metric.target * (1.0 - HDR_ROUNDING)
                            && bounds
                                .high_ms
                                .is_none_or(|high_ms| high_ms > metric.target * (1.0 + HDR_ROUNDING));
                        let ratio = if straddles {
                            1.0
                        } else {
                            bounds.estimate_ms / metric.target
                        };
                        Some(f64::from(self.inputs.replicas.ready) * ratio.clamp(LATENCY_RATIO.0, LATENCY_RATIO.1))
                    }
                };
                outcome.wants_stable = want(stable);
                // Too few answers in the short window: the long one speaks for it.
                outcome.wants_panic = if panic.is_some() {
                    want(panic)
                } else {
                    outcome.wants_stable
                };
            }
        }
        outcome
    }

    fn follow_demand(&mut self, demand: Demand<'_>) {
        let kpa = &self.policy.kpa;
        let words = format!(
            "{}: {} over {} s and {} over {} s at {} per replica want {:.2} and {:.2} replicas",
            demand.by.name,
            shown(demand.by.stable),
            kpa.stable_window_s,
            shown(demand.by.panic),
            kpa.panic_window_s(),
            demand.by.target,
            demand.stable,
            demand.panic,
        );
        let raw = to_replicas(demand.stable.ceil());
        self.note(Rule::Demand, raw, words);
        let output = kpa::step(
            kpa,
            &mut self.memory.kpa,
            KpaInput {
                now: self.inputs.now,
                ready: self.inputs.replicas.ready,
                stable: demand.stable,
                panic: demand.panic,
                reachable: true,
            },
        );
        self.mode = if output.in_panic { Mode::Panic } else { Mode::Stable };
        let (ready, threshold) = (self.inputs.replicas.ready, kpa.panic_threshold_percent / 100.0);
        self.turn(Rule::StablePanic, output.desired, || {
            let state = if output.in_panic { "panic holds" } else { "stable" };
            format!(
                "{state}: the short window wants {:.1} times the {ready} ready (panic from {threshold:.1}); stable {}, \
                 panic {}, one step allows {} to {}",
                output.panic_ratio, output.stable, output.panic, output.floor, output.ceiling
            )
        });
        // Fewer than the activation scale is no count to be kept: a little less load would want that many.
        let kept = self.current > 0 && self.current >= kpa.activation_scale;
        let near = kept && (demand.stable / f64::from(self.current) - 1.0).abs() <= self.policy.tolerance;
        if near && self.mode == Mode::Stable {
            let (current, percent) = (self.current, self.policy.tolerance * 100.0);
            self.turn(Rule::Tolerance, current, || {
                format!(
                    "{:.2} replicas wanted is within {percent:.0} % of the {current} there",
                    demand.stable
                )
            });
        }
    }

    fn hold_without_data(&mut self) {
        self.mode = Mode::Unknown;
        self.bound_by = Rule::NoData;
        let data = self.inputs.data;
        let words = format!(
            "{} of {} ready replicas have fresh data: hold",
            data.fresh, data.expected
        );
        self.note(Rule::NoData, self.current, words);
    }

    fn wake_from_zero(&mut self) {
        let waiting = self.inputs.gateway_waiting.unwrap_or(0.0);
        if self.current == 0 && waiting > 0.0 {
            self.waking = true;
            let least = self.policy.kpa.activation_scale.max(1);
            self.turn(Rule::WakeFromZero, self.desired.max(least), || {
                format!("{waiting} requests are held at the front door and there is no replica")
            });
        }
    }

    fn keep_last(&mut self) {
        if self.desired > 0 || self.current == 0 {
            return;
        }
        let idle_s = self.inputs.now.since_s(self.memory.last_busy);
        let needed_s = self.policy.kpa.stable_window_s + self.policy.scale_to_zero_grace_s;
        if idle_s < needed_s {
            self.turn(Rule::KeepLast, 1, || {
                format!("idle for {idle_s:.0} s, the last replica goes after {needed_s:.0} s")
            });
        }
    }

    fn guard_shrinking(&mut self, metrics: &[MetricOutcome]) {
        let data = self.inputs.data;
        let unknown = metrics.iter().find(|metric| metric.wants_stable.is_none());
        if self.desired >= self.current {
            return;
        }
        let current = self.current;
        if self.mode == Mode::Panic {
            self.turn(Rule::PanicHold, current, || "panic never shrinks".to_owned());
        } else if data.fresh < data.expected {
            self.turn(Rule::PartialData, current, || {
                format!(
                    "only {} of {} ready replicas have fresh data: no shrinking",
                    data.fresh, data.expected
                )
            });
        } else if data.completeness < COMPLETENESS_MIN {
            self.turn(Rule::HalfFilledWindow, current, || {
                format!(
                    "the window holds {:.0} % of its samples: no shrinking",
                    data.completeness * 100.0
                )
            });
        } else if let Some(metric) = unknown {
            // As in HPA: the metric that is missing might be the one that wants more.
            self.turn(Rule::PartialData, current, || {
                format!("{} is not known: no shrinking", metric.name)
            });
        }
    }

    fn stabilize(&mut self) {
        let (up, down) = (&self.policy.scale_up, &self.policy.scale_down);
        // What panic asks for is granted: an up window would be its opposite. Nor does a request wait at the front door
        // of a fleet of none until nobody has wanted none for a while.
        let up_window_s = if self.mode == Mode::Panic || self.waking {
            0.0
        } else {
            up.stabilization_window_s
        };
        let down_window_s = down.stabilization_window_s;
        let (now, current, wish) = (self.inputs.now, self.current, self.desired);
        let recommendations = &mut self.memory.recommendations;
        let stabilized = behavior::stabilize(recommendations, now, current, wish, up_window_s, down_window_s);
        behavior::compact(recommendations, now, up.stabilization_window_s.max(down_window_s));
        self.turn(Rule::Stabilization, stabilized, || {
            let (window_s, extreme) = if wish < stabilized {
                (down_window_s, "most")
            } else {
                (up_window_s, "fewest")
            };
            format!("{stabilized} is the {extreme} that was wanted in the last {window_s:.0} s")
        });
    }

    fn limit_rate(&mut self) {
        let (up, down) = (&self.policy.scale_up, &self.policy.scale_down);
        if self.mode == Mode::Panic && self.desired > self.current {
            return;
        }
        // Any percentage of no replicas is none: the first ones are not a matter of rates. Unless nothing may grow.
        if self.waking && up.select != SelectPolicy::Disabled {
            return;
        }
        let (limited, why) = behavior::limit_rate(
            up,
            down,
            &self.memory.events,
            self.inputs.now,
            self.inputs.bounds,
            self.current,
            self.desired,
        );
        let rule = match why {
            Limit::ScaleUpLimit | Limit::ScaleDownLimit => Rule::Rate,
            Limit::TooManyReplicas | Limit::TooFewReplicas | Limit::DesiredWithinRange => Rule::Bounds,
        };
        self.turn(rule, limited, || match why {
            Limit::ScaleUpLimit => format!("the scale-up policies allow {limited} now"),
            Limit::ScaleDownLimit => format!("the scale-down policies allow {limited} now"),
            _ => format!("limited to {limited} by the binding"),
        });
    }

    fn keep_ratio(&mut self) {
        let fewest = self.inputs.fewest;
        self.turn(Rule::Ratio, self.desired.max(fewest), || {
            format!("the ratio to the other role asks for at least {fewest}")
        });
    }

    fn clamp_to_bounds(&mut self) {
        let bounds = self.inputs.bounds;
        let clamped = self.desired.max(bounds.min).min(bounds.max);
        self.turn(Rule::Bounds, clamped, || {
            let bound = if clamped == bounds.min {
                "minReplicas"
            } else {
                "maxReplicas"
            };
            format!("{bound} is {clamped}")
        });
    }

    fn obey_override(&mut self) {
        if let Control::Override(replicas) = self.inputs.control {
            let obeyed = replicas.min(self.inputs.bounds.max);
            self.bound_by = Rule::Override;
            self.note(
                Rule::Override,
                obeyed,
                format!("somebody has fixed {replicas} replicas"),
            );
            // A wish like any other: when the override ends, stabilisation starts from here.
            self.memory.recommendations.push(Recommendation {
                at: self.inputs.now,
                replicas: obeyed,
            });
        }
    }

    fn remember_change(&mut self) {
        if !matches!(self.inputs.control, Control::Auto | Control::Override(_)) {
            return;
        }
        let (now, events) = (self.inputs.now, &mut self.memory.events);
        if self.desired > self.current {
            behavior::store_event(&mut events.up, &self.policy.scale_up, now, self.desired - self.current);
        } else if self.desired < self.current {
            behavior::store_event(
                &mut events.down,
                &self.policy.scale_down,
                now,
                self.current - self.desired,
            );
        }
    }

    fn finish(self, metrics: Vec<MetricOutcome>) -> (Memory, Outcome) {
        let decisive = self.steps.iter().rev().find(|step| step.rule == self.bound_by);
        let demand = self.steps.iter().find(|step| step.rule == Rule::Demand);
        let mut reason = format!("{}: ", self.mode.name());
        match (demand, decisive) {
            (Some(demand), Some(step)) if step.rule != Rule::Demand => {
                reason.push_str(&demand.words);
                reason.push_str("; ");
                reason.push_str(&step.words);
            }
            (_, Some(step)) => reason.push_str(&step.words),
            (Some(demand), None) => reason.push_str(&demand.words),
            (None, None) => {}
        }
        let outcome = Outcome {
            desired: self.desired,
            mode: self.mode,
            bound_by: self.bound_by,
            reason,
            steps: self.steps,
            metrics,
        };
        (self.memory, outcome)
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

fn to_replicas(count: f64) -> u32 {
    count.clamp(0.0, f64::from(u32::MAX)) as u32
}

impl Metric {
    /// The name as policies spell it; latencies with their quantile, such as `ttft p95`.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Metric::Waiting => "waiting".into(),
            Metric::Running => "running".into(),
            Metric::Concurrency => "concurrency".into(),
            Metric::KvUsage => "kvUsage".into(),
            Metric::PromptTokensPerSecond => "promptTokensPerSecond".into(),
            Metric::GenerationTokensPerSecond => "generationTokensPerSecond".into(),
            Metric::RequestsPerSecond => "requestsPerSecond".into(),
            Metric::Latency { signal, quantile } => {
                let percent = (quantile * 1e6).round() / 1e4;
                format!("{} p{percent}", signal.name()).into()
            }
        }
    }
}
