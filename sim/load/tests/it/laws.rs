//! Laws that hold for every plan.

use infer_load::rate::{self, Burst, Curve, Process, Stage};
use infer_load::{Arrival, Lengths, Plan};
use proptest::prelude::*;

fn processes() -> impl Strategy<Value = Process> {
    prop_oneof![
        Just(Process::Constant),
        Just(Process::Poisson),
        (0.2_f64..4.0).prop_map(|cv| Process::Gamma { cv })
    ]
}

/// Curves of every kind, some with a burst.
fn curves() -> impl Strategy<Value = Curve> {
    let rate = || 0.0_f64..40.0;
    let base = prop_oneof![
        (rate(), 1.0_f64..40.0).prop_map(|(rate, end)| Curve::constant(rate, end)),
        (rate(), rate(), 1.0_f64..20.0, 1.0_f64..40.0)
            .prop_map(|(from, to, ramp, end)| Curve::ramp(from, to, ramp, end)),
        (rate(), rate(), 1.0_f64..30.0, 1.0_f64..40.0)
            .prop_map(|(low, high, period, end)| Curve::diurnal(low, high, period, end)),
        prop::collection::vec((0.0_f64..3.0, 0.1_f64..9.0, rate(), rate()), 1..5).prop_map(|stages| {
            let mut at_s = 0.0;
            let stages: Vec<Stage> = stages
                .into_iter()
                .map(|(pause_s, length_s, from_rps, to_rps)| {
                    let start_s = at_s + pause_s;
                    at_s = start_s + length_s;
                    Stage {
                        start_s,
                        end_s: at_s,
                        from_rps,
                        to_rps,
                    }
                })
                .collect();
            Curve::stages(&stages)
        }),
    ];
    let burst = prop::option::of((0.0_f64..0.99, 0.1_f64..10.0, rate()));
    (base, burst).prop_map(|(curve, burst)| {
        let curve = curve.unwrap();
        let Some((start, length_s, rate_rps)) = burst else {
            return curve;
        };
        let start_s = start * curve.end_s();
        curve
            .with_burst(Burst {
                start_s,
                length_s,
                rate_rps,
            })
            .unwrap()
    })
}

fn arrivals(curve: &Curve, process: Process, seed: u64) -> Vec<Arrival> {
    rate::plan(curve.clone(), process, Lengths::new(300.0, 60.0, 1.0).unwrap(), seed).collect()
}

/// Arbitrary arrivals, not in order.
fn any_arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (0.0_f64..1000.0, 0_u32..5000, 0_u32..5000).prop_map(|(at_s, input_tokens, output_tokens)| Arrival {
        at_s,
        input_tokens,
        output_tokens,
    });
    prop::collection::vec(arrival, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn times_never_decrease_and_stay_inside(curve in curves(), process in processes(), seed: u64) {
        let arrivals = arrivals(&curve, process, seed);
        prop_assert!(arrivals.is_sorted_by(|a, b| a.at_s <= b.at_s));
        prop_assert!(arrivals.iter().all(|a| a.at_s >= 0.0 && a.at_s <= curve.end_s()));
        prop_assert!(arrivals.iter().all(|a| a.input_tokens >= 1 && a.output_tokens >= 1));
    }

    #[test]
    fn the_same_seed_gives_the_same_plan(curve in curves(), process in processes(), seed: u64) {
        prop_assert_eq!(arrivals(&curve, process, seed), arrivals(&curve, process, seed));
    }

    #[test]
    fn constant_arrivals_number_the_area(curve in curves()) {
        let count = arrivals(&curve, Process::Constant, 0).len() as f64;
        prop_assert!((count - curve.expected(curve.end_s())).abs() <= 0.5 + 1e-6);
    }

    #[test]
    fn poisson_arrivals_number_about_the_area(curve in curves(), seed: u64) {
        let area = curve.expected(curve.end_s());
        let count = arrivals(&curve, Process::Poisson, seed).len() as f64;
        // Seven standard deviations: less than one in 10^11 for large areas; small ones have a longer tail.
        prop_assert!((count - area).abs() <= 7.0 * area.sqrt() + 12.0, "{} for {}", count, area);
    }

    #[test]
    fn the_inverse_of_the_area_is_its_inverse(curve in curves(), part in 0.001_f64..0.999) {
        let wanted = part * curve.expected(curve.end_s());
        prop_assume!(wanted > 0.0);
        let t = curve.time_of(wanted).unwrap();
        prop_assert!((curve.expected(t) - wanted).abs() < 1e-6 * (1.0 + wanted), "{} at {}", wanted, t);
    }

    #[test]
    fn scaling_divides_times_only(list in any_arrivals(), factor in 0.1_f64..100.0) {
        let plan = Plan::from_arrivals(list.clone());
        let end_s = plan.duration_s();
        let scaled = Plan::from_arrivals(list).scale(factor);
        prop_assert_eq!(scaled.duration_s(), end_s.map(|end_s| end_s / factor));
        for (a, b) in plan.zip(scaled) {
            prop_assert_eq!(b, Arrival { at_s: a.at_s / factor, ..a });
        }
    }

    #[test]
    fn slices_put_together_are_the_whole(list in any_arrivals(), cut_s in 0.0_f64..1000.0) {
        let whole: Vec<_> = Plan::from_arrivals(list.clone()).collect();
        let before = Plan::from_arrivals(list.clone()).slice(0.0, cut_s);
        let after = Plan::from_arrivals(list).slice(cut_s, f64::INFINITY);
        let mut parts: Vec<_> = before.collect();
        prop_assert!(parts.iter().all(|a| a.at_s < cut_s));
        parts.extend(after.map(|a| Arrival { at_s: a.at_s + cut_s, ..a }));
        prop_assert_eq!(parts.len(), whole.len());
        for (a, b) in parts.iter().zip(&whole) {
            prop_assert!((a.at_s - b.at_s).abs() < 1e-9);
            prop_assert_eq!((a.input_tokens, a.output_tokens), (b.input_tokens, b.output_tokens));
        }
    }

    #[test]
    fn limits_and_clamps(list in any_arrivals(), count in 0_usize..300, most in 1_u32..3000) {
        let plan = Plan::from_arrivals(list.clone()).limit(count).clamp_tokens(most, most);
        let kept: Vec<_> = plan.collect();
        prop_assert_eq!(kept.len(), list.len().min(count));
        let fine = |tokens| (1..=most).contains(&tokens);
        prop_assert!(kept.iter().all(|a| fine(a.input_tokens) && fine(a.output_tokens)));
    }
}

#[test]
fn gamma_arrivals_have_the_rate_and_the_spread_asked_for() {
    let curve = Curve::constant(10.0, 4000.0).unwrap();
    for cv in [0.5, 1.0, 2.0] {
        let times: Vec<f64> = arrivals(&curve, Process::Gamma { cv }, 11)
            .iter()
            .map(|a| a.at_s)
            .collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 10.0 - 1.0).abs() < 0.05, "mean gap {mean} at cv {cv}");
        assert!(
            (variance.sqrt() / mean / cv - 1.0).abs() < 0.05,
            "cv {} for {cv}",
            variance.sqrt() / mean
        );
    }
}
