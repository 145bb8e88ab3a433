//! A target whose replicas do as they are told, second by second, and inputs in which nothing is amiss.

use std::sync::Arc;

use infer_core::{
    TimeMs,
    decision::{Control, DataState, Inputs, Measured, Memory, Record, Replicas},
    policy::{Bounds, KpaPolicy, Metric, MetricTarget, Policy, ScalingRules},
    sample::{Gauges, Sample},
    target::{Boot, FleetView, Phase, PodView, Target},
};

pub(crate) const START: TimeMs = TimeMs(1_700_000_000_000);

/// No stabilisation and no rates: every slip of the windows shows at once.
pub(crate) fn policy(metrics: &[(Metric, f64)]) -> Policy {
    let rules = ScalingRules {
        stabilization_window_s: 0.0,
        policies: vec![],
        ..ScalingRules::default_up()
    };
    Policy {
        metrics: metrics
            .iter()
            .map(|(metric, target)| MetricTarget {
                metric: *metric,
                target: *target,
            })
            .collect(),
        tolerance: 0.0,
        kpa: KpaPolicy {
            max_scale_down_rate: 1000.0,
            ..KpaPolicy::default()
        },
        scale_up: rules.clone(),
        scale_down: rules,
        scale_to_zero_grace_s: 30.0,
    }
}

pub(crate) fn gauges(running: f64) -> Gauges {
    Gauges {
        running: Some(running),
        waiting: Some(0.0),
        kv_usage: None,
        asleep: false,
    }
}

/// A target and its replicas, which do not follow what is decided.
pub(crate) struct World {
    pub(crate) now: TimeMs,
    pub(crate) target: Target,
    pub(crate) pods: Vec<PodView>,
    pub(crate) sequence: u64,
    pub(crate) gateway: Option<f64>,
}

impl World {
    pub(crate) fn new(policy: Policy, replicas: usize) -> World {
        let bounds = Bounds { min: 0, max: 50 };
        let pods = (0..replicas).map(|index| PodView {
            name: format!("t-{index}"),
            uid: format!("u-{index}"),
            phase: Phase::Ready,
            ready_since: Some(START),
        });
        World {
            now: START,
            target: Target::new("t", Arc::new(policy), bounds, None, START),
            pods: pods.collect(),
            sequence: 0,
            gateway: None,
        }
    }

    pub(crate) fn look(&mut self) {
        let spec = self.pods.iter().filter(|pod| pod.phase != Phase::Draining).count() as u32;
        self.target.observe_fleet(FleetView {
            spec,
            pods: self.pods.clone(),
        });
        self.target.observe_gateway(self.gateway);
    }

    pub(crate) fn tell(&mut self, pod: usize, sample: Sample) {
        self.sequence += 1;
        let PodView { name, uid, .. } = self.pods[pod].clone();
        self.target.claim(
            &name,
            &uid,
            Boot {
                id: uid.clone(),
                started_unix_ms: 0,
            },
            self.now,
        );
        self.target.observe(
            &name,
            &uid,
            &Sample {
                sequence: self.sequence,
                end: self.now,
                ..sample
            },
            self.now,
        );
    }

    pub(crate) fn decide(&mut self) -> Record {
        let (record, _) = self.target.decide(self.now);
        assert!(record.recomputes());
        record
    }

    /// One second, of which each replica tells what `sample` makes of its index; `None` is silence.
    pub(crate) fn second(&mut self, sample: impl Fn(usize) -> Option<Sample>) -> Record {
        self.now = self.now.plus_s(1.0);
        self.look();
        for pod in 0..self.pods.len() {
            if let Some(sample) = sample(pod) {
                self.tell(
                    pod,
                    Sample {
                        interval_ms: 1000,
                        ..sample
                    },
                );
            }
        }
        self.decide()
    }

    pub(crate) fn seconds(&mut self, count: usize, gauges: impl Fn(usize) -> Gauges) -> Record {
        let tell = |pod| {
            Some(Sample {
                gauges: Some(gauges(pod)),
                ..Sample::default()
            })
        };
        (0..count).map(|_| self.second(tell)).last().unwrap()
    }
}

pub(crate) fn inputs(policy: &Policy, spec: u32, metrics: Vec<Measured>) -> (Memory, Inputs) {
    let mut memory = Memory::start(policy, spec, START.plus_s(-1000.0));
    memory.kpa.panic_since = None;
    memory.kpa.max_panic_replicas = 0;
    let inputs = Inputs {
        now: START,
        bounds: Bounds { min: 0, max: 50 },
        control: Control::Auto,
        replicas: Replicas {
            spec,
            ready: spec,
            ..Replicas::default()
        },
        data: DataState {
            expected: spec,
            fresh: spec,
            completeness: 1.0,
        },
        metrics,
        gateway_waiting: None,
        busy: true,
        fewest: 0,
    };
    (memory, inputs)
}

pub(crate) fn load(load: f64) -> Measured {
    Measured::Load {
        stable: load,
        panic: load,
    }
}

/// A fleet that stands still at `replicas`, all of them known.
pub(crate) fn calm(now: TimeMs, replicas: u32, max: u32) -> Inputs {
    Inputs {
        now,
        bounds: Bounds { min: 1, max },
        control: Control::Auto,
        replicas: Replicas {
            spec: replicas,
            ready: replicas,
            ..Replicas::default()
        },
        data: DataState {
            expected: replicas,
            fresh: replicas,
            completeness: 1.0,
        },
        metrics: vec![],
        gateway_waiting: None,
        busy: true,
        fewest: 0,
    }
}
