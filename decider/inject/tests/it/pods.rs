//! A table of Pods as people write them.

use infer_inject::{EngineKind, Error, Options, inject, is_injected, uninject};
use serde_json::{Value, json};

use crate::{injected, options, pod};

const VLLM: &str = "
containers:
- name: vllm
  image: vllm/vllm-openai:v0.32.0
  args: [--model, Qwen/Qwen3-8B, --port, '8080']
  ports: [{name: http, containerPort: 8080}]
  resources: {limits: {nvidia.com/gpu: 1}}
";

/// Checks which engine is found in a Pod of this spec: container, kind, port; and how many notes people get.
#[track_caller]
fn check(spec: &str, container: &str, kind: EngineKind, port: u16, notes: &[&str]) -> (Value, Value) {
    let (after, agent, found) = injected(&pod(spec));
    let engine = found.engine.expect("an engine");
    assert_eq!(
        (engine.container.as_str(), engine.kind, engine.port),
        (container, kind, port)
    );
    let url = format!("http://127.0.0.1:{port}");
    assert_eq!(env(&agent, "INFER_AGENT_ENGINE_URL"), Some(url.as_str()));
    assert_eq!(found.notes.len(), notes.len(), "{:?}", found.notes);
    for (note, expected) in found.notes.iter().zip(notes) {
        assert!(note.contains(expected), "{note:?} does not say {expected:?}");
    }
    (after, agent)
}

fn env<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let variables = container["env"].as_array()?;
    variables.iter().find(|variable| variable["name"] == name)?["value"].as_str()
}

const SHORT_GRACE: &str = "terminationGracePeriodSeconds is 30";

#[test]
fn vllm_on_a_gpu() {
    let (after, agent) = check(VLLM, "vllm", EngineKind::Vllm, 8080, &[SHORT_GRACE]);
    let drain = json!({"httpGet": {"path": "/drain?grace_seconds=30", "port": 9402}});
    assert_eq!(after["spec"]["containers"][0]["lifecycle"]["preStop"], drain);
    assert_eq!(agent["name"], "infer-agent");
    assert_eq!(agent["restartPolicy"], "Always");
    assert_eq!(
        agent["image"],
        concat!("matrixinfer/infer-agent:", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(agent["args"], json!(["run"]));
    assert_eq!(
        env(&agent, "INFER_AGENT_DECIDER"),
        Some("https://infer-decider.infer-system.svc:9400")
    );
    assert_eq!(
        env(&agent, "INFER_AGENT_TOKEN_FILE"),
        Some("/var/run/secrets/infer-agent/token")
    );
    assert_eq!(env(&agent, "INFER_AGENT_CA_PEM"), options().ca_pem.as_deref());
    for absent in [
        "INFER_AGENT_HTTP_LISTEN",
        "INFER_AGENT_METRICS_PATH",
        "INFER_AGENT_TARGET",
    ] {
        assert_eq!(env(&agent, absent), None);
    }
    let downward: Vec<_> = agent["env"].as_array().expect("a list").iter().take(3).collect();
    for (variable, (name, field)) in downward.into_iter().zip([
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_UID", "metadata.uid"),
    ]) {
        assert_eq!(
            *variable,
            json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}})
        );
    }
    assert_eq!(
        agent["ports"],
        json!([{"name": "infer-agent", "containerPort": 9402, "protocol": "TCP"}])
    );
    assert_eq!(
        agent["readinessProbe"]["httpGet"],
        json!({"path": "/readyz", "port": 9402})
    );
    assert_eq!(
        agent["livenessProbe"]["httpGet"],
        json!({"path": "/livez", "port": 9402})
    );
    assert_eq!(
        agent["resources"],
        json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}})
    );
    assert_eq!(
        after["spec"]["volumes"],
        json!([{"name": "infer-agent-token", "projected": {"sources": [{"serviceAccountToken": {
            "audience": "infer-decider", "expirationSeconds": 3600, "path": "token"}}]}}])
    );
    assert_eq!(
        after["metadata"]["annotations"]["autoscaling.matrixinfer.ai/injected"],
        "v1"
    );
}

#[test]
fn sglang() {
    let spec = "
terminationGracePeriodSeconds: 600
containers:
- name: engine
  image: lmsysorg/sglang:v0.5.23
  command: [python3, -m, sglang.launch_server]
  args: [--model-path, m, --host, 0.0.0.0, --enable-metrics]
";
    let (after, _) = check(spec, "engine", EngineKind::Sglang, 30_000, &[]);
    let path = &after["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"];
    assert_eq!(*path, "/drain?grace_seconds=600");
    let silent = spec.replace(", --enable-metrics", "");
    check(&silent, "engine", EngineKind::Sglang, 30_000, &["--enable-metrics"]);
}

#[test]
fn vllm_on_ascend_npus_in_a_script() {
    check(
        "
containers:
- name: server
  image: quay.io/ascend/vllm-ascend:v0.13.0
  command: [/bin/bash, -c]
  args:
  - |
    source /usr/local/Ascend/ascend-toolkit/set_env.sh
    # a comment with --port 1
    export PORT=8100
    exec vllm serve Qwen/Qwen3-32B \\
      --tensor-parallel-size 4 --port=$PORT 2>&1
  resources: {limits: {huawei.com/Ascend910: '4'}}
",
        "server",
        EngineKind::Vllm,
        8100,
        &[SHORT_GRACE],
    );
}

const LWS_LEADER: &str = "
containers:
- name: vllm-leader
  image: vllm/vllm-openai:latest
  command: [sh, -c, 'bash /vllm-workspace/examples/online_serving/multi-node-serving.sh leader --ray_cluster_size=$(LWS_GROUP_SIZE);
    python3 -m vllm.entrypoints.openai.api_server --port 8080 --model m --tensor-parallel-size 8']
  ports: [{containerPort: 8080}]
  readinessProbe: {tcpSocket: {port: 8080}}
";

#[test]
fn tensor_parallel_over_a_group_of_pods() {
    let (after, _) = check(LWS_LEADER, "vllm-leader", EngineKind::Vllm, 8080, &[SHORT_GRACE]);
    // What is the user's stays.
    assert_eq!(
        after["spec"]["containers"][0]["readinessProbe"],
        json!({"tcpSocket": {"port": 8080}})
    );
    let with_labels = |labels: Value| {
        let mut pod = pod(LWS_LEADER);
        pod["metadata"]["labels"] = labels;
        pod
    };
    injected(&with_labels(json!({"leaderworkerset.sigs.k8s.io/worker-index": "0"})));
    injected(&with_labels(
        json!({"modelserving.volcano.sh/role": "prefill", "modelserving.volcano.sh/entry": "true"}),
    ));
    for worker in [
        with_labels(json!({"leaderworkerset.sigs.k8s.io/worker-index": "1"})),
        with_labels(json!({"modelserving.volcano.sh/role": "prefill"})),
        with_labels(json!({"ray.io/node-type": "worker"})),
        pod("containers: [{name: a, command: [vllm, serve, m, --headless]}]"),
        pod("containers: [{name: a, command: [python, -m, sglang.launch_server, --node-rank, '1']}]"),
    ] {
        unchanged(&worker, "serve");
    }
}

/// Checks that a Pod is left alone, and that the note says why.
#[track_caller]
fn unchanged(pod: &Value, why: &str) {
    let mut after = pod.clone();
    let injected = inject(&mut after, &options()).expect("no error");
    assert!(!injected.changed && injected.notes.len() == 1, "{injected:?}");
    assert!(injected.notes[0].contains(why), "{injected:?}");
    assert_eq!(after, *pod);
}

#[test]
fn a_container_that_tells_nothing_is_taken_when_it_is_the_only_one() {
    let notes = ["does not look like", SHORT_GRACE];
    check(
        "containers: [{name: app, image: infersim, args: [engine, --port, '8005']}]",
        "app",
        EngineKind::Other,
        8005,
        &notes,
    );
    check(
        "containers: [{name: app, image: x}]",
        "app",
        EngineKind::Other,
        8000,
        &notes,
    );
    check(
        "containers: [{name: app, image: x, ports: [{name: grpc, containerPort: 1}, {name: http, containerPort: 2}]}]",
        "app",
        EngineKind::Other,
        2,
        &notes,
    );
}

const WITH_LOGGING: &str = "
containers:
- {name: fluent-bit, image: fluent/fluent-bit, ports: [{name: http, containerPort: 2020}]}
- {name: engine, image: example.com/serve:1, command: [vllm, serve, m]}
initContainers:
- {name: download, image: busybox, command: [wget, model]}
volumes:
- {name: models, emptyDir: {}}
";

#[test]
fn other_containers_stay_what_they_are() {
    let (after, _) = check(WITH_LOGGING, "engine", EngineKind::Vllm, 8000, &[SHORT_GRACE]);
    let before = pod(WITH_LOGGING);
    assert_eq!(after["spec"]["containers"][0], before["spec"]["containers"][0]);
    // After what loads the model: the agent starts when the engine is about to.
    assert_eq!(after["spec"]["initContainers"][0], before["spec"]["initContainers"][0]);
    assert_eq!(after["spec"]["volumes"][0], before["spec"]["volumes"][0]);
}

#[test]
fn an_own_pre_stop_hook_stays() {
    let spec = format!("{VLLM}  lifecycle: {{preStop: {{exec: {{command: [sleep, '20']}}}}}}\n");
    let (after, _) = check(
        &spec,
        "vllm",
        EngineKind::Vllm,
        8080,
        &[SHORT_GRACE, "preStop hook is kept"],
    );
    assert_eq!(
        after["spec"]["containers"][0]["lifecycle"],
        pod(&spec)["spec"]["containers"][0]["lifecycle"]
    );
    let spec = format!("{VLLM}  lifecycle: {{postStart: {{exec: {{command: [warm]}}}}}}\n");
    let (after, _) = check(&spec, "vllm", EngineKind::Vllm, 8080, &[SHORT_GRACE]);
    assert!(after["spec"]["containers"][0]["lifecycle"]["postStart"].is_object());
    assert!(after["spec"]["containers"][0]["lifecycle"]["preStop"].is_object());
}

#[test]
fn without_a_grace_period_there_is_nothing_to_hold() {
    let (after, _) = check(
        &format!("{VLLM}terminationGracePeriodSeconds: 0\n"),
        "vllm",
        EngineKind::Vllm,
        8080,
        &["no preStop hook"],
    );
    assert!(after["spec"]["containers"][0]["lifecycle"].is_null());
}

#[test]
fn on_the_hosts_network() {
    let mut host = pod(&format!("{VLLM}hostNetwork: true\nterminationGracePeriodSeconds: 60\n"));
    let (_, _, found) = injected(&host);
    assert_eq!(found.notes.len(), 2, "{found:?}");
    assert!(found.notes[0].contains("autoscaling.matrixinfer.ai/agent-port"));
    assert!(found.notes[1].contains("ClusterFirstWithHostNet"));
    host["metadata"]["annotations"] = json!({"autoscaling.matrixinfer.ai/agent-port": "19402"});
    host["spec"]["dnsPolicy"] = "ClusterFirstWithHostNet".into();
    let (after, agent, found) = injected(&host);
    assert_eq!(found.notes.len(), 1, "{found:?}");
    assert_eq!(agent["ports"][0]["containerPort"], 19402);
    assert_eq!(agent["readinessProbe"]["httpGet"]["port"], 19402);
    assert_eq!(
        after["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["port"],
        19402
    );
    assert_eq!(env(&agent, "INFER_AGENT_HTTP_LISTEN"), Some("[::]:19402"));
}

#[test]
fn annotations_say_what_cannot_be_seen() {
    let mut pod = pod("containers: [{name: a, image: a}, {name: b, image: b, args: [--port, $(cat x)]}]");
    pod["metadata"]["annotations"] = json!({
        "autoscaling.matrixinfer.ai/engine-container": "b",
        "autoscaling.matrixinfer.ai/engine-port": "9000",
        "autoscaling.matrixinfer.ai/metrics-path": "/prometheus",
        "autoscaling.matrixinfer.ai/agent-image": "mirror.example.com/infer-agent:2",
    });
    let (_, agent, found) = injected(&pod);
    let engine = found.engine.expect("an engine");
    assert_eq!((engine.container.as_str(), engine.port), ("b", 9000));
    assert_eq!(env(&agent, "INFER_AGENT_METRICS_PATH"), Some("/prometheus"));
    assert_eq!(agent["image"], "mirror.example.com/infer-agent:2");
}

#[test]
fn an_engine_on_the_pods_address_is_asked_there() {
    let spec = "containers: [{name: a, command: [vllm, serve, m, --host, $(POD_IP)]}]";
    let (_, agent, _) = injected(&pod(spec));
    assert_eq!(env(&agent, "INFER_AGENT_ENGINE_URL"), Some("http://$(POD_IP):8000"));
    let names: Vec<_> = agent["env"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|v| v["name"].clone())
        .collect();
    let position = |name: &str| names.iter().position(|known| known == name).expect(name);
    // Kubernetes resolves only what stands before.
    assert!(position("POD_IP") < position("INFER_AGENT_ENGINE_URL"));
}

#[test]
fn what_is_added_satisfies_restricted_pod_security() {
    for spec in [
        VLLM,
        "containers: [{name: a, image: vllm}]\nsecurityContext: {runAsUser: 0}",
    ] {
        let (after, agent, _) = injected(&pod(spec));
        let context = &agent["securityContext"];
        assert_eq!(
            *context,
            json!({
                "allowPrivilegeEscalation": false, "privileged": false, "runAsNonRoot": true, "readOnlyRootFilesystem": true,
                "runAsUser": 65532, "runAsGroup": 65532,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            })
        );
        assert!(agent["ports"][0]["hostPort"].is_null());
        let volumes = after["spec"]["volumes"].as_array().expect("volumes");
        assert!(volumes.iter().all(|volume| volume["projected"].is_object()));
    }
    let (_, agent, _) = injected(&pod(&format!(
        "{VLLM}securityContext: {{runAsUser: 1000, runAsGroup: 0}}\n"
    )));
    assert_eq!(agent["securityContext"]["runAsUser"], Value::Null, "the Pod's");
    assert_eq!(agent["securityContext"]["runAsGroup"], 65532);
    let mut after = pod(VLLM);
    let plain = Options {
        run_as_user: None,
        ..options()
    };
    inject(&mut after, &plain).expect("it can be injected");
    assert!(after["spec"]["initContainers"][0]["securityContext"]["runAsUser"].is_null());
}

#[test]
fn the_quality_of_service_stays() {
    let with = |resources: &str| {
        let (_, agent, _) = injected(&pod(&format!(
            "containers: [{{name: a, image: vllm, resources: {resources}}}]"
        )));
        agent["resources"].clone()
    };
    let same = json!({"cpu": "50m", "memory": "64Mi"});
    assert_eq!(
        with("{limits: {cpu: 8, memory: 64Gi}, requests: {cpu: 8, memory: 64Gi}}"),
        json!({"limits": same, "requests": same})
    );
    assert_eq!(
        with("{limits: {cpu: 8, memory: 64Gi}}"),
        json!({"limits": same, "requests": same})
    );
    let usual = json!({"cpu": "10m", "memory": "16Mi"});
    assert_eq!(
        with("{limits: {cpu: 8, memory: 64Gi}, requests: {cpu: 4}}"),
        json!({"limits": {"cpu": "200m", "memory": "64Mi"}, "requests": usual})
    );
    assert_eq!(
        with("{limits: {memory: 64Gi}}"),
        json!({"limits": {"memory": "64Mi"}, "requests": usual})
    );
    let (_, agent, _) = injected(&pod(&format!("{VLLM}resources: {{limits: {{cpu: 8}}}}\n")));
    assert!(agent["resources"].is_null(), "part of the Pod's");
}

#[test]
fn without_native_sidecars_the_agent_is_one_more_container() {
    let fallback = Options {
        native_sidecar: false,
        image_pull_policy: Some("Never".into()),
        ..options()
    };
    let before = pod(VLLM);
    let mut after = before.clone();
    inject(&mut after, &fallback).expect("it can be injected");
    assert!(after["spec"]["initContainers"].is_null());
    let agent = &after["spec"]["containers"][1];
    assert_eq!(
        (&agent["name"], &agent["restartPolicy"]),
        (&json!("infer-agent"), &Value::Null)
    );
    assert_eq!(agent["imagePullPolicy"], "Never");
    assert_eq!(agent["lifecycle"], after["spec"]["containers"][0]["lifecycle"]);
    assert_eq!(uninject(&mut after), Ok(true));
    assert_eq!(after, before);

    let job = pod(&format!("{VLLM}restartPolicy: Never\n"));
    let error = inject(&mut job.clone(), &fallback).expect_err("it would never end");
    assert!(matches!(error, Error::WouldNotEnd { .. }), "{error}");
    injected(&job);
}

#[test]
fn pods_that_end_by_themselves_are_left_alone_unless_they_ask() {
    let mut job = pod("containers: [{name: download, image: busybox}]\nrestartPolicy: OnFailure");
    unchanged(&job, "restartPolicy is OnFailure");
    job["metadata"]["labels"]["autoscaling.matrixinfer.ai/inject"] = "enabled".into();
    injected(&job);
    let mut mirror = pod(VLLM);
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    unchanged(&mirror, "static Pod");
}

#[test]
fn a_pod_that_has_its_agent_is_left_alone() {
    let (once, _, first) = injected(&pod(VLLM));
    let mut twice = once.clone();
    let other = Options {
        agent_image: "another".into(),
        native_sidecar: false,
        ..options()
    };
    let second = inject(&mut twice, &other).expect("no error");
    assert!(!second.changed);
    assert_eq!(second.engine, first.engine);
    assert_eq!(twice, once);
}

/// Checks that a Pod is refused with a message that says all of `words`, and left as it was.
#[track_caller]
fn refused(pod: Value, words: &[&str]) {
    let mut after = pod.clone();
    let message = inject(&mut after, &options()).expect_err("refused").to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
    assert_eq!(after, pod);
}

#[test]
fn what_cannot_be_done_is_said() {
    const CONTAINER: &str = "autoscaling.matrixinfer.ai/engine-container";
    const PORT: &str = "autoscaling.matrixinfer.ai/engine-port";
    refused(
        pod("containers: [{name: a, image: x}, {name: b, image: y}]"),
        &["a, b", CONTAINER, "disabled"],
    );
    refused(
        pod("containers: [{name: a, image: vllm}, {name: b, image: vllm}]"),
        &["a, b", CONTAINER],
    );
    refused(
        pod("containers: [{name: a, command: [vllm, serve, m, --port, $(cat x)]}]"),
        &["container a", "$(cat x)", PORT],
    );
    refused(
        pod("containers: [{name: infer-agent, image: vllm}]"),
        &["container named \"infer-agent\""],
    );
    refused(
        pod("containers: [{name: a, image: vllm}]\nvolumes: [{name: infer-agent-token, emptyDir: {}}]"),
        &["volume named \"infer-agent-token\""],
    );
    refused(
        pod("containers: [{name: a, image: vllm}, {name: b, image: y, ports: [{containerPort: 9402}]}]"),
        &["9402", "container b", "autoscaling.matrixinfer.ai/agent-port"],
    );
    refused(
        pod("containers: [{name: a, args: [--port, '9402']}]"),
        &["9402", "container a"],
    );
    refused(
        pod("containers: [{name: a, image: vllm}]\nos: {name: windows}"),
        &["Linux"],
    );
    refused(pod("containers: []"), &["spec.containers is missing or empty"]);
    refused(pod("containers: {}"), &["spec.containers is not a list"]);
    refused(pod("containers: [{image: vllm}]"), &["spec.containers[0].name"]);
    refused(
        pod("containers: [{name: a, lifecycle: 3}]"),
        &["spec.containers[0].lifecycle"],
    );
    refused(pod("containers: [{name: a}]\nvolumes: 3"), &["spec.volumes"]);
    refused(json!({"metadata": {}}), &["spec is missing"]);
    refused(json!({"metadata": [], "spec": {}}), &["metadata"]);
    refused(json!(3), &["not an object"]);
    for (annotation, value, word) in [
        ("engine-container", json!("c"), "there are: vllm"),
        ("engine-port", json!("0"), "1 to 65535"),
        ("engine-port", json!("http"), "1 to 65535"),
        ("engine-port", json!(8000), "quotes"),
        ("agent-port", json!("80"), "1024"),
        ("metrics-path", json!("metrics"), "begins with /"),
        ("agent-image", json!("a b"), "an image"),
    ] {
        let mut pod = pod(VLLM);
        pod["metadata"]["annotations"] = json!({ format!("autoscaling.matrixinfer.ai/{annotation}"): value });
        refused(pod, &[annotation, word]);
    }
}

#[test]
fn only_what_was_injected_is_taken_out() {
    let mut foreign = pod("containers: [{name: a, image: vllm}, {name: infer-agent, image: x}]");
    let before = foreign.clone();
    assert_eq!(uninject(&mut foreign), Ok(false));
    assert_eq!(foreign, before);

    // The API server fills in defaults, and other webhooks add containers behind.
    let before = pod(WITH_LOGGING);
    let (mut after, _, _) = injected(&before);
    after["spec"]["containers"][1]["lifecycle"]["preStop"]["httpGet"]["scheme"] = "HTTP".into();
    after["spec"]["initContainers"]
        .as_array_mut()
        .expect("a list")
        .push(json!({"name": "mesh"}));
    assert!(is_injected(&after));
    assert_eq!(uninject(&mut after), Ok(true));
    assert!(
        after["spec"]["initContainers"]
            .as_array_mut()
            .expect("a list")
            .pop()
            .is_some_and(|c| c["name"] == "mesh")
    );
    assert_eq!(after, before);
}
