//! A policy that changes while its target lives, and an owner that changes while its fleet runs: nothing shrinks because of
//! either.

use std::sync::Arc;

use infer_core::{
    TimeMs,
    behavior::{Recommendation, ScaleEvents},
    check::check,
    decision::{Memory, Rule},
    histogram::BoundedHistogram,
    kpa::KpaMemory,
    policy::{Bounds, KpaPolicy, Metric, MetricTarget, Policy, ScalingRules},
    sample::{Counters, Gauges, Sample},
    signal::Signal,
    target::Target,
};
use proptest::prelude::*;

use super::world::{START, World, gauges, policy};

const METRICS: [Metric; 6] = [
    Metric::Waiting,
    Metric::Running,
    Metric::Concurrency,
    Metric::KvUsage,
    Metric::RequestsPerSecond,
    Metric::Latency {
        signal: Signal::Ttft,
        quantile: 0.9,
    },
];

prop_compose! {
    fn policies()(
        metrics in prop::collection::vec((0usize..METRICS.len(), 0.5f64..50.0), 1..3),
        stable_window_s in 6u32..120,
        panic_window_percent in 5.0f64..50.0,
        panic_threshold_percent in prop_oneof![Just(200.0), Just(100_000.0)],
        scale_down_delay_s in prop_oneof![Just(0.0), 1.0f64..60.0],
        down_window_s in prop_oneof![Just(0.0), 1.0f64..60.0],
        up_window_s in prop_oneof![Just(0.0), 1.0f64..60.0],
    ) -> Policy {
        let rules = |stabilization_window_s| ScalingRules { stabilization_window_s, policies: vec![], ..ScalingRules::default_up() };
        Policy {
            kpa: KpaPolicy {
                stable_window_s: f64::from(stable_window_s),
                panic_window_percent,
                panic_threshold_percent,
                scale_down_delay_s,
                max_scale_down_rate: 1000.0,
                ..KpaPolicy::default()
            },
            metrics: metrics.into_iter().map(|(metric, target)| MetricTarget { metric: METRICS[metric], target }).collect(),
            scale_up: rules(up_window_s),
            scale_down: rules(down_window_s),
            ..policy(&[])
        }
    }
}

/// What a replica tells in one second: every gauge, a count and a latency.
fn told(level: u32) -> Sample {
    let level = f64::from(level);
    let mut ttft = BoundedHistogram::default();
    ttft.record(level, Some(level + 1.0), 1);
    Sample {
        gauges: Some(Gauges {
            running: Some(level),
            waiting: Some((level - 5.0).max(0.0)),
            kv_usage: Some(level / 20.0),
            asleep: false,
        }),
        counters: Counters {
            requests: level as u64,
            ..Counters::default()
        },
        histograms: vec![(Signal::Ttft, ttft)],
        ..Sample::default()
    }
}

fn levels(seconds: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
    // Stretches, not noise: windows have something to remember.
    let stretches = prop::collection::vec((0u32..20, 1usize..60), 1..8);
    (stretches, seconds).prop_map(|(stretches, seconds)| {
        let levels = stretches.into_iter().cycle();
        levels
            .flat_map(|(level, length)| std::iter::repeat_n(level, length))
            .take(seconds)
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_same_policy_again_changes_nothing(policy in policies(), levels in levels(20..200), at in 1usize..200) {
        let (mut one, mut other) = (World::new(policy.clone(), 4), World::new(policy.clone(), 4));
        let bounds = one.target.bounds();
        for (second, level) in levels.iter().enumerate() {
            if second == at {
                other.target.reconfigure(Arc::new(policy.clone()), bounds, other.now);
            }
            prop_assert_eq!(one.second(|_| Some(told(*level))), other.second(|_| Some(told(*level))));
        }
    }

    /// What all replicas have always told is there at once, over windows of any length, as if the policy had always been in
    /// force.
    #[test]
    fn windows_are_those_of_a_target_that_always_had_the_policy(
        before in policies(), after in policies(), levels in levels(60..300), at in 1usize..250,
    ) {
        let mut changed = World::new(before, 4);
        let mut twin = World::new(after.clone(), 4);
        let bounds = changed.target.bounds();
        for (second, level) in levels.iter().enumerate() {
            if second == at {
                changed.target.reconfigure(Arc::new(after.clone()), bounds, changed.now);
            }
            let (changed, twin) = (changed.second(|_| Some(told(*level))), twin.second(|_| Some(told(*level))));
            if second >= at {
                prop_assert_eq!(changed.inputs.metrics, twin.inputs.metrics);
                prop_assert!(changed.inputs.data.completeness <= twin.inputs.data.completeness);
            }
        }
    }

    #[test]
    fn nothing_shrinks_because_of_the_change(
        before in policies(), after in policies(), levels in levels(60..300), at in 1usize..200,
    ) {
        let mut world = World::new(before.clone(), 4);
        let bounds = world.target.bounds();
        let mut changed = START;
        for (second, level) in levels.iter().enumerate() {
            if second == at {
                changed = world.now;
                world.target.reconfigure(Arc::new(after.clone()), bounds, world.now);
            }
            world.now = world.now.plus_s(1.0);
            world.look();
            for pod in 0..4 {
                world.tell(pod, Sample { interval_ms: 1000, ..told(*level) });
            }
            let (record, plan) = world.target.decide(world.now);
            prop_assert!(record.recomputes());
            if let Some(plan) = &plan {
                prop_assert_eq!(check(plan, &record.inputs, world.now), Ok(()));
            }
            if second < at || record.outcome.desired >= 4 {
                continue;
            }
            let since_s = world.now.since_s(changed);
            let known = |metric: &MetricTarget| matches!(metric.metric, Metric::Latency { .. })
                || before.metrics.iter().any(|before| before.metric == metric.metric);
            let stable_s = after.kpa.stable_window_s;
            prop_assert!(world.now.since_s(START) >= 0.9 * stable_s - 1.0);
            if !after.metrics.iter().all(known) {
                prop_assert!(since_s >= 0.9 * stable_s - 1.0, "{since_s} s after a metric was added: {}", record.outcome.reason);
            }
            let looks_back = |policy: &Policy| policy.scale_up.stabilization_window_s.max(policy.scale_down.stabilization_window_s);
            if looks_back(&after) > looks_back(&before) {
                prop_assert!(since_s >= after.scale_down.stabilization_window_s, "{since_s} s: {}", record.outcome.reason);
            }
            if after.kpa.scale_down_delay_s > before.kpa.scale_down_delay_s {
                prop_assert!(since_s >= after.kpa.scale_down_delay_s - 2.0, "{since_s} s: {}", record.outcome.reason);
            }
        }
    }

    /// However old the memory, and however much of the past the agents tell again.
    #[test]
    fn a_new_owner_never_shrinks_because_it_has_forgotten(
        policy in policies(), level in 0u32..20, written_ago_s in 0.0f64..3600.0,
        memory in prop::option::of((any::<bool>(), 0u32..20, prop::collection::vec((0.0f64..60.0, 0u32..8), 0..5))),
    ) {
        let mut world = World::new(policy.clone(), 4);
        let panics = memory.as_ref().is_none_or(|memory| memory.0);
        let written = START.plus_s(-written_ago_s);
        let memory = memory.map(|(in_panic, max_panic_replicas, past)| Memory {
            kpa: KpaMemory { panic_since: in_panic.then_some(written), max_panic_replicas, delay: None },
            recommendations: past.into_iter().map(|(ago_s, replicas)| Recommendation { at: written.plus_s(-ago_s), replicas }).collect(),
            events: ScaleEvents::default(),
            last_busy: written,
        });
        world.target = Target::new("t", Arc::new(policy.clone()), Bounds { min: 0, max: 50 }, memory, START);
        world.target.take_over();
        for pod in &mut world.pods {
            pod.ready_since = Some(START.plus_s(-3600.0));
        }
        world.look();
        for ago_s in (0..600).rev() {
            world.now = START.plus_s(-f64::from(ago_s));
            for pod in 0..4 {
                world.tell(pod, Sample { interval_ms: 1000, ..told(level) });
            }
        }
        let kpa = &policy.kpa;
        let held_s = policy.scale_down.stabilization_window_s
            .max(kpa.scale_down_delay_s - 2.0)
            .max(if panics { kpa.stable_window_s } else { 0.0 });
        for second in 0..150 {
            let record = world.second(|_| Some(told(level)));
            prop_assert!(record.inputs.data.completeness >= 0.9, "{:?}", record.inputs.data);
            if f64::from(second) < held_s.floor() {
                prop_assert!(record.outcome.desired >= 4, "after {second} s of {held_s}: {}", record.outcome.reason);
            }
            if f64::from(second) < kpa.stable_window_s + policy.scale_to_zero_grace_s {
                prop_assert!(record.outcome.desired > 0, "after {second} s: {}", record.outcome.reason);
            }
        }
    }
}

#[test]
fn a_longer_window_than_any_before_is_half_filled_and_holds() {
    let short = policy(&[(Metric::Concurrency, 10.0)]);
    let mut long = short.clone();
    long.kpa.stable_window_s = 900.0;
    let mut world = World::new(short, 4);
    let calm = |_: usize| gauges(1.0);
    assert_eq!(world.seconds(700, calm).outcome.desired, 1);
    let bounds = world.target.bounds();
    world.target.reconfigure(Arc::new(long), bounds, world.now);
    assert_eq!(world.target.horizon_s(), 900);
    // Ten minutes are remembered, and nine tenths of fifteen are needed.
    let held = world.seconds(200, calm);
    assert_eq!(
        (held.outcome.desired, held.outcome.bound_by),
        (4, Rule::HalfFilledWindow)
    );
    assert_eq!(world.seconds(20, calm).outcome.desired, 1);
}

#[test]
fn limits_hold_at_once() {
    let same = policy(&[(Metric::Concurrency, 10.0)]);
    let mut world = World::new(same.clone(), 4);
    world.seconds(100, |_| gauges(10.0));
    for (bounds, desired) in [
        (Bounds { min: 6, max: 8 }, 6),
        (Bounds { min: 0, max: 3 }, 3),
        (Bounds { min: 0, max: 8 }, 4),
    ] {
        world.target.reconfigure(Arc::new(same.clone()), bounds, world.now);
        assert_eq!(world.seconds(1, |_| gauges(10.0)).outcome.desired, desired);
    }
}

/// What a predecessor wanted in a panic that is long over does not make a fleet grow.
#[test]
fn an_old_panic_holds_and_does_not_grow() {
    let mut memory = Memory::start(&policy(&[]), 9, TimeMs(START.0 - 3_600_000));
    memory.kpa.max_panic_replicas = 40;
    let mut world = World::new(policy(&[]), 4);
    let policy = policy(&[(Metric::Concurrency, 10.0)]);
    world.target = Target::new("t", Arc::new(policy), Bounds { min: 0, max: 50 }, Some(memory), START);
    world.target.take_over();
    assert_eq!(world.seconds(30, |_| gauges(5.0)).outcome.desired, 4);
}

/// A person has scaled up by hand: with `adopt` that holds for the down window, without it does not.
#[test]
fn an_adopted_count_counts_as_a_wish() {
    let mut policy = policy(&[(Metric::Concurrency, 10.0)]);
    policy.scale_down.stabilization_window_s = 60.0;
    for (adopt, desired) in [(true, 6), (false, 4)] {
        let mut world = World::new(policy.clone(), 4);
        assert_eq!(world.seconds(100, |_| gauges(10.0)).outcome.desired, 4);
        for index in 4..6 {
            let mut pod = world.pods[0].clone();
            (pod.name, pod.uid) = (format!("t-{index}"), format!("u-{index}"));
            pod.ready_since = Some(world.now);
            world.pods.push(pod);
        }
        if adopt {
            world.target.adopt();
        }
        let spread = |_: usize| gauges(40.0 / 6.0);
        assert_eq!(world.seconds(50, spread).outcome.desired, desired);
        assert_eq!(world.seconds(60, spread).outcome.desired, 4);
    }
}
