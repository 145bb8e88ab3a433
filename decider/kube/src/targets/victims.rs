//! Which replicas should go.

use super::pod::Stage;
use super::replica::Replica;

/// How a kind's controller chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// As the ReplicaSet controller does: not ready before ready, then by deletion cost.
    Cost,
    /// The highest ordinal, whatever its cost is.
    Ordinal,
}

impl Order {
    /// A kind's order; unknown kinds are taken to build on Deployments.
    pub(super) fn of_kind(kind: &str) -> Order {
        match kind {
            "StatefulSet" | "LeaderWorkerSet" => Order::Ordinal,
            _ => Order::Cost,
        }
    }
}

/// Replicas in the order in which they should go, as indices. Those that are going already are not among them.
///
/// By cost: those that its controller would take first anyway (on no node, pending, not ready), of these the crashed
/// ones; then those with the least work, an unknown amount being the most; then those that serve for the longest time,
/// so that the one that has just been warmed goes last.
pub(super) fn ranked(replicas: &[Replica], order: Order, load: &dyn Fn(&str) -> Option<f64>) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..replicas.len())
        .filter(|index| replicas[*index].is_active())
        .collect();
    let newest = replicas
        .iter()
        .filter(|replica| replica.is_active())
        .filter_map(|replica| replica.ready_since)
        .max();
    let by_name = |a: &usize, b: &usize| replicas[*a].name.cmp(&replicas[*b].name);
    match order {
        Order::Ordinal => indices.sort_by(|a, b| {
            let (one, other) = (&replicas[*a], &replicas[*b]);
            other.ordinal.cmp(&one.ordinal).then_with(|| by_name(b, a))
        }),
        Order::Cost => {
            // One call per replica: what an agent says may change between two looks.
            let loads: Vec<f64> = replicas
                .iter()
                .map(|replica| load(&replica.name).unwrap_or(f64::MAX))
                .collect();
            indices.sort_by(|a, b| {
                let (one, other) = (&replicas[*a], &replicas[*b]);
                let crashed = |replica: &Replica| replica.stage != Stage::Crashing;
                // The API server tells whole seconds: several may be the newest.
                let warm = |replica: &Replica| replica.stage == Stage::Ready && replica.ready_since == newest;
                (one.class, crashed(one))
                    .cmp(&(other.class, crashed(other)))
                    .then_with(|| warm(one).cmp(&warm(other)))
                    .then_with(|| loads[*a].total_cmp(&loads[*b]))
                    .then_with(|| one.ready_since.cmp(&other.ready_since))
                    .then_with(|| by_name(a, b))
            });
        }
    }
    indices
}

#[cfg(test)]
mod tests {
    use infer_core::TimeMs;
    use proptest::prelude::*;

    use super::*;
    use crate::targets::{pod::Class, replica::tests::replica};

    fn ready(name: &str, since: i64) -> Replica {
        Replica {
            ready_since: Some(TimeMs(since)),
            ..replica(name, Stage::Ready)
        }
    }

    fn of_class(name: &str, stage: Stage, class: Class) -> Replica {
        Replica {
            class,
            ..replica(name, stage)
        }
    }

    #[track_caller]
    fn check(replicas: &[Replica], order: Order, loads: &[(&str, f64)], expected: &[&str]) {
        let load = |name: &str| loads.iter().find(|(of, _)| *of == name).map(|(_, load)| *load);
        let names: Vec<&str> = ranked(replicas, order, &load)
            .into_iter()
            .map(|index| replicas[index].name.as_str())
            .collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn starting_ones_first_then_least_work_then_the_oldest_and_the_newest_last() {
        let replicas = [
            ready("busy", 1),
            ready("idle-new", 50),
            ready("idle-old", 2),
            ready("idle-older", 1),
            of_class("pulling", Stage::Starting, Class::Pending),
            of_class("crashed", Stage::Crashing, Class::Pending),
            of_class("booting", Stage::Starting, Class::NotReady),
            of_class("homeless", Stage::Starting, Class::Unassigned),
            replica("going", Stage::Deleting),
            ready("silent", 3),
        ];
        check(
            &replicas,
            Order::Cost,
            &[("busy", 9.0), ("idle-new", 0.0), ("idle-old", 0.0), ("idle-older", 0.0)],
            &[
                "homeless",
                "crashed",
                "pulling",
                "booting",
                "idle-older",
                "idle-old",
                "busy",
                "silent",
                "idle-new",
            ],
        );
    }

    #[test]
    fn ordinals_from_the_top_whatever_they_do() {
        let numbered = |name: &str, ordinal: u64, stage| Replica {
            ordinal: Some(ordinal),
            ..replica(name, stage)
        };
        let replicas = [
            numbered("web-9", 9, Stage::Starting),
            numbered("web-10", 10, Stage::Ready),
            numbered("web-2", 2, Stage::Crashing),
        ];
        check(
            &replicas,
            Order::Ordinal,
            &[("web-10", 99.0)],
            &["web-10", "web-9", "web-2"],
        );
    }

    proptest! {
        #[test]
        fn no_less_class_goes_later_and_the_newest_ready_goes_last(
            specs in proptest::collection::vec((0_usize..4, 0_i64..5, proptest::option::of(0_u8..4)), 1..12),
        ) {
            let classes = [Class::Unassigned, Class::Pending, Class::NotReady, Class::Ready];
            let replicas: Vec<Replica> = specs.iter().enumerate().map(|(index, (class, since, _))| {
                let name = format!("r{index:02}");
                match classes[*class] {
                    Class::Ready => ready(&name, *since),
                    class => of_class(&name, Stage::Starting, class),
                }
            }).collect();
            let load = |name: &str| specs[name[1..].parse::<usize>().unwrap()].2.map(f64::from);
            let ranked = ranked(&replicas, Order::Cost, &load);
            prop_assert_eq!(ranked.len(), replicas.len());
            prop_assert!(ranked.windows(2).all(|pair| replicas[pair[0]].class <= replicas[pair[1]].class));
            let newest = replicas.iter().filter_map(|replica| replica.ready_since).max();
            let last = &replicas[*ranked.last().unwrap()];
            prop_assert!(newest.is_none() || last.ready_since == newest);
        }
    }
}
