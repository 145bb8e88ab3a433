//! What is wrong with a target, in words.

use super::{
    Problem, TargetRef,
    api::{Gvk, is_plain},
    kinds::Kind,
    state::State,
};

impl State {
    /// What is wrong with a target.
    pub(super) fn problems(&self, key: &str) -> Vec<Problem> {
        let Some(entry) = self.entries.get(key) else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        for (index, part) in entry.parts.iter().enumerate() {
            let name = &part.part.name;
            let target = &part.part.target;
            let fails = |message: String| Problem::Failed {
                part: name.clone(),
                message,
            };
            if !is_plain(&target.namespace) || !is_plain(&target.name) || !is_plain(&target.kind) {
                problems.push(fails(format!("{target} can not be a name in a cluster")));
                continue;
            }
            if !self.namespaces.is_empty() && !self.namespaces.contains(&target.namespace) {
                problems.push(fails(format!(
                    "namespace {} is not among those that the decider looks at",
                    target.namespace
                )));
                continue;
            }
            if let Some(Err(why)) = &part.path {
                problems.push(Problem::BadPath {
                    part: name.clone(),
                    path: target.replicas_path.clone().unwrap_or_default(),
                    target: target.to_string(),
                    why: why.clone(),
                });
                continue;
            }
            let kind = self.kinds.get(&part.gvk);
            if let Some(problem) = kind.and_then(|kind| kind.problem.as_ref()) {
                problems.push(problem.for_part(name, &part.gvk));
            } else if part.path.is_none()
                && kind
                    .and_then(|kind| kind.resource.as_ref())
                    .is_some_and(|resource| !resource.has_scale)
            {
                problems.push(Problem::NoScale {
                    part: name.clone(),
                    kind: target.kind.clone(),
                });
            } else if entry.machine.spec(index).is_none() && kind.is_some_and(|kind| self.is_missing(kind, target)) {
                problems.push(Problem::NotFound {
                    part: name.clone(),
                    target: target.to_string(),
                });
            } else {
                problems.extend(part.read_problem.clone());
            }
            problems.extend(part.write_problem.clone());
            let pods = Gvk::new("v1", "Pod");
            problems.extend(self.pods_problem.as_ref().map(|problem| problem.for_part(name, &pods)));
        }
        problems
    }

    fn is_missing(&self, kind: &Kind, target: &TargetRef) -> bool {
        let object = (target.namespace.clone(), target.name.clone());
        kind.knows(&target.namespace) && !kind.objects.contains_key(&object)
    }
}
