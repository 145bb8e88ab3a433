//! The other end: clients that trust a bundle and nothing else.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::{Error, pem, provider};

const WHAT: &str = "the CA bundle";

/// A client that trusts the CAs of `ca_pem` and no others, and shows no certificate of its own.
pub fn client_config(ca_pem: &str, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in pem::certificates(WHAT, ca_pem)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| Error::Certificate {
            what: WHAT,
            index: index + 1,
            problem: error.to_string(),
        })?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A connector of [`client_config`], for streams that are already connected.
pub fn connector(ca_pem: &str, alpn: &[&[u8]]) -> Result<TlsConnector, Error> {
    client_config(ca_pem, alpn).map(TlsConnector::from)
}

/// What tonic's `Endpoint::tls_config` takes. `ca_pem` is checked here, because tonic skips what it cannot read.
/// tonic takes the process's rustls provider where one is installed, and ring otherwise.
pub fn client_tls(ca_pem: &str) -> Result<ClientTlsConfig, Error> {
    for (index, certificate) in pem::certificates(WHAT, ca_pem)?.iter().enumerate() {
        pem::read(WHAT, index, certificate)?;
    }
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca_pem)))
}
