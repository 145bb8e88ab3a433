//! Windows against plain models of themselves.

use infer_core::{
    TimeMs,
    behavior::{self, Recommendation},
    histogram::BoundedHistogram,
    signal::Signal,
    window::{Averaging, CounterRing, HistogramRing, MaxWindow, SlidingHistogram, TimedBuckets},
};
use proptest::prelude::*;

proptest! {
    /// In order, without gaps of a window: the average is the sum of the last `window` seconds over their number.
    #[test]
    fn a_linear_average_is_the_mean_of_the_last_seconds(values in prop::collection::vec(0u32..1000, 1..200), window in 1usize..70) {
        let mut buckets = TimedBuckets::new(Averaging::Linear, window as f64, 1000);
        for (second, value) in values.iter().enumerate() {
            buckets.record(TimeMs(second as i64 * 1000), f64::from(*value));
            let from = (second + 1).saturating_sub(window);
            let last = &values[from..=second];
            let mean = last.iter().map(|value| f64::from(*value)).sum::<f64>() / last.len() as f64;
            let got = buckets.window_average(TimeMs(second as i64 * 1000 + 999));
            prop_assert!((got - mean).abs() < 1e-5, "{got} {mean}");
        }
    }

    /// The order of arrival within the window does not matter.
    #[test]
    fn order_does_not_matter(mut records in prop::collection::vec((0i64..30_000, 0u32..100), 1..50), now in 30_000i64..40_000) {
        let fill = |records: &[(i64, u32)]| {
            let mut buckets = TimedBuckets::new(Averaging::Linear, 60.0, 1000);
            for (at, value) in records {
                buckets.record(TimeMs(*at), f64::from(*value));
            }
            (buckets.window_average(TimeMs(now)), buckets.sum(TimeMs(now)))
        };
        let one = fill(&records);
        records.sort();
        prop_assert_eq!(one, fill(&records));
    }

    #[test]
    fn the_sliding_maximum_is_the_maximum(values in prop::collection::vec(0u32..50, 1..100), size in 1i64..20) {
        let mut window = MaxWindow::new(size);
        for (index, value) in values.iter().enumerate() {
            window.record(index as i64, *value);
            let from = (index + 1).saturating_sub(size as usize);
            prop_assert_eq!(window.current(), *values[from..=index].iter().max().unwrap());
        }
    }

    /// However time jumps and records come late, a sliding histogram holds what a fresh merge would.
    #[test]
    fn a_sliding_histogram_is_the_merge_of_its_window(
        steps in prop::collection::vec((0i64..25, prop::collection::vec((0i64..15, 0usize..4, 1u64..5), 0..4)), 1..60),
        window in 1usize..20,
    ) {
        let mut ring = HistogramRing::new(40);
        let mut sliding = SlidingHistogram::new(Signal::Ttft, window);
        let mut now = 100;
        for (step, records) in steps {
            now += step;
            for (age, bucket, count) in records {
                let mut histogram = BoundedHistogram::default();
                histogram.record(bucket as f64 * 10.0, Some(bucket as f64 * 10.0 + 10.0), count);
                let signal = if bucket == 3 { Signal::Itl } else { Signal::Ttft };
                let at = TimeMs((now - age) * 1000 + 7);
                sliding.record(&ring, at, signal, &histogram);
                ring.record(at, signal, &histogram);
            }
            sliding.advance(&ring, TimeMs(now * 1000));
            let fresh = ring.merged(TimeMs(now * 1000), window, Signal::Ttft);
            let slid = sliding.of(Signal::Ttft, window, TimeMs(now * 1000)).unwrap();
            prop_assert_eq!(slid.count(), fresh.count());
            for q in [0.0, 0.5, 0.95, 1.0] {
                prop_assert_eq!(slid.quantile(q), fresh.quantile(q));
            }
        }
    }

    /// Dropping what `compact` drops changes no later answer.
    #[test]
    fn compacting_recommendations_changes_no_answer(
        wishes in prop::collection::vec((0i64..20_000, 0u32..6), 1..80),
        up_s in 0i64..40,
        down_s in 0i64..40,
    ) {
        let (up_s, down_s) = (up_s as f64, down_s as f64);
        let (mut full, mut compacted): (Vec<Recommendation>, Vec<Recommendation>) = Default::default();
        let (mut now, mut current) = (TimeMs(0), 3);
        for (step, wish) in wishes {
            now = TimeMs(now.0 + step);
            let one = behavior::stabilize(&mut full, now, current, wish, up_s, down_s);
            let other = behavior::stabilize(&mut compacted, now, current, wish, up_s, down_s);
            behavior::compact(&mut compacted, now, up_s.max(down_s));
            prop_assert_eq!(one, other);
            current = one;
        }
        prop_assert!(compacted.len() <= full.len());
    }
}

#[test]
fn rings_take_what_is_late_and_refuse_what_is_too_late() {
    let mut ring = CounterRing::new(10);
    assert!(ring.record(TimeMs(20_000), 1));
    assert!(ring.record(TimeMs(11_500), 2));
    assert!(!ring.record(TimeMs(10_999), 4));
    assert_eq!(ring.sum(TimeMs(20_000), 10), 3);
    assert_eq!(ring.sum(TimeMs(20_000), 9), 1);
    // A later second takes the place of the one ten before it.
    assert!(ring.record(TimeMs(21_000), 8));
    assert_eq!(ring.sum(TimeMs(21_000), 10), 9);
    assert_eq!(ring.sum(TimeMs(40_000), 10), 0);
}

#[test]
fn histograms_merge_over_replicas_and_seconds() {
    let mut ring = HistogramRing::new(60);
    let mut one = BoundedHistogram::default();
    one.record(10.0, Some(25.0), 3);
    let mut other = BoundedHistogram::default();
    other.record(200.0, Some(300.0), 1);
    assert!(ring.record(TimeMs(5_000), Signal::Itl, &one));
    assert!(ring.record(TimeMs(5_900), Signal::Itl, &other));
    assert!(ring.record(TimeMs(9_000), Signal::Itl, &one));
    assert_eq!(ring.merged(TimeMs(9_000), 60, Signal::Itl).count(), 7);
    assert_eq!(ring.merged(TimeMs(9_000), 4, Signal::Itl).count(), 3);
    assert_eq!(ring.merged(TimeMs(9_000), 60, Signal::Ttft).count(), 0);
}
