//! What holds for every Pod.

use infer_inject::{Options, inject, inject_object, json_patch, uninject};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A value or one of the forms of nothing, or no field at all.
fn maybe(value: impl Strategy<Value = Value> + 'static, empty: Value) -> BoxedStrategy<Option<Value>> {
    prop_oneof![
        3 => value.prop_map(Some),
        2 => Just(None),
        1 => Just(Some(empty)),
        1 => Just(Some(Value::Null)),
    ]
    .boxed()
}

fn object(fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> impl Strategy<Value = Value> {
    let (keys, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    values.prop_map(move |values| {
        let fields = keys
            .iter()
            .zip(values)
            .filter_map(|(key, value)| Some(((*key).to_owned(), value?)));
        Value::Object(fields.collect::<Map<_, _>>())
    })
}

fn words(choice: &'static [&'static str]) -> impl Strategy<Value = Value> {
    prop::collection::vec(prop::sample::select(choice), 0..6).prop_map(Value::from)
}

fn container() -> impl Strategy<Value = Value> {
    const WORDS: &[&str] = &[
        "vllm",
        "serve",
        "sh",
        "-c",
        "vllm serve m --port 1; x",
        "--port",
        "8000",
        "--port=$(P)",
        "-m",
        "sglang.launch_server",
        "--headless",
        "--host",
        "$(IP)",
        "--enable-metrics",
        "ray",
        "start",
    ];
    let hook = json!({"httpGet": {"path": "/drain?grace_seconds=30", "port": 9402}});
    let lifecycle = object(vec![
        ("preStop", maybe(Just(hook), Value::Null)),
        ("postStart", maybe(Just(json!({"sleep": {"seconds": 1}})), Value::Null)),
    ]);
    let port = prop_oneof![
        Just(json!({"containerPort": 8000, "name": "http"})),
        Just(json!({"containerPort": 9402}))
    ];
    let resources = prop_oneof![
        Just(json!({"limits": {"cpu": 1, "memory": "1Gi"}})),
        Just(json!({"requests": {"cpu": 1}})),
    ];
    let image = prop::sample::select(&["vllm/vllm-openai", "lmsysorg/sglang:1", "nginx", "vllm-router"][..]);
    object(vec![
        ("image", maybe(image.prop_map(Value::from), "".into())),
        ("command", maybe(words(WORDS), json!([]))),
        ("args", maybe(words(WORDS), json!([]))),
        ("lifecycle", maybe(lifecycle, json!({}))),
        (
            "ports",
            maybe(prop::collection::vec(port, 1..3).prop_map(Value::from), json!([])),
        ),
        ("resources", maybe(resources, json!({}))),
        ("env", maybe(Just(json!([{"name": "P", "value": "8001"}])), json!([]))),
    ])
}

/// Up to `most` containers with names of their own.
fn containers(prefix: &'static str, least: usize, most: usize) -> impl Strategy<Value = Value> {
    prop::collection::vec(container(), least..=most).prop_map(move |mut containers| {
        for (index, container) in containers.iter_mut().enumerate() {
            container["name"] = format!("{prefix}{index}").into();
        }
        Value::from(containers)
    })
}

/// Pods without an agent, with every form of absence in the places that injection fills.
fn pods() -> impl Strategy<Value = Value> {
    let annotations = prop_oneof![
        Just(json!({"note": "a/b~c"})),
        Just(json!({"autoscaling.matrixinfer.ai/engine-container": "c0"})),
        Just(json!({"autoscaling.matrixinfer.ai/engine-port": "7"})),
    ];
    let labels = prop_oneof![
        Just(json!({"app": "x"})),
        Just(json!({"leaderworkerset.sigs.k8s.io/worker-index": "0"})),
    ];
    let metadata = object(vec![
        ("name", Just(Some(json!("p"))).boxed()),
        ("labels", maybe(labels, json!({}))),
        ("annotations", maybe(annotations, json!({}))),
    ]);
    let volumes = Just(json!([{"name": "models", "emptyDir": {}}]));
    let spec = object(vec![
        ("containers", containers("c", 1, 3).prop_map(Some).boxed()),
        ("initContainers", maybe(containers("i", 1, 2), json!([]))),
        ("volumes", maybe(volumes, json!([]))),
        (
            "terminationGracePeriodSeconds",
            maybe((0..100).prop_map(Value::from), Value::Null),
        ),
        ("hostNetwork", maybe(any::<bool>().prop_map(Value::from), Value::Null)),
        ("restartPolicy", maybe(Just("Never".into()), "Always".into())),
        ("securityContext", maybe(Just(json!({"runAsUser": 1000})), json!({}))),
    ]);
    object(vec![
        ("kind", Just(Some(json!("Pod"))).boxed()),
        ("metadata", maybe(metadata, json!({}))),
        ("spec", spec.prop_map(Some).boxed()),
    ])
}

fn all_options() -> impl Strategy<Value = Options> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(native_sidecar, has_ca, has_user)| Options {
        native_sidecar,
        ca_pem: has_ca.then(|| "PEM\n".into()),
        run_as_user: has_user.then_some(7),
        ..Options::default()
    })
}

/// RFC 6902, as far as `json_patch` uses it.
fn apply(patch: &Value, document: &mut Value) {
    for operation in patch.as_array().expect("a list") {
        let path = operation["path"].as_str().expect("a path");
        if path.is_empty() {
            *document = operation["value"].clone();
            continue;
        }
        let (parent, key) = path.rsplit_once('/').expect("a pointer");
        let key = key.replace("~1", "/").replace("~0", "~");
        let value = operation.get("value").cloned();
        match (
            document.pointer_mut(parent).expect("a parent"),
            operation["op"].as_str(),
        ) {
            (Value::Object(fields), Some("remove")) => drop(fields.remove(&key).expect("it was there")),
            (Value::Object(fields), Some(op)) => {
                assert_eq!(op == "replace", fields.contains_key(&key), "{operation}");
                fields.insert(key, value.expect("a value"));
            }
            (Value::Array(items), Some("add")) => {
                assert_eq!(key, "-");
                items.push(value.expect("a value"));
            }
            (Value::Array(items), Some(op)) => {
                let index: usize = key.parse().expect("an index");
                match op {
                    "remove" => drop(items.remove(index)),
                    _ => items[index] = value.expect("a value"),
                }
            }
            (other, op) => panic!("{op:?} on {other}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn twice_is_once_and_there_is_a_way_back(before in pods(), options in all_options()) {
        let mut once = before.clone();
        let result = inject(&mut once, &options);
        let changed = result.as_ref().is_ok_and(|injected| injected.changed);
        prop_assert_eq!(changed, once != before);

        let mut twice = once.clone();
        let again = inject(&mut twice, &options);
        prop_assert_eq!(&twice, &once);
        match &result {
            // Deciding again comes to the same, or to seeing what is there.
            Err(error) => prop_assert_eq!(again.as_ref().err(), Some(error)),
            Ok(first) => prop_assert_eq!(again.map(|second| second.engine), Ok(first.engine.clone())),
        }

        let mut back = once.clone();
        prop_assert_eq!(uninject(&mut back), Ok(changed));
        prop_assert_eq!(&back, &before);
    }

    #[test]
    fn nothing_of_the_users_is_lost(before in pods(), options in all_options()) {
        let mut after = before.clone();
        if inject(&mut after, &options).is_ok() {
            let lost = lost(&before, &after);
            prop_assert!(lost.is_none(), "{:?}", lost);
        }
    }

    #[test]
    fn the_patch_makes_one_of_the_other(before in pods(), other in pods(), options in all_options()) {
        let mut after = before.clone();
        let _ = inject(&mut after, &options);
        for (from, to) in [(&before, &after), (&after, &before), (&before, &other)] {
            let mut patched = from.clone();
            let patch = json_patch(from, to);
            apply(&patch, &mut patched);
            prop_assert_eq!(&patched, to);
            prop_assert_eq!(patch == json!([]), from == to);
        }
    }

    #[test]
    fn a_template_gets_what_its_pods_would_get(pod in pods(), options in all_options()) {
        let template = json!({"metadata": pod["metadata"], "spec": pod["spec"]});
        let mut deployment = json!({"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": template}});
        let offline = inject_object(&mut deployment, &options);
        let mut admitted = pod.clone();
        admitted["metadata"] = pod["metadata"].clone();
        match inject(&mut admitted, &options) {
            Err(error) => prop_assert_eq!(offline, Err(("spec.template".to_owned(), error))),
            Ok(injected) => {
                let outcomes = offline.expect("as the Pod");
                prop_assert_eq!(outcomes.len(), 1);
                prop_assert_eq!(&outcomes[0].injected, &injected);
                let template = &deployment["spec"]["template"];
                prop_assert_eq!(&template["spec"], &admitted["spec"]);
                prop_assert_eq!(&template["metadata"], &admitted["metadata"]);
            }
        }
    }
}

/// Something of `before` that is not in `after`: nothing may be but what is nothing to Kubernetes, filled.
fn lost(before: &Value, after: &Value) -> Option<String> {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => old.iter().find_map(|(key, value)| {
            let found = new
                .get(key)
                .map_or_else(|| Some("gone".to_owned()), |new| lost(value, new));
            found.map(|rest| format!("{key}: {rest}"))
        }),
        (Value::Array(old), Value::Array(new)) if old.len() <= new.len() => old
            .iter()
            .zip(new)
            .enumerate()
            .find_map(|(index, (old, new))| Some(format!("[{index}] {}", lost(old, new)?))),
        (Value::Null, Value::Object(_) | Value::Array(_)) => None,
        _ => (before != after).then(|| format!("{before} became {after}")),
    }
}
