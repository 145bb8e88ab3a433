//! The admission webhooks: agents into Pods, and what CEL cannot see out of the cluster.
//!
//! [`serve`] is the HTTPS server. Behind it, each layer can be driven by itself: [`Webhook::answer`] takes an HTTP
//! request, [`Webhook::review`] the bytes of an AdmissionReview, [`mutate()`] and [`validate()`] a decoded request.
//!
//! The mutating webhook never stands in the way of a Pod: whatever goes wrong, the Pod is allowed as it was, with a
//! warning to who created it and a count for who watches. The validating webhook refuses only what it knows to be
//! wrong.

mod counters;
mod handler;
mod mutate;
pub mod review;
mod server;
mod validate;

pub use counters::{Counters, LATENCY_BOUNDS_MS, Latency, Skip};
pub use handler::{BODY_MAX_BYTES, Endpoint, Unreadable, Webhook};
pub use mutate::{AgentInjector, Injector, Verdict, mutate};
pub use server::{Options, serve};
pub use validate::{Cluster, Dependent, validate};
