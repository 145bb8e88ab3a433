//! Every permission the decider needs, with the reason: the chart's roles are generated from this list.

use serde::Serialize;

/// Where a rule is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// In every namespace that is looked at (a ClusterRole; where the decider is limited to some namespaces, a Role in
    /// each).
    Targets,
    /// In the decider's own namespace (a Role).
    Own,
    /// For what has no namespace (a ClusterRole in any case).
    Cluster,
}

/// A PolicyRule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Where.
    #[serde(skip)]
    pub scope: Scope,
    /// What for, for the comment in the manifest.
    #[serde(skip)]
    pub why: &'static str,
    /// API groups; `""` is the core group.
    pub api_groups: &'static [&'static str],
    /// Resources and subresources.
    pub resources: &'static [&'static str],
    /// The only objects it is about; empty: all. (`create` cannot be limited so and is a rule of its own.)
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub resource_names: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];

/// Whether the list has only what is always needed, or also that to scale the kinds that are known by name.
///
/// A kind that is not on this list is scaled after the administrator has given `get`, `list`, `watch` on it and `get`,
/// `patch` on its `scale`; until then the binding's condition names what is missing.
pub fn rbac() -> Vec<Rule> {
    let rule = |scope, why, api_groups, resources, verbs| Rule {
        scope,
        why,
        api_groups,
        resources,
        resource_names: &[],
        verbs,
    };
    vec![
        rule(
            Scope::Targets,
            "what is asked for",
            &["autoscaling.matrixinfer.ai"],
            &["autoscalingpolicies", "autoscalingpolicybindings"],
            READ,
        ),
        rule(
            Scope::Targets,
            "the truth back",
            &["autoscaling.matrixinfer.ai"],
            &["autoscalingpolicies/status", "autoscalingpolicybindings/status"],
            &["patch"],
        ),
        rule(
            Scope::Targets,
            "replicas, their phases, and which of them goes first",
            &[""],
            &["pods"],
            &["get", "list", "watch", "patch"],
        ),
        rule(
            Scope::Targets,
            "targets",
            &["apps"],
            &["deployments", "replicasets", "statefulsets"],
            READ,
        ),
        rule(
            Scope::Targets,
            "their counts",
            &["apps"],
            &["deployments/scale", "replicasets/scale", "statefulsets/scale"],
            &["get", "patch"],
        ),
        rule(
            Scope::Targets,
            "groups of Pods as targets",
            &["leaderworkerset.x-k8s.io"],
            &["leaderworkersets"],
            READ,
        ),
        rule(
            Scope::Targets,
            "their counts",
            &["leaderworkerset.x-k8s.io"],
            &["leaderworkersets/scale"],
            &["get", "patch"],
        ),
        rule(
            Scope::Targets,
            "ModelServing as a target; its roles' counts stand in the object itself",
            &["workload.serving.volcano.sh"],
            &["modelservings"],
            &["get", "list", "watch", "patch"],
        ),
        rule(
            Scope::Targets,
            "its count",
            &["workload.serving.volcano.sh"],
            &["modelservings/scale"],
            &["get", "patch"],
        ),
        rule(
            Scope::Targets,
            "other autoscalers on the same target",
            &["autoscaling"],
            &["horizontalpodautoscalers"],
            READ,
        ),
        rule(
            Scope::Targets,
            "other autoscalers on the same target",
            &["keda.sh"],
            &["scaledobjects"],
            READ,
        ),
        rule(
            Scope::Targets,
            "other autoscalers on the same target",
            &["autoscaling.internal.knative.dev"],
            &["podautoscalers"],
            READ,
        ),
        rule(
            Scope::Targets,
            "other autoscalers on the same target",
            &["workload.serving.volcano.sh"],
            &["autoscalingpolicybindings"],
            READ,
        ),
        rule(
            Scope::Targets,
            "what has been done, in kubectl describe",
            &["events.k8s.io"],
            &["events"],
            &["create", "patch"],
        ),
        rule(
            Scope::Own,
            "which decider decides on what",
            &["coordination.k8s.io"],
            &["leases"],
            // The manifests have them, so that they go with the release: nothing is created.
            &["get", "list", "watch", "update"],
        ),
        Rule {
            resource_names: &[crate::ca::SECRET],
            ..rule(
                Scope::Own,
                "the certificate authority",
                &[""],
                &["secrets"],
                &["get", "patch"],
            )
        },
        Rule {
            resource_names: &[crate::ca::WEBHOOKS],
            ..rule(
                Scope::Cluster,
                "the webhooks trust our certificate authority",
                &["admissionregistration.k8s.io"],
                &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
                &["get", "patch"],
            )
        },
        rule(
            Scope::Cluster,
            "when a kind appears that a target is of",
            &["apiextensions.k8s.io"],
            &["customresourcedefinitions"],
            &["list", "watch"],
        ),
        rule(
            Scope::Cluster,
            "who an agent or a person is",
            &["authentication.k8s.io"],
            &["tokenreviews"],
            &["create"],
        ),
        rule(
            Scope::Cluster,
            "what a person may do",
            &["authorization.k8s.io"],
            &["subjectaccessreviews"],
            &["create"],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a role must not give away: nothing by wildcard, no Secret but our own, nothing that deletes.
    #[test]
    fn rules_are_narrow() {
        for rule in rbac() {
            let all = [rule.api_groups, rule.resources, rule.verbs].concat();
            assert!(!all.contains(&"*"), "{rule:?}");
            assert!(!rule.verbs.iter().any(|verb| verb.starts_with("delete")), "{rule:?}");
            let is_secret = rule.resources.contains(&"secrets");
            assert!(!is_secret || rule.scope == Scope::Own, "{rule:?}");
            assert!(!is_secret || !rule.resource_names.is_empty(), "{rule:?}");
            assert!(
                rule.resource_names.is_empty() || !rule.verbs.contains(&"create"),
                "{rule:?}"
            );
        }
    }
}
