//! Laws that a hostile reading of the brain found broken once, or nearly so: mostly "absent is not zero".

use std::sync::Arc;

use infer_core::{
    TimeMs,
    behavior::Recommendation,
    check::{Violation, check},
    decision::{DataState, Inputs, Measured, Memory, Mode, Plan, Replicas, Rule},
    evaluate::evaluate,
    histogram::{BoundedHistogram, QuantileBounds},
    policy::{Bounds, Metric, RateKind, RatePolicy, ScalingRules},
    sample::{Counters, Gauges, Sample},
    signal::Signal,
    target::{Boot, Claim, Observed, Phase, PodView, Target},
    window::{CounterRing, MaxTimeWindow},
};

use super::world::{START, World, gauges, inputs, load, policy};

const TTFT: Metric = Metric::Latency {
    signal: Signal::Ttft,
    quantile: 0.95,
};

#[test]
fn a_metric_that_says_nothing_vetoes_shrinking_and_not_growing() {
    let policy = policy(&[(Metric::Concurrency, 10.0), (TTFT, 1000.0)]);
    for silent in [
        Measured::Absent,
        Measured::Latency {
            stable: None,
            panic: None,
        },
    ] {
        let (memory, low) = inputs(&policy, 4, vec![load(10.0), silent]);
        let (_, outcome) = evaluate(&policy, &memory, &low);
        assert_eq!((outcome.desired, outcome.bound_by), (4, Rule::PartialData));
        assert!(outcome.reason.contains("ttft p95 is not known"), "{}", outcome.reason);
        let (memory, high) = inputs(&policy, 4, vec![load(70.0), silent]);
        assert_eq!(evaluate(&policy, &memory, &high).1.desired, 7);
        // Nor does the checker let it pass.
        let plan = Plan {
            target: "t".into(),
            from: 4,
            to: 1,
            mode: Mode::Stable,
            at: START,
            expires: START.plus_s(5.0),
        };
        let refused = Violation::ShrinksUnmeasured {
            from: 4,
            to: 1,
            metric: 2,
            metrics: 2,
        };
        assert_eq!(check(&plan, &low, START), Err(refused));
    }
}

#[test]
fn the_checker_stops_no_running_request() {
    let policy = policy(&[(Metric::Concurrency, 10.0)]);
    let (_, inputs) = inputs(&policy, 1, vec![load(0.0)]);
    let plan = Plan {
        target: "t".into(),
        from: 1,
        to: 0,
        mode: Mode::Stable,
        at: START,
        expires: START.plus_s(5.0),
    };
    assert_eq!(check(&plan, &inputs, START), Err(Violation::StopsRequests));
    assert_eq!(check(&plan, &Inputs { busy: false, ..inputs }, START), Ok(()));
}

#[test]
fn a_gauge_that_no_replica_tells_is_not_zero_behind_a_front_door() {
    for metric in [Metric::KvUsage, Metric::Waiting] {
        let mut world = World::new(policy(&[(metric, 0.5)]), 4);
        world.gateway = Some(0.0);
        let record = world.seconds(200, |_| Gauges {
            running: Some(9.0),
            ..Gauges::default()
        });
        assert_eq!(record.outcome.desired, 4, "{}", record.outcome.reason);
    }
}

#[test]
fn a_gauge_that_some_replicas_do_not_tell_is_guessed_for_growing_only() {
    let mut world = World::new(policy(&[(Metric::KvUsage, 0.5)]), 4);
    let tell = |level: f64| {
        move |pod: usize| Gauges {
            kv_usage: (pod < 2).then_some(level),
            ..gauges(1.0)
        }
    };
    let full = world.seconds(100, tell(0.9));
    assert_eq!((full.outcome.metrics[0].stable, full.outcome.desired), (Some(3.6), 8));
    let calm = world.seconds(200, tell(0.1));
    assert_eq!(
        (calm.outcome.desired, calm.inputs.data.fresh),
        (4, 2),
        "{}",
        calm.outcome.reason
    );
}

#[test]
fn a_gauge_that_is_no_longer_told_never_reads_zero() {
    let mut world = World::new(policy(&[(Metric::KvUsage, 0.5)]), 4);
    world.seconds(100, |_| Gauges {
        kv_usage: Some(0.4),
        ..gauges(1.0)
    });
    for _ in 0..200 {
        let record = world.seconds(1, |_| gauges(1.0));
        assert_ne!(record.outcome.metrics[0].stable, Some(0.0));
        assert_eq!(record.outcome.desired, 4);
    }
}

#[test]
fn a_cheap_look_keeps_the_gauges_it_does_not_tell() {
    let mut world = World::new(policy(&[(Metric::Concurrency, 10.0)]), 1);
    world.seconds(70, |_| gauges(20.0));
    let jump = Gauges {
        waiting: Some(5.0),
        ..Gauges::default()
    };
    let record = world.seconds(1, |_| jump);
    assert_eq!(
        world.target.gauges(world.now, 1.0)[0],
        ("running", Some(20.0), Some(20.0))
    );
    assert!(record.outcome.metrics[0].stable.unwrap() > 20.0);
}

#[test]
fn the_first_second_counts_once() {
    let mut world = World::new(policy(&[(Metric::Concurrency, 10.0)]), 1);
    world.look();
    world.now = TimeMs(START.0 + 200);
    world.tell(
        0,
        Sample {
            interval_ms: 1000,
            gauges: Some(gauges(10.0)),
            ..Sample::default()
        },
    );
    world.now = TimeMs(START.0 + 300);
    let record = world.decide();
    assert_eq!(record.outcome.metrics[0].panic, Some(10.0));
    assert_eq!((record.outcome.mode, record.outcome.desired), (Mode::Stable, 1));
}

#[test]
fn seconds_that_a_stalled_decider_missed_are_not_known() {
    let mut world = World::new(policy(&[(Metric::Concurrency, 10.0)]), 4);
    assert_eq!(world.seconds(100, |_| gauges(9.0)).outcome.desired, 4);
    // Agents' samples are read before the first tick; they say what is, and not what was.
    world.now = world.now.plus_s(50.0);
    for _ in 0..30 {
        let record = world.seconds(1, |_| gauges(0.0));
        assert_eq!(record.outcome.desired, 4, "{}", record.outcome.reason);
    }
    assert!(world.seconds(60, |_| gauges(0.0)).outcome.desired < 4);
}

#[test]
fn after_an_outage_of_all_replicas_the_window_fills_anew() {
    let mut world = World::new(policy(&[(Metric::Concurrency, 10.0)]), 10);
    assert_eq!(world.seconds(100, |_| gauges(9.5)).outcome.desired, 10);
    world.pods.iter_mut().for_each(|pod| pod.phase = Phase::Failed);
    for _ in 0..200 {
        assert_eq!(world.second(|_| None).outcome.mode, Mode::Unknown);
    }
    let now = world.now;
    for (index, pod) in world.pods.iter_mut().enumerate() {
        *pod = PodView {
            uid: format!("v-{index}"),
            phase: Phase::Ready,
            ready_since: Some(now),
            ..pod.clone()
        };
    }
    for _ in 0..50 {
        let record = world.seconds(1, |_| gauges(0.1));
        assert_eq!(record.outcome.desired, 10, "{}", record.outcome.reason);
    }
    assert_eq!(world.seconds(20, |_| gauges(0.1)).outcome.desired, 1);
}

#[test]
fn what_draining_replicas_finish_is_load_still() {
    let mut world = World::new(policy(&[(Metric::Concurrency, 10.0)]), 10);
    assert_eq!(world.seconds(100, |_| gauges(4.5)).outcome.desired, 5);
    world.pods[5..].iter_mut().for_each(|pod| pod.phase = Phase::Draining);
    // Long answers: for a minute and more, they are where they were.
    for _ in 0..90 {
        let record = world.seconds(1, |_| gauges(4.5));
        assert_eq!(record.outcome.desired, 5, "{}", record.outcome.reason);
    }
    world.pods.truncate(5);
    assert_eq!(world.seconds(70, |_| gauges(4.5)).outcome.desired, 3);
}

#[test]
fn a_counter_that_nobody_tells_is_not_zero() {
    let mut world = World::new(policy(&[(Metric::GenerationTokensPerSecond, 100.0)]), 4);
    let counters = Counters {
        unknown: 0b0000_0100,
        ..Counters::default()
    };
    let tell = |_| {
        Some(Sample {
            gauges: Some(gauges(3.0)),
            counters,
            ..Sample::default()
        })
    };
    for _ in 0..200 {
        let record = world.second(tell);
        assert_eq!((record.outcome.desired, record.outcome.metrics[0].stable), (4, None));
    }
    let told = |_| {
        Some(Sample {
            gauges: Some(gauges(3.0)),
            ..Sample::default()
        })
    };
    assert_eq!((0..100).map(|_| world.second(told)).last().unwrap().outcome.desired, 1);
}

#[test]
fn a_slow_reporter_makes_neither_bursts_nor_pauses() {
    let mut world = World::new(policy(&[(Metric::RequestsPerSecond, 5.0)]), 2);
    world.look();
    for second in 1..200 {
        world.now = START.plus_s(f64::from(second));
        for pod in 0..2 {
            if (second + 3 * pod) % 10 == 0 {
                let counters = Counters {
                    requests: 50,
                    ..Counters::default()
                };
                let sample = Sample {
                    interval_ms: 10_000,
                    gauges: Some(gauges(1.0)),
                    counters,
                    ..Sample::default()
                };
                world.tell(pod as usize, sample);
            }
        }
        let record = world.decide();
        if second > 80 {
            let metric = &record.outcome.metrics[0];
            assert_eq!(
                (metric.stable, metric.panic),
                (Some(10.0), Some(10.0)),
                "second {second}"
            );
            assert_eq!((record.outcome.mode, record.outcome.desired), (Mode::Stable, 2));
        }
    }
}

#[test]
fn a_latency_of_replicas_that_are_gone_shrinks_nothing() {
    let policy = policy(&[(TTFT, 1000.0)]);
    let slow = Some(QuantileBounds {
        low_ms: 4000.0,
        high_ms: Some(5000.0),
        estimate_ms: 4500.0,
    });
    let (memory, mut inputs) = inputs(
        &policy,
        4,
        vec![Measured::Latency {
            stable: slow,
            panic: slow,
        }],
    );
    inputs.replicas = Replicas {
        spec: 4,
        starting: 4,
        ..Replicas::default()
    };
    inputs.data = DataState {
        expected: 0,
        fresh: 0,
        completeness: 1.0,
    };
    inputs.gateway_waiting = Some(50.0);
    assert_eq!(evaluate(&policy, &memory, &inputs).1.desired, 4);
}

#[test]
fn who_waits_at_the_front_door_of_a_fleet_of_none_waits_for_no_rule() {
    let mut policy = policy(&[(Metric::Concurrency, 10.0)]);
    policy.scale_up = ScalingRules {
        stabilization_window_s: 120.0,
        policies: vec![RatePolicy {
            kind: RateKind::Percent,
            value: 100,
            period_s: 15.0,
        }],
        ..ScalingRules::default_up()
    };
    let (mut memory, mut inputs) = inputs(&policy, 0, vec![load(0.02)]);
    memory.recommendations = vec![Recommendation {
        at: START.plus_s(-10.0),
        replicas: 0,
    }];
    inputs.gateway_waiting = Some(1.0);
    assert_eq!(evaluate(&policy, &memory, &inputs).1.desired, 1);
}

#[test]
fn a_refused_plan_uses_up_nothing_of_a_rate() {
    let mut policy = policy(&[(Metric::Concurrency, 10.0)]);
    policy.scale_up.policies = vec![RatePolicy {
        kind: RateKind::Pods,
        value: 2,
        period_s: 1800.0,
    }];
    let mut world = World::new(policy, 4);
    world.seconds(100, |_| gauges(9.0));
    let mut plans = Vec::new();
    for _ in 0..40 {
        world.now = world.now.plus_s(1.0);
        world.look();
        for pod in 0..4 {
            world.tell(
                pod,
                Sample {
                    interval_ms: 1000,
                    gauges: Some(gauges(15.0)),
                    ..Sample::default()
                },
            );
        }
        let (_, plan) = world.target.decide(world.now);
        plan.iter().for_each(|plan| world.target.refused(plan));
        plans.extend(plan.map(|plan| plan.to));
    }
    assert!(plans.len() > 20 && plans.ends_with(&[6, 6, 6]), "{plans:?}");
}

#[test]
fn a_clock_that_was_set_back_holds_nothing() {
    let mut policy = policy(&[(Metric::Concurrency, 10.0)]);
    policy.scale_up.stabilization_window_s = 30.0;
    policy.kpa.scale_down_delay_s = 30.0;
    let later = START.plus_s(7200.0);
    let mut memory = Memory::start(&policy, 4, later);
    memory.recommendations = vec![Recommendation { at: later, replicas: 4 }];
    let mut delay = MaxTimeWindow::new(30.0, 2000);
    delay.record(later, 40);
    memory.kpa.delay = Some(delay);
    let mut world = World::new(policy.clone(), 4);
    world.target = Target::new("t", Arc::new(policy), Bounds { min: 0, max: 50 }, Some(memory), START);
    let settled = world.seconds(100, |_| gauges(2.0));
    assert_eq!((settled.outcome.mode, settled.outcome.desired), (Mode::Stable, 1));
    assert!(world.seconds(60, |_| gauges(19.0)).outcome.desired > 4);
}

#[test]
fn requests_too_short_for_any_gauge_keep_the_last_replica() {
    let mut world = World::new(policy(&[(Metric::Concurrency, 10.0)]), 1);
    world.gateway = Some(0.0);
    let short = |_| {
        let counters = Counters {
            requests: 1,
            ..Counters::default()
        };
        Some(Sample {
            gauges: Some(gauges(0.0)),
            counters,
            ..Sample::default()
        })
    };
    assert!((0..300).all(|_| world.second(short).outcome.desired == 1));
    assert_eq!(world.seconds(95, |_| gauges(0.0)).outcome.desired, 0);
}

#[test]
fn absurd_counts_saturate() {
    let mut ring = CounterRing::new(10);
    assert!(ring.record(START, u64::MAX) && ring.record(START, 1) && ring.record(START.plus_s(1.0), 7));
    assert_eq!(ring.sum(START.plus_s(1.0), 10), u64::MAX);
    let mut one = BoundedHistogram::default();
    one.record(1.0, Some(2.0), u64::MAX);
    one.record(3.0, Some(4.0), u64::MAX);
    one.set_sum(Some(f64::MAX));
    let other = one.clone();
    one.merge(&other);
    for q in [0.0, 0.5, 1.0] {
        assert!(one.quantile(q).is_some());
    }
}

#[test]
fn a_replica_that_is_ready_in_the_future_is_expected_now() {
    let mut world = World::new(policy(&[(Metric::Concurrency, 10.0)]), 2);
    world.pods[1].ready_since = Some(START.plus_s(3600.0));
    let record = (0..100).map(|_| {
        world.second(|pod| {
            (pod == 0).then(|| Sample {
                gauges: Some(gauges(1.0)),
                ..Sample::default()
            })
        })
    });
    let data = record.last().unwrap().inputs.data;
    assert_eq!((data.expected, data.fresh), (2, 1));
}

#[test]
fn replicas_that_are_gone_do_not_make_up_for_silent_ones() {
    let mut world = World::new(policy(&[(Metric::Concurrency, 10.0)]), 20);
    world.seconds(100, |_| gauges(1.0));
    world.pods.truncate(2);
    for _ in 0..50 {
        world.second(|_| None);
    }
    let record = world.seconds(1, |_| gauges(1.0));
    assert!(
        record.inputs.data.completeness < 0.3,
        "{}",
        record.inputs.data.completeness
    );
}

#[test]
fn a_replica_that_was_not_listed_for_a_while_counts_nothing_twice() {
    let mut world = World::new(policy(&[(Metric::RequestsPerSecond, 5.0)]), 2);
    let counters = Counters {
        requests: 5,
        ..Counters::default()
    };
    let tell = |_| {
        Some(Sample {
            gauges: Some(gauges(1.0)),
            counters,
            ..Sample::default()
        })
    };
    for _ in 0..20 {
        world.second(tell);
    }
    let pod = world.pods.pop().unwrap();
    world.second(tell);
    let late = Sample {
        sequence: 1000,
        end: world.now,
        gauges: Some(gauges(1.0)),
        counters,
        ..Sample::default()
    };
    assert_eq!(
        world.target.observe(&pod.name, &pod.uid, &late, world.now),
        Observed::UnknownPod
    );
    world.pods.push(pod.clone());
    world.look();
    let boot = Boot {
        id: pod.uid.clone(),
        started_unix_ms: 0,
    };
    assert_eq!(
        world.target.claim(&pod.name, &pod.uid, boot, world.now),
        Claim::Granted {
            resume_after: 40,
            replaces: None
        }
    );
    let replayed = Sample {
        sequence: 38,
        ..late.clone()
    };
    assert_eq!(
        world.target.observe(&pod.name, &pod.uid, &replayed, world.now),
        Observed::Duplicate
    );
    // Of the same name and another life: who spoke for the old one is not told that somebody else speaks for it.
    world.pods[1].uid = "another".to_owned();
    world.look();
    assert_eq!(
        world.target.observe(&pod.name, &pod.uid, &late, world.now),
        Observed::UnknownPod
    );
}

#[test]
fn a_reporter_of_any_agreed_pace_is_known_between_its_samples() {
    for (pace_s, metric) in [
        (10, Metric::Concurrency),
        (60, Metric::Concurrency),
        (60, Metric::RequestsPerSecond),
    ] {
        let mut world = World::new(policy(&[(metric, 10.0)]), 2);
        world.look();
        for second in 1..1000 {
            world.now = START.plus_s(f64::from(second));
            if second % pace_s == 0 {
                let counters = Counters {
                    requests: 5 * pace_s as u64,
                    ..Counters::default()
                };
                let interval_ms = 1000 * pace_s as u32;
                (0..2).for_each(|pod| {
                    world.tell(
                        pod,
                        Sample {
                            interval_ms,
                            gauges: Some(gauges(5.0)),
                            counters,
                            ..Sample::default()
                        },
                    )
                });
            }
            let record = world.decide();
            if second > 300 {
                let said = (record.inputs.data.fresh, record.outcome.mode, record.outcome.desired);
                assert_eq!(
                    said,
                    (2, Mode::Stable, 1),
                    "{pace_s} s, second {second}: {}",
                    record.outcome.reason
                );
            }
        }
        // An outage is not a pace.
        world.now = world.now.plus_s(200.0);
        (0..2).for_each(|pod| {
            world.tell(
                pod,
                Sample {
                    interval_ms: 260_000,
                    gauges: Some(gauges(5.0)),
                    ..Sample::default()
                },
            )
        });
        world.now = world.now.plus_s(80.0);
        assert_eq!(world.decide().outcome.mode, Mode::Unknown);
    }
}
