//! What is written is read again, for any documents; and any text whatsoever is answered with documents or messages.

use std::collections::BTreeMap;

use infer_api::{
    AgentSpec, Algorithm, AutoscalingPolicy, AutoscalingPolicyBinding, Behavior, BindingDrain, BindingMode,
    BindingSpec, Demand, Documents, DrainSpec, EngineSpec, ForeignChanges, FrontDoorSpec, LocalFleet, LocalFleetSpec,
    MetricSpec, MetricType, Objective, Optimize, OptimizeTarget, PanicSpec, PolicyRef, PolicySpec, PortRange,
    PrometheusDemand, Purpose, RateKind, RatePolicy, Ratio, RestartSpec, Role, ScaleDownRules, ScaleUpRules, Scaling,
    SelectPolicy, Slo, StartupProbe, TargetRef, parse_documents, parse_sources_for, read_binding_spec, resolve,
};
use proptest::prelude::*;

const METRICS: [MetricType; 12] = [
    MetricType::Waiting,
    MetricType::Running,
    MetricType::Concurrency,
    MetricType::KvUsage,
    MetricType::PromptTokensPerSecond,
    MetricType::GenerationTokensPerSecond,
    MetricType::RequestsPerSecond,
    MetricType::Ttft,
    MetricType::Itl,
    MetricType::Tpot,
    MetricType::E2e,
    MetricType::QueueTime,
];

fn metrics() -> impl Strategy<Value = Vec<MetricSpec>> {
    let types = proptest::sample::subsequence(METRICS.to_vec(), 1..=METRICS.len());
    (types, 1e-6..1.0, 0.001..0.999).prop_map(|(types, target, quantile)| {
        types
            .into_iter()
            .map(|metric| MetricSpec {
                metric,
                target,
                quantile: metric.signal().map(|_| quantile),
            })
            .collect()
    })
}

fn select() -> impl Strategy<Value = SelectPolicy> {
    prop_oneof![
        Just(SelectPolicy::Max),
        Just(SelectPolicy::Min),
        Just(SelectPolicy::Disabled)
    ]
}

fn rates() -> impl Strategy<Value = Vec<RatePolicy>> {
    let kind = prop_oneof![Just(RateKind::Pods), Just(RateKind::Percent)];
    let rate = (kind, 1..1000, 1..=1800).prop_map(|(kind, value, period_seconds)| RatePolicy {
        kind,
        value,
        period_seconds,
    });
    proptest::collection::vec(rate, 1..4)
}

fn behavior() -> impl Strategy<Value = Behavior> {
    let rules = || (0..=3600, select(), rates());
    (rules(), rules()).prop_map(|(up, down)| Behavior {
        scale_up: ScaleUpRules {
            stabilization_window_seconds: up.0,
            select_policy: up.1,
            policies: up.2,
        },
        scale_down: ScaleDownRules {
            stabilization_window_seconds: down.0,
            select_policy: down.1,
            policies: down.2,
        },
    })
}

fn policy() -> impl Strategy<Value = PolicySpec> {
    let panic = (1.0..=100.0, 100.5..=1000.0).prop_map(|(window_percent, threshold_percent)| PanicSpec {
        window_percent,
        threshold_percent,
    });
    let rates = (0.0..=100.0, 1.001..5000.0, 1.001..50.0);
    (
        metrics(),
        panic,
        behavior(),
        rates,
        6..=3600,
        0..=3600,
        1..=3,
        0..=86400,
    )
        .prop_map(
            |(metrics, panic, behavior, (tolerance, up, down), window, delay, activation, grace)| PolicySpec {
                metrics,
                tolerance_percent: tolerance,
                stable_window_seconds: window,
                panic,
                max_scale_up_rate: up,
                max_scale_down_rate: down,
                scale_down_delay_seconds: delay,
                activation_scale: activation,
                scale_to_zero_grace_seconds: grace,
                behavior,
                slo: None,
            },
        )
}

/// Texts that YAML would like to take for something else, among others.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{1,20}".prop_filter("no accidental placeholder", |text| !text.contains('{')),
        "\\PC{1,8}".prop_filter("no accidental placeholder", |text| !text.contains('{')),
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just("1e3".to_owned()),
        Just("0x10".to_owned()),
        Just("- a: b # c".to_owned()),
        Just("two\nlines\n".to_owned()),
        Just("---".to_owned()),
        Just("{model}/{fleet}/{replica}".to_owned()),
    ]
}

fn environment() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map("[A-Z_]{1,8}", text(), 0..4)
}

fn fleet() -> impl Strategy<Value = LocalFleetSpec> {
    let engine =
        (proptest::collection::vec(text(), 1..5), environment(), text()).prop_map(|(mut command, env, directory)| {
            command.push("--port={port}".to_owned());
            EngineSpec {
                command,
                env,
                working_directory: directory,
                ports: PortRange { from: 18000, to: 18099 },
                host: "127.0.0.1".to_owned(),
                metrics_path: "/metrics".to_owned(),
            }
        });
    let door = (0..10_000, 1..=86400).prop_map(|(queue_limit, queue_timeout_seconds)| FrontDoorSpec {
        listen: "[::1]:80".to_owned(),
        queue_limit,
        queue_timeout_seconds,
    });
    let agent = (
        proptest::option::of(proptest::collection::vec(text(), 1..3)),
        environment(),
        200..=60000,
    )
        .prop_map(|(command, env, interval)| AgentSpec {
            command,
            interval_milliseconds: interval,
            fast_interval_milliseconds: interval / 2,
            env,
        });
    (engine, door, agent, 0..=4, text(), 1..=86400).prop_map(|(engine, door, agent, initial, model, seconds)| {
        LocalFleetSpec {
            model,
            initial_replicas: initial,
            engine,
            startup_probe: StartupProbe {
                path: "/health".to_owned(),
                interval_milliseconds: 1000,
                timeout_seconds: seconds,
            },
            drain: DrainSpec {
                timeout_seconds: seconds,
                termination_grace_seconds: 5,
            },
            restart: RestartSpec {
                initial_backoff_milliseconds: 1000,
                max_backoff_seconds: seconds,
                reset_after_seconds: seconds,
            },
            agent,
            front_door: Some(door),
        }
    })
}

fn target(kind: &str, name: &str) -> TargetRef {
    TargetRef {
        api_version: None,
        kind: kind.to_owned(),
        name: name.to_owned(),
        replicas_path: None,
    }
}

/// A target in a cluster, different for every index.
fn in_cluster(index: usize, is_path: bool) -> TargetRef {
    TargetRef {
        api_version: Some("apps/v1".to_owned()),
        replicas_path: is_path.then(|| format!(".spec.roles[name=r{index}].replicas")),
        ..target("Deployment", &format!("engine.{index}"))
    }
}

fn optimize() -> impl Strategy<Value = Optimize> {
    let one = (0..4i32, 0..4i32, 0.01..100.0, any::<bool>());
    (proptest::collection::vec(one, 1..9), any::<bool>()).prop_map(|(targets, is_limited)| {
        let targets = targets.into_iter().enumerate();
        let targets: Vec<OptimizeTarget> = targets
            .map(|(index, (min, more, cost, flag))| OptimizeTarget {
                name: flag.then(|| format!("t{index}")),
                target_ref: in_cluster(index, flag),
                min_replicas: min,
                max_replicas: (min + more).max(1),
                cost,
                capacity: flag.then_some(cost),
                startup_seconds: flag.then_some(min),
            })
            .collect();
        let most: i32 = targets.iter().map(|target| target.max_replicas).sum();
        Optimize {
            algorithm: Algorithm::GreedyDoubling,
            targets,
            min_replicas: 1,
            max_replicas: is_limited.then_some(most),
        }
    })
}

fn roles() -> impl Strategy<Value = (Vec<Role>, Option<Ratio>)> {
    let one = (0..3i32, 0..3i32, proptest::option::of(policy()), any::<bool>());
    (proptest::collection::vec(one, 2..=8), any::<bool>()).prop_map(|(roles, has_ratio)| {
        let roles = roles.into_iter().enumerate();
        let roles = roles.map(|(index, (min, more, policy, flag))| Role {
            name: format!("role-{index}"),
            target_ref: in_cluster(index, flag),
            min_replicas: min,
            // No activationScale of these tests is more than 3.
            max_replicas: min + more + 3,
            policy_ref: None,
            policy,
        });
        let ratio = Ratio {
            numerator: "role-0".to_owned(),
            denominator: "role-1".to_owned(),
            min: 0.1,
            max: 10.0,
        };
        (roles.collect(), has_ratio.then_some(ratio))
    })
}

/// Bindings in a cluster, of any form.
fn cluster_binding() -> impl Strategy<Value = BindingSpec> {
    let form = prop_oneof![
        optimize().prop_map(|optimize| (Some(optimize), None, None)),
        roles().prop_map(|(roles, ratio)| (None, Some(roles), ratio)),
    ];
    let demand = Demand {
        prometheus: Some(PrometheusDemand {
            url: "http://gateway:9090/metrics".to_owned(),
            metric: "waiting".to_owned(),
            labels: BTreeMap::from([("pool".to_owned(), "a b".to_owned())]),
        }),
        http: None,
    };
    let slo = Slo {
        ttft: vec![Objective {
            quantile: 0.95,
            milliseconds: 1000.0,
        }],
        itl: Vec::new(),
    };
    (policy(), form, 0..=86400).prop_map(move |(policy, (optimize, roles, ratio), timeout_seconds)| {
        let policy = PolicySpec {
            activation_scale: 1,
            slo: Some(slo.clone()),
            ..policy
        };
        BindingSpec {
            policy_ref: None,
            policy: Some(policy),
            mode: BindingMode::Auto,
            scaling: None,
            optimize,
            roles,
            ratio,
            demand: Some(demand.clone()),
            drain: BindingDrain { timeout_seconds },
            foreign_changes: ForeignChanges::Correct,
        }
    })
}

fn documents() -> impl Strategy<Value = Documents> {
    let mode = prop_oneof![
        Just(BindingMode::Auto),
        Just(BindingMode::Advisory),
        Just(BindingMode::Paused)
    ];
    (policy(), policy(), fleet(), mode, any::<bool>(), 0..=4).prop_map(
        |(shared, inline, fleet, mode, is_inline, min)| {
            let scaling = Scaling {
                target_ref: target("LocalFleet", "fleet"),
                min_replicas: min,
                max_replicas: 4,
            };
            let binding = BindingSpec {
                policy_ref: (!is_inline).then(|| PolicyRef {
                    name: "shared".to_owned(),
                }),
                policy: is_inline.then(|| inline.clone()),
                mode,
                ..BindingSpec::scaling(inline, scaling)
            };
            Documents {
                policies: vec![AutoscalingPolicy::new("shared", shared)],
                bindings: vec![AutoscalingPolicyBinding::new("binding", binding)],
                fleets: vec![LocalFleet::new("fleet", fleet)],
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(documents in documents()) {
        let yaml = [
            serde_saphyr::to_string(&documents.policies[0]).expect("YAML"),
            serde_saphyr::to_string(&documents.bindings[0]).expect("YAML"),
            serde_saphyr::to_string(&documents.fleets[0]).expect("YAML"),
        ]
        .join("\n---\n");
        match parse_documents(&yaml, "test.yaml") {
            Ok(again) => prop_assert_eq!(again, documents),
            Err(errors) => prop_assert!(false, "{}\n{}", errors, yaml),
        }
    }

    /// The three ways into a cluster agree: a file, an object, and what is decided about.
    #[test]
    fn what_is_right_for_a_cluster_is_read_and_resolved(spec in cluster_binding()) {
        let yaml = serde_saphyr::to_string(&AutoscalingPolicyBinding::new("b", spec.clone())).expect("YAML");
        match parse_sources_for(Purpose::Cluster, [("test.yaml", yaml.as_str())]) {
            Ok(again) => {
                prop_assert_eq!(&again.bindings[0].spec, &spec);
                let json = serde_json::to_value(&spec).expect("JSON");
                prop_assert_eq!(read_binding_spec(&json), Ok(spec.clone()));
                let resolved = resolve("ns", "b", &spec, |_| None);
                let keys: Vec<String> = match &resolved {
                    Ok(bounds) => bounds.iter().map(|bound| bound.key.clone()).collect(),
                    Err(error) => return Err(TestCaseError::fail(error.to_string())),
                };
                let expected = match &spec.roles {
                    Some(roles) => roles.iter().map(|role| format!("ns/b/{}", role.name)).collect(),
                    None => vec!["ns/b".to_owned()],
                };
                prop_assert_eq!(keys, expected);
                for bound in resolved.unwrap_or_default() {
                    let most: u32 = bound.parts.iter().map(|part| part.max).sum();
                    prop_assert!(bound.bounds.min <= bound.bounds.max && bound.bounds.max <= most && bound.bounds.max >= 1);
                }
            }
            Err(errors) => prop_assert!(false, "{}\n{}", errors, yaml),
        }
    }

    /// JSON is YAML, too.
    #[test]
    fn json_is_read_like_yaml(documents in documents()) {
        let json = serde_json::to_string(&documents.fleets[0]).expect("JSON");
        match parse_documents(&json, "test.json") {
            Ok(again) => prop_assert_eq!(again.fleets, documents.fleets),
            Err(errors) => prop_assert!(false, "{}\n{}", errors, json),
        }
    }

    /// Whatever is done to a document, the answer is documents or mistakes whose lines exist; and what the schema lets
    /// pass, the types take.
    #[test]
    fn broken_documents_are_answered_with_places(documents in documents(), cuts in proptest::collection::vec((any::<prop::sample::Index>(), text()), 1..6)) {
        let yaml = serde_saphyr::to_string(&documents.bindings[0]).expect("YAML");
        let mut lines: Vec<String> = yaml.lines().map(str::to_owned).collect();
        for (at, text) in cuts {
            let at = at.index(lines.len());
            let line = &mut lines[at];
            let keep = line.find(':').map_or(line.len(), |colon| colon + 1);
            line.replace_range(keep.., &format!(" {text}"));
        }
        let yaml = lines.join("\n");
        if let Err(errors) = parse_documents(&yaml, "test.yaml") {
            let lines = yaml.split('\n').count() as u32 + 1;
            for mistake in errors.mistakes() {
                prop_assert!(mistake.line >= 1 && mistake.line <= lines, "{} of {}", mistake, lines);
                prop_assert!(!mistake.problem.is_empty());
                prop_assert!(!mistake.field.is_empty() || mistake.problem.starts_with("not valid YAML") || mistake.problem.starts_with("this document"), "{}", mistake);
            }
        }
    }
}
