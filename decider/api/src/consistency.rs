//! One field against another within a policy or a binding. The same rules are told to the API server as CEL (`crd`);
//! here they serve documents in files, and objects that came past the API server.

use std::fmt;

use crate::binding::{BindingSpec, TargetRef};
use crate::demand::Demand;
use crate::optimize::Optimize;
use crate::policy::{MetricSpec, MetricType, PolicySpec};
use crate::roles::{Ratio, Role};

/// One mistake in a field, of an object whose lines nobody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldMistake {
    /// Path of the field, such as `spec.metrics[0].target`.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right, where that can be said.
    pub allowed: Option<String>,
}

impl FieldMistake {
    pub(crate) fn new(
        field: impl Into<String>,
        problem: impl Into<String>,
        allowed: impl Into<Option<String>>,
    ) -> Self {
        FieldMistake {
            field: field.into(),
            problem: problem.into(),
            allowed: allowed.into(),
        }
    }
}

impl fmt::Display for FieldMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)?;
        match &self.allowed {
            Some(allowed) => write!(f, "; {allowed}"),
            None => Ok(()),
        }
    }
}

/// What is wrong with a policy that stands at `at`.
pub(crate) fn of_policy(at: &str, policy: &PolicySpec) -> Vec<FieldMistake> {
    let mut found = Vec::new();
    for (index, metric) in policy.metrics.iter().enumerate() {
        let at = format!("{at}.metrics[{index}]");
        match (metric.metric.signal(), metric.quantile) {
            (Some(_), None) => found.push(FieldMistake::new(
                format!("{at}.quantile"),
                "is required for a latency and missing",
                "for example 0.95; more than 0, less than 1".to_owned(),
            )),
            (None, Some(_)) => found.push(FieldMistake::new(
                format!("{at}.quantile"),
                format!("has no meaning for {}, which is not a latency", metric.metric.name()),
                "leave it out".to_owned(),
            )),
            _ => {}
        }
        if metric.metric == MetricType::KvUsage && metric.target > 1.0 {
            let problem = format!("{} is more than a whole KV cache", metric.target);
            let allowed = "allowed: a share, more than 0, at most 1 (80 % is 0.8)".to_owned();
            found.push(FieldMistake::new(format!("{at}.target"), problem, allowed));
        }
        let same = |other: &MetricSpec| other.metric == metric.metric && other.quantile == metric.quantile;
        if let Some(first) = policy.metrics[..index].iter().position(same) {
            let problem = format!("{} is already in metrics[{first}]", metric.metric.name());
            found.push(FieldMistake::new(
                format!("{at}.type"),
                problem,
                "keep one of them".to_owned(),
            ));
        }
    }
    found
}

/// What is wrong with a binding by itself, wherever its targets are.
pub(crate) fn of_binding(spec: &BindingSpec) -> Vec<FieldMistake> {
    let mut found = Vec::new();
    let one_policy = "allowed: exactly one of policyRef and policy".to_owned();
    match (&spec.policy_ref, &spec.policy) {
        (Some(_), Some(_)) => found.push(FieldMistake::new("spec.policy", "stands beside policyRef", one_policy)),
        (None, None) => found.push(FieldMistake::new(
            "spec",
            "has neither policyRef nor policy",
            one_policy,
        )),
        (None, Some(policy)) => found.extend(of_policy("spec.policy", policy)),
        (Some(_), None) => {}
    }
    let given = [
        ("scaling", spec.scaling.is_some()),
        ("optimize", spec.optimize.is_some()),
        ("roles", spec.roles.is_some()),
    ];
    let given: Vec<&str> = given
        .iter()
        .filter(|(_, is_given)| *is_given)
        .map(|(name, _)| *name)
        .collect();
    let one_form = "allowed: exactly one of scaling, optimize and roles".to_owned();
    match given.as_slice() {
        [] => found.push(FieldMistake::new(
            "spec",
            "has none of scaling, optimize and roles",
            one_form,
        )),
        [_] => {}
        [first, second, ..] => {
            let problem = format!("stands beside {first}");
            found.push(FieldMistake::new(format!("spec.{second}"), problem, one_form));
        }
    }
    if let Some(scaling) = &spec.scaling {
        of_limits("spec.scaling", scaling.min_replicas, scaling.max_replicas, &mut found);
    }
    if let Some(optimize) = &spec.optimize {
        of_optimize(optimize, &mut found);
    }
    if let Some(roles) = &spec.roles {
        of_roles(roles, &mut found);
    }
    if let Some(ratio) = &spec.ratio {
        of_ratio(ratio, spec.roles.as_deref(), &mut found);
    }
    let targets = spec.target_refs();
    for (index, (at, target)) in targets.iter().enumerate() {
        if let Some((first, _)) = targets[..index].iter().find(|(_, other)| other.is_same(target)) {
            let problem = format!("{target} is {} already", first.trim_start_matches("spec."));
            found.push(FieldMistake::new(at, problem, "give each its own target".to_owned()));
        }
    }
    for bound in spec.bounds() {
        let field = format!("{}.policy.activationScale", bound.at);
        let policy = bound.policy.filter(|_| bound.policy_ref.is_none());
        let mistake = policy.and_then(|policy| of_activation(&field, "", policy, bound.bounds.max));
        // Roles that share a policy would say it one by one.
        found.extend(mistake.filter(|mistake| !found.iter().any(|other| other.field == mistake.field)));
    }
    if let Some(demand) = &spec.demand {
        of_demand(demand, &mut found);
    }
    found
}

fn of_limits(at: &str, min: i32, max: i32, found: &mut Vec<FieldMistake>) {
    if min > max {
        let problem = format!("{min} is more than maxReplicas, {max}");
        let allowed = format!("allowed: 0 to {max}");
        found.push(FieldMistake::new(format!("{at}.minReplicas"), problem, allowed));
    }
}

fn of_optimize(optimize: &Optimize, found: &mut Vec<FieldMistake>) {
    for (index, target) in optimize.targets.iter().enumerate() {
        let at = format!("spec.optimize.targets[{index}]");
        of_limits(&at, target.min_replicas, target.max_replicas, found);
    }
    let (least, most) = (optimize.sum_of_min(), optimize.sum_of_max());
    let at = "spec.optimize.maxReplicas";
    match optimize.max_replicas {
        Some(max) if i64::from(max) < i64::from(least) => {
            let problem = format!("{max} is less than the minReplicas of the targets together, {least}");
            found.push(FieldMistake::new(at, problem, format!("allowed: {least} to {most}")));
        }
        Some(max) if i64::from(max) > i64::from(most) => {
            let problem = format!("{max} is more than the maxReplicas of the targets together, {most}");
            found.push(FieldMistake::new(
                at,
                problem,
                format!("allowed: {} to {most}", least.max(1)),
            ));
        }
        _ => {}
    }
    let max = optimize
        .max_replicas
        .map_or(i64::from(most), i64::from)
        .min(i64::from(most));
    if i64::from(optimize.min_replicas) > max {
        let problem = format!(
            "{} is more than the targets may have together, {max}",
            optimize.min_replicas
        );
        let allowed = format!("allowed: 0 to {max}");
        found.push(FieldMistake::new("spec.optimize.minReplicas", problem, allowed));
    }
    for name in optimize.repeated_names() {
        let problem = format!("two targets have the name {name:?}");
        let allowed = "give each its own name".to_owned();
        found.push(FieldMistake::new("spec.optimize.targets", problem, allowed));
    }
}

fn of_roles(roles: &[Role], found: &mut Vec<FieldMistake>) {
    for (index, role) in roles.iter().enumerate() {
        let at = format!("spec.roles[{index}]");
        of_limits(&at, role.min_replicas, role.max_replicas, found);
        if let Some(policy) = &role.policy {
            if role.policy_ref.is_some() {
                let allowed = "allowed: at most one of policyRef and policy".to_owned();
                found.push(FieldMistake::new(
                    format!("{at}.policy"),
                    "stands beside policyRef",
                    allowed,
                ));
            }
            found.extend(of_policy(&format!("{at}.policy"), policy));
        }
        if roles[..index].iter().any(|other| other.name == role.name) {
            let problem = format!("{:?} is the name of another role already", role.name);
            let allowed = "give each its own name".to_owned();
            found.push(FieldMistake::new(format!("{at}.name"), problem, allowed));
        }
    }
}

fn of_ratio(ratio: &Ratio, roles: Option<&[Role]>, found: &mut Vec<FieldMistake>) {
    let Some(roles) = roles else {
        let problem = "has no meaning without roles";
        found.push(FieldMistake::new("spec.ratio", problem, "leave it out".to_owned()));
        return;
    };
    let role = |name: &str| roles.iter().find(|role| role.name == name);
    let names: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
    let sides = [("numerator", &ratio.numerator), ("denominator", &ratio.denominator)];
    for (field, name) in sides {
        if role(name).is_none() {
            let problem = format!("{name:?} is not the name of a role");
            let allowed = format!("allowed: {}", names.join(", "));
            found.push(FieldMistake::new(format!("spec.ratio.{field}"), problem, allowed));
        }
    }
    if ratio.numerator == ratio.denominator {
        let problem = format!("{:?} is the numerator, too", ratio.denominator);
        let allowed = "name two roles".to_owned();
        found.push(FieldMistake::new("spec.ratio.denominator", problem, allowed));
    }
    if ratio.min > ratio.max {
        let problem = format!("{} is more than max, {}", ratio.min, ratio.max);
        let allowed = format!("allowed: more than 0, at most {}", ratio.max);
        found.push(FieldMistake::new("spec.ratio.min", problem, allowed));
    } else if let (Some(above), Some(below)) = (role(&ratio.numerator), role(&ratio.denominator))
        && above.max_replicas >= above.min_replicas
        && below.max_replicas >= below.min_replicas
        && !ratio.is_possible(above.bounds(), below.bounds())
    {
        let problem = format!(
            "no count of {} ({} to {}) and {} ({} to {}) has a quotient from {} to {}",
            above.name,
            above.min_replicas,
            above.max_replicas,
            below.name,
            below.min_replicas,
            below.max_replicas,
            ratio.min,
            ratio.max
        );
        let allowed = "widen the ratio or the limits of the roles".to_owned();
        found.push(FieldMistake::new("spec.ratio", problem, allowed));
    }
}

fn of_demand(demand: &Demand, found: &mut Vec<FieldMistake>) {
    let allowed = "allowed: exactly one of prometheus and http".to_owned();
    match (&demand.prometheus, &demand.http) {
        (Some(_), Some(_)) => found.push(FieldMistake::new(
            "spec.demand.http",
            "stands beside prometheus",
            allowed,
        )),
        (None, None) => found.push(FieldMistake::new(
            "spec.demand",
            "has neither prometheus nor http",
            allowed,
        )),
        _ => {}
    }
    for label in demand.prometheus.iter().flat_map(|source| source.labels.keys()) {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if label.is_empty() || !label.chars().all(is_word) || label.starts_with(|c: char| c.is_ascii_digit()) {
            let problem = format!("{label:?} cannot be the name of a label");
            let allowed = "allowed: letters, digits and '_', not beginning with a digit".to_owned();
            found.push(FieldMistake::new("spec.demand.prometheus.labels", problem, allowed));
        }
    }
}

/// What is wrong with a binding in a cluster, beyond [`of_binding`].
pub(crate) fn of_binding_in_cluster(spec: &BindingSpec) -> Vec<FieldMistake> {
    let mut found = Vec::new();
    for (at, target) in spec.target_refs() {
        of_cluster_target(&at, target, &mut found);
    }
    if spec.demand.is_none() {
        let scaling = spec.scaling.iter().filter(|scaling| scaling.min_replicas == 0);
        let optimize = spec.optimize.iter().filter(|optimize| optimize.bounds().min == 0);
        let roles = spec
            .roles
            .iter()
            .flatten()
            .enumerate()
            .filter(|(_, role)| role.min_replicas == 0);
        let zeros = scaling
            .map(|_| "spec.scaling.minReplicas".to_owned())
            .chain(optimize.map(|_| "spec.optimize.minReplicas".to_owned()))
            .chain(roles.map(|(index, _)| format!("spec.roles[{index}].minReplicas")));
        found.extend(zeros.map(|at| {
            let problem = "scaling to zero needs spec.demand: nothing would notice the request that has to wake it";
            FieldMistake::new(at, problem, "allowed: at least 1, or give spec.demand".to_owned())
        }));
    }
    found
}

/// Kinds of Kubernetes itself that somebody might name and that have no replica count.
pub(crate) const WITHOUT_COUNT: [&str; 6] = ["Pod", "DaemonSet", "Job", "CronJob", "Service", "Node"];
/// The versions in which Kubernetes has them.
pub(crate) const WITHOUT_COUNT_VERSIONS: [&str; 3] = ["v1", "apps/v1", "batch/v1"];
/// The kind of a target that one machine can run, and no cluster.
pub(crate) const LOCAL_KIND: &str = "LocalFleet";

fn of_cluster_target(at: &str, target: &TargetRef, found: &mut Vec<FieldMistake>) {
    if target.kind == LOCAL_KIND {
        let problem = format!("{LOCAL_KIND} exists on one machine only");
        let allowed = "allowed: a kind with the scale subresource, such as Deployment".to_owned();
        found.push(FieldMistake::new(format!("{at}.kind"), problem, allowed));
        return;
    }
    match target.api_version.as_deref() {
        None => found.push(FieldMistake::new(
            format!("{at}.apiVersion"),
            "is required in a cluster and missing",
            "for example apps/v1 for a Deployment".to_owned(),
        )),
        Some(version)
            if target.replicas_path.is_none()
                && WITHOUT_COUNT.contains(&target.kind.as_str())
                && WITHOUT_COUNT_VERSIONS.contains(&version) =>
        {
            let problem = format!("a {} has no replica count", target.kind);
            let allowed = "allowed: a kind with the scale subresource, such as Deployment".to_owned();
            found.push(FieldMistake::new(format!("{at}.kind"), problem, allowed));
        }
        Some(_) => {}
    }
}

/// `activationScale` of a policy against the limits of what it scales.
pub(crate) fn of_activation(at: &str, whose: &str, policy: &PolicySpec, max: u32) -> Option<FieldMistake> {
    (i64::from(policy.activation_scale) > i64::from(max)).then(|| {
        let problem = format!(
            "activationScale{whose} is {}, more than maxReplicas, {max}",
            policy.activation_scale
        );
        FieldMistake::new(at, problem, format!("allowed: 1 to {max}"))
    })
}
