//! A target lived through, second by second, in virtual time.

use std::sync::Arc;

use infer_core::{
    TimeMs,
    decision::{Control, Mode, Record, Rule},
    policy::{Bounds, KpaPolicy, Metric, MetricTarget, Policy, ScalingRules},
    sample::{Counters, Gauges, Sample},
    target::{Boot, Claim, FleetView, Observed, Phase, PodView, Target},
};

const START: i64 = 1_700_000_000_000;

fn policy() -> Policy {
    Policy {
        metrics: vec![MetricTarget {
            metric: Metric::Concurrency,
            target: 10.0,
        }],
        tolerance: 0.1,
        kpa: KpaPolicy::default(),
        scale_up: ScalingRules {
            policies: vec![],
            ..ScalingRules::default_up()
        },
        scale_down: ScalingRules {
            stabilization_window_s: 30.0,
            ..ScalingRules::default_down()
        },
        scale_to_zero_grace_s: 30.0,
    }
}

/// A fleet that does what it is told: replicas become ready `startup_s` after they were asked for.
struct World {
    now: TimeMs,
    target: Target,
    pods: Vec<PodView>,
    sequence: u64,
    startup_s: f64,
    started: Vec<TimeMs>,
    /// Requests in all, shared evenly by the ready replicas.
    load: f64,
    silent: Vec<String>,
    gateway: Option<f64>,
    log: Vec<(String, u64, Sample)>,
}

impl World {
    fn new(policy: Policy, bounds: Bounds) -> Self {
        let now = TimeMs(START);
        World {
            now,
            target: Target::new("t", Arc::new(policy), bounds, None, now),
            pods: Vec::new(),
            sequence: 0,
            startup_s: 5.0,
            started: Vec::new(),
            load: 0.0,
            silent: Vec::new(),
            gateway: None,
            log: Vec::new(),
        }
    }

    fn scale(&mut self, replicas: usize) {
        while self.pods.len() < replicas {
            let name = format!("t-{}", self.pods.len());
            self.pods.push(PodView {
                uid: name.clone(),
                name,
                phase: Phase::Starting,
                ready_since: None,
            });
            self.started.push(self.now);
        }
        self.pods.truncate(replicas);
        self.started.truncate(replicas);
    }

    fn ready(&self) -> usize {
        self.pods.iter().filter(|pod| pod.phase == Phase::Ready).count()
    }

    /// One second: replicas become ready, agents report, the target decides, the fleet obeys.
    fn second(&mut self) -> Record {
        self.now = TimeMs(self.now.0 + 1000);
        for (pod, started) in self.pods.iter_mut().zip(&self.started) {
            if pod.phase == Phase::Starting && self.now.since_s(*started) >= self.startup_s {
                pod.phase = Phase::Ready;
                pod.ready_since = Some(self.now);
            }
        }
        self.target.observe_fleet(FleetView {
            spec: self.pods.len() as u32,
            pods: self.pods.clone(),
        });
        self.target.observe_gateway(self.gateway);
        self.sequence += 1;
        let share = self.load / self.ready().max(1) as f64;
        for pod in self.pods.clone().iter().filter(|pod| pod.phase == Phase::Ready) {
            if self.silent.contains(&pod.name) {
                continue;
            }
            let sample = Sample {
                sequence: self.sequence,
                end: TimeMs(self.now.0 - 100),
                interval_ms: 1000,
                gauges: Some(Gauges {
                    running: Some(share),
                    waiting: Some(0.0),
                    kv_usage: Some(0.2),
                    asleep: false,
                }),
                counters: Counters {
                    requests: if self.load > 0.0 { 3 } else { 0 },
                    ..Counters::default()
                },
                histograms: vec![],
            };
            self.target.claim(&pod.name, &pod.uid, boot("b", 0), self.now);
            self.target.observe(&pod.name, "b", &sample, self.now);
            self.log.push((pod.name.clone(), self.sequence, sample));
        }
        let (record, plan) = self.target.decide(self.now);
        assert!(record.recomputes());
        if let Some(plan) = plan {
            self.scale(plan.to as usize);
        }
        record
    }

    fn seconds(&mut self, count: usize) -> Record {
        (0..count).map(|_| self.second()).last().unwrap()
    }
}

fn boot(id: &str, started_unix_ms: i64) -> Boot {
    Boot {
        id: id.to_owned(),
        started_unix_ms,
    }
}

#[test]
fn a_burst_panics_and_calm_brings_back_what_is_enough() {
    let mut world = World::new(policy(), Bounds { min: 1, max: 20 });
    world.scale(1);
    world.load = 4.0;
    let calm = world.seconds(90);
    assert_eq!((calm.outcome.mode, calm.outcome.desired), (Mode::Stable, 1));

    world.load = 75.0;
    let burst = world.seconds(6);
    assert_eq!(burst.outcome.mode, Mode::Panic);
    assert_eq!(burst.outcome.desired, 8);
    world.load = 60.0;
    let mut smallest = u32::MAX;
    for _ in 0..60 {
        smallest = smallest.min(world.second().outcome.desired);
    }
    assert!(smallest >= 8, "shrank in panic to {smallest}");

    world.load = 18.0;
    let settled = world.seconds(200);
    assert_eq!((settled.outcome.mode, settled.outcome.desired), (Mode::Stable, 2));
}

#[test]
fn a_slow_start_does_not_cascade() {
    let mut world = World::new(policy(), Bounds { min: 1, max: 50 });
    world.startup_s = 120.0;
    world.scale(1);
    world.load = 40.0;
    let mut most = 0;
    for _ in 0..115 {
        most = most.max(world.second().outcome.desired);
    }
    assert_eq!(most, 1, "nothing is ready, so nothing is known");
    world.gateway = Some(40.0);
    world.load = 0.0;
    for _ in 0..110 {
        most = most.max(world.second().outcome.desired);
    }
    assert_eq!(most, 4);
}

#[test]
fn to_zero_and_back() {
    let mut world = World::new(policy(), Bounds { min: 0, max: 5 });
    world.gateway = Some(0.0);
    world.scale(1);
    world.load = 3.0;
    world.seconds(20);
    world.load = 0.0;
    let still = world.seconds(80);
    assert_eq!((still.outcome.desired, still.outcome.bound_by), (1, Rule::KeepLast));
    let gone = world.seconds(60);
    assert_eq!(gone.outcome.desired, 0);
    world.seconds(300);
    world.gateway = Some(1.0);
    let woken = world.second();
    assert_eq!((woken.outcome.desired, woken.inputs.replicas.spec), (1, 0));
}

#[test]
fn a_silent_replica_stops_shrinking_but_not_growing() {
    let mut world = World::new(policy(), Bounds { min: 1, max: 20 });
    world.scale(4);
    world.load = 38.0;
    world.seconds(100);
    world.silent = vec!["t-3".to_owned()];
    world.load = 5.0;
    let held = world.seconds(150);
    assert_eq!((held.outcome.desired, held.outcome.bound_by), (4, Rule::PartialData));
    world.load = 120.0;
    assert!(world.seconds(20).outcome.desired >= 9);
    // Nobody left to ask: hold, and say so, front door or not.
    world.gateway = Some(0.0);
    world.silent = world.pods.iter().map(|pod| pod.name.clone()).collect();
    let before = world.pods.len();
    let dark = world.seconds(200);
    assert_eq!(dark.outcome.desired as usize, before);
    assert_eq!(dark.outcome.mode, Mode::Unknown);
}

#[test]
fn a_restart_has_full_windows_again_from_what_is_replayed() {
    let mut world = World::new(policy(), Bounds { min: 1, max: 20 });
    world.scale(3);
    for second in 0..120 {
        world.load = 20.0 + f64::from(second % 7);
        world.second();
    }
    let (uninterrupted, _) = world.target.clone().decide(world.now);
    let memory = uninterrupted.memory.clone();
    let mut fresh = Target::new(
        "t",
        world.target.policy().clone(),
        world.target.bounds(),
        Some(memory),
        world.now,
    );
    fresh.observe_fleet(FleetView {
        spec: 3,
        pods: world.pods.clone(),
    });
    let (blind, plan) = fresh.decide(world.now);
    assert_eq!((blind.outcome.mode, plan), (Mode::Unknown, None));
    for (pod, _, sample) in &world.log {
        fresh.claim(pod, pod, boot("b", 0), world.now);
        assert_eq!(
            fresh.observe(pod, "b", sample, world.now),
            Observed::Applied {
                missing: 0,
                queue_rose: false
            }
        );
        assert_eq!(fresh.observe(pod, "b", sample, world.now), Observed::Duplicate);
    }
    let (restarted, plan) = fresh.decide(world.now);
    assert_eq!(plan, None);
    assert!(restarted.inputs.data.completeness > 0.95, "{:?}", restarted.inputs.data);
    let load = |record: &Record| record.outcome.metrics[0].stable.unwrap();
    assert!(
        (load(&restarted) - load(&uninterrupted)).abs() < 0.5,
        "{} {}",
        load(&restarted),
        load(&uninterrupted)
    );
    let requests = 3;
    assert_eq!(
        fresh.count(world.now, 600, requests),
        world.target.count(world.now, 600, requests)
    );
}

#[test]
fn half_a_history_is_not_shrunk_on() {
    let mut world = World::new(policy(), Bounds { min: 1, max: 20 });
    world.scale(4);
    world.load = 38.0;
    world.seconds(100);
    let mut fresh = Target::new(
        "t",
        world.target.policy().clone(),
        world.target.bounds(),
        None,
        world.now,
    );
    std::mem::swap(&mut world.target, &mut fresh);
    world.load = 5.0;
    for _ in 0..50 {
        assert_eq!(world.second().outcome.desired, 4);
    }
    assert!(world.seconds(120).outcome.desired < 4);
}

#[test]
fn of_two_agents_the_later_boot_wins() {
    let mut world = World::new(policy(), Bounds { min: 1, max: 20 });
    world.scale(1);
    world.seconds(10);
    let target = &mut world.target;
    assert_eq!(
        target.claim("t-0", "t-0", boot("c", 5), world.now),
        Claim::Granted {
            resume_after: 0,
            replaces: Some("b".to_owned())
        }
    );
    assert_eq!(
        target.claim("t-0", "t-0", boot("b", 0), world.now),
        Claim::Superseded { by: "c".to_owned() }
    );
    let sample = Sample {
        sequence: 7,
        end: world.now,
        ..Sample::default()
    };
    assert_eq!(target.observe("t-0", "b", &sample, world.now), Observed::Superseded);
    // The first of a boot may have any number; a gap after it is counted.
    assert!(matches!(
        target.observe("t-0", "c", &sample, world.now),
        Observed::Applied { missing: 0, .. }
    ));
    let later = Sample {
        sequence: 10,
        ..sample.clone()
    };
    assert!(matches!(
        target.observe("t-0", "c", &later, world.now),
        Observed::Applied { missing: 2, .. }
    ));
    let ancient = Sample {
        sequence: 11,
        end: TimeMs(world.now.0 - 3_600_000),
        ..sample
    };
    assert_eq!(target.observe("t-0", "c", &ancient, world.now), Observed::Late);
    assert_eq!(target.claim("t-9", "", boot("d", 9), world.now), Claim::UnknownPod);
    // The later boot has fallen silent for good: the earlier one may speak again.
    let much_later = world.now.plus_s(20.0);
    assert!(matches!(
        target.claim("t-0", "t-0", boot("b", 0), much_later),
        Claim::Granted { .. }
    ));
    assert_eq!(
        target.claim("t-0", "another-life", boot("d", 9), world.now),
        Claim::UnknownPod
    );
}

#[test]
fn a_person_fixes_the_count_and_lets_go_again() {
    let mut world = World::new(policy(), Bounds { min: 1, max: 20 });
    world.scale(2);
    world.load = 15.0;
    world.seconds(100);
    world.target.set_control(Control::Override(6));
    let fixed = world.second();
    assert_eq!((fixed.outcome.desired, fixed.outcome.bound_by), (6, Rule::Override));
    world.target.set_control(Control::Auto);
    assert_eq!(world.second().outcome.desired, 6, "stabilisation holds what was there");
    assert_eq!(world.seconds(120).outcome.desired, 2);
}

#[test]
fn a_slow_pace_leaves_no_holes() {
    let mut world = World::new(policy(), Bounds { min: 1, max: 20 });
    world.scale(3);
    world.load = 24.0;
    world.seconds(100);
    let target = &mut world.target;
    let mut now = world.now;
    for step in 0..12 {
        now = TimeMs(now.0 + 10_000);
        for pod in &world.pods {
            let sample = Sample {
                sequence: 1000 + step,
                end: now,
                interval_ms: 10_000,
                gauges: Some(Gauges {
                    running: Some(8.0),
                    ..Gauges::default()
                }),
                ..Sample::default()
            };
            target.observe(&pod.name, "b", &sample, now);
        }
        let (record, _) = target.decide(now);
        let load = record.outcome.metrics[0].stable.unwrap();
        assert!((load - 24.0).abs() < 0.01, "{load}");
        assert!(
            record.inputs.data.completeness > 0.9,
            "{}",
            record.inputs.data.completeness
        );
    }
}

#[test]
fn a_fleet_that_has_just_begun_is_not_shrunk() {
    let mut world = World::new(policy(), Bounds { min: 1, max: 20 });
    world.gateway = Some(0.0);
    world.scale(3);
    for _ in 0..53 {
        assert_eq!(world.second().outcome.desired, 3);
    }
    assert_eq!(world.seconds(60).outcome.desired, 1);
}
