//! What is shipped: the chart, the kustomize base that is made from it, and the examples.

use std::{fs, process::Command};

use infer_tests::harness::cluster::{Abilities, Error, documents, skip};
use serde_json::json;

use crate::support::{Scene, checkout, install_kinds, yaml_files};

const CHART: &str = "deploy/helm/matrix-infer-autoscaler";

/// What helm answers; `None` where it is not built.
fn helm(scene: &Scene, arguments: &[&str]) -> Option<Result<String, String>> {
    let program = match scene.cluster.program("helm") {
        Ok(program) => program,
        Err(error) => {
            skip(&format!("the chart is not rendered: {error}"));
            return None;
        }
    };
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stdout) + &text(&output.stderr))
    })
}

fn template(scene: &Scene, values: &[&str]) -> Option<Result<String, String>> {
    let chart = checkout(CHART);
    let mut arguments = vec![
        "template",
        "infer",
        chart.to_str().unwrap(),
        "--namespace",
        "infer-system",
    ];
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    helm(scene, &arguments)
}

#[tokio::test]
async fn the_chart_is_clean_and_its_values_are_checked() {
    let Some(scene) = Scene::open("chart", Abilities::Api).await else {
        return;
    };
    let chart = checkout(CHART);
    let Some(linted) = helm(&scene, &["lint", "--strict", chart.to_str().unwrap()]) else {
        return;
    };
    linted.unwrap();
    for values in [
        &[][..],
        &["namespaces={a,b}", "shards=3", "serviceMonitor.enabled=true"],
        &[
            "webhooks.enabled=false",
            "tls.existingSecret=mine",
            "crds.keep=true",
            "replicas=1",
        ],
        &[
            "agent.user=image",
            "priorityClassName=system-cluster-critical",
            "networkPolicy.enabled=false",
        ],
    ] {
        let rendered = template(&scene, values)
            .unwrap()
            .unwrap_or_else(|error| panic!("{values:?}: {error}"));
        let objects = documents(&rendered).unwrap();
        assert!(objects.len() > 10, "{values:?}");
        for object in &objects {
            assert!(
                object["kind"].is_string() && object["metadata"]["name"].is_string(),
                "{values:?}: {object}"
            );
        }
    }
    for (value, names) in [
        ("replicas=0", "replicas"),
        ("shards=many", "shards"),
        ("log.format=xml", "format"),
        ("agent.user=somebody", "user"),
        ("replica=2", "replica"),
    ] {
        let refused = template(&scene, &[value]).unwrap().expect_err(value);
        assert!(refused.contains(names), "{value}: {refused}");
    }
}

/// `UPDATE=1` writes it anew.
#[tokio::test]
async fn the_kustomize_base_is_the_chart_as_it_comes() {
    let Some(scene) = Scene::open("kustomize", Abilities::Api).await else {
        return;
    };
    let Some(rendered) = template(&scene, &[]) else { return };
    // Who manages it is a matter of how it was installed.
    let wanted = rendered.unwrap().replace(
        "app.kubernetes.io/managed-by: Helm",
        "app.kubernetes.io/managed-by: kustomize",
    );
    let path = checkout("deploy/kustomize/base/install.yaml");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == wanted,
        "{} is not what the chart gives; UPDATE=1 writes it anew",
        path.display()
    );
}

#[tokio::test]
async fn the_examples_are_accepted() {
    let Some(scene) = Scene::open("examples", Abilities::Api).await else {
        return;
    };
    install_kinds(&scene.api).await;
    let files = yaml_files(&checkout("deploy/examples"));
    assert!(files.len() >= 5);
    let mut bindings = 0;
    for file in &files {
        for mut object in documents(&fs::read_to_string(file).unwrap()).unwrap() {
            object["metadata"]["namespace"] = json!(scene.namespace);
            let kind = object["kind"].as_str().unwrap().to_owned();
            match scene.api.apply_object(&object).await {
                Ok(_) => bindings += usize::from(kind == "AutoscalingPolicyBinding"),
                // Kinds of other projects are not installed here.
                Err(Error::Refused { code: 404, .. }) if kind == "LeaderWorkerSet" => {}
                Err(error) => panic!("{}, {kind}: {error}", file.display()),
            }
        }
    }
    assert_eq!(bindings, files.len(), "every example binds something");
}
