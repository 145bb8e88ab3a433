//! What there is, and what follows from it: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use infer_api::{
    BindingSpec, BindingStatus, ConditionStatus, PolicySpec, PolicyStatus, ResolvedBound, TargetRef, Unresolved,
};
use serde_json::Value;

use super::{
    conflict::{Claim, Claimant, Rank, Rival, Verdict, judge},
    status::{CONFLICT, YIELDS},
    watch::{Kind, Object, Source, Told, foreign_claims},
};

/// Namespace and name.
pub(super) type Id = (String, String);

/// What matters of metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Meta {
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) created_ms: i64,
    pub(crate) version: String,
    /// Is being deleted.
    pub(crate) is_going: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) meta: Meta,
    pub(super) spec: Result<PolicySpec, String>,
    pub(super) status: PolicyStatus,
}

#[derive(Debug, Clone)]
pub(super) struct Binding {
    pub(super) meta: Meta,
    pub(super) spec: Result<BindingSpec, String>,
    pub(super) status: BindingStatus,
    pub(super) state: State,
    /// Has what this one has, and should not.
    pub(super) disturbed_by: Option<Rival>,
    claims: Vec<Claim>,
    resolved: Result<Vec<ResolvedBound>, Unresolved>,
}

/// What follows for a binding.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// It makes no sense.
    Wrong(String),
    /// Waits for these policies.
    NoPolicy(Vec<String>),
    /// Somebody else has a target of it.
    Yields(Rival),
    /// There is something to decide about.
    Active(Vec<ResolvedBound>),
}

#[derive(Debug, Clone)]
struct Foreign {
    created_ms: i64,
    claims: Vec<Claim>,
}

/// What has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Bindings that came, went or mean something else now, or whose status has.
    pub(super) bindings: BTreeSet<Id>,
    /// Policies likewise.
    pub(super) policies: BTreeSet<Id>,
}

/// All objects, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Index {
    policies: BTreeMap<Id, Policy>,
    bindings: BTreeMap<Id, Binding>,
    foreign: BTreeMap<(Id, Kind), Foreign>,
    /// While a source tells all there is: what it has told.
    listing: HashMap<Source, HashSet<Id>>,
    /// To be resolved anew.
    unresolved: BTreeSet<Id>,
    /// Namespaces to be judged anew.
    unjudged: BTreeSet<String>,
    changed: Settled,
}

impl Index {
    pub(super) fn binding(&self, id: &Id) -> Option<&Binding> {
        self.bindings.get(id)
    }

    pub(super) fn policy(&self, id: &Id) -> Option<&Policy> {
        self.policies.get(id)
    }

    pub(super) fn bindings(&self) -> impl Iterator<Item = (&Id, &Binding)> {
        self.bindings.iter()
    }

    pub(super) fn policies(&self) -> impl Iterator<Item = &Id> {
        self.policies.keys()
    }

    /// Bindings of the namespace that refer to a policy.
    pub(super) fn dependents<'a>(
        &'a self,
        namespace: &'a str,
        policy: &'a str,
    ) -> impl Iterator<Item = (&'a Id, &'a Binding)> {
        within(&self.bindings, namespace).filter(move |(_, binding)| {
            binding
                .spec
                .as_ref()
                .is_ok_and(|spec| policies_of(spec).any(|name| name == policy))
        })
    }

    /// Who else has the target: kind and name. Bindings that have yielded have nothing.
    pub(super) fn other_owner(&self, namespace: &str, binding: &str, target: &TargetRef) -> Option<String> {
        let wanted = Claim::of(target);
        let wants = |claims: &[Claim]| claims.iter().any(|claim| claim.is_same(&wanted));
        let ours = within(&self.bindings, namespace)
            .filter(|((_, name), other)| name != binding && !matches!(other.state, State::Yields(_)))
            .find(|(_, other)| !other.meta.is_going && wants(&other.claims))
            .map(|((_, name), _)| format!("{} {name}", Kind::Binding.name()));
        ours.or_else(|| {
            self.foreign
                .iter()
                .find(|(((other, _), _), foreign)| other == namespace && wants(&foreign.claims))
                .map(|(((_, name), kind), _)| format!("{} {name}", kind.name()))
        })
    }

    pub(super) fn tell(&mut self, source: &Source, told: Told) {
        match told {
            Told::Begins => drop(self.listing.insert(source.clone(), HashSet::new())),
            Told::Is(object) => {
                if let Some(listed) = self.listing.get_mut(source) {
                    listed.insert((object.namespace.clone(), object.name.clone()));
                }
                self.is(source.kind, *object);
            }
            Told::Gone { namespace, name } => self.gone(source.kind, &(namespace, name)),
            Told::Complete => {
                for id in self.vanished(source) {
                    self.gone(source.kind, &id);
                }
            }
            Told::Fails(_) => {}
        }
    }

    /// What was there and was not told again.
    fn vanished(&mut self, source: &Source) -> Vec<Id> {
        let listed = self.listing.remove(source).unwrap_or_default();
        let known: Vec<&Id> = match source.kind {
            Kind::Policy => self.policies.keys().collect(),
            Kind::Binding => self.bindings.keys().collect(),
            kind => self
                .foreign
                .keys()
                .filter(|(_, other)| *other == kind)
                .map(|(id, _)| id)
                .collect(),
        };
        let in_scope = |id: &&&Id| source.namespace.as_ref().is_none_or(|namespace| *namespace == id.0);
        let vanished = known.iter().filter(in_scope).filter(|id| !listed.contains(**id));
        vanished.map(|id| (*id).clone()).collect()
    }

    fn is(&mut self, kind: Kind, object: Object) {
        let id = (object.namespace, object.name);
        match kind {
            Kind::Policy => {
                let known = self.policies.get(&id);
                let is_same = known.is_some_and(|known| is_same(&known.meta, &object.meta));
                let spec = match known {
                    Some(known) if is_same => known.spec.clone(),
                    _ => infer_api::read_policy_spec(&object.spec).map_err(|mistakes| listed(&mistakes)),
                };
                let policy = Policy {
                    meta: object.meta,
                    spec,
                    status: lenient(object.status),
                };
                self.changed.policies.insert(id.clone());
                if !is_same {
                    self.policy_changed(&id);
                }
                self.policies.insert(id, policy);
            }
            Kind::Binding => self.binding_is(id, object.meta, &object.spec, object.status),
            Kind::Foreign(_) => {
                let foreign = Foreign {
                    created_ms: object.meta.created_ms,
                    claims: foreign_claims(&object.spec),
                };
                // HPAs write their status every quarter of a minute: only what they claim matters.
                let key = (id, kind);
                let is_same = self
                    .foreign
                    .get(&key)
                    .is_some_and(|known| known.claims == foreign.claims);
                if !is_same {
                    self.unjudged.insert(key.0.0.clone());
                }
                self.foreign.insert(key, foreign);
            }
        }
    }

    fn binding_is(&mut self, id: Id, meta: Meta, spec: &Value, status: Value) {
        let status: BindingStatus = lenient(status);
        self.changed.bindings.insert(id.clone());
        if let Some(known) = self.bindings.get_mut(&id)
            && is_same(&known.meta, &meta)
        {
            let rank_before = known.rank();
            known.meta = meta;
            known.status = status;
            if known.rank() != rank_before {
                self.unjudged.insert(id.0);
            }
            return;
        }
        let spec = infer_api::read_binding_spec(spec).map_err(|mistakes| listed(&mistakes));
        let claims = spec.as_ref().map_or_else(
            |_| Vec::new(),
            |spec| spec.target_refs().iter().map(|(_, target)| Claim::of(target)).collect(),
        );
        self.unresolved.insert(id.clone());
        self.unjudged.insert(id.0.clone());
        self.note_policies(&id);
        let binding = Binding {
            meta,
            spec,
            status,
            state: State::NoPolicy(Vec::new()),
            disturbed_by: None,
            claims,
            resolved: Err(Unresolved::NoPolicy(Vec::new())),
        };
        self.bindings.insert(id.clone(), binding);
        self.note_policies(&id);
    }

    /// How many bindings a policy has is in its status.
    fn note_policies(&mut self, binding: &Id) {
        let Some(Ok(spec)) = self.bindings.get(binding).map(|binding| &binding.spec) else {
            return;
        };
        let names = policies_of(spec).map(|name| (binding.0.clone(), name.to_owned()));
        self.changed.policies.extend(names);
    }

    fn gone(&mut self, kind: Kind, id: &Id) {
        match kind {
            Kind::Policy => {
                if self.policies.remove(id).is_some() {
                    self.changed.policies.insert(id.clone());
                    self.policy_changed(id);
                }
            }
            Kind::Binding => {
                self.note_policies(id);
                if self.bindings.remove(id).is_some() {
                    self.changed.bindings.insert(id.clone());
                    self.unjudged.insert(id.0.clone());
                }
            }
            Kind::Foreign(_) => {
                if self.foreign.remove(&(id.clone(), kind)).is_some() {
                    self.unjudged.insert(id.0.clone());
                }
            }
        }
    }

    fn policy_changed(&mut self, (namespace, name): &Id) {
        let ids: Vec<Id> = self.dependents(namespace, name).map(|(id, _)| id.clone()).collect();
        self.unresolved.extend(ids);
    }

    /// Draws the conclusions from all that was told, and says what is to be looked at again.
    pub(super) fn settle(&mut self) -> Settled {
        let unresolved = std::mem::take(&mut self.unresolved);
        for id in &unresolved {
            self.resolve(id);
            self.unjudged.insert(id.0.clone());
        }
        for namespace in std::mem::take(&mut self.unjudged) {
            self.judge(&namespace);
        }
        std::mem::take(&mut self.changed)
    }

    fn resolve(&mut self, id: &Id) {
        let Some(binding) = self.bindings.get(id) else {
            return;
        };
        let Ok(spec) = &binding.spec else {
            return;
        };
        let policy = |name: &str| self.policies.get(&(id.0.clone(), name.to_owned()));
        let wrong = policies_of(spec).find_map(|name| Some((name, policy(name)?.spec.as_ref().err()?)));
        let resolved = match wrong {
            Some((name, problem)) => Err(Unresolved::Wrong(vec![infer_api::FieldMistake {
                field: "spec.policyRef.name".to_owned(),
                problem: format!("AutoscalingPolicy {name} is wrong: {problem}"),
                allowed: None,
            }])),
            None => infer_api::resolve(&id.0, &id.1, spec, |name| policy(name)?.spec.as_ref().ok().cloned()),
        };
        if let Some(binding) = self.bindings.get_mut(id) {
            binding.resolved = resolved;
        }
    }

    fn judge(&mut self, namespace: &str) {
        let verdicts = {
            let ours: Vec<(&Id, &Binding)> = within(&self.bindings, namespace)
                .filter(|(_, binding)| binding.takes_part())
                .collect();
            let mut claimants: Vec<Claimant<'_>> = ours.iter().map(|(id, binding)| binding.claimant(id)).collect();
            let foreign = self.foreign.iter().filter(|(((other, _), _), _)| other == namespace);
            claimants.extend(foreign.map(|(((_, name), kind), foreign)| Claimant {
                kind: kind.name(),
                name,
                created_ms: foreign.created_ms,
                rank: Rank::New,
                is_foreign: true,
                claims: &foreign.claims,
            }));
            let verdicts = judge(&claimants);
            let ids = ours.into_iter().map(|(id, _)| id.clone());
            ids.zip(verdicts).collect::<HashMap<Id, Verdict>>()
        };
        let range = (namespace.to_owned(), String::new())..;
        for (id, binding) in self.bindings.range_mut(range).take_while(|(id, _)| id.0 == namespace) {
            let verdict = verdicts.get(id).cloned().unwrap_or_default();
            let state = match (&binding.spec, &binding.resolved, verdict.yields_to) {
                (Err(problem), ..) => State::Wrong(problem.clone()),
                (_, Err(Unresolved::Wrong(mistakes)), _) => State::Wrong(listed(mistakes)),
                (.., Some(rival)) => State::Yields(rival),
                (_, Err(Unresolved::NoPolicy(names)), None) => State::NoPolicy(names.clone()),
                (_, Ok(bounds), None) => State::Active(bounds.clone()),
            };
            if binding.state != state || binding.disturbed_by != verdict.disturbed_by {
                binding.state = state;
                binding.disturbed_by = verdict.disturbed_by;
                self.changed.bindings.insert(id.clone());
            }
        }
    }
}

impl Binding {
    /// One that waits for its policy holds its place; one that makes no sense has none, and one that goes has left it.
    fn takes_part(&self) -> bool {
        self.spec.is_ok() && !self.meta.is_going && !matches!(self.resolved, Err(Unresolved::Wrong(_)))
    }

    fn claimant<'a>(&'a self, id: &'a Id) -> Claimant<'a> {
        Claimant {
            kind: Kind::Binding.name(),
            name: &id.1,
            created_ms: self.meta.created_ms,
            rank: self.rank(),
            is_foreign: false,
            claims: &self.claims,
        }
    }

    /// What its status says that it was told.
    fn rank(&self) -> Rank {
        let told = self
            .status
            .conditions
            .iter()
            .find(|condition| condition.kind == CONFLICT);
        match told {
            Some(told) if told.observed_generation != Some(self.meta.generation) => Rank::New,
            Some(told) if told.status == ConditionStatus::True && told.reason == YIELDS => Rank::Yielded,
            Some(told) if told.status != ConditionStatus::Unknown => Rank::Has,
            _ => Rank::New,
        }
    }
}

fn within<'a, T>(objects: &'a BTreeMap<Id, T>, namespace: &'a str) -> impl Iterator<Item = (&'a Id, &'a T)> {
    let range = (namespace.to_owned(), String::new())..;
    objects.range(range).take_while(move |(id, _)| id.0 == namespace)
}

/// Every policy that a binding names, roles included.
fn policies_of(spec: &BindingSpec) -> impl Iterator<Item = &str> {
    let roles = spec.roles.iter().flatten().filter_map(|role| role.policy_ref.as_ref());
    spec.policy_ref
        .iter()
        .chain(roles)
        .map(|reference| reference.name.as_str())
}

/// Whether the spec is the same.
fn is_same(known: &Meta, new: &Meta) -> bool {
    known.uid == new.uid && known.generation == new.generation && known.is_going == new.is_going
}

fn listed(mistakes: &[infer_api::FieldMistake]) -> String {
    let texts: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// A status that cannot be read is as good as none: it is written anew.
fn lenient<T: serde::de::DeserializeOwned + Default>(status: Value) -> T {
    serde_json::from_value(status).unwrap_or_default()
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
