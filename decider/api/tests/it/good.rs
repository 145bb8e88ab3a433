//! Documents that are right.

use infer_api::{BindingMode, Documents, MetricType, Purpose, parse_documents, parse_sources, parse_sources_for};
use infer_core::policy::{Bounds, KpaPolicy, Metric, MetricTarget, Policy, ScalingRules};
use infer_core::signal::Signal;

const MINIMAL: &str = "\
# the least that works
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicy
metadata: {name: chat}
spec:
  metrics:
  - {type: waiting, target: 4}
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicyBinding
metadata: {name: chat}
spec:
  policyRef: {name: chat}
  scaling:
    targetRef: {kind: LocalFleet, name: chat}
    maxReplicas: 4
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: LocalFleet
metadata: {name: chat}
spec:
  model: tiny
  engine:
    command: [engine, --port, '{port}']
    ports: {from: 18000, to: 18099}
";

#[track_caller]
fn parse(text: &str) -> Documents {
    match parse_documents(text, "test.yaml") {
        Ok(documents) => documents,
        Err(errors) => panic!("{errors}"),
    }
}

#[test]
fn the_least_that_works_has_every_default() {
    let documents = parse(MINIMAL);
    let targets = documents.targets();
    assert_eq!(targets.len(), 1);
    let target = &targets[0];
    assert_eq!(
        (target.bound.name, target.bound.policy_name, target.bound.mode),
        ("chat", "chat", BindingMode::Auto)
    );
    assert_eq!(target.bound.bounds, Bounds { min: 1, max: 4 });
    let expected = Policy {
        metrics: vec![MetricTarget {
            metric: Metric::Waiting,
            target: 4.0,
        }],
        tolerance: 0.1,
        kpa: KpaPolicy::default(),
        scale_up: ScalingRules::default_up(),
        scale_down: ScalingRules::default_down(),
        scale_to_zero_grace_s: 30.0,
    };
    assert_eq!(target.bound.policy, expected);
    let fleet = &target.fleet.spec;
    assert_eq!(fleet.initial_replicas(), 1);
    assert_eq!(
        (fleet.engine.host.as_str(), fleet.engine.metrics_path.as_str()),
        ("127.0.0.1", "/metrics")
    );
    assert_eq!(
        (
            fleet.startup_probe.path.as_str(),
            fleet.startup_probe.timeout().as_secs()
        ),
        ("/health", 600)
    );
    assert_eq!(fleet.engine.ports.len(), 100);
    assert_eq!(fleet.engine.ports.ports().last(), Some(18099));
    assert_eq!(
        fleet.agent.fast_interval().map(|interval| interval.as_millis()),
        Some(250)
    );
    assert!(fleet.front_door.is_none());
}

#[test]
fn every_field_is_read() {
    let documents = parse(
        "\
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicyBinding
metadata:
  name: b
  labels: {team: inference}
spec:
  mode: advisory
  policy:
    metrics:
    - {type: queueTime, target: 250, quantile: 0.9}
    - {type: kvUsage, target: 0.8}
    tolerancePercent: 5
    stableWindowSeconds: 30
    panic: {windowPercent: 20, thresholdPercent: 150}
    maxScaleUpRate: 10
    maxScaleDownRate: 3
    scaleDownDelaySeconds: 15
    activationScale: 2
    scaleToZeroGraceSeconds: 90
    behavior:
      scaleUp: {stabilizationWindowSeconds: 1, selectPolicy: Min}
      scaleDown: {selectPolicy: Disabled, policies: [{type: Pods, value: 2, periodSeconds: 60}]}
  scaling:
    targetRef: {apiVersion: autoscaling.matrixinfer.ai/v1alpha1, kind: LocalFleet, name: f}
    minReplicas: 0
    maxReplicas: 9
---
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: LocalFleet
metadata: {name: f}
spec:
  model: tiny
  initialReplicas: 0
  engine:
    command: [serve, '{model}']
    env: {PORT: '{port}', NAME: '{fleet}/{replica}', GENERATION: '{\"temperature\": 0.7}', HOME: '${HOME}'}
    workingDirectory: run
    ports: {from: 7000, to: 7008}
    host: 127.0.0.2
    metricsPath: /m
  startupProbe: {path: /ready, intervalMilliseconds: 100, timeoutSeconds: 5}
  drain: {timeoutSeconds: 7, terminationGraceSeconds: 0}
  restart: {initialBackoffMilliseconds: 100, maxBackoffSeconds: 2, resetAfterSeconds: 3}
  agent: {command: [agent, '{port}'], intervalMilliseconds: 500, fastIntervalMilliseconds: 0, env: {LOG: debug}}
  frontDoor: {listen: '127.0.0.1:8080', queueLimit: 5, queueTimeoutSeconds: 6}
",
    );
    let target = documents.targets().remove(0);
    assert_eq!(
        (target.bound.policy_name, target.bound.mode),
        ("b", BindingMode::Advisory)
    );
    assert_eq!(target.bound.spec.metrics[0].metric, MetricType::QueueTime);
    let queue = Metric::Latency {
        signal: Signal::Queue,
        quantile: 0.9,
    };
    assert_eq!(
        target.bound.policy.metrics[0],
        MetricTarget {
            metric: queue,
            target: 250.0
        }
    );
    assert_eq!(target.bound.policy.kpa.panic_window_s(), 6.0);
    assert_eq!(target.bound.policy.kpa.activation_scale, 2);
    assert_eq!(
        target.bound.policy.scale_up.policies,
        ScalingRules::default_up().policies,
        "given fields keep the others"
    );
    assert_eq!(target.bound.policy.scale_down.stabilization_window_s, 300.0);
    assert_eq!(target.bound.bounds, Bounds { min: 0, max: 9 });
    let fleet = &target.fleet.spec;
    assert_eq!(fleet.agent.fast_interval(), None);
    assert_eq!(fleet.front_door.as_ref().map(|door| door.queue_limit()), Some(5));
    assert_eq!(fleet.restart.max_backoff().as_secs(), 2);
}

#[test]
fn an_empty_field_takes_its_default_and_no_documents_are_none() {
    let documents = parse(&MINIMAL.replace(
        "  - {type: waiting, target: 4}\n",
        "  - {type: waiting, target: 4}\n  panic:\n",
    ));
    assert_eq!(documents.policies[0].spec.panic.threshold_percent, 200.0);
    assert!(parse("").is_empty());
    assert!(parse("# nothing\n---\n---\n...\n").is_empty());
}

#[test]
fn files_without_a_fleet_are_for_a_cluster() {
    let guess = |text: &str| Purpose::guess([("test.yaml", text)]);
    let parts: Vec<&str> = MINIMAL.split("---\n").collect();
    assert_eq!(guess(MINIMAL), Purpose::LocalFleets);
    assert_eq!(guess(parts[0]), Purpose::LocalFleets, "a policy alone says nothing");
    assert_eq!(guess(parts[1]), Purpose::LocalFleets);
    assert_eq!(
        guess(&parts[1].replace("LocalFleet", "LocalFlet")),
        Purpose::LocalFleets
    );
    assert_eq!(guess(&parts[1].replace("LocalFleet", "Deployment")), Purpose::Cluster);
    assert_eq!(guess("not: [yaml"), Purpose::LocalFleets);
}

#[test]
fn documents_of_several_files_find_each_other() {
    let parts: Vec<&str> = MINIMAL.split("---\n").collect();
    let sources = [
        ("binding.yaml", parts[1]),
        ("fleet.yaml", parts[2]),
        ("policy.yaml", parts[0]),
    ];
    let documents = parse_sources(sources).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((documents.len(), documents.targets().len()), (3, 1));
    let errors = parse_sources([sources[0], sources[1]]).expect_err("the policy is missing");
    assert_eq!(errors.mistakes()[0].file, "binding.yaml");
}

#[test]
fn the_examples_of_the_documentation_are_right() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policy.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let examples: Vec<&str> = page
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect();
    assert!(examples.len() >= 5, "{}", examples.len());
    for example in examples {
        let sources = [("policy.md", example)];
        if let Err(errors) = parse_sources_for(Purpose::guess(sources), sources) {
            panic!("{errors}\n{example}");
        }
    }
}
