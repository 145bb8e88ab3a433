//! From the spec of a custom resource to what there is to decide about.
//!
//! The API server has refused what makes no sense, by the schema and the rules of the custom resource definition. But a
//! definition can be edited and an object can be older than it, so everything is looked at again here, and one wrong
//! object is told what is wrong with it and harms no other.

use std::collections::BTreeSet;
use std::time::Duration;

use infer_core::decision::Control;
use infer_core::policy::{Bounds, Policy};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use thiserror::Error;

use crate::binding::{BindingMode, BindingSpec, Bound, ForeignChanges, TargetRef};
use crate::consistency::{self, FieldMistake};
use crate::demand::Demand;
use crate::policy::{PolicySpec, count};
use crate::roles::Ratio;
use crate::{check, schema, tree};

/// One load domain: what one policy decides about. A `scaling` or `optimize` binding is one, and so is each role.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedBound {
    /// `namespace/binding`, or `namespace/binding/role`.
    pub key: String,
    /// Name of the role; `None` for a binding without roles.
    pub role: Option<String>,
    /// Name of the policy; the binding's own name where the policy is written in the binding.
    pub policy_name: String,
    /// The policy in the core's terms.
    pub policy: Policy,
    /// The limits of the whole.
    pub bounds: Bounds,
    /// What is done with decisions, as written.
    pub mode: BindingMode,
    /// What is scaled: one part, or several for `optimize`.
    pub parts: Vec<ResolvedPart>,
    /// The ratio in which this role takes part.
    pub ratio: Option<ResolvedRatio>,
    /// How long replicas that have to go are given to finish their requests.
    pub drain_timeout: Duration,
    /// What is done when somebody else has changed the replicas.
    pub foreign_changes: ForeignChanges,
    /// Where requests are counted that wait while no replica runs.
    pub demand: Option<Demand>,
}

impl ResolvedBound {
    /// The mode in the core's terms.
    pub fn control(&self) -> Control {
        self.mode.control()
    }
}

/// One object whose replica count is set.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedPart {
    /// Name of the part within the binding: of the role, of the target of `optimize`, or of the object.
    pub name: String,
    /// Group and version of the object.
    pub api_version: String,
    /// Kind of the object.
    pub kind: String,
    /// Name of the object, in the binding's namespace.
    pub target_name: String,
    /// Where in the object the count stands; `None` for the scale subresource. See [`crate::parse_replicas_path`].
    pub replicas_path: Option<String>,
    /// Never fewer replicas of this part.
    pub min: u32,
    /// Never more replicas of this part.
    pub max: u32,
    /// Cost of one replica, more than 0; 1 for a binding with one target.
    pub cost: f64,
}

/// Allowed quotient of the counts of two targets.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedRatio {
    /// Key of the target that is divided.
    pub numerator: String,
    /// Key of the target that it is divided by.
    pub denominator: String,
    /// Smallest allowed quotient.
    pub min: f64,
    /// Largest allowed quotient.
    pub max: f64,
}

/// Why a binding cannot be acted on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unresolved {
    /// These policies do not exist (yet); there is nothing wrong with the binding itself.
    #[error("there is no AutoscalingPolicy {} in this namespace", .0.join(", "))]
    NoPolicy(Vec<String>),
    /// Mistakes, at least one.
    #[error("{}", list(.0))]
    Wrong(Vec<FieldMistake>),
}

fn list(mistakes: &[FieldMistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Reads the `spec` of an AutoscalingPolicy from an object of the API server.
///
/// # Errors
/// Every mistake found, at least one.
pub fn read_policy_spec(spec: &Json) -> Result<PolicySpec, Vec<FieldMistake>> {
    let policy: PolicySpec = read("AutoscalingPolicy", spec)?;
    let mistakes = consistency::of_policy("spec", &policy);
    if mistakes.is_empty() { Ok(policy) } else { Err(mistakes) }
}

/// Reads the `spec` of an AutoscalingPolicyBinding from an object of the API server. Policies that it refers to are not
/// looked at; [`resolve`] does.
///
/// # Errors
/// Every mistake found, at least one.
pub fn read_binding_spec(spec: &Json) -> Result<BindingSpec, Vec<FieldMistake>> {
    let binding: BindingSpec = read("AutoscalingPolicyBinding", spec)?;
    let mistakes = binding_mistakes(&binding);
    if mistakes.is_empty() {
        Ok(binding)
    } else {
        Err(mistakes)
    }
}

fn binding_mistakes(binding: &BindingSpec) -> Vec<FieldMistake> {
    let mut mistakes = consistency::of_binding(binding);
    mistakes.extend(consistency::of_binding_in_cluster(binding));
    mistakes
}

/// Everything that the schema of a kind says about `spec`.
fn read<T: DeserializeOwned>(kind: &str, spec: &Json) -> Result<T, Vec<FieldMistake>> {
    let spec_schema = schema::of(kind).map_or(&Json::Null, |schema| &schema["properties"]["spec"]);
    let mut findings = Vec::new();
    let found = check::check_at("spec", spec_schema, &tree::Node::from_json(spec), &mut findings);
    let mut mistakes: Vec<FieldMistake> = findings
        .into_iter()
        .map(|finding| FieldMistake::new(finding.field, finding.problem, finding.allowed))
        .collect();
    match found.map(serde_json::from_value) {
        Some(Ok(value)) if mistakes.is_empty() => return Ok(value),
        Some(Err(error)) if mistakes.is_empty() => mistakes.push(FieldMistake::new("spec", error.to_string(), None)),
        None if mistakes.is_empty() => mistakes.push(FieldMistake::new("spec", "cannot be read", None)),
        _ => {}
    }
    Err(mistakes)
}

/// Looks at a value that was read in some other way as if it had just come.
fn again<T: Serialize + DeserializeOwned>(kind: &str, spec: &T) -> Result<(), Vec<FieldMistake>> {
    let json = serde_json::to_value(spec).map_err(|error| vec![FieldMistake::new("spec", error.to_string(), None)])?;
    read::<T>(kind, &json).map(drop)
}

/// What there is to decide about by the binding `name` in `namespace`; `policy` finds an AutoscalingPolicy of that
/// namespace by its name.
///
/// # Errors
/// [`Unresolved::Wrong`] with every mistake of the binding, of a policy it refers to, and of the two together;
/// [`Unresolved::NoPolicy`] when the binding itself is right and a policy is missing.
pub fn resolve(
    namespace: &str,
    name: &str,
    spec: &BindingSpec,
    policy: impl Fn(&str) -> Option<PolicySpec>,
) -> Result<Vec<ResolvedBound>, Unresolved> {
    again("AutoscalingPolicyBinding", spec).map_err(Unresolved::Wrong)?;
    let mistakes = binding_mistakes(spec);
    if !mistakes.is_empty() {
        return Err(Unresolved::Wrong(mistakes));
    }
    let mut resolver = Resolver {
        name,
        policy: &policy,
        missing: BTreeSet::new(),
        mistakes: Vec::new(),
    };
    let key = format!("{namespace}/{name}");
    let bounds = spec.bounds();
    let bounds: Vec<ResolvedBound> = bounds
        .iter()
        .filter_map(|bound| resolver.bound(&key, spec, bound))
        .collect();
    if !resolver.mistakes.is_empty() {
        return Err(Unresolved::Wrong(resolver.mistakes));
    }
    if !resolver.missing.is_empty() {
        return Err(Unresolved::NoPolicy(resolver.missing.into_iter().collect()));
    }
    Ok(bounds)
}

struct Resolver<'a, F> {
    name: &'a str,
    policy: &'a F,
    missing: BTreeSet<String>,
    mistakes: Vec<FieldMistake>,
}

impl<F: Fn(&str) -> Option<PolicySpec>> Resolver<'_, F> {
    /// `None` when the policy is missing or wrong, which is remembered.
    fn bound(&mut self, key: &str, spec: &BindingSpec, bound: &Bound<'_>) -> Option<ResolvedBound> {
        let key_of = |role: &str| format!("{key}/{role}");
        let role = bound.name.filter(|_| spec.roles.is_some());
        let takes_part = |ratio: &&Ratio| role.is_some_and(|role| role == ratio.numerator || role == ratio.denominator);
        let ratio = spec.ratio.as_ref().filter(takes_part).map(|ratio| ResolvedRatio {
            numerator: key_of(&ratio.numerator),
            denominator: key_of(&ratio.denominator),
            min: ratio.min,
            max: ratio.max,
        });
        let (policy_name, policy) = self.policy(bound)?;
        Some(ResolvedBound {
            key: role.map_or_else(|| key.to_owned(), key_of),
            role: role.map(str::to_owned),
            policy_name,
            policy: policy.to_core(),
            bounds: bound.bounds,
            mode: spec.mode,
            parts: parts(spec, role),
            ratio,
            drain_timeout: Duration::from_secs(count(spec.drain.timeout_seconds).into()),
            foreign_changes: spec.foreign_changes,
            demand: spec.demand.clone(),
        })
    }

    fn policy(&mut self, bound: &Bound<'_>) -> Option<(String, PolicySpec)> {
        let Some(name) = bound.policy_ref else {
            return Some((self.name.to_owned(), bound.policy?.clone()));
        };
        let Some(policy) = (self.policy)(name) else {
            self.missing.insert(name.to_owned());
            return None;
        };
        let at = format!("{}.policyRef.name", bound.at);
        if let Err(mistakes) = policy_mistakes(&policy) {
            let problem = format!("AutoscalingPolicy {name} is wrong: {}", list(&mistakes));
            self.mistakes.push(FieldMistake::new(at, problem, None));
            return None;
        }
        let whose = format!(" of AutoscalingPolicy {name}");
        if let Some(mistake) = consistency::of_activation(&at, &whose, &policy, bound.bounds.max) {
            self.mistakes.push(mistake);
            return None;
        }
        Some((name.to_owned(), policy))
    }
}

/// What is scaled: for roles, the part of this role.
fn parts(spec: &BindingSpec, role: Option<&str>) -> Vec<ResolvedPart> {
    let scaling = spec.scaling.iter();
    let scaling = scaling.map(|scaling| part(&scaling.target_ref.name, &scaling.target_ref, scaling.bounds(), 1.0));
    let optimize = spec.optimize.iter().flat_map(|optimize| &optimize.targets);
    let optimize = optimize.map(|target| part(target.name(), &target.target_ref, target.bounds(), target.cost));
    let roles = spec
        .roles
        .iter()
        .flatten()
        .filter(|own| role == Some(own.name.as_str()));
    let roles = roles.map(|role| part(&role.name, &role.target_ref, role.bounds(), 1.0));
    scaling.chain(optimize).chain(roles).collect()
}

fn policy_mistakes(policy: &PolicySpec) -> Result<(), Vec<FieldMistake>> {
    again("AutoscalingPolicy", policy)?;
    let mistakes = consistency::of_policy("spec", policy);
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

fn part(name: &str, target: &TargetRef, bounds: Bounds, cost: f64) -> ResolvedPart {
    ResolvedPart {
        name: name.to_owned(),
        api_version: target.api_version.clone().unwrap_or_default(),
        kind: target.kind.clone(),
        target_name: target.name.clone(),
        replicas_path: target.replicas_path.clone(),
        min: bounds.min,
        max: bounds.max,
        cost,
    }
}
