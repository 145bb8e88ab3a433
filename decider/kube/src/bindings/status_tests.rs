use infer_core::{TimeMs, behavior::Recommendation, policy::Policy};
use serde_json::{Value, json};

use super::*;
use crate::bindings::{
    index::{Index, Meta},
    watch::{Kind, Object, Source, Told},
};

const THEN: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-01-02T00:00:00Z";

fn policy() -> Value {
    json!({"metrics": [{"type": "concurrency", "target": 8}, {"type": "ttft", "target": 900, "quantile": 0.95}]})
}

fn scaling() -> Value {
    json!({"policy": policy(), "scaling": {
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}, "minReplicas": 2, "maxReplicas": 6}})
}

fn binding(spec: Value) -> Binding {
    let mut index = Index::default();
    let source = Source {
        kind: Kind::Binding,
        namespace: None,
    };
    let object = Object {
        namespace: "ml".to_owned(),
        name: "chat".to_owned(),
        meta: Meta {
            generation: 3,
            ..Meta::default()
        },
        spec,
        status: Value::Null,
    };
    index.tell(&source, Told::Is(Box::new(object)));
    index.settle();
    index.binding(&("ml".to_owned(), "chat".to_owned())).unwrap().clone()
}

fn bounds(binding: &Binding) -> &[ResolvedBound] {
    match &binding.state {
        State::Active(bounds) => bounds,
        other => panic!("{other:?}"),
    }
}

fn memory(wishes: &[(i64, u32)]) -> Memory {
    let policy: Policy = serde_json::from_value::<infer_api::PolicySpec>(policy())
        .unwrap()
        .to_core();
    let mut memory = Memory::start(&policy, 1, TimeMs(0));
    memory.recommendations = wishes
        .iter()
        .map(|&(at, replicas)| Recommendation {
            at: TimeMs(at),
            replicas,
        })
        .collect();
    memory
}

fn report() -> Report {
    Report {
        key: "ml/chat".to_owned(),
        desired: 4,
        mode: "stable",
        control: Control::Auto,
        reason: "concurrency 32 of 8 per replica".to_owned(),
        decision: None,
        changed: None,
        applied: false,
        not_applied: None,
        limited: None,
        metrics_available: true,
        memory: memory(&[]),
    }
}

fn decided() -> Report {
    Report {
        decision: Some((7, 1_767_225_600_000)),
        changed: Some((2, 4)),
        applied: true,
        ..report()
    }
}

fn fleet(names: &[&str]) -> Fleet {
    let parts = names.iter().map(|name| PartState {
        name: (*name).to_owned(),
        spec: 4,
        desired: 4,
        ready: 2,
        starting: 2,
        ..PartState::default()
    });
    Fleet {
        parts: parts.collect(),
        ..Fleet::default()
    }
}

fn view<'a>(bound: &'a ResolvedBound, latest: Option<&'a Latest>) -> View<'a> {
    let names: Vec<&str> = bound.parts.iter().map(|part| part.name.as_str()).collect();
    View {
        bound,
        fleet: Some(fleet(&names)),
        problems: Vec::new(),
        latest,
    }
}

/// `Ready True Deciding | …`
fn conditions(status: &BindingStatus) -> String {
    let words = status
        .conditions
        .iter()
        .map(|condition| format!("{} {:?} {}", condition.kind, condition.status, condition.reason));
    words.collect::<Vec<_>>().join(" | ")
}

#[track_caller]
fn check(status: &BindingStatus, expected: &[&str]) {
    let found = conditions(status);
    for words in expected {
        assert!(found.contains(words), "no {words:?} in {found}");
    }
    assert_eq!(status.conditions.len(), 6);
}

#[test]
fn tells_all_of_a_binding_that_goes_well() {
    let binding = binding(scaling());
    let latest = Latest::new(decided());
    let status = of_binding(
        &binding,
        &[view(&bounds(&binding)[0], Some(&latest))],
        &BindingStatus::default(),
        NOW,
    );
    check(
        &status,
        &[
            "Ready True Deciding",
            "TargetsResolved True Found",
            "MetricsAvailable True FreshSamples",
            "ScalingActive True Stable",
            "Limited False WithinLimits",
            "Conflict False NoConflict",
        ],
    );
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(
        (status.target.as_deref(), status.mode.as_deref()),
        (Some("Deployment/chat"), Some("auto"))
    );
    assert_eq!(
        (status.desired_replicas, status.replicas, status.ready_replicas),
        (Some(4), Some(4), Some(2))
    );
    assert_eq!((status.min_replicas, status.max_replicas), (Some(2), Some(6)));
    let [target] = status.targets.as_slice() else { panic!() };
    assert_eq!(
        (target.name.as_str(), target.starting, target.failed),
        ("chat", Some(2), Some(0))
    );
    let last = target.last_decision.as_ref().unwrap();
    assert_eq!(
        (last.id, last.from, last.to, last.time.as_str()),
        (7, 2, 4, "2026-01-01T00:00:00Z")
    );
    assert!(memory_of(&status, &bounds(&binding)[0]).is_some());
}

#[test]
fn each_trouble_has_its_condition() {
    let binding = binding(scaling());
    let bound = &bounds(&binding)[0];
    let with = |report: Report, problems: Vec<Problem>, fleet: Option<Fleet>| {
        let latest = Latest::new(report);
        let view = View {
            bound,
            fleet,
            problems,
            latest: Some(&latest),
        };
        of_binding(&binding, &[view], &BindingStatus::default(), NOW)
    };
    let whole = || Some(fleet(&["chat"]));
    let missing = Problem::NotFound {
        part: "chat".to_owned(),
        target: "Deployment ml/chat".to_owned(),
    };
    check(
        &with(report(), vec![missing], None),
        &[
            "Ready False TargetNotFound",
            "TargetsResolved False TargetNotFound",
            "ScalingActive False TargetNotFound",
        ],
    );
    let silent = Report {
        metrics_available: false,
        mode: "unknown",
        ..report()
    };
    check(
        &with(silent.clone(), Vec::new(), whole()),
        &[
            "Ready False NoFreshSamples",
            "MetricsAvailable False NoFreshSamples",
            "ScalingActive False NoData",
        ],
    );
    let empty = Fleet {
        parts: vec![PartState {
            name: "chat".to_owned(),
            ..PartState::default()
        }],
        ..Fleet::default()
    };
    check(
        &with(
            Report {
                mode: "stable",
                ..silent
            },
            Vec::new(),
            Some(empty),
        ),
        &["Ready True Deciding", "MetricsAvailable Unknown NoReplicas"],
    );
    for (report, expected) in [
        (
            Report {
                mode: "panic",
                ..report()
            },
            ["Ready True Deciding", "ScalingActive True Panic"],
        ),
        (
            Report {
                not_applied: Some("no".to_owned()),
                ..report()
            },
            ["Ready False NotApplied", "ScalingActive False NotApplied"],
        ),
        (
            Report {
                limited: Some("by maxReplicas 6".to_owned()),
                ..report()
            },
            ["Ready True Deciding", "Limited True Limited"],
        ),
        (
            Report {
                control: Control::Override(3),
                ..report()
            },
            ["Ready True Deciding", "ScalingActive False Override"],
        ),
        (
            Report {
                control: Control::Paused,
                not_applied: Some("paused".to_owned()),
                ..report()
            },
            ["Ready True Deciding", "ScalingActive False Paused"],
        ),
    ] {
        check(&with(report, Vec::new(), whole()), &expected);
    }
}

#[test]
fn idle_bindings_say_why() {
    let wrong = binding(json!({"scaling": 5}));
    let status = of_binding(&wrong, &[], &BindingStatus::default(), NOW);
    check(
        &status,
        &[
            "Ready False InvalidSpec",
            "ScalingActive False InvalidSpec",
            "Conflict Unknown",
        ],
    );
    let mut waits = scaling();
    waits["policyRef"] = json!({"name": "p"});
    waits.as_object_mut().unwrap().remove("policy");
    let status = of_binding(&binding(waits), &[], &BindingStatus::default(), NOW);
    check(&status, &["Ready False PolicyNotFound", "Conflict False NoConflict"]);
    assert!(status.conditions[0].message.contains("AutoscalingPolicy p"));
    let mut yields = binding(scaling());
    yields.state = State::Yields(Rival {
        who: "HorizontalPodAutoscaler h".to_owned(),
        target: "Deployment/chat".to_owned(),
    });
    let status = of_binding(&yields, &[], &BindingStatus::default(), NOW);
    check(
        &status,
        &[
            "Ready False TargetTaken",
            "ScalingActive False TargetTaken",
            "Conflict True TargetTaken",
        ],
    );
    assert!(status.conditions[5].message.contains("HorizontalPodAutoscaler h"));
}

#[test]
fn a_disturbance_does_not_stop_it() {
    let mut disturbed = binding(scaling());
    disturbed.disturbed_by = Some(Rival {
        who: "HorizontalPodAutoscaler h".to_owned(),
        target: "Deployment/chat".to_owned(),
    });
    let latest = Latest::new(report());
    let views = [view(&bounds(&disturbed)[0], Some(&latest))];
    let status = of_binding(&disturbed, &views, &BindingStatus::default(), NOW);
    check(&status, &["Ready True", "Conflict True DisturbedByOther"]);
}

#[test]
fn the_same_again_is_the_same_status() {
    let binding = binding(scaling());
    let bound = &bounds(&binding)[0];
    let mut latest = Latest::new(decided());
    let first = of_binding(&binding, &[view(bound, Some(&latest))], &BindingStatus::default(), THEN);
    let quiet = Report {
        reason: "another sentence".to_owned(),
        memory: memory(&[(5, 9)]),
        ..report()
    };
    assert!(!latest.take(quiet), "nothing to be seen");
    let second = of_binding(&binding, &[view(bound, Some(&latest))], &first, NOW);
    assert_eq!(first, second);
    let panic = Report {
        mode: "panic",
        memory: memory(&[(5, 9)]),
        ..report()
    };
    assert!(latest.take(panic));
    let third = of_binding(&binding, &[view(bound, Some(&latest))], &second, NOW);
    assert_eq!(third.conditions[3].last_transition_time, THEN, "still active");
    let wishes = memory_of(&third, bound).unwrap().recommendations;
    assert_eq!(wishes.len(), 1, "the memory goes with it");
}

#[test]
fn after_a_take_over_nothing_is_unsaid_until_it_is_known_anew() {
    let binding = binding(scaling());
    let bound = &bounds(&binding)[0];
    let latest = Latest::new(decided());
    let before = of_binding(&binding, &[view(bound, Some(&latest))], &BindingStatus::default(), THEN);
    let blind = View {
        bound,
        fleet: None,
        problems: Vec::new(),
        latest: None,
    };
    assert_eq!(of_binding(&binding, &[blind], &before, NOW), before);
}

#[test]
fn roles_and_kinds_of_hardware_are_told_one_by_one() {
    let target = |name: &str| json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name});
    let roles = binding(json!({"policy": policy(), "roles": [
        {"name": "prefill", "targetRef": target("p"), "maxReplicas": 4},
        {"name": "decode", "targetRef": target("d"), "maxReplicas": 8}]}));
    let (good, silent) = (
        Latest::new(decided()),
        Latest::new(Report {
            metrics_available: false,
            limited: Some("by maxReplicas".to_owned()),
            ..report()
        }),
    );
    let views = [
        view(&bounds(&roles)[0], Some(&good)),
        view(&bounds(&roles)[1], Some(&silent)),
    ];
    let status = of_binding(&roles, &views, &BindingStatus::default(), NOW);
    let names: Vec<&str> = status.targets.iter().map(|target| target.name.as_str()).collect();
    assert_eq!(
        (names, status.target.as_deref()),
        (vec!["prefill", "decode"], Some("prefill,decode"))
    );
    assert_eq!((status.desired_replicas, status.max_replicas), (Some(8), Some(12)));
    let message = |kind: &str| &status.conditions.iter().find(|c| c.kind == kind).unwrap().message;
    assert!(message("MetricsAvailable").contains("of decode"));
    assert_eq!(message("Limited"), "decode: by maxReplicas");

    let optimize = binding(json!({"policy": policy(), "optimize": {"targets": [
        {"targetRef": target("h100"), "maxReplicas": 4, "cost": 3},
        {"targetRef": target("a100"), "maxReplicas": 8, "cost": 1}]}}));
    let views = [view(&bounds(&optimize)[0], Some(&good))];
    let status = of_binding(&optimize, &views, &BindingStatus::default(), NOW);
    assert_eq!(
        status.targets.iter().filter(|target| target.memory.is_some()).count(),
        1
    );
    assert_eq!(status.desired_replicas, Some(8));
}

#[test]
fn of_a_memory_only_wishes_that_can_matter_are_kept() {
    let text = remembered(&memory(&[(1, 9), (2, 3), (3, 5), (4, 2), (5, 4), (6, 4), (7, 3)])).unwrap();
    let kept: Memory = serde_json::from_str(&text).unwrap();
    let wishes: Vec<(i64, u32)> = kept
        .recommendations
        .iter()
        .map(|wish| (wish.at.0, wish.replicas))
        .collect();
    // From the back: 3 is both; 4 is larger; 2 is smaller; 5 is larger; 9 is larger. The older 4 and 3 are nothing.
    assert_eq!(wishes, [(1, 9), (3, 5), (4, 2), (6, 4), (7, 3)]);
    let huge: Vec<(i64, u32)> = (0..20_000).map(|n| (n, 20_000 - n as u32)).collect();
    assert_eq!(remembered(&memory(&huge)), None, "too long to be written");
}

#[test]
fn policies_are_told_in_a_few_words() {
    let policy = Policy_ {
        meta: Meta {
            generation: 2,
            ..Meta::default()
        },
        spec: Ok(serde_json::from_value(policy()).unwrap()),
        status: PolicyStatus::default(),
    };
    let status = of_policy(&policy, 2, &PolicyStatus::default(), NOW);
    assert_eq!(status.metrics.as_deref(), Some("concurrency 8, ttft p95 900 ms"));
    assert_eq!((status.bound_by, status.observed_generation), (Some(2), Some(2)));
}

use crate::bindings::index::Policy as Policy_;
