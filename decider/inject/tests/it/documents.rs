//! Manifests as people have them in files.

use infer_inject::{inject_documents, uninject_documents};
use serde_json::Value;

use crate::options;

const MANIFEST: &str = "\
# What the team runs.
apiVersion: v1
kind: Service
metadata: {name: chat}   # kept as it is
spec:
  ports: [{port: 80}]
---
# The engine.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: chat
spec:
  replicas: 2
  template:
    metadata:
      labels:
        app: chat
    spec:
      terminationGracePeriodSeconds: 120
      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.32.0
        args:
        - --model
        - m
        env:
        - name: DEBUG
          value: \"yes\"
        volumeMounts:
        - name: config
          mountPath: /etc/config
      volumes:
      - name: config
        configMap:
          name: config
          defaultMode: 0644
---

---
kind: ConfigMap
data:
  script: |-
    kind: Pod
...
";

fn values(text: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents = serde_saphyr::from_multiple_with_options::<Value>(text, options).expect("YAML");
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

#[test]
fn a_manifest_keeps_everything_else() {
    let done = inject_documents(MANIFEST, &options()).expect("it is right");
    assert_eq!(done.workloads.len(), 1);
    let workload = &done.workloads[0];
    assert_eq!(
        (
            workload.document,
            workload.object.as_str(),
            workload.path.as_str(),
            workload.changed
        ),
        (2, "Deployment chat", "spec.template", true)
    );
    assert_eq!(workload.engine.as_ref().map(|engine| engine.port), Some(8000));
    // Up to what changed it is the same text.
    let same = MANIFEST.split("\n      labels:").next().expect("a beginning");
    assert!(done.text.starts_with(same), "{}", done.text);
    assert!(
        done.text.ends_with(MANIFEST.split("0644\n").last().expect("an end")),
        "{}",
        done.text
    );
    assert!(
        done.text
            .contains("        env:\n        - name: DEBUG\n          value: \"yes\"\n"),
        "{}",
        done.text
    );
    // As Kubernetes reads it, a leading 0 is octal.
    assert!(done.text.contains("          defaultMode: 420\n"), "{}", done.text);
    assert!(
        done.text
            .contains("        - name: INFER_AGENT_CA_PEM\n          value: |\n            -----BEGIN"),
        "{}",
        done.text
    );

    let again = inject_documents(&done.text, &options()).expect("it is right");
    assert_eq!(again.text, done.text);
    let back = uninject_documents(&done.text).expect("it is right");
    assert_eq!(back.text, MANIFEST.replace("0644", "420"));
    assert_eq!(uninject_documents(MANIFEST).expect("it is right").text, MANIFEST);
}

#[test]
fn json_stays_json() {
    let pod = |name: &str| {
        format!(
            "{{\"kind\": \"Pod\", \"metadata\": {{\"name\": \"{name}\"}}, \"spec\": {{\"containers\": [{{\"name\": \"a\", \"image\": \"vllm\"}}]}}}}"
        )
    };
    let text = format!("{{ \"kind\":  \"ConfigMap\" }}\n{}\n", pod("one"));
    let done = inject_documents(&text, &options()).expect("it is right");
    assert!(
        done.text.starts_with("{ \"kind\":  \"ConfigMap\" }\n{\"kind\":\"Pod\""),
        "{}",
        done.text
    );
    assert_eq!(done.text.lines().count(), 2);
    let list = format!(
        "{{\n    \"kind\": \"List\",\n    \"items\": [{}, {}]\n}}\n",
        pod("one"),
        pod("two")
    );
    let done = inject_documents(&list, &options()).expect("it is right");
    let paths: Vec<_> = done.workloads.iter().map(|workload| workload.path.as_str()).collect();
    assert_eq!(paths, ["items[0]", "items[1]"]);
    assert!(
        done.text
            .starts_with("{\n    \"kind\": \"List\",\n    \"items\": [\n        {\n"),
        "{}",
        done.text
    );
    let value: Value = serde_json::from_str(&done.text).expect("JSON");
    assert_eq!(value["items"][1]["spec"]["initContainers"][0]["name"], "infer-agent");
    let back = uninject_documents(&done.text).expect("it is right");
    let back: Value = serde_json::from_str(&back.text).expect("JSON");
    assert_eq!(back, serde_json::from_str::<Value>(&list).expect("JSON"));
}

/// Paths of the templates in a manifest, and whether they get an agent.
#[track_caller]
fn check(text: &str, expected: &[(&str, bool)]) {
    let done = inject_documents(text, &options()).expect("it is right");
    let found: Vec<_> = done.workloads.iter().map(|w| (w.path.as_str(), w.changed)).collect();
    assert_eq!(found, expected);
    let changed = expected.iter().filter(|(_, changed)| *changed).count();
    assert_eq!(
        done.text.matches("name: infer-agent\n        image:").count()
            + done.text.matches("mountPath: /var/run/secrets/infer-agent").count(),
        changed
    );
    let back = uninject_documents(&done.text).expect("it is right");
    assert_eq!(values(&back.text), values(text));
}

#[test]
fn pod_templates_are_found_wherever_they_are() {
    let engine = "{spec: {containers: [{name: e, image: vllm/vllm-openai}]}}";
    for kind in ["StatefulSet", "DaemonSet", "ReplicaSet", "Rollout"] {
        check(
            &format!("kind: {kind}\nspec: {{template: {engine}}}\n"),
            &[("spec.template", true)],
        );
    }
    let job = "{spec: {restartPolicy: Never, containers: [{name: e, image: vllm/vllm-openai}]}}";
    check(
        &format!("kind: Job\nspec: {{template: {job}}}\n"),
        &[("spec.template", true)],
    );
    check(
        &format!("kind: CronJob\nspec: {{jobTemplate: {{spec: {{template: {job}}}}}}}\n"),
        &[("spec.jobTemplate.spec.template", true)],
    );
    check(
        &format!("kind: PodTemplate\ntemplate: {engine}\n"),
        &[("template", true)],
    );
    check(
        &format!(
            "kind: LeaderWorkerSet\nspec: {{leaderWorkerTemplate: {{size: 2, leaderTemplate: {engine}, workerTemplate: {engine}}}}}\n"
        ),
        &[
            ("spec.leaderWorkerTemplate.leaderTemplate", true),
            ("spec.leaderWorkerTemplate.workerTemplate", false),
        ],
    );
    check(
        &format!("kind: LeaderWorkerSet\nspec: {{leaderWorkerTemplate: {{workerTemplate: {engine}}}}}\n"),
        &[("spec.leaderWorkerTemplate.workerTemplate", true)],
    );
    check(
        &format!(
            "kind: ModelServing\nspec: {{template: {{roles: [{{name: prefill, entryTemplate: {engine}, workerTemplate: {engine}}}, \
             {{name: decode, entryTemplate: {engine}}}]}}}}\n"
        ),
        &[
            ("spec.template.roles[0].entryTemplate", true),
            ("spec.template.roles[0].workerTemplate", false),
            ("spec.template.roles[1].entryTemplate", true),
        ],
    );
    let disabled = "{metadata: {labels: {autoscaling.matrixinfer.ai/inject: disabled}}, spec: {containers: [{name: e, image: vllm}]}}";
    check(
        &format!("kind: Deployment\nspec: {{template: {disabled}}}\n"),
        &[("spec.template", false)],
    );
    check(
        "kind: CustomResourceDefinition\nspec: {template: {spec: {containers: []}}}\n",
        &[],
    );
    check("just text\n--- \n- a list\n", &[]);
    check("", &[]);
}

#[test]
fn mistakes_say_where_they_are() {
    let text = "\
kind: Service
---
kind: Deployment
metadata: {name: router}
spec:
  template:
    spec: {containers: [{name: a, image: x}, {name: b, image: y}]}
---
a: [1
---
kind: LeaderWorkerSet
spec: {leaderWorkerTemplate: {size: 4, workerTemplate: {spec: {containers: [{name: e, image: vllm}]}}}}
---
a: 1
a: 2
";
    let errors = inject_documents(text, &options()).expect_err("four mistakes");
    let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(messages.len(), 4, "{messages:?}");
    for (message, (start, word)) in messages.iter().zip([
        (
            "line 3: document 2, Deployment router, spec.template: ",
            "autoscaling.matrixinfer.ai/engine-container",
        ),
        ("line ", ": document 3: not valid YAML: "),
        (
            "line 11: document 4, LeaderWorkerSet, spec.leaderWorkerTemplate.workerTemplate: ",
            "leaderTemplate",
        ),
        ("line 15: document 5: not valid YAML: ", "duplicate"),
    ]) {
        assert!(message.starts_with(start) && message.contains(word), "{message}");
    }
}
