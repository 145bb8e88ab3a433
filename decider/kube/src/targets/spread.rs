//! From a total to counts per part.

use infer_core::packing::{Variant, greedy_doubling};

use super::Part;

/// How many replicas each part gets, for `total` in all. What grows lets no part shrink and the other way round: a mix
/// that is not the one that would be chosen now is left as it is until the total moves towards it.
pub(super) fn spread(total: u32, parts: &[&Part], now: &[u32]) -> Vec<u32> {
    let variants: Vec<Variant> = parts
        .iter()
        .map(|part| Variant {
            min: part.min,
            max: part.max,
            cost: part.cost,
        })
        .collect();
    let best = greedy_doubling(total, &variants);
    let mut counts: Vec<u32> = now.to_vec();
    let sum: u64 = counts.iter().copied().map(u64::from).sum();
    let mut missing = i64::from(total) - i64::try_from(sum).unwrap_or(i64::MAX);
    while missing != 0 {
        // The part that is furthest behind (or ahead of) the best mix; of equals the earlier one grows, the later shrinks.
        let lack = |index: usize| i64::from(best.get(index).copied().unwrap_or(0)) - i64::from(counts[index]);
        let next = if missing > 0 {
            (0..counts.len()).rev().max_by_key(|index| lack(*index))
        } else {
            (0..counts.len())
                .filter(|index| counts[*index] > 0)
                .rev()
                .min_by_key(|index| lack(*index))
        };
        let Some(next) = next else { break };
        // All that this part lacks at once, but at least one: the loop is as short as there are parts, within bounds.
        let step = lack(next).clamp(missing.min(0), missing.max(0));
        let step = if step == 0 { missing.signum() } else { step };
        counts[next] = u32::try_from(i64::from(counts[next]) + step).unwrap_or(0);
        missing -= step;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::targets::TargetRef;

    fn part(min: u32, max: u32, cost: f64) -> Part {
        Part {
            name: String::new(),
            target: TargetRef::scale("ns", "apps/v1", "Deployment", "a"),
            min,
            max,
            cost,
        }
    }

    fn run(total: u32, parts: &[Part], now: &[u32]) -> Vec<u32> {
        spread(total, &parts.iter().collect::<Vec<_>>(), now)
    }

    #[test]
    fn one_part_takes_all() {
        assert_eq!(run(7, &[part(1, 20, 1.0)], &[3]), [7]);
        assert_eq!(run(0, &[part(0, 20, 1.0)], &[3]), [0]);
        assert_eq!(run(25, &[part(0, 20, 1.0)], &[3]), [25]);
    }

    #[test]
    fn another_mix_is_not_turned_over() {
        // The best mix for 6 would have most in the cheap part; only the sixth replica is placed.
        let parts = [part(0, 10, 1.0), part(0, 10, 100.0)];
        assert_eq!(run(6, &parts, &[0, 5]), [1, 5]);
        assert_eq!(run(4, &parts, &[0, 5]), [0, 4]);
    }

    proptest! {
        #[test]
        fn the_total_is_met_and_no_part_goes_the_other_way(
            specs in proptest::collection::vec((0_u32..5, 0_u32..20, 0.0_f64..10.0, 0_u32..25), 1..5),
            total in 0_u32..80,
        ) {
            let parts: Vec<Part> = specs.iter().map(|(min, more, cost, _)| part(*min, min + more, *cost)).collect();
            let now: Vec<u32> = specs.iter().map(|spec| spec.3).collect();
            let counts = run(total, &parts, &now);
            prop_assert_eq!(counts.iter().sum::<u32>(), total);
            let before: u32 = now.iter().sum();
            for (new, old) in counts.iter().zip(&now) {
                let is_right_way = if total >= before { new >= old } else { new <= old };
                prop_assert!(is_right_way);
            }
        }

        #[test]
        fn bounds_hold_where_they_held(
            specs in proptest::collection::vec((0_u32..5, 0_u32..20, 0.0_f64..10.0), 1..5),
            from in 0_u32..80, to in 0_u32..80,
        ) {
            let parts: Vec<Part> = specs.iter().map(|(min, more, cost)| part(*min, min + more, *cost)).collect();
            let least: u32 = parts.iter().map(|part| part.min).sum();
            let most: u32 = parts.iter().map(|part| part.max).sum();
            let mins: Vec<u32> = parts.iter().map(|part| part.min).collect();
            let now = run(from.clamp(least, most), &parts, &mins);
            let counts = run(to.clamp(least, most), &parts, &now);
            for (count, part) in counts.iter().zip(&parts) {
                prop_assert!((part.min..=part.max).contains(count), "{counts:?} from {now:?}");
            }
        }
    }
}
