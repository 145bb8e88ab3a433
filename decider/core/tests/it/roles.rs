//! Roles with a ratio.

use infer_core::{
    check::{Violation, check},
    decision::{Mode, Plan, Rule},
    evaluate::evaluate,
    policy::Metric,
    roles::Ratio,
};
use proptest::prelude::*;

use super::world::{START, inputs, load, policy};

proptest! {
    /// The smallest allowed counts that are not below the wanted ones: whatever brute force finds is found.
    #[test]
    fn as_brute_force_finds(
        min in 0.1f64..4.0, width in prop_oneof![Just(0.0), 0.0f64..3.0], wanted in (0u32..12, 0u32..12), room in (0u32..30, 0u32..30),
    ) {
        let ratio = Ratio { min, max: min + width };
        let most = (wanted.0 + room.0, wanted.1 + room.1);
        let allowed = |above: u32, below: u32| {
            let (above, below) = (f64::from(above), f64::from(below));
            above <= ratio.max * below + 1e-9 && above + 1e-9 >= ratio.min * below
        };
        let pairs = (wanted.0..=most.0).flat_map(|above| (wanted.1..=most.1).map(move |below| (above, below)));
        let possible: Vec<_> = pairs.filter(|(above, below)| allowed(*above, *below)).collect();
        let (above, below) = ratio.fewest(wanted, most);
        prop_assert!((wanted.0..=most.0).contains(&above) && (wanted.1..=most.1).contains(&below));
        match possible.iter().map(|pair| pair.0).min().zip(possible.iter().map(|pair| pair.1).min()) {
            // Smallest in both at once.
            Some(least) => prop_assert_eq!((above, below), least),
            None => prop_assert!(above == most.0 || below == most.1),
        }
    }
}

#[test]
fn the_lesser_role_gets_more() {
    let ratio = Ratio { min: 0.5, max: 2.0 };
    let most = (100, 100);
    for (wanted, fewest) in [
        ((4, 4), (4, 4)),
        ((9, 2), (9, 5)),
        ((1, 8), (4, 8)),
        ((0, 0), (0, 0)),
        ((1, 0), (1, 1)),
        ((0, 3), (2, 3)),
    ] {
        assert_eq!(ratio.fewest(wanted, most), fewest, "{wanted:?}");
    }
    assert_eq!(Ratio { min: 1.5, max: 1.5 }.fewest((4, 2), most), (6, 4));
    assert_eq!(ratio.fewest((90, 2), (100, 20)), (90, 20));
}

#[test]
fn the_rule_raises_holds_and_stays_within_the_limits() {
    let policy = policy(&[(Metric::Concurrency, 10.0)]);
    let (memory, mut inputs) = inputs(&policy, 4, vec![load(10.0)]);
    for (fewest, max, desired, bound_by) in [
        (0, 50, 1, Rule::StablePanic),
        (3, 50, 3, Rule::Ratio),
        (7, 50, 7, Rule::Ratio),
        (7, 5, 5, Rule::Bounds),
    ] {
        inputs.fewest = fewest;
        inputs.bounds.max = max;
        let outcome = evaluate(&policy, &memory, &inputs).1;
        let bound_by_any = outcome.bound_by == bound_by || (fewest == 0 && outcome.bound_by == Rule::Demand);
        assert!(outcome.desired == desired && bound_by_any, "{outcome:?}");
    }
    inputs.fewest = 3;
    let plan = Plan {
        target: "t".into(),
        from: 4,
        to: 2,
        mode: Mode::Stable,
        at: START,
        expires: START.plus_s(5.0),
    };
    let (from, to, fewest) = (4, 2, 3);
    assert_eq!(
        check(&plan, &inputs, START),
        Err(Violation::BreaksRatio { from, to, fewest })
    );
}
