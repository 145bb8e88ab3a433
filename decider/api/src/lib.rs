//! The documents an operator writes: `AutoscalingPolicy`, `AutoscalingPolicyBinding` and `LocalFleet`.
//!
//! [`parse_documents`] reads them from YAML and finds every mistake it can, each with file, line, field and what would
//! be right. The shape of a document is checked against the very JSON schema that [`schema()`] publishes, so the two
//! cannot disagree; what a schema cannot say (one field against another, one document against another) follows.

mod binding;
mod check;
mod documents;
mod fleet;
mod metadata;
mod mistake;
mod placeholder;
mod policy;
mod schema;
mod tree;
mod validate;

pub use binding::{
    AutoscalingPolicyBinding, AutoscalingPolicyBindingKind, BindingMode, BindingSpec, PolicyRef, Scaling, TargetRef,
};
pub use documents::{
    BoundTarget, Documents, Purpose, ResolvedTarget, parse_documents, parse_sources, parse_sources_for,
};
pub use fleet::{
    AgentSpec, DrainSpec, EngineSpec, FrontDoorSpec, LocalFleet, LocalFleetKind, LocalFleetSpec, PortRange,
    RestartSpec, StartupProbe,
};
pub use metadata::{ApiVersion, Metadata};
pub use mistake::{Errors, Mistake};
pub use placeholder::PLACEHOLDERS;
pub use policy::{
    AutoscalingPolicy, AutoscalingPolicyKind, Behavior, MetricSpec, MetricType, PanicSpec, PolicySpec, RateKind,
    RatePolicy, ScaleDownRules, ScaleUpRules, SelectPolicy,
};
pub use schema::schema;

/// Group and version of every document.
pub const API_VERSION: &str = "autoscaling.matrixinfer.ai/v1alpha1";

/// The kinds of documents, in the order in which people read about them.
pub const KINDS: [&str; 3] = ["AutoscalingPolicy", "AutoscalingPolicyBinding", "LocalFleet"];
