//! What the validating webhook sees of the cluster.

use infer_api::{PolicySpec, TargetRef};
use infer_kube::Bindings;
use infer_webhook::{Cluster, Dependent};

/// What the bindings' watches know.
pub(crate) struct InCluster(pub(crate) Bindings);

impl Cluster for InCluster {
    fn other_owner(&self, namespace: &str, binding: &str, target: &TargetRef) -> Option<String> {
        self.0.other_owner(namespace, binding, target)
    }

    fn policy(&self, namespace: &str, name: &str) -> Option<PolicySpec> {
        self.0.policy(namespace, name)
    }

    fn dependents(&self, namespace: &str, policy: &str) -> Vec<Dependent> {
        let dependents = self.0.dependents(namespace, policy).into_iter();
        dependents.map(|(name, spec)| Dependent { name, spec }).collect()
    }
}
