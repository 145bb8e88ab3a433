//! Certificates that the decider mints and rotates itself, and TLS servers and clients made of them.
//!
//! An [`Authority`] signs [`Leaf`] certificates; [`Certificates`] holds the one that is shown now and changes it while
//! connections are open; [`server_config`] and [`tls_incoming`] make a TLS server of it, for tonic and for hyper.
//! Nothing here reads a clock, talks to Kubernetes or depends on a process-wide rustls provider: the time is an
//! argument, and the provider is always ring.

mod authority;
mod certificates;
mod client;
mod error;
mod pem;
mod server;

pub use authority::{Authority, AuthorityPem, CA_LIFETIME, CLOCK_SKEW, LEAF_LIFETIME, Leaf};
pub use certificates::Certificates;
pub use client::{client_config, client_tls, connector};
pub use error::Error;
pub use server::{HandshakeCounters, Incoming, Limits, TlsConnection, server_config, tls_incoming, tls_incoming_with};

use std::sync::Arc;

/// ALPN protocols of a gRPC server.
pub const ALPN_GRPC: &[&[u8]] = &[b"h2"];
/// ALPN protocols of an HTTPS server that speaks HTTP/2 and HTTP/1.1.
pub const ALPN_HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

/// The provider of everything here, given explicitly so that it makes no difference what else a process has installed.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
