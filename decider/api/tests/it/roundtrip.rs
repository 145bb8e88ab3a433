//! What is written is read again, for any documents; and any text whatsoever is answered with documents or messages.

use std::collections::BTreeMap;

use infer_api::{
    AgentSpec, AutoscalingPolicy, AutoscalingPolicyBinding, Behavior, BindingMode, BindingSpec, Documents, DrainSpec,
    EngineSpec, FrontDoorSpec, LocalFleet, LocalFleetSpec, MetricSpec, MetricType, PanicSpec, PolicyRef, PolicySpec,
    PortRange, RateKind, RatePolicy, RestartSpec, ScaleDownRules, ScaleUpRules, Scaling, SelectPolicy, StartupProbe,
    TargetRef, parse_documents,
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

fn documents() -> impl Strategy<Value = Documents> {
    let mode = prop_oneof![
        Just(BindingMode::Auto),
        Just(BindingMode::Advisory),
        Just(BindingMode::Paused)
    ];
    (policy(), policy(), fleet(), mode, any::<bool>(), 0..=4).prop_map(
        |(shared, inline, fleet, mode, is_inline, min)| {
            let binding = BindingSpec {
                policy_ref: (!is_inline).then(|| PolicyRef {
                    name: "shared".to_owned(),
                }),
                policy: is_inline.then_some(inline),
                mode,
                scaling: Scaling {
                    target_ref: TargetRef {
                        api_version: None,
                        kind: "LocalFleet".to_owned(),
                        name: "fleet".to_owned(),
                    },
                    min_replicas: min,
                    max_replicas: 4,
                },
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
