//! Bounded histograms: the wire's encoding, and the law that the true quantile is inside.

use hdrhistogram::{
    Histogram,
    serialization::{Serializer, V2Serializer},
};
use infer_core::histogram::{BoundedHistogram, DecodeError, HIGHEST_US, SparseHistogram};
use proptest::prelude::*;

fn encode(values: &[(u64, u64)]) -> Vec<u8> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, HIGHEST_US, 3).unwrap();
    for (value, count) in values {
        histogram.record_n(*value, *count).unwrap();
    }
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(&histogram, &mut bytes).unwrap();
    bytes
}

proptest! {
    #[test]
    fn reads_what_the_crate_writes(values in prop::collection::vec((0..=HIGHEST_US, 1u64..1_000_000), 0..40)) {
        let mut ours = SparseHistogram::default();
        for (value, count) in &values {
            ours.record(*value, *count);
        }
        prop_assert_eq!(SparseHistogram::decode_v2(&encode(&values)).unwrap(), ours);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SparseHistogram::decode_v2(&bytes);
        let mut with_header = encode(&[(5, 1)]);
        with_header.truncate(40);
        with_header.extend_from_slice(&bytes);
        with_header[4..8].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
        let _ = SparseHistogram::decode_v2(&with_header);
    }

    /// Values fall into buckets of several layouts, several histograms are merged, and every usual definition of the
    /// quantile still lies inside the bounds.
    #[test]
    fn the_true_quantile_is_inside(
        parts in prop::collection::vec((prop::collection::vec(0.0f64..20_000.0, 1..60), 0usize..3), 1..4),
        q in 0.0f64..=1.0,
    ) {
        let layouts: [&[f64]; 3] = [&[1.0, 5.0, 10.0, 100.0, 1000.0, 10_000.0], &[250.0, 500.0, 2500.0], &[3.3, 77.7, 900.9, 15_000.0]];
        let mut merged = BoundedHistogram::default();
        let mut truth = Vec::new();
        for (values, layout) in &parts {
            let mut histogram = BoundedHistogram::default();
            for value in values {
                let bounds = layouts[*layout];
                let at = bounds.partition_point(|bound| bound < value);
                let low = if at == 0 { 0.0 } else { bounds[at - 1] };
                histogram.record(low, bounds.get(at).copied(), 1);
            }
            truth.extend_from_slice(values);
            merged.merge(&histogram);
        }
        truth.sort_by(f64::total_cmp);
        let n = truth.len();
        let position = q * (n - 1) as f64;
        let (below, above) = (truth[position.floor() as usize], truth[position.ceil() as usize]);
        let linear = below + (above - below) * position.fract();
        let nearest_rank = truth[((q * n as f64).ceil() as usize).clamp(1, n) - 1];
        let bounds = merged.quantile(q).unwrap();
        for value in [below, above, linear, nearest_rank] {
            prop_assert!(bounds.low_ms <= value, "{value} below {bounds:?}");
            prop_assert!(bounds.high_ms.is_none_or(|high| value <= high), "{value} above {bounds:?}");
        }
        prop_assert!(bounds.low_ms <= bounds.estimate_ms);
        prop_assert!(bounds.high_ms.is_none_or(|high| bounds.estimate_ms <= high));
    }
}

#[test]
fn what_is_no_histogram_is_refused() {
    let good = encode(&[(1000, 3), (2000, 1)]);
    assert!(matches!(
        SparseHistogram::decode_v2(&good[..20]),
        Err(DecodeError::Truncated { .. })
    ));
    assert!(matches!(
        SparseHistogram::decode_v2(&good[..good.len() - 1]),
        Err(DecodeError::Truncated { .. })
    ));
    let mut other_cookie = good.clone();
    other_cookie[3] = 0;
    assert!(matches!(
        SparseHistogram::decode_v2(&other_cookie),
        Err(DecodeError::Cookie(_))
    ));
    let mut two_digits = good.clone();
    two_digits[15] = 2;
    assert!(matches!(
        SparseHistogram::decode_v2(&two_digits),
        Err(DecodeError::Layout { digits: 2, .. })
    ));
    let unpaired = BoundedHistogram::decode(&good, &encode(&[(1000, 3)]), None);
    assert_eq!(unpaired, Err(DecodeError::Unpaired { lower: 4, upper: 3 }));
}

#[test]
fn an_open_bucket_has_no_upper_bound_and_means_come_from_sums() {
    let mut histogram = BoundedHistogram::default();
    histogram.record(100.0, Some(250.0), 9);
    histogram.record(2500.0, None, 1);
    histogram.set_sum(Some(4500.0));
    assert_eq!(histogram.mean_ms(), Some(450.0));
    let p50 = histogram.quantile(0.5).unwrap();
    assert!(p50.low_ms <= 100.0 && p50.high_ms.unwrap() >= 250.0);
    assert_eq!(histogram.quantile(1.0).unwrap().high_ms, None);
    assert_eq!(BoundedHistogram::default().quantile(0.5), None);
}
