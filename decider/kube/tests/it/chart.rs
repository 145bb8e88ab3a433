//! The chart has exactly the permissions that the code asks for.

use std::{fmt::Write as _, path::Path};

use infer_kube::{Rule, Scope, rbac};

/// `UPDATE=1` writes them anew.
#[test]
fn the_charts_roles_are_what_the_code_needs() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/helm/matrix-infer-autoscaler/files/rbac");
    for (name, scope) in [
        ("targets", Scope::Targets),
        ("own", Scope::Own),
        ("cluster", Scope::Cluster),
    ] {
        let path = directory.join(format!("{name}.yaml"));
        let wanted = rules(scope);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(&path, &wanted).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            committed,
            wanted,
            "{} is not what infer_kube::rbac() says; UPDATE=1 cargo test -p infer-kube chart writes it anew",
            path.display()
        );
    }
}

fn rules(scope: Scope) -> String {
    let mut text = "# Made from infer_kube::rbac(); a test compares.\n".to_owned();
    for rule in rbac().iter().filter(|rule| rule.scope == scope) {
        write_rule(&mut text, rule);
    }
    text
}

fn write_rule(text: &mut String, rule: &Rule) {
    let list = |items: &[&str]| {
        let quoted = items.iter().map(|item| if item.is_empty() { "\"\"" } else { item });
        quoted.collect::<Vec<_>>().join(", ")
    };
    let mut line = |start: &str, items: &[&str]| {
        if !items.is_empty() {
            let _ = writeln!(text, "{start}: [{}]", list(items));
        }
    };
    line(&format!("# {}\n- apiGroups", rule.why), rule.api_groups);
    line("  resources", rule.resources);
    line("  resourceNames", rule.resource_names);
    line("  verbs", rule.verbs);
}

/// Helm reads only what lies in the chart; the CRDs there are those of `deploy/crds`.
#[test]
fn the_charts_crds_are_the_committed_ones() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let chart = deploy.join("helm/matrix-infer-autoscaler/files/crds");
    let names = |directory: &Path| {
        let entries = std::fs::read_dir(directory).map(|entries| entries.flatten().collect::<Vec<_>>());
        let mut names: Vec<_> = entries
            .unwrap_or_default()
            .iter()
            .map(|entry| entry.file_name())
            .collect();
        names.sort();
        names
    };
    let committed = names(&deploy.join("crds"));
    assert!(!committed.is_empty());
    for name in &committed {
        let text = std::fs::read_to_string(deploy.join("crds").join(name)).unwrap();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(&chart).unwrap();
            std::fs::write(chart.join(name), &text).unwrap();
        }
        let copy = std::fs::read_to_string(chart.join(name)).unwrap_or_default();
        assert!(
            copy == text,
            "{name:?} in the chart differs; UPDATE=1 cargo test -p infer-kube chart copies it"
        );
    }
    assert_eq!(names(&chart), committed);
}
