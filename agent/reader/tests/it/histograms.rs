//! The encoder against the reference crate, and bounds against the truth.

use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2Serializer},
};
use infer_proto::v1::Signal;
use infer_reader::histogram::{Buckets, HIGHEST_US, Observations, micros};
use proptest::prelude::*;

fn observations(intervals: &[(f64, f64, u64)]) -> Observations {
    let count = intervals.iter().map(|i| i.2).sum();
    Observations {
        intervals: intervals.to_vec(),
        count,
        sum_us: None,
    }
}

fn decoded(bytes: &[u8]) -> Histogram<u64> {
    Deserializer::new().deserialize(&mut &bytes[..]).unwrap()
}

/// The same values through the crate.
fn reference(values: impl Iterator<Item = (u64, u64)>) -> Vec<u8> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, HIGHEST_US, 3).unwrap();
    for (value, n) in values {
        histogram.record_n(value, n).unwrap();
    }
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(&histogram, &mut bytes).unwrap();
    bytes
}

fn interval() -> impl Strategy<Value = (f64, f64, u64)> {
    // Every magnitude equally likely.
    let edge = (0u32..40, any::<u64>()).prop_map(|(bits, v)| (v & ((1 << bits) - 1)) as f64);
    (
        edge.clone(),
        edge,
        prop_oneof![1u64..5, any::<u32>().prop_map(u64::from)],
        any::<bool>(),
    )
        .prop_map(|(a, b, n, unbounded)| (a.min(b), if unbounded { f64::INFINITY } else { a.max(b) }, n.max(1)))
}

proptest! {
    #[test]
    fn encoding_equals_the_crates(intervals in proptest::collection::vec(interval(), 1..40)) {
        let delta = observations(&intervals).to_proto(Signal::Ttft).unwrap();
        let capped = |us: f64| if us >= HIGHEST_US as f64 { HIGHEST_US } else { us as u64 };
        prop_assert_eq!(&delta.lower, &reference(intervals.iter().map(|i| (capped(i.0), i.2))));
        prop_assert_eq!(&delta.upper, &reference(intervals.iter().map(|i| (capped(i.1), i.2))));
        prop_assert_eq!(decoded(&delta.lower).len(), delta.count);
        prop_assert_eq!(decoded(&delta.upper).len(), delta.count);
    }

    /// Any values, any bounds: every usual definition of every quantile lies within the bounds, and within those that
    /// remain after encoding.
    #[test]
    fn bounds_contain_the_truth(
        mut values in proptest::collection::vec(0.001f64..20_000.0, 1..120),
        mut bounds in proptest::collection::vec(0.5f64..15_000.0, 1..25),
        q in prop_oneof![0.0f64..=1.0, Just(0.5), Just(0.9), Just(0.95), Just(0.99), Just(1.0)],
    ) {
        values.sort_by(f64::total_cmp);
        bounds.sort_by(f64::total_cmp);
        bounds.push(f64::INFINITY);
        let cumulative = bounds
            .iter()
            .map(|&b| (b * 1e3, values.iter().filter(|v| **v <= b).count() as f64))
            .collect();
        let mut all = Observations::new();
        all.add(&Buckets::from_cumulative(cumulative, None).unwrap(), None);
        let bound = all.quantile(q).unwrap();
        let high = bound.high.unwrap_or(f64::INFINITY);
        prop_assert!(bound.low <= bound.estimate && bound.estimate <= high);

        let n = values.len();
        let position = q * (n - 1) as f64;
        let (below, above) = (values[position.floor() as usize], values[position.ceil() as usize]);
        let nearest = values[((q * n as f64).ceil() as usize).clamp(1, n) - 1];
        let linear = below + (above - below) * position.fract();
        for truth in [nearest, linear, below, above] {
            prop_assert!(bound.low <= truth && truth <= high, "{} not in {:?}", truth, bound);
        }

        let delta = all.to_proto(Signal::E2e).unwrap();
        let (lower, upper) = (decoded(&delta.lower), decoded(&delta.upper));
        let low_ms = lower.lowest_equivalent(lower.value_at_quantile(q)) as f64 / 1e3;
        let high_us = upper.value_at_quantile(q);
        prop_assert!(low_ms <= nearest, "{} above {}", low_ms, nearest);
        prop_assert!(high_us >= HIGHEST_US || nearest <= high_us as f64 / 1e3, "{} below {}", high_us, nearest);
    }
}

#[test]
fn quantiles_of_known_buckets() {
    // 10 in (0, 100 ms], 80 in (100, 200], 10 above.
    let buckets =
        Buckets::from_cumulative(vec![(200e3, 90.0), (f64::INFINITY, 100.0), (100e3, 10.0)], Some(15e6)).unwrap();
    let mut all = Observations::new();
    all.add(&buckets, None);
    let p50 = all.quantile(0.5).unwrap();
    assert_eq!((p50.low, p50.high, p50.estimate), (100.0, Some(200.0), 150.0));
    let p99 = all.quantile(0.99).unwrap();
    assert_eq!((p99.low, p99.high, p99.estimate), (200.0, None, 200.0));
    // Number 10 of 100 is the last of the first bucket, number 11 the first of the second: either may be meant.
    let between = all.quantile(9.5 / 99.0).unwrap();
    assert_eq!((between.low, between.high), (0.0, Some(200.0)));
    assert_eq!((all.count, all.sum_us), (100, Some(15e6)));
    assert_eq!(Observations::new().quantile(0.5), None);
    assert_eq!(Observations::new().to_proto(Signal::Itl), None);
}

/// SGLang's queue time has a bucket that ends at 0.
#[test]
fn a_bucket_at_zero_holds_zeros() {
    let buckets = Buckets::from_cumulative(vec![(0.0, 3.0), (1000.0, 3.0), (f64::INFINITY, 3.0)], None).unwrap();
    let mut all = Observations::new();
    all.add(&buckets, None);
    let p50 = all.quantile(0.5).unwrap();
    assert_eq!((p50.low, p50.high, p50.estimate), (0.0, Some(0.0), 0.0));
}

/// Two engines with unlike bounds.
#[test]
fn unlike_layouts_add_up() {
    let mut all = Observations::new();
    let add = |all: &mut Observations, cumulative: &[(f64, f64)]| {
        all.add(&Buckets::from_cumulative(cumulative.to_vec(), Some(1e3)).unwrap(), None);
    };
    add(&mut all, &[(1e3, 0.0), (2e3, 5.0), (f64::INFINITY, 5.0)]);
    add(&mut all, &[(1.5e3, 5.0), (f64::INFINITY, 5.0)]);
    let p50 = all.quantile(0.5).unwrap();
    assert_eq!((p50.low, p50.high), (0.0, Some(2.0)));
    assert_eq!((all.count, all.sum_us), (10, Some(2e3)));
}

#[test]
fn what_is_no_histogram() {
    let cases: &[&[(f64, f64)]] = &[
        &[],
        &[(1.0, 1.0)],                                   // no +Inf
        &[(1.0, 5.0), (2.0, 3.0), (f64::INFINITY, 6.0)], // falls
        &[(1.0, f64::NAN), (f64::INFINITY, 6.0)],
        &[(1.0, -1.0), (f64::INFINITY, 6.0)],
        &[(1.0, 1e300), (f64::INFINITY, 1e300)],
    ];
    for case in cases {
        assert_eq!(Buckets::from_cumulative(case.to_vec(), None), None, "{case:?}");
    }
}

#[test]
fn bounds_in_microseconds() {
    assert_eq!(micros(0.0016200000000000001, 1e6), 1620.0);
    assert_eq!(micros(0.3, 1e6), 300_000.0);
    assert!(
        (micros(0.0026244000000000007, 1e6) - 2624.4).abs() < 1e-9,
        "not next to a whole number: left alone"
    );
    assert_eq!(micros(f64::INFINITY, 1e6), f64::INFINITY);
    assert_eq!(micros(25.0, 1e3), 25_000.0);
}

/// A body of every signal stays small: the agent sends it every second.
#[test]
fn encodings_are_small() {
    let spread: Vec<(f64, f64, u64)> = (0..22)
        .map(|i| (f64::from(1 << i) * 1e3, f64::from(2 << i) * 1e3, 1000))
        .collect();
    let delta = observations(&spread).to_proto(Signal::Ttft).unwrap();
    assert!(
        delta.lower.len() < 150 && delta.upper.len() < 150,
        "{} {}",
        delta.lower.len(),
        delta.upper.len()
    );
}
