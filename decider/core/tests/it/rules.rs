//! Laws of `evaluate` over arbitrary policies, memories and inputs.

use std::sync::Arc;

use infer_core::{
    TimeMs,
    behavior::{Recommendation, ScaleEvent, ScaleEvents},
    check::{Violation, check},
    decision::{Control, DataState, Inputs, Measured, Memory, Mode, Plan, Record, Replicas, Rule},
    evaluate::evaluate,
    histogram::QuantileBounds,
    kpa::KpaMemory,
    policy::{Bounds, KpaPolicy, Metric, MetricTarget, Policy, RateKind, RatePolicy, ScalingRules, SelectPolicy},
    signal::Signal,
};
use proptest::prelude::*;

use super::world::calm;

const NOW: TimeMs = TimeMs(1_700_000_000_000);

fn rules() -> impl Strategy<Value = ScalingRules> {
    let policy = (any::<bool>(), 1u32..200, 1.0f64..120.0).prop_map(|(pods, value, period_s)| RatePolicy {
        kind: if pods { RateKind::Pods } else { RateKind::Percent },
        value,
        period_s,
    });
    let select = prop_oneof![
        Just(SelectPolicy::Max),
        Just(SelectPolicy::Min),
        Just(SelectPolicy::Disabled)
    ];
    (0.0f64..120.0, select, prop::collection::vec(policy, 0..3)).prop_map(
        |(stabilization_window_s, select, policies)| ScalingRules {
            stabilization_window_s,
            select,
            policies,
        },
    )
}

prop_compose! {
    fn policies()(
        targets in prop::collection::vec((0.5f64..50.0, 0usize..5), 1..4),
        tolerance in 0.0f64..0.3,
        stable_window_s in 6.0f64..120.0,
        max_scale_up_rate in 1.1f64..1000.0,
        max_scale_down_rate in 1.1f64..10.0,
        activation_scale in 1u32..4,
        scale_up in rules(),
        scale_down in rules(),
        scale_to_zero_grace_s in 0.0f64..60.0,
    ) -> Policy {
        let metric = |kind| match kind {
            0 => Metric::Waiting,
            1 => Metric::Concurrency,
            2 => Metric::KvUsage,
            3 => Metric::GenerationTokensPerSecond,
            _ => Metric::Latency { signal: Signal::Ttft, quantile: 0.95 },
        };
        Policy {
            metrics: targets.into_iter().map(|(target, kind)| MetricTarget { metric: metric(kind), target }).collect(),
            tolerance,
            kpa: KpaPolicy { stable_window_s, max_scale_up_rate, max_scale_down_rate, activation_scale, ..KpaPolicy::default() },
            scale_up,
            scale_down,
            scale_to_zero_grace_s,
        }
    }
}

fn quantile() -> impl Strategy<Value = Option<QuantileBounds>> {
    prop::option::of(
        (0.0f64..5000.0, prop::option::of(0.0f64..5000.0)).prop_map(|(low_ms, width)| QuantileBounds {
            low_ms,
            high_ms: width.map(|width| low_ms + width),
            estimate_ms: low_ms,
        }),
    )
}

fn measured(metric: &Metric) -> BoxedStrategy<Measured> {
    let known = match metric {
        Metric::Latency { .. } => (quantile(), quantile())
            .prop_map(|(stable, panic)| Measured::Latency { stable, panic })
            .boxed(),
        _ => (0.0f64..500.0, 0.0f64..500.0)
            .prop_map(|(stable, panic)| Measured::Load { stable, panic })
            .boxed(),
    };
    prop_oneof![5 => known, 1 => Just(Measured::Absent)].boxed()
}

prop_compose! {
    fn inputs(policy: Policy)(
        metrics in policy.metrics.iter().map(|metric| measured(&metric.metric)).collect::<Vec<_>>(),
        (min, width) in (0u32..4, 1u32..20),
        control in prop_oneof![6 => Just(Control::Auto), 1 => Just(Control::Advisory), 1 => Just(Control::Paused), 2 => (0u32..30).prop_map(Control::Override)],
        (ready, starting, draining, failed, creating) in (0u32..12, 0u32..4, 0u32..3, 0u32..2, 0u32..2),
        (blind, completeness) in (0u32..3, prop_oneof![Just(1.0), 0.0f64..1.0]),
        gateway_waiting in prop::option::of(prop_oneof![Just(0.0), 0.0f64..50.0]),
        busy in any::<bool>(),
        fewest in prop_oneof![3 => Just(0u32), 1 => 0u32..20],
    ) -> Inputs {
        Inputs {
            now: NOW,
            bounds: Bounds { min, max: min + width },
            control,
            replicas: Replicas { spec: ready + starting + failed + creating, ready, starting, draining, failed },
            data: DataState { expected: ready, fresh: ready.saturating_sub(blind), completeness },
            metrics,
            gateway_waiting,
            busy: busy || gateway_waiting.is_some_and(|waiting| waiting > 0.0),
            fewest,
        }
    }
}

prop_compose! {
    fn memories()(
        panic_ago_s in prop::option::of(0.0f64..200.0),
        max_panic_replicas in 0u32..20,
        past in prop::collection::vec((0.0f64..200.0, 0u32..20), 0..10),
        up in prop::collection::vec((0.0f64..200.0, 1u32..10), 0..4),
        down in prop::collection::vec((0.0f64..200.0, 1u32..10), 0..4),
        idle_s in 0.0f64..300.0,
    ) -> Memory {
        let events = |list: Vec<(f64, u32)>| list.into_iter()
            .map(|(ago_s, change)| ScaleEvent { at: NOW.plus_s(-ago_s), change, outdated: false }).collect();
        Memory {
            kpa: KpaMemory { panic_since: panic_ago_s.map(|ago_s| NOW.plus_s(-ago_s)), max_panic_replicas, delay: None },
            recommendations: past.into_iter().map(|(ago_s, replicas)| Recommendation { at: NOW.plus_s(-ago_s), replicas }).collect(),
            events: ScaleEvents { up: events(up), down: events(down) },
            last_busy: NOW.plus_s(-idle_s),
        }
    }
}

fn cases() -> impl Strategy<Value = (Policy, Memory, Inputs)> {
    policies().prop_flat_map(|policy| (Just(policy.clone()), memories(), inputs(policy)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What the rules make, the checker lets pass: two programs, one law.
    #[test]
    fn every_plan_passes_the_checker((policy, memory, inputs) in cases()) {
        let (_, outcome) = evaluate(&policy, &memory, &inputs);
        let plan = Plan {
            target: "t".to_owned(),
            from: inputs.replicas.spec,
            to: outcome.desired,
            mode: outcome.mode,
            at: NOW,
            expires: NOW.plus_s(5.0),
        };
        match (inputs.control, check(&plan, &inputs, NOW)) {
            (Control::Paused | Control::Advisory, Err(Violation::NotInControl(_))) => {}
            (_, Ok(())) => {}
            (_, Err(violation)) => return Err(TestCaseError::fail(format!("{violation}: {outcome:#?}"))),
        }
    }

    /// Panic, missing replicas, a half-filled window or no data at all: nothing shrinks but by the operator's word.
    #[test]
    fn never_shrinks_blind((policy, memory, inputs) in cases()) {
        let (_, outcome) = evaluate(&policy, &memory, &inputs);
        let blind = outcome.mode != Mode::Stable
            || inputs.data.fresh < inputs.data.expected
            || inputs.data.completeness < 0.9;
        if blind && !matches!(inputs.control, Control::Override(_)) {
            prop_assert!(outcome.desired >= inputs.replicas.spec.min(inputs.bounds.max), "{:#?}", outcome);
        }
    }

    /// A record, written as JSON and read again, decides the same, bit for bit.
    #[test]
    fn a_record_recomputes((policy, memory, inputs) in cases()) {
        let (memory_after, outcome) = evaluate(&policy, &memory, &inputs);
        let record = Record { target: "t".to_owned(), policy: Arc::new(policy), memory, inputs, outcome, memory_after };
        let json = serde_json::to_string(&record).unwrap();
        let read: Record = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &record);
        prop_assert!(read.recomputes());
        // The steps are a chain from the present count to the outcome.
        let steps = &record.outcome.steps;
        prop_assert_eq!(steps.first().map(|step| step.before), Some(f64::from(record.inputs.replicas.spec)));
        prop_assert!(steps.windows(2).all(|pair| pair[0].after == pair[1].before));
        prop_assert_eq!(steps.last().map(|step| step.after), Some(f64::from(record.outcome.desired)));
        prop_assert!(steps.iter().any(|step| step.rule == record.outcome.bound_by));
    }

    /// More load never wants fewer replicas.
    #[test]
    fn monotonic_in_load((policy, memory, inputs) in cases(), more in 1.0f64..10.0) {
        let mut heavier = inputs.clone();
        for measured in &mut heavier.metrics {
            if let Measured::Load { stable, panic } = measured {
                *stable *= more;
                *panic *= more;
            }
        }
        let (_, one) = evaluate(&policy, &memory, &inputs);
        let (_, other) = evaluate(&policy, &memory, &heavier);
        prop_assert!(other.desired >= one.desired, "{:#?}\n{:#?}", one, other);
    }

    /// While nothing new becomes ready, asking again does not ask for more: what starts is supply on its way.
    #[test]
    fn starting_replicas_do_not_multiply((policy, memory, inputs) in cases()) {
        let mut inputs = Inputs { control: Control::Auto, ..inputs };
        let demand_of = |record: &infer_core::decision::Outcome| {
            record.steps.iter().find(|step| step.rule == Rule::Demand).map(|step| step.after)
        };
        let (mut memory, first) = evaluate(&policy, &memory, &inputs);
        for second in 1..5 {
            inputs.now = NOW.plus_s(f64::from(second));
            inputs.replicas.spec = first.desired;
            inputs.replicas.starting = first.desired.saturating_sub(inputs.replicas.ready);
            let (after, outcome) = evaluate(&policy, &memory, &inputs);
            prop_assert_eq!(demand_of(&outcome), demand_of(&first));
            memory = after;
        }
    }
}

#[test]
fn the_checker_refuses_each_kind_of_bad_plan() {
    let inputs = Inputs {
        gateway_waiting: Some(0.0),
        busy: false,
        ..calm(NOW, 4, 8)
    };
    let plan = |to, mode| Plan {
        target: "t".to_owned(),
        from: 4,
        to,
        mode,
        at: NOW,
        expires: NOW.plus_s(5.0),
    };
    assert_eq!(check(&plan(2, Mode::Stable), &inputs, NOW), Ok(()));
    let refused = |plan: Plan, inputs: &Inputs, now| check(&plan, inputs, now).unwrap_err();
    assert_eq!(
        refused(plan(9, Mode::Stable), &inputs, NOW),
        Violation::AboveMax { to: 9, max: 8 }
    );
    assert_eq!(
        refused(plan(0, Mode::Stable), &inputs, NOW),
        Violation::BelowMin { to: 0, min: 1 }
    );
    assert_eq!(
        refused(plan(3, Mode::Panic), &inputs, NOW),
        Violation::ShrinksInPanic { from: 4, to: 3 }
    );
    assert!(matches!(
        refused(plan(3, Mode::Unknown), &inputs, NOW),
        Violation::ShrinksBlind { .. }
    ));
    assert_eq!(
        refused(plan(3, Mode::Stable), &inputs, NOW.plus_s(6.0)),
        Violation::Expired { late_ms: 1000 }
    );
    let blind = Inputs {
        data: DataState {
            fresh: 3,
            ..inputs.data
        },
        ..inputs.clone()
    };
    assert!(matches!(
        refused(plan(3, Mode::Stable), &blind, NOW),
        Violation::ShrinksBlind { fresh: 3, .. }
    ));
    let half = Inputs {
        data: DataState {
            completeness: 0.5,
            ..inputs.data
        },
        ..inputs.clone()
    };
    assert!(matches!(
        refused(plan(3, Mode::Stable), &half, NOW),
        Violation::ShrinksBlind { .. }
    ));
    let moved = Inputs {
        replicas: Replicas {
            spec: 5,
            ..inputs.replicas
        },
        ..inputs.clone()
    };
    assert_eq!(
        refused(plan(3, Mode::Stable), &moved, NOW),
        Violation::Stale { from: 4, spec: 5 }
    );
    let zero = Inputs {
        bounds: Bounds { min: 0, max: 8 },
        gateway_waiting: Some(2.0),
        ..inputs.clone()
    };
    assert_eq!(
        refused(plan(0, Mode::Stable), &zero, NOW),
        Violation::StrandsRequests { waiting: 2.0 }
    );
    for (control, name) in [(Control::Paused, "paused"), (Control::Advisory, "in advisory mode")] {
        let held = Inputs {
            control,
            ..inputs.clone()
        };
        assert_eq!(
            refused(plan(5, Mode::Stable), &held, NOW),
            Violation::NotInControl(name)
        );
    }
}

/// An objective on a bucket's edge tells the bucket below from the bucket above, histogram rounding or not.
#[test]
fn an_objective_on_a_bucket_edge_is_decidable() {
    use infer_core::histogram::BoundedHistogram;
    let policy = Policy {
        metrics: vec![MetricTarget {
            metric: Metric::Latency {
                signal: Signal::Ttft,
                quantile: 0.95,
            },
            target: 1000.0,
        }],
        tolerance: 0.0,
        kpa: KpaPolicy::default(),
        scale_up: ScalingRules {
            policies: vec![],
            ..ScalingRules::default_up()
        },
        scale_down: ScalingRules {
            stabilization_window_s: 0.0,
            ..ScalingRules::default_down()
        },
        scale_to_zero_grace_s: 0.0,
    };
    let decide = |low_ms, high_ms| {
        let mut histogram = BoundedHistogram::default();
        histogram.record(low_ms, Some(high_ms), 100);
        let latency = histogram.quantile(0.95);
        let inputs = Inputs {
            metrics: vec![Measured::Latency {
                stable: latency,
                panic: latency,
            }],
            ..calm(NOW, 4, 50)
        };
        let mut memory = Memory::start(&policy, 0, NOW.plus_s(-600.0));
        memory.last_busy = NOW;
        evaluate(&policy, &memory, &inputs).1.desired
    };
    assert!(decide(1000.0, 2500.0) > 4, "all above");
    assert_eq!(decide(750.0, 1500.0), 4, "cannot be told");
    assert!(decide(250.0, 500.0) < 4, "all below");
    // The bucket that ends at the objective holds it, with room to spare or without: a ratio below 1, rounded up.
    assert!(decide(500.0, 1000.0) <= 4);
}

/// Found by `monotonic_in_load`: within the tolerance of one replica, more load wanted one, and less load the activation scale.
#[test]
fn the_tolerance_keeps_no_fewer_than_the_activation_scale() {
    let mut policy = super::world::policy(&[(Metric::Waiting, 10.0)]);
    policy.tolerance = 0.1;
    policy.kpa.activation_scale = 2;
    for load in [8.0, 9.5] {
        let (memory, inputs) = super::world::inputs(&policy, 1, vec![super::world::load(load)]);
        assert_eq!(evaluate(&policy, &memory, &inputs).1.desired, 2, "{load}");
    }
}
