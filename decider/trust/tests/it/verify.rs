//! What a client with a given bundle makes of a leaf at a given time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use infer_trust::Leaf;
use rustls::{RootCertStore, client::WebPkiServerVerifier, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A time to start from: 2026-01-01.
pub(crate) fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

pub(crate) fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|certificate| certificate.unwrap())
        .collect()
}

/// Verifies as rustls clients do; the error's text otherwise.
pub(crate) fn verify(bundle: &str, leaf: &Leaf, name: &str, now: SystemTime) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for root in chain(bundle) {
        roots.add(root).unwrap();
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let chain = chain(&leaf.cert_pem);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap());
    rustls::client::danger::ServerCertVerifier::verify_server_cert(&*verifier, &chain[0], &chain[1..], &name, &[], now)
        .map(|_| ())
        .map_err(|error| format!("{error:?}"))
}
