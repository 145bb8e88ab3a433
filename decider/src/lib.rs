//! The decider: the service around the core. Agents' samples in, decisions out, changes made by a backend, and an
//! answer to everyone who asks why.
//!
//! `ingest` → `state` (the core's targets, behind one short lock) → `tick` → `apply` → a backend; `query` and `http`
//! show it; `journal` remembers it.

pub mod actuate;
mod apply;
pub mod auth;
pub mod bind;
pub mod clock;
pub mod cluster;
mod decode;
pub mod hooks;
pub mod http;
pub mod ingest;
pub mod journal;
mod link;
pub mod local;
mod past;
pub mod query;
pub mod roles;
pub mod service;
pub mod state;
pub mod tick;
pub mod view;

/// Completes when `shutdown` turns true or nobody can turn it true any more.
pub(crate) async fn stopped(shutdown: &mut tokio::sync::watch::Receiver<bool>) {
    // The value is looked at and let go of at once: a guard must not live across an await.
    let _ = shutdown.wait_for(|stop| *stop).await.map(|guard| *guard);
}
