//! Between the service's hooks and what knows Kubernetes.

use std::sync::Arc;

use http::StatusCode;
use infer_core::{
    decision::{Mode, Rule},
    roles::Ratio,
};
use infer_kube::{
    Agents, Bindings, Bound, Ownership as KubeOwner, Report,
    auth::{self, Authenticator},
    demand::{Demands, PushError},
};
use infer_proto::v1;
use tonic::Status;

use crate::{
    actuate::BoxFuture,
    auth::{Access, Authenticate},
    hooks::{Observe, Owner, Ownership, TakeDemand, Turned},
    roles::Coupling,
    state::{Shared, TargetSpec, Wishes},
};

/// The service, as Kubernetes' side of it sees it.
pub(crate) struct Link(pub(crate) Arc<Shared>);

impl Agents for Link {
    fn drain(&self, target: &str, pod: &str, draining: bool) {
        self.0.drain(target, pod, draining);
    }

    fn load(&self, target: &str, pod: &str) -> Option<f64> {
        self.0.load(target, pod)
    }
}

/// A binding's target in the service's terms.
pub(crate) fn spec(bound: Bound) -> TargetSpec {
    let coupling = bound.ratio.map(|ratio| Coupling {
        numerator: ratio.numerator,
        denominator: ratio.denominator,
        ratio: Ratio {
            min: ratio.min,
            max: ratio.max,
        },
    });
    TargetSpec {
        name: bound.key,
        namespace: bound.namespace,
        binding: bound.binding,
        policy_name: bound.policy_name,
        policy: bound.policy,
        bounds: bound.bounds,
        control: bound.control,
        wishes: Wishes::default(),
        coupling,
    }
}

/// Leases say who owns what.
pub(crate) struct Leases(pub(crate) Bindings);

fn owner(of: KubeOwner) -> Owner {
    match of {
        KubeOwner::Mine => Owner::Mine,
        KubeOwner::Other { endpoint } => Owner::Other { endpoint },
        KubeOwner::Unknown => Owner::Unknown,
    }
}

impl Ownership for Leases {
    fn of_pod(&self, namespace: &str, pod: &str) -> Owner {
        owner(self.0.owner_of(namespace, pod))
    }

    fn of_target(&self, target: &str) -> Owner {
        owner(self.0.owner_of_target(target))
    }
}

/// Tokens, as the API server judges them.
pub(crate) struct Tokens(pub(crate) Authenticator);

fn refusal(error: auth::Error) -> Status {
    let message = error.to_string();
    match error {
        auth::Error::Unauthenticated(_) => Status::unauthenticated(message),
        auth::Error::Denied(_) => Status::permission_denied(message),
        auth::Error::Unavailable(_) => Status::unavailable(message),
    }
}

impl Authenticate for Tokens {
    fn agent(&self, token: Option<String>, pod: v1::PodIdentity) -> BoxFuture<Result<(), Status>> {
        let authenticator = self.0.clone();
        Box::pin(async move {
            let token = token.ok_or_else(|| {
                Status::unauthenticated(
                    "a token is missing: an agent sends its Pod's projected service account token with audience \
                     infer-decider as `authorization: Bearer …`",
                )
            })?;
            let agent = authenticator.agent(&token).await.map_err(refusal)?;
            let known = (&agent.namespace, &agent.pod, &agent.uid);
            if known == (&pod.namespace, &pod.name, &pod.uid) {
                return Ok(());
            }
            Err(Status::permission_denied(format!(
                "the token is that of Pod {}/{} (uid {}), and the agent says that it is in Pod {}/{} (uid {})",
                agent.namespace,
                agent.pod,
                agent.uid,
                pod.namespace,
                pod.name,
                if pod.uid.is_empty() { "not given" } else { &pod.uid },
            )))
        })
    }

    fn person(&self, token: Option<String>, access: Access, namespace: String) -> BoxFuture<Result<(), Status>> {
        let authenticator = self.0.clone();
        Box::pin(async move {
            let token = token.ok_or_else(|| {
                Status::unauthenticated(
                    "a token is missing: send one of a service account as `authorization: Bearer …`, such as that of \
                     `kubectl create token NAME --audience infer-decider`",
                )
            })?;
            let access = match access {
                Access::Read => auth::Access::Read,
                Access::Write => auth::Access::Write,
            };
            let person = authenticator
                .person(&token, access, &namespace)
                .await
                .map_err(refusal)?;
            tracing::debug!(person, ?access, namespace, "admitted");
            Ok(())
        })
    }
}

/// Gateways that tell by themselves how many requests wait.
pub(crate) struct Told {
    pub(crate) demands: Demands,
    pub(crate) bindings: Bindings,
}

impl TakeDemand for Told {
    fn told(&self, binding: &str, body: &[u8]) -> Result<(), (StatusCode, String)> {
        self.demands.push(binding, body).map_err(|error| {
            let elsewhere = match (&error, self.bindings.owner_of_target(binding)) {
                (PushError::Unknown(_), KubeOwner::Other { endpoint }) => Some(endpoint),
                _ => None,
            };
            match (&error, elsewhere) {
                (_, Some(endpoint)) => (
                    StatusCode::MISDIRECTED_REQUEST,
                    format!("another decider owns binding {binding:?}, at {endpoint}: try again on a new connection"),
                ),
                (PushError::Malformed(_), None) => (StatusCode::BAD_REQUEST, error.to_string()),
                (PushError::Unknown(_), None) => (StatusCode::NOT_FOUND, error.to_string()),
                (PushError::NotAsked(_), None) => (StatusCode::CONFLICT, error.to_string()),
            }
        })
    }
}

/// Status and Events tell what was decided.
pub(crate) struct Reports(pub(crate) Bindings);

impl Observe for Reports {
    fn turned(&self, turned: &Turned<'_>) {
        let record = turned.record;
        let (inputs, outcome) = (&record.inputs, &record.outcome);
        let (from, to) = (inputs.replicas.spec, outcome.desired);
        let applied = turned.decision.is_some() && turned.not_applied.is_none() && from != to;
        let mut memory = record.memory_after.clone();
        if turned.not_applied.is_some() {
            memory.events.forget(inputs.now);
        }
        self.0.report(Report {
            key: record.target.clone(),
            desired: to,
            mode: outcome.mode.name(),
            control: inputs.control,
            reason: outcome.reason.clone(),
            decision: turned.decision.map(|decision| (decision.id, decision.unix_ms)),
            changed: applied.then_some((from, to)),
            applied,
            not_applied: turned.not_applied.map(str::to_owned),
            limited: limited(turned),
            metrics_available: outcome.mode != Mode::Unknown,
            memory,
        });
    }
}

/// What cut the wish; the same sentence for as long as it is so.
fn limited(turned: &Turned<'_>) -> Option<String> {
    let (inputs, outcome) = (&turned.record.inputs, &turned.record.outcome);
    let bounds = inputs.bounds;
    match outcome.bound_by {
        Rule::Bounds if outcome.desired >= bounds.max => {
            Some(format!("more is wanted than maxReplicas {}", bounds.max))
        }
        Rule::Bounds => Some(format!("less is wanted than minReplicas {}", bounds.min)),
        Rule::Rate if outcome.desired >= inputs.replicas.spec => {
            Some("the scale-up policies allow no faster growth".to_owned())
        }
        Rule::Rate => Some("the scale-down policies allow no faster shrinking".to_owned()),
        Rule::Ratio => Some("the ratio to the other role asks for more than the load".to_owned()),
        _ => None,
    }
}
