//! What one field says about another, for the API server: CEL. `consistency` has the same rules in Rust.

use serde_json::{Value, json};

use crate::consistency::{LOCAL_KIND, WITHOUT_COUNT, WITHOUT_COUNT_VERSIONS};
use crate::pattern;

/// Why a value is refused, in the API server's terms. Its `FieldValueDuplicate` would lose the message.
#[derive(Clone, Copy)]
enum Reason {
    Invalid,
    Forbidden,
    Required,
}

struct Rule {
    /// True for what is right; `self` is what the rule stands at.
    rule: String,
    /// What would be right.
    message: String,
    /// The same with the values found, as CEL.
    expression: Option<String>,
    /// The field to blame, below what the rule stands at.
    field: Option<&'static str>,
    reason: Reason,
}

impl Rule {
    fn new(rule: impl Into<String>, message: impl Into<String>) -> Self {
        Rule {
            rule: rule.into(),
            message: message.into(),
            expression: None,
            field: None,
            reason: Reason::Invalid,
        }
    }

    fn at(mut self, field: &'static str) -> Self {
        self.field = Some(field);
        self
    }

    fn because(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    fn saying(mut self, expression: impl Into<String>) -> Self {
        self.expression = Some(expression.into());
        self
    }

    fn to_json(&self) -> Value {
        let mut rule = json!({"rule": self.rule, "message": self.message});
        if let Some(expression) = &self.expression {
            rule["messageExpression"] = expression.as_str().into();
        }
        if let Some(field) = self.field {
            rule["fieldPath"] = field.into();
        }
        match self.reason {
            Reason::Invalid => {}
            Reason::Forbidden => rule["reason"] = "FieldValueForbidden".into(),
            Reason::Required => rule["reason"] = "FieldValueRequired".into(),
        }
        rule
    }
}

/// A text in CEL, whose escapes are those of JSON.
pub(super) fn text(text: &str) -> String {
    Value::from(text).to_string()
}

fn texts(values: &[&str]) -> String {
    let values: Vec<String> = values.iter().map(|value| text(value)).collect();
    format!("[{}]", values.join(", "))
}

/// Adds the rules of a kind to its schema.
pub(super) fn add(kind: &str, schema: &mut Value) {
    put(schema, "", &[name()]);
    if kind == "AutoscalingPolicy" {
        add_policy(&mut schema["properties"]["spec"]);
        return;
    }
    let spec = &mut schema["properties"]["spec"];
    put(spec, "", &binding());
    add_policy(&mut spec["properties"]["policy"]);
    put(spec, "scaling", &[limits()]);
    put(spec, "optimize", &optimize());
    put(spec, "optimize.targets", &optimize_targets());
    put(spec, "optimize.targets[]", &[limits()]);
    put(spec, "roles", &roles());
    // So that several managers can apply roles by name.
    let roles = at(spec, "roles");
    roles["x-kubernetes-list-type"] = "map".into();
    roles["x-kubernetes-list-map-keys"] = json!(["name"]);
    put(spec, "roles[]", &role());
    add_policy(at(spec, "roles[].policy"));
    for target in ["scaling.targetRef", "optimize.targets[].targetRef", "roles[].targetRef"] {
        put(spec, target, &target_ref());
    }
    put(spec, "ratio", &ratio());
    put(spec, "demand", &[demand()]);
    put(spec, "demand.prometheus.labels", &[labels()]);
}

fn add_policy(policy: &mut Value) {
    put(policy, "metrics", &metrics());
    put(policy, "metrics[]", &metric());
}

/// The schema at a path such as `optimize.targets[].targetRef`.
fn at<'a>(schema: &'a mut Value, path: &str) -> &'a mut Value {
    let steps = path.split(['.', '[']).filter(|step| !step.is_empty());
    steps.fold(schema, |schema, step| match step {
        "]" => &mut schema["items"],
        name => &mut schema["properties"][name],
    })
}

fn put(schema: &mut Value, path: &str, rules: &[Rule]) {
    let own = &mut at(schema, path)["x-kubernetes-validations"];
    let mut all = own.as_array().cloned().unwrap_or_default();
    all.extend(rules.iter().map(Rule::to_json));
    *own = all.into();
}

fn name() -> Rule {
    let words = pattern::of(pattern::NAME).map_or("", |pattern| pattern.words);
    let rule = format!("self.metadata.name.matches({})", text(pattern::NAME));
    Rule::new(rule, format!("metadata.name must be {words}"))
}

fn metrics() -> [Rule; 1] {
    let same = "o.type == m.type && (has(o.quantile) ? o.quantile : 0.0) == (has(m.quantile) ? m.quantile : 0.0)";
    [Rule::new(
        format!("self.all(m, self.exists_one(o, {same}))"),
        "each type (with the same quantile) may be given once; keep one of them",
    )]
}

fn metric() -> [Rule; 3] {
    let latency = "self.type in ['ttft', 'itl', 'tpot', 'e2e', 'queueTime']";
    [
        Rule::new(
            format!("has(self.quantile) || !({latency})"),
            "quantile is required for a latency (ttft, itl, tpot, e2e, queueTime): more than 0, less than 1, for example 0.95",
        )
        .at(".quantile")
        .because(Reason::Required),
        Rule::new(
            format!("!has(self.quantile) || {latency}"),
            "quantile has a meaning for latencies only (ttft, itl, tpot, e2e, queueTime); leave it out",
        )
        .saying("'quantile has no meaning for ' + self.type + ', which is not a latency; leave it out'")
        .at(".quantile")
        .because(Reason::Forbidden),
        Rule::new(
            "self.type != 'kvUsage' || self.target <= 1.0",
            "target of kvUsage is a share: more than 0, at most 1 (80 % is 0.8)",
        )
        .at(".target"),
    ]
}

fn limits() -> Rule {
    Rule::new(
        "self.minReplicas <= self.maxReplicas",
        "minReplicas must be at most maxReplicas",
    )
    .at(".minReplicas")
}

const SUM_OF_MIN: &str = "self.targets.map(t, t.minReplicas).sum()";
const SUM_OF_MAX: &str = "self.targets.map(t, t.maxReplicas).sum()";

fn optimize() -> [Rule; 3] {
    [
        Rule::new(
            format!("!has(self.maxReplicas) || self.maxReplicas >= {SUM_OF_MIN}"),
            "maxReplicas must be at least the minReplicas of the targets together",
        )
        .at(".maxReplicas"),
        Rule::new(
            format!("!has(self.maxReplicas) || self.maxReplicas <= {SUM_OF_MAX}"),
            "maxReplicas must be at most the maxReplicas of the targets together",
        )
        .at(".maxReplicas"),
        Rule::new(
            format!(
                "self.minReplicas <= {SUM_OF_MAX} && (!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas)"
            ),
            "minReplicas must be at most maxReplicas, and at most the maxReplicas of the targets together",
        )
        .at(".minReplicas"),
    ]
}

/// Whether the targets of `o` and `t` are one and the same, whatever the versions.
fn is_same_target() -> String {
    let path = |x: &str| format!("(has({x}.targetRef.replicasPath) ? {x}.targetRef.replicasPath : '')");
    let group = |x: &str| {
        format!(
            "(has({x}.targetRef.apiVersion) && {x}.targetRef.apiVersion.contains('/') ? {x}.targetRef.apiVersion.split('/')[0] : '')"
        )
    };
    format!(
        "o.targetRef.name == t.targetRef.name && o.targetRef.kind == t.targetRef.kind && {} == {} && {} == {}",
        path("o"),
        path("t"),
        group("o"),
        group("t")
    )
}

fn same_target() -> Rule {
    Rule::new(
        format!("self.all(t, self.exists_one(o, {}))", is_same_target()),
        "a targetRef is given twice; give each its own target",
    )
}

fn optimize_targets() -> [Rule; 2] {
    let name = |x: &str| format!("(has({x}.name) ? {x}.name : {x}.targetRef.name)");
    let unique = format!("self.exists_one(o, {} == {})", name("o"), name("t"));
    [
        same_target(),
        Rule::new(
            format!("self.all(t, {unique})"),
            "two targets have the same name; give each its own name (without one, it is the name in targetRef)",
        ),
    ]
}

fn roles() -> [Rule; 2] {
    [
        same_target(),
        Rule::new(
            "self.all(r, self.exists_one(o, o.name == r.name))",
            "two roles have the same name; give each its own name",
        ),
    ]
}

fn role() -> [Rule; 3] {
    [
        limits(),
        Rule::new(
            "!has(self.policyRef) || !has(self.policy)",
            "policy stands beside policyRef; give at most one of policyRef and policy",
        )
        .at(".policy")
        .because(Reason::Forbidden),
        Rule::new(
            "!has(self.policy) || self.policy.activationScale <= self.maxReplicas",
            "activationScale must be at most maxReplicas",
        )
        .at(".policy.activationScale"),
    ]
}

fn target_ref() -> [Rule; 3] {
    let (kinds, versions) = (texts(&WITHOUT_COUNT), texts(&WITHOUT_COUNT_VERSIONS));
    [
        Rule::new(
            "has(self.apiVersion)",
            "apiVersion is required, for example apps/v1 for a Deployment",
        )
        .at(".apiVersion")
        .because(Reason::Required),
        Rule::new(
            format!("self.kind != {}", text(LOCAL_KIND)),
            format!("kind {LOCAL_KIND} exists on one machine only; allowed: a kind with the scale subresource, such as Deployment"),
        )
        .at(".kind"),
        Rule::new(
            format!(
                "has(self.replicasPath) || !has(self.apiVersion) || !(self.kind in {kinds} && self.apiVersion in {versions})"
            ),
            "kind has no replica count; allowed: a kind with the scale subresource, such as Deployment",
        )
        .saying("'a ' + self.kind + ' has no replica count; allowed: a kind with the scale subresource, such as Deployment'")
        .at(".kind"),
    ]
}

fn ratio() -> [Rule; 2] {
    [
        Rule::new(
            "self.numerator != self.denominator",
            "denominator must be another role than numerator",
        )
        .at(".denominator"),
        Rule::new("self.min <= self.max", "min must be at most max").at(".min"),
    ]
}

fn demand() -> Rule {
    Rule::new(
        "has(self.prometheus) != has(self.http)",
        "exactly one of prometheus and http must be given",
    )
}

fn labels() -> Rule {
    Rule::new(
        "self.all(label, label.matches('^[A-Za-z_][A-Za-z0-9_]*$'))",
        "names of labels must be letters, digits and '_', not beginning with a digit",
    )
}

const NEEDS_DEMAND: &str = "minReplicas 0 needs spec.demand, or nothing would notice the request that has to wake it; give spec.demand, or at least 1";

fn binding() -> Vec<Rule> {
    let mut rules = vec![
        Rule::new(
            "has(self.policyRef) != has(self.policy)",
            "exactly one of policyRef and policy must be given",
        ),
        Rule::new(
            "[has(self.scaling), has(self.optimize), has(self.roles)].exists_one(given, given)",
            "exactly one of scaling, optimize and roles must be given",
        ),
        Rule::new("!has(self.ratio) || has(self.roles)", "ratio has no meaning without roles; leave it out")
            .at(".ratio")
            .because(Reason::Forbidden),
        Rule::new(
            "has(self.demand) || !has(self.scaling) || self.scaling.minReplicas != 0",
            NEEDS_DEMAND,
        )
        .at(".scaling.minReplicas"),
        Rule::new(
            "has(self.demand) || !has(self.optimize) || self.optimize.minReplicas != 0 || self.optimize.targets.exists(t, t.minReplicas > 0)",
            NEEDS_DEMAND,
        )
        .at(".optimize.minReplicas"),
        Rule::new(
            "has(self.demand) || !has(self.roles) || self.roles.all(r, r.minReplicas != 0)",
            NEEDS_DEMAND,
        )
        .at(".roles"),
    ];
    rules.extend(activation());
    rules.extend(ratio_of_roles());
    rules
}

/// `activationScale` of a policy written in the binding. Of one that is referred to, only the decider can tell.
fn activation() -> [Rule; 3] {
    let most = "(has(self.optimize.maxReplicas) ? self.optimize.maxReplicas : self.optimize.targets.map(t, t.maxReplicas).sum())";
    let rule = |form: &str, is_right: String| {
        Rule::new(
            format!("!has(self.policy) || !has(self.{form}) || {is_right}"),
            "activationScale must be at most maxReplicas",
        )
        .at(".policy.activationScale")
    };
    [
        rule(
            "scaling",
            "self.policy.activationScale <= self.scaling.maxReplicas".to_owned(),
        ),
        rule("optimize", format!("self.policy.activationScale <= {most}")),
        rule(
            "roles",
            "self.roles.all(r, has(r.policyRef) || has(r.policy) || self.policy.activationScale <= r.maxReplicas)"
                .to_owned(),
        ),
    ]
}

fn ratio_of_roles() -> Vec<Rule> {
    let mut rules: Vec<Rule> = [("numerator", ".ratio.numerator"), ("denominator", ".ratio.denominator")]
        .into_iter()
        .map(|(side, field)| {
            Rule::new(
                format!("!has(self.ratio) || !has(self.roles) || self.roles.exists(r, r.name == self.ratio.{side})"),
                format!("{side} must be the name of one of the roles"),
            )
            .at(field)
        })
        .collect();
    // The limits of the quotient; that whole numbers lie between them is looked at where the binding is resolved.
    let is_impossible = "(double(n.maxReplicas) / double(d.minReplicas > 1 ? d.minReplicas : 1) < self.ratio.min \
                         || double(n.minReplicas > 1 ? n.minReplicas : 1) / double(d.maxReplicas) > self.ratio.max)";
    rules.push(
        Rule::new(
            format!(
                "!has(self.ratio) || !has(self.roles) || !self.roles.exists(n, n.name == self.ratio.numerator && \
                 self.roles.exists(d, d.name == self.ratio.denominator && {is_impossible}))"
            ),
            "ratio cannot be reached within minReplicas and maxReplicas of the two roles; widen the one or the other",
        )
        .at(".ratio"),
    );
    rules
}
