use infer_api::Condition;
use serde_json::json;

use super::*;

fn source(kind: Kind) -> Source {
    Source { kind, namespace: None }
}

fn meta(generation: i64, created_ms: i64) -> Meta {
    Meta {
        uid: format!("u{created_ms}"),
        generation,
        created_ms,
        version: "1".to_owned(),
        is_going: false,
    }
}

fn object(name: &str, meta: Meta, spec: Value, status: Value) -> Told {
    Told::Is(Box::new(Object {
        namespace: "ml".to_owned(),
        name: name.to_owned(),
        meta,
        spec,
        status,
    }))
}

fn id(name: &str) -> Id {
    ("ml".to_owned(), name.to_owned())
}

fn binding_spec(policy: &str, target: &str) -> Value {
    json!({"policyRef": {"name": policy}, "scaling": {
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}, "maxReplicas": 4}})
}

fn policy_spec(target: f64) -> Value {
    json!({"metrics": [{"type": "concurrency", "target": target}]})
}

#[derive(Default)]
struct World {
    index: Index,
}

impl World {
    fn bind(&mut self, name: &str, generation: i64, created_ms: i64, target: &str) -> Settled {
        self.bind_as(name, meta(generation, created_ms), binding_spec("p", target))
    }

    fn bind_as(&mut self, name: &str, meta: Meta, spec: Value) -> Settled {
        let status = self.index.binding(&id(name)).map(|binding| binding.status.clone());
        let status = serde_json::to_value(status).unwrap();
        self.index
            .tell(&source(Kind::Binding), object(name, meta, spec, status));
        self.index.settle()
    }

    fn policy(&mut self, name: &str, generation: i64, spec: Value) -> Settled {
        let told = object(name, meta(generation, 0), spec, Value::Null);
        self.index.tell(&source(Kind::Policy), told);
        self.index.settle()
    }

    fn hpa(&mut self, name: &str, created_ms: i64, target: &str) -> Settled {
        let spec = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}});
        self.index.tell(
            &source(Kind::Foreign(0)),
            object(name, meta(0, created_ms), spec, Value::Null),
        );
        self.index.settle()
    }

    fn gone(&mut self, kind: Kind, name: &str) -> Settled {
        let (namespace, name) = id(name);
        self.index.tell(&source(kind), Told::Gone { namespace, name });
        self.index.settle()
    }

    /// Every binding is told what was found, as its owner does.
    fn write_status(&mut self) {
        for (id, binding) in self.index.bindings.iter_mut() {
            let yields = matches!(binding.state, State::Yields(_));
            binding.status.conditions = vec![Condition {
                kind: CONFLICT.to_owned(),
                status: if yields {
                    ConditionStatus::True
                } else {
                    ConditionStatus::False
                },
                reason: if yields { YIELDS } else { "NoConflict" }.to_owned(),
                message: String::new(),
                last_transition_time: String::new(),
                observed_generation: Some(binding.meta.generation),
            }];
            self.index.unjudged.insert(id.0.clone());
        }
        let settled = self.index.settle();
        assert_eq!(settled.bindings, BTreeSet::new(), "being told changes nothing");
    }

    #[track_caller]
    fn check(&self, name: &str, expected: &str) {
        let state = match &self.index.binding(&id(name)).expect("the binding").state {
            State::Wrong(problem) => format!("wrong: {problem}"),
            State::NoPolicy(names) => format!("no policy {}", names.join(",")),
            State::Yields(rival) => format!("yields to {}", rival.who),
            State::Active(bounds) => format!("active {}", bounds.len()),
        };
        assert!(state.starts_with(expected), "{name} {state}, not {expected}");
    }
}

#[test]
fn a_binding_waits_for_its_policy_and_follows_it() {
    let mut world = World::default();
    world.bind("a", 1, 1, "chat");
    world.check("a", "no policy p");
    let settled = world.policy("p", 1, policy_spec(8.0));
    assert_eq!(settled.bindings, BTreeSet::from([id("a")]));
    world.check("a", "active 1");
    let target = |world: &World| match &world.index.binding(&id("a")).unwrap().state {
        State::Active(bounds) => bounds[0].policy.metrics[0].target,
        other => panic!("{other:?}"),
    };
    assert_eq!(target(&world), 8.0);
    assert_eq!(
        world.policy("p", 1, policy_spec(8.0)).bindings,
        BTreeSet::new(),
        "the same again"
    );
    assert_eq!(
        world.policy("p", 2, policy_spec(9.0)).bindings,
        BTreeSet::from([id("a")])
    );
    assert_eq!(target(&world), 9.0);
    world.gone(Kind::Policy, "p");
    world.check("a", "no policy p");
}

#[test]
fn what_makes_no_sense_harms_nobody_else() {
    let mut world = World::default();
    world.policy("p", 1, policy_spec(8.0));
    world.bind("good", 1, 1, "chat");
    for (name, spec) in [
        ("null", Value::Null),
        ("number", json!(5)),
        ("deep", json!({"scaling": {"targetRef": []}})),
        (
            "both",
            json!({"policyRef": {"name": "p"}, "policy": policy_spec(1.0), "scaling": {}}),
        ),
        ("limits", {
            let mut spec = binding_spec("p", "chat");
            spec["scaling"]["minReplicas"] = json!(9);
            spec
        }),
    ] {
        world.bind_as(name, meta(1, 0), spec);
        world.check(name, "wrong: ");
    }
    world.check("good", "active 1");
    world.policy("p", 2, json!({"metrics": "none"}));
    world.check("good", "wrong: ");
    world.policy("p", 3, policy_spec(8.0));
    world.check("good", "active 1");
}

#[test]
fn targets_go_to_the_oldest_and_stay_there() {
    let mut world = World::default();
    world.policy("p", 1, policy_spec(8.0));
    world.bind("young", 1, 20, "chat");
    world.bind("old", 1, 10, "chat");
    world.check("old", "active 1");
    world.check("young", "yields to AutoscalingPolicyBinding old");
    world.write_status();
    // The holder is edited.
    world.bind_as("old", meta(2, 10), {
        let mut spec = binding_spec("p", "chat");
        spec["scaling"]["maxReplicas"] = json!(7);
        spec
    });
    world.check("old", "active 1");
    world.write_status();
    // An older one comes over from another target.
    world.bind("oldest", 1, 5, "code");
    world.check("oldest", "active 1");
    world.write_status();
    world.bind("oldest", 2, 5, "chat");
    world.check("oldest", "yields to AutoscalingPolicyBinding old");
    world.check("old", "active 1");
    world.write_status();
    // The holder goes; of those who wait the oldest gets it.
    world.gone(Kind::Binding, "old");
    world.check("oldest", "active 1");
    world.check("young", "yields to AutoscalingPolicyBinding oldest");
}

#[test]
fn a_binding_without_its_policy_keeps_its_place() {
    let mut world = World::default();
    world.bind("a", 1, 1, "chat");
    world.bind_as("b", meta(1, 2), {
        let mut spec = binding_spec("p", "chat");
        spec["policyRef"] = Value::Null;
        spec["policy"] = policy_spec(1.0);
        spec.as_object_mut().unwrap().remove("policyRef");
        spec
    });
    world.check("b", "yields to AutoscalingPolicyBinding a");
}

#[test]
fn hpas_are_respected_and_a_younger_one_is_told_of() {
    let mut world = World::default();
    world.policy("p", 1, policy_spec(8.0));
    world.bind("a", 1, 10, "chat");
    let settled = world.hpa("h", 20, "chat");
    assert_eq!(settled.bindings, BTreeSet::from([id("a")]));
    world.check("a", "active 1");
    let disturbed_by = |world: &World| world.index.binding(&id("a")).unwrap().disturbed_by.clone();
    assert_eq!(disturbed_by(&world).unwrap().who, "HorizontalPodAutoscaler h");
    assert_eq!(
        world.hpa("h", 20, "chat").bindings,
        BTreeSet::new(),
        "its status is no news"
    );
    world.gone(Kind::Foreign(0), "h");
    assert_eq!(disturbed_by(&world), None);
    world.hpa("older", 5, "chat");
    world.check("a", "yields to HorizontalPodAutoscaler older");
    let chat = TargetRef {
        api_version: Some("apps/v1".to_owned()),
        kind: "Deployment".to_owned(),
        name: "chat".to_owned(),
        replicas_path: None,
    };
    let owner = |binding: &str| world.index.other_owner("ml", binding, &chat);
    assert_eq!(owner("new").as_deref(), Some("HorizontalPodAutoscaler older"));
    assert_eq!(world.index.other_owner("other", "new", &chat), None);
}

#[test]
fn a_list_that_leaves_something_out_says_that_it_is_gone() {
    let mut world = World::default();
    world.policy("p", 1, policy_spec(8.0));
    world.bind("a", 1, 1, "chat");
    world.bind("b", 1, 2, "chat");
    let bindings = source(Kind::Binding);
    world.index.tell(&bindings, Told::Begins);
    let again = object("b", meta(1, 2), binding_spec("p", "chat"), Value::Null);
    world.index.tell(&bindings, again);
    world.check("b", "yields to");
    world.index.tell(&bindings, Told::Complete);
    let settled = world.index.settle();
    assert_eq!(settled.bindings, BTreeSet::from([id("a"), id("b")]));
    assert!(world.index.binding(&id("a")).is_none());
    world.check("b", "active 1");
    // A list of another namespace says nothing about this one.
    let elsewhere = Source {
        kind: Kind::Binding,
        namespace: Some("other".to_owned()),
    };
    world.index.tell(&elsewhere, Told::Begins);
    world.index.tell(&elsewhere, Told::Complete);
    assert!(world.index.binding(&id("b")).is_some());
}

#[test]
fn knows_who_refers_to_a_policy() {
    let mut world = World::default();
    world.bind("a", 1, 1, "chat");
    world.bind("b", 1, 2, "code");
    let names: Vec<&str> = world
        .index
        .dependents("ml", "p")
        .map(|((_, name), _)| name.as_str())
        .collect();
    assert_eq!(names, ["a", "b"]);
    let settled = world.gone(Kind::Binding, "a");
    assert_eq!(settled.policies, BTreeSet::from([id("p")]), "its status counts them");
}
