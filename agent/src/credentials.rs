//! What the agent trusts and what it shows: the decider's CA, and the token of its Pod.
//!
//! Files are read again at each connect: Kubernetes replaces a projected token well before it expires, and nobody tells
//! the reader.

use std::{error::Error as _, path::PathBuf};

use rustls::{
    CertificateError,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tonic::{
    metadata::AsciiMetadataValue,
    transport::{Certificate, ClientTlsConfig},
};

/// A token of Kubernetes has a kilobyte or two; what is larger is another file.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// How the agent tells its decider from another program, and itself from another Pod. `Default` is neither, which is
/// enough for a decider on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Certificates of the authority that signs the decider's certificate, PEM.
    pub ca_pem: Option<String>,
    /// A file with such certificates, in addition to `ca_pem`.
    pub ca_file: Option<PathBuf>,
    /// A file with the bearer token that the decider is shown. It goes over TLS only.
    pub token_file: Option<PathBuf>,
}

impl Credentials {
    /// Whether there is something to check a decider's certificate against.
    pub(crate) fn has_ca(&self) -> bool {
        self.ca_pem.is_some() || self.ca_file.is_some()
    }

    /// TLS as of now. The name that the certificate must hold is the one in the URL, also where that is an address.
    ///
    /// # Errors
    /// A sentence saying which certificate cannot be used, and why.
    pub(crate) fn tls(&self) -> Result<ClientTlsConfig, String> {
        let mut tls = ClientTlsConfig::new();
        if let Some(pem) = &self.ca_pem {
            check_pem(pem.as_bytes()).map_err(|reason| format!("INFER_AGENT_CA_PEM (--ca-pem): {reason}"))?;
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        }
        if let Some(file) = &self.ca_file {
            let bad = |reason: String| format!("the CA file {}: {reason}", file.display());
            let pem = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
            check_pem(&pem).map_err(bad)?;
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        }
        Ok(tls)
    }

    /// The value of `authorization`, `Bearer …`, as of now; `None` where no token is to be shown.
    ///
    /// # Errors
    /// A sentence saying what is wrong with the file; never what is in it.
    pub(crate) fn bearer(&self) -> Result<Option<AsciiMetadataValue>, String> {
        let Some(file) = &self.token_file else {
            return Ok(None);
        };
        let bad = |reason: &str| format!("the token file {}: {reason}", file.display());
        let token = std::fs::read(file).map_err(|error| bad(&error.to_string()))?;
        let token = token.trim_ascii();
        if token.is_empty() {
            return Err(bad("it is empty"));
        }
        if token.len() > MAX_TOKEN_BYTES || !token.iter().all(u8::is_ascii_graphic) {
            return Err(bad(
                "it holds no token: one line of letters, digits and signs is expected",
            ));
        }
        let value = [b"Bearer ", token].concat();
        let mut value = AsciiMetadataValue::try_from(&value[..]).map_err(|_| bad("it holds no token"))?;
        // Kept out of debug output, and of the compression tables of HTTP/2.
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// What to do about a connection that failed for its certificate; `None` when that was not the reason.
    pub(crate) fn advice(&self, error: &tonic::transport::Error, host: &str) -> Option<String> {
        let error = find_tls_error(error)?;
        let given = match (&self.ca_pem, &self.ca_file) {
            (Some(_), Some(file)) => format!("INFER_AGENT_CA_PEM and {}", file.display()),
            (None, Some(file)) => file.display().to_string(),
            _ => "INFER_AGENT_CA_PEM".into(),
        };
        let advice = match error {
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                    "its certificate is not signed by the CA in {given}. Either this is another program's port, or the \
                     decider's CA has been replaced: then give the new one; a Pod with an injected agent gets it when \
                     it is created anew"
                ),
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!("its certificate does not hold for {host}: {error}")
                }
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => {
                    format!("{error}: is this machine's clock right, and the decider's?")
                }
                _ => format!("its certificate cannot be used: {error}"),
            },
            rustls::Error::InvalidMessage(_) => "no TLS is spoken there: is it http://, or another port?".into(),
            _ => return None,
        };
        Some(advice)
    }
}

/// # Errors
/// A sentence saying what is wrong with it.
fn check_pem(pem: &[u8]) -> Result<(), String> {
    let wanted = "one or more blocks of -----BEGIN CERTIFICATE----- are expected";
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("not PEM: {error}; {wanted}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("certificate {} cannot be used: {error}", roots.len() + 1))?;
    }
    if roots.is_empty() {
        return Err(format!("it holds no certificate; {wanted}"));
    }
    Ok(())
}

/// It lies below tonic's and the connector's wrappers, in an `io::Error` that does not name it as its source.
fn find_tls_error(error: &tonic::transport::Error) -> Option<&rustls::Error> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref());
        if inner.is_some() {
            return inner;
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_refused() {
        for (pem, part) in [
            ("", "holds no certificate"),
            ("hello", "holds no certificate"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "certificate 1 cannot be used",
            ),
            ("-----BEGIN CERTIFICATE-----\nAA", "not PEM"),
        ] {
            let credentials = Credentials {
                ca_pem: Some(pem.into()),
                ..Credentials::default()
            };
            let error = credentials.tls().map(|_| ()).expect_err(pem);
            assert!(
                error.starts_with("INFER_AGENT_CA_PEM") && error.contains(part),
                "{error:?} does not say {part:?}"
            );
        }
    }

    #[test]
    fn a_token_is_one_line_and_is_never_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        let credentials = Credentials {
            token_file: Some(file.clone()),
            ..Credentials::default()
        };
        let error = credentials.bearer().expect_err("no file");
        assert!(error.contains("token") && error.contains("No such file"), "{error}");
        for bad in ["", "\n", "two\nlines", "a b", "sch\u{f6}n"] {
            std::fs::write(&file, bad).expect("written");
            let error = credentials.bearer().expect_err(bad);
            assert!(bad.trim().is_empty() || !error.contains(bad), "{error}");
        }
        std::fs::write(&file, "abc.DEF-1_2\n").expect("written");
        let value = credentials.bearer().expect("good").expect("some");
        assert_eq!(value.to_str().expect("ASCII"), "Bearer abc.DEF-1_2");
        assert!(!format!("{value:?}").contains("abc"), "{value:?}");
        assert_eq!(Credentials::default().bearer(), Ok(None));
    }
}
