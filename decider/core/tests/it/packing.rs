//! Packing: its laws, and the shared vectors where they are there.

use infer_core::packing::{Variant, greedy_doubling, greedy_expansion};
use proptest::prelude::*;
use serde_json::Value;

prop_compose! {
    fn variants()(
        variants in prop::collection::vec((0u32..5, 0u32..60, 1u32..20), 0..6)
    ) -> Vec<Variant> {
        let variant = |(min, width, cost)| Variant { min, max: min + width, cost: f64::from(cost) };
        variants.into_iter().map(variant).collect()
    }
}

proptest! {
    #[test]
    fn counts_are_within_limits_and_add_up(variants in variants(), total in 0u32..400, percent in 50u32..500) {
        let replicas = greedy_expansion(total, &variants, percent);
        prop_assert_eq!(replicas.len(), variants.len());
        for (count, variant) in replicas.iter().zip(&variants) {
            prop_assert!((variant.min..=variant.max).contains(count));
        }
        let sum = |of: fn(&Variant) -> u32| variants.iter().map(of).sum::<u32>();
        let (min, max) = (sum(|variant| variant.min), sum(|variant| variant.max));
        prop_assert_eq!(replicas.iter().sum::<u32>(), total.clamp(min, max));
    }

    /// More load never removes a replica from anywhere.
    #[test]
    fn totals_are_nested(variants in variants(), total in 0u32..400, percent in 50u32..500) {
        let (fewer, more) = (greedy_expansion(total, &variants, percent), greedy_expansion(total + 1, &variants, percent));
        let grown: u32 = fewer.iter().zip(&more).map(|(fewer, more)| more.checked_sub(*fewer).expect("a replica went")).sum();
        prop_assert!(grown <= 1);
    }
}

#[test]
fn limits_that_overflow_a_count_and_bounds_the_wrong_way_round_do_no_harm() {
    let variant = |min, max| Variant { min, max, cost: 1.0 };
    assert_eq!(greedy_doubling(7, &[]), Vec::<u32>::new());
    assert_eq!(greedy_doubling(7, &[variant(3, 1)]), [3]);
    let vast = [variant(u32::MAX, u32::MAX), variant(0, u32::MAX)];
    assert_eq!(greedy_doubling(u32::MAX, &vast), [u32::MAX, 0]);
    assert_eq!(greedy_doubling(u32::MAX, &[variant(0, u32::MAX)]), [u32::MAX]);
    let costless = [
        variant(0, 2),
        Variant {
            min: 0,
            max: 2,
            cost: f64::NAN,
        },
    ];
    assert_eq!(greedy_doubling(3, &costless), [2, 1]);
}

/// An independent program's numbers.
#[test]
fn shared_vectors() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors/packing.json");
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("skipped: {path} not found");
        return;
    };
    let file: Value = serde_json::from_str(&text).unwrap();
    let mut cases = 0;
    for case in file["cases"].as_array().unwrap() {
        if case["family"] != "greedy_doubling" {
            continue;
        }
        let count = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
        let (input, targets) = (&case["input"], case["input"]["targets"].as_array().unwrap());
        let variants: Vec<Variant> = targets
            .iter()
            .map(|target| Variant {
                min: count(&target["min"]),
                max: count(&target["max"]),
                cost: target["cost"].as_f64().unwrap(),
            })
            .collect();
        let expected: Vec<u32> = targets
            .iter()
            .map(|target| count(&case["expect"]["replicas"][target["name"].as_str().unwrap()]))
            .collect();
        let percent = count(&input["cost_expansion_rate_percent"]);
        let got = greedy_expansion(count(&input["total_replicas"]), &variants, percent);
        assert_eq!(got, expected, "{}", case["id"]);
        cases += 1;
    }
    assert!(cases > 0, "no case of the family in {path}");
}
