//! Who has a target when several want it.
//!
//! Every decider comes to the same answer from the same objects, without remembering anything: what a binding has been
//! told before stands in its status. So two bindings never take turns, not even when their shards have different owners
//! or after everything was restarted.

use std::{cmp::Ordering, collections::HashMap};

use infer_api::PathStep;

/// A count that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// API group; `None` where it is not said, which means any.
    pub(crate) group: Option<String>,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) count: Count,
}

/// Which of an object's counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Count {
    /// Of the object as a whole: that of its scale subresource.
    Whole,
    /// The one there.
    Path(Vec<PathStep>),
    /// That of a role, wherever it stands.
    Role(String),
}

impl Count {
    /// Of a `replicasPath`. `.spec.replicas` is where nearly every scale subresource points.
    pub(crate) fn at(path: Option<&str>) -> Count {
        let Some(steps) = path.and_then(infer_api::parse_replicas_path) else {
            return Count::Whole;
        };
        let field = |step: &PathStep, name: &str| matches!(step, PathStep::Field(field) if field == name);
        match steps.as_slice() {
            [spec, replicas] if field(spec, "spec") && field(replicas, "replicas") => Count::Whole,
            _ => Count::Path(steps),
        }
    }

    fn is(&self, other: &Count) -> bool {
        match (self, other) {
            (Count::Role(role), Count::Path(steps)) | (Count::Path(steps), Count::Role(role)) => steps
                .iter()
                .any(|step| matches!(step, PathStep::Item { value, .. } if value == role)),
            (one, other) => one == other,
        }
    }
}

impl Claim {
    pub(crate) fn of(target: &infer_api::TargetRef) -> Claim {
        Claim {
            group: Some(target.group().to_owned()),
            kind: target.kind.clone(),
            name: target.name.clone(),
            count: Count::at(target.replicas_path.as_deref()),
        }
    }

    /// Whether both are about the same count, in the same namespace.
    pub(crate) fn is_same(&self, other: &Claim) -> bool {
        let same_group = match (&self.group, &other.group) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        same_group && self.kind == other.kind && self.name == other.name && self.count.is(&other.count)
    }
}

/// How well a binding's wish is founded, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// It was told that it has its targets, as they are now.
    Has,
    /// It was told nothing, or about other targets.
    New,
    /// It was told that somebody else has them.
    Yielded,
}

/// Somebody who wants targets.
#[derive(Debug, Clone)]
pub(crate) struct Claimant<'a> {
    /// `AutoscalingPolicyBinding` or another kind.
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
    pub(crate) created_ms: i64,
    pub(crate) rank: Rank,
    /// Not ours: it sets counts whatever we find.
    pub(crate) is_foreign: bool,
    pub(crate) claims: &'a [Claim],
}

impl Claimant<'_> {
    /// Who goes first. Of equal age, who cannot give way goes before who can.
    fn order(&self, other: &Self) -> Ordering {
        let key = |claimant: &Self| (claimant.rank, claimant.created_ms, !claimant.is_foreign);
        key(self)
            .cmp(&key(other))
            .then_with(|| (self.name, self.kind).cmp(&(other.name, other.kind)))
    }
}

/// Somebody else with the same target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rival {
    /// `HorizontalPodAutoscaler chat`.
    pub(crate) who: String,
    /// `Deployment/chat`.
    pub(crate) target: String,
}

/// What is found about one binding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Verdict {
    /// Has a target that this one wants: it gets none of its targets.
    pub(crate) yields_to: Option<Rival>,
    /// Sets a count that this one has, and should not.
    pub(crate) disturbed_by: Option<Rival>,
}

/// Judges all claimants of one namespace; one verdict each, in their order. One that yields leaves all of its targets.
pub(crate) fn judge(claimants: &[Claimant<'_>]) -> Vec<Verdict> {
    let mut order: Vec<usize> = (0..claimants.len()).collect();
    order.sort_by(|&a, &b| claimants[a].order(&claimants[b]));
    let mut taken = Taken::default();
    let mut verdicts = vec![Verdict::default(); claimants.len()];
    let mut yielding = Vec::new();
    for index in order {
        let claimant = &claimants[index];
        let others: Vec<(usize, &Claim)> = taken.others(claimant.claims).collect();
        if !claimant.is_foreign && !others.is_empty() {
            yielding.push(index);
            continue;
        }
        for (other, claim) in others.into_iter().filter(|(other, _)| !claimants[*other].is_foreign) {
            verdicts[other]
                .disturbed_by
                .get_or_insert_with(|| rival(claimant, claim));
        }
        taken.take(index, claimant.claims);
    }
    // Named last, so that it does not depend on who came before whom.
    for index in yielding {
        let mut others = taken.others(claimants[index].claims);
        verdicts[index].yields_to = others.next().map(|(other, claim)| rival(&claimants[other], claim));
    }
    verdicts
}

/// Who has what, by kind and name of the target.
#[derive(Default)]
struct Taken<'a>(HashMap<(&'a str, &'a str), Vec<(usize, &'a Claim)>>);

impl<'a> Taken<'a> {
    fn take(&mut self, index: usize, claims: &'a [Claim]) {
        for claim in claims {
            let key = (claim.kind.as_str(), claim.name.as_str());
            self.0.entry(key).or_default().push((index, claim));
        }
    }

    /// Who has one of these, and which.
    fn others<'b>(&'b self, claims: &'b [Claim]) -> impl Iterator<Item = (usize, &'b Claim)> {
        claims.iter().flat_map(|claim| {
            let there = self.0.get(&(claim.kind.as_str(), claim.name.as_str()));
            let same = there.into_iter().flatten().filter(|(_, theirs)| theirs.is_same(claim));
            same.map(move |(other, _)| (*other, claim))
        })
    }
}

fn rival(claimant: &Claimant<'_>, claim: &Claim) -> Rival {
    Rival {
        who: format!("{} {}", claimant.kind, claimant.name),
        target: format!("{}/{}", claim.kind, claim.name),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: &str = "AutoscalingPolicyBinding";

    fn claim(name: &str, path: Option<&str>) -> Claim {
        Claim {
            group: Some("apps".to_owned()),
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
            count: Count::at(path),
        }
    }

    fn claimant<'a>(name: &'a str, created_ms: i64, rank: Rank, claims: &'a [Claim]) -> Claimant<'a> {
        Claimant {
            kind: OURS,
            name,
            created_ms,
            rank,
            is_foreign: false,
            claims,
        }
    }

    fn hpa<'a>(name: &'a str, created_ms: i64, claims: &'a [Claim]) -> Claimant<'a> {
        Claimant {
            kind: "HorizontalPodAutoscaler",
            is_foreign: true,
            ..claimant(name, created_ms, Rank::New, claims)
        }
    }

    #[track_caller]
    fn check(claimants: &[Claimant<'_>], expected: &[(Option<&str>, Option<&str>)]) {
        let verdicts = judge(claimants);
        let who = |rival: &Option<Rival>| rival.as_ref().map(|rival| rival.who.clone());
        let found: Vec<_> = verdicts
            .iter()
            .map(|v| (who(&v.yields_to), who(&v.disturbed_by)))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(a, b)| (a.map(str::to_owned), b.map(str::to_owned)))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_older_one_keeps_and_the_name_decides_between_twins() {
        let chat = [claim("chat", None)];
        let (a, b) = (claimant("a", 2, Rank::New, &chat), claimant("b", 1, Rank::New, &chat));
        check(
            &[a.clone(), b],
            &[(Some("AutoscalingPolicyBinding b"), None), (None, None)],
        );
        let b = claimant("b", 2, Rank::New, &chat);
        check(&[b, a], &[(Some("AutoscalingPolicyBinding a"), None), (None, None)]);
    }

    #[test]
    fn whoever_has_a_target_keeps_it_from_an_older_one_that_comes_later() {
        let chat = [claim("chat", None)];
        let came_over = claimant("a", 1, Rank::New, &chat);
        check(
            &[came_over, claimant("b", 2, Rank::Has, &chat)],
            &[(Some("AutoscalingPolicyBinding b"), None), (None, None)],
        );
        // The holder's limits are edited while the older one waits.
        let waits = claimant("a", 1, Rank::Yielded, &chat);
        check(
            &[waits, claimant("b", 2, Rank::New, &chat)],
            &[(Some("AutoscalingPolicyBinding b"), None), (None, None)],
        );
    }

    #[test]
    fn who_waits_gets_what_becomes_free() {
        let chat = [claim("chat", None)];
        check(&[claimant("a", 1, Rank::Yielded, &chat)], &[(None, None)]);
    }

    #[test]
    fn an_older_hpa_keeps_and_a_younger_one_is_named() {
        let chat = [claim("chat", None)];
        let ours = claimant("a", 5, Rank::New, &chat);
        check(
            &[ours.clone(), hpa("h", 4, &chat)],
            &[(Some("HorizontalPodAutoscaler h"), None), (None, None)],
        );
        check(
            &[ours.clone(), hpa("h", 5, &chat)],
            &[(Some("HorizontalPodAutoscaler h"), None), (None, None)],
        );
        check(
            &[ours, hpa("h", 6, &chat)],
            &[(None, Some("HorizontalPodAutoscaler h")), (None, None)],
        );
    }

    #[test]
    fn one_lost_target_frees_the_others() {
        let both = [claim("chat", None), claim("code", None)];
        let (chat, code) = ([claim("chat", None)], [claim("code", None)]);
        check(
            &[
                claimant("first", 1, Rank::New, &chat),
                claimant("both", 2, Rank::New, &both),
                claimant("last", 3, Rank::New, &code),
            ],
            &[
                (None, None),
                (Some("AutoscalingPolicyBinding first"), None),
                (None, None),
            ],
        );
    }

    #[test]
    fn counts_of_one_object_are_told_apart() {
        let prefill = Some(".spec.roles[name=prefill].replicas");
        let same = Some(r#"spec.roles[?(@.name=="prefill")].replicas"#);
        let decode = Some(".spec.roles[name=decode].replicas");
        let role = Claim {
            count: Count::Role("prefill".to_owned()),
            group: None,
            ..claim("m", None)
        };
        for (one, other, is_same) in [
            (claim("m", prefill), claim("m", same), true),
            (claim("m", prefill), claim("m", decode), false),
            (claim("m", prefill), claim("m", None), false),
            (claim("m", Some(".spec.replicas")), claim("m", None), true),
            (claim("m", prefill), role.clone(), true),
            (claim("m", decode), role.clone(), false),
            (claim("m", None), role, false),
            (claim("m", None), claim("n", None), false),
        ] {
            assert_eq!(one.is_same(&other), is_same, "{one:?} {other:?}");
            assert_eq!(other.is_same(&one), is_same, "{other:?} {one:?}");
        }
    }

    proptest! {
        /// No count has two of our bindings; the answer does not depend on the order in which objects came; once everybody
        /// has been told and nothing else changes, nothing ever changes.
        #[test]
        fn nobody_shares_and_nobody_takes_turns(
            wishes in prop::collection::vec((0_i64..4, prop::collection::btree_set(0_usize..5, 1..3), 0_u8..4), 1..8),
            foreign in prop::collection::vec((0_i64..4, 0_usize..5), 0..3),
        ) {
            let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
            let counts: Vec<Claim> = names.iter().map(|name| claim(name, None)).collect();
            let claims: Vec<Vec<Claim>> = wishes
                .iter()
                .map(|(_, targets, _)| targets.iter().map(|&target| counts[target].clone()).collect())
                .collect();
            let theirs: Vec<Vec<Claim>> = foreign.iter().map(|(_, target)| vec![counts[*target].clone()]).collect();
            let mut ranks: Vec<Rank> = wishes
                .iter()
                .map(|(_, _, rank)| [Rank::New, Rank::New, Rank::Has, Rank::Yielded][usize::from(*rank)])
                .collect();
            let mut before: Option<Vec<Verdict>> = None;
            for _ in 0..3 {
                let mut all: Vec<Claimant<'_>> = wishes
                    .iter()
                    .enumerate()
                    .map(|(i, (created, ..))| claimant(&names[i], *created, ranks[i], &claims[i]))
                    .collect();
                all.extend(foreign.iter().enumerate().map(|(i, (created, _))| hpa(&names[i], *created, &theirs[i])));
                let verdicts = judge(&all);
                let mut reversed: Vec<Claimant<'_>> = all.clone();
                reversed.reverse();
                let mut again = judge(&reversed);
                again.reverse();
                prop_assert_eq!(&verdicts, &again);
                for target in &counts {
                    let holders = (0..wishes.len())
                        .filter(|&i| verdicts[i].yields_to.is_none() && claims[i].contains(target))
                        .count();
                    prop_assert!(holders <= 1, "{}", target.name);
                }
                if let Some(before) = &before {
                    prop_assert_eq!(before, &verdicts);
                }
                for (rank, verdict) in ranks.iter_mut().zip(&verdicts) {
                    *rank = if verdict.yields_to.is_some() { Rank::Yielded } else { Rank::Has };
                }
                before = Some(verdicts);
            }
        }
    }
}
