//! The documents an operator writes: `AutoscalingPolicy`, `AutoscalingPolicyBinding` and `LocalFleet`.
//!
//! [`parse_documents`] reads them from YAML and finds every mistake it can, each with file, line, field and what would
//! be right. Objects of a cluster come through [`read_policy_spec`], [`read_binding_spec`] and [`resolve()`], which check
//! the same. The shape of a document is checked against the very JSON schema that [`schema()`] publishes, so the two
//! cannot disagree; what a schema cannot say (one field against another, one document against another) follows.

mod binding;
mod check;
mod consistency;
pub mod crd;
mod demand;
mod documents;
mod fleet;
mod metadata;
mod mistake;
mod optimize;
mod path;
mod pattern;
mod placeholder;
mod policy;
pub mod reference;
mod resolve;
mod roles;
mod schema;
mod slo;
mod status;
mod tree;
mod validate;

pub use binding::{
    AutoscalingPolicyBinding, AutoscalingPolicyBindingKind, BindingDrain, BindingMode, BindingSpec, ForeignChanges,
    PolicyRef, Scaling, TargetRef,
};
pub use consistency::FieldMistake;
pub use demand::{Demand, HttpDemand, PrometheusDemand};
pub use documents::{
    BoundTarget, Documents, Purpose, ResolvedTarget, parse_documents, parse_sources, parse_sources_for,
};
pub use fleet::{
    AgentSpec, DrainSpec, EngineSpec, FrontDoorSpec, LocalFleet, LocalFleetKind, LocalFleetSpec, PortRange,
    RestartSpec, StartupProbe,
};
pub use metadata::{ApiVersion, Metadata};
pub use mistake::{Errors, Mistake};
pub use optimize::{Algorithm, Optimize, OptimizeTarget};
pub use path::{PathStep, parse_replicas_path};
pub use placeholder::PLACEHOLDERS;
pub use policy::{
    AutoscalingPolicy, AutoscalingPolicyKind, Behavior, MetricSpec, MetricType, PanicSpec, PolicySpec, RateKind,
    RatePolicy, ScaleDownRules, ScaleUpRules, SelectPolicy,
};
pub use resolve::{
    ResolvedBound, ResolvedPart, ResolvedRatio, Unresolved, read_binding_spec, read_policy_spec, resolve,
};
pub use roles::{Ratio, Role};
pub use schema::schema;
pub use slo::{Objective, Slo};
pub use status::{BindingStatus, Condition, ConditionStatus, LastDecision, PolicyStatus, TargetStatus};

/// Group and version of every document.
pub const API_VERSION: &str = "autoscaling.matrixinfer.ai/v1alpha1";

/// The kinds of documents, in the order in which people read about them.
pub const KINDS: [&str; 3] = ["AutoscalingPolicy", "AutoscalingPolicyBinding", "LocalFleet"];
