//! What surrounds the service where it is one of several, or is not alone with its users. By default it owns every target,
//! trusts everybody, is ready at once and tells nobody.

use std::sync::Arc;

use infer_core::decision::Record;
use prometheus_client::encoding::DescriptorEncoder;

use crate::{
    auth::{Authenticate, Trusting},
    journal::Decision,
    state::TargetSpec,
};

/// Whose a target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This decider's.
    Mine,
    /// Another decider's, at this endpoint.
    Other {
        /// `https://host:port`.
        endpoint: String,
    },
    /// Not known now: ask again.
    Unknown,
}

/// Knows which decider owns what. Asked under no lock, and answers at once.
pub trait Ownership: Send + Sync + 'static {
    /// Who decides on the replica.
    fn of_pod(&self, namespace: &str, pod: &str) -> Owner;

    /// Who decides on the target.
    fn of_target(&self, target: &str) -> Owner;
}

/// Everything is mine.
pub struct Sole;

impl Ownership for Sole {
    fn of_pod(&self, _: &str, _: &str) -> Owner {
        Owner::Mine
    }

    fn of_target(&self, _: &str) -> Owner {
        Owner::Mine
    }
}

/// What came of a target's turn.
pub struct Turned<'a> {
    /// Which.
    pub spec: &'a TargetSpec,
    /// What was decided.
    pub record: &'a Record,
    /// The numbered decision, where it is one.
    pub decision: Option<&'a Decision>,
    /// Why the outcome was not applied, where there was something to apply.
    pub not_applied: Option<&'a str>,
}

/// Is told of every turn of every target, once per tick at most, under no lock. Must not wait.
pub trait Observe: Send + Sync + 'static {
    /// A target was decided on, and what was decided is settled.
    fn turned(&self, turned: &Turned<'_>);
}

/// Takes the numbers of requests that gateways say are waiting.
pub trait TakeDemand: Send + Sync + 'static {
    /// `binding` is `namespace/name`; whoever told may tell.
    ///
    /// # Errors
    /// HTTP status and a sentence.
    fn told(&self, binding: &str, body: &[u8]) -> Result<(), (http::StatusCode, String)>;
}

/// Says what is missing for this decider to be of use.
pub type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;
/// Writes further metrics.
pub type Metrics = Arc<dyn Fn(&mut DescriptorEncoder<'_>) -> std::fmt::Result + Send + Sync>;

/// All of it.
#[derive(Clone)]
pub struct Hooks {
    /// Which decider owns what.
    pub ownership: Arc<dyn Ownership>,
    /// Who may speak.
    pub authenticate: Arc<dyn Authenticate>,
    /// Who is told.
    pub observe: Option<Arc<dyn Observe>>,
    /// What is missing; nothing: ready.
    pub readiness: Readiness,
    /// Metrics of what surrounds the service.
    pub metrics: Option<Metrics>,
    /// Where gateways' numbers go.
    pub demand: Option<Arc<dyn TakeDemand>>,
}

impl Default for Hooks {
    fn default() -> Self {
        Hooks {
            ownership: Arc::new(Sole),
            authenticate: Arc::new(Trusting),
            observe: None,
            readiness: Arc::new(Vec::new),
            metrics: None,
            demand: None,
        }
    }
}
