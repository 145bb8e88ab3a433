//! What tells the decider from another program, and who asks from somebody else: certificates and a token.

use std::error::Error;
use std::path::Path;

use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::transport::{Certificate, ClientTlsConfig};
use tonic::{Request, Status};

use crate::failure::Failure;
use crate::input;

/// The variable that may hold a token itself.
const TOKEN_VARIABLE: &str = "INFERCTL_TOKEN";
/// A token of Kubernetes has a kilobyte or two; what is larger is another file.
const LARGEST_TOKEN: usize = 16 * 1024;

/// Certificates of authorities, and who gave them.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    pem: String,
    source: String,
}

impl Authority {
    /// From a file.
    pub(crate) fn read(file: &Path) -> Result<Self, Failure> {
        let (name, pem) = input::read(file)?;
        Authority::new(pem, name)
    }

    /// `source` is for messages.
    pub(crate) fn new(pem: String, source: String) -> Result<Self, Failure> {
        let bad = |problem: String| Failure::Usage(format!("the certificates in {source}: {problem}"));
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|_| bad("not PEM, or cut off".to_owned()))?;
            let number = roots.len() + 1;
            roots
                .add(certificate)
                .map_err(|error| bad(format!("number {number} cannot be used: {error}")))?;
        }
        if roots.is_empty() {
            return Err(bad(
                "there is none; one or more blocks of -----BEGIN CERTIFICATE----- are expected".to_owned(),
            ));
        }
        Ok(Authority { pem, source })
    }

    /// The certificates.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Who gave them.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }
}

/// A bearer token, and who gave it.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    value: AsciiMetadataValue,
    source: String,
}

impl Token {
    /// The token of a file or of the environment; none where nobody gave one.
    pub(crate) fn given(file: Option<&Path>) -> Result<Option<Self>, Failure> {
        if let Some(file) = file {
            let (name, text) = input::read(file)?;
            return Token::new(&text, name).map(Some);
        }
        match std::env::var(TOKEN_VARIABLE) {
            Ok(text) if !text.is_empty() => Token::new(&text, TOKEN_VARIABLE.to_owned()).map(Some),
            _ => Ok(None),
        }
    }

    /// `source` is for messages; the token never is.
    pub(crate) fn new(text: &str, source: String) -> Result<Self, Failure> {
        let token = text.trim();
        let is_token = !token.is_empty() && token.len() <= LARGEST_TOKEN && token.bytes().all(|b| b.is_ascii_graphic());
        let value = is_token
            .then(|| AsciiMetadataValue::try_from(format!("Bearer {token}")).ok())
            .flatten();
        let Some(mut value) = value else {
            return Err(Failure::Usage(format!(
                "there is no token in {source}; one line of letters, digits and signs is expected"
            )));
        };
        // Kept out of debug output, and of the compression tables of HTTP/2.
        value.set_sensitive(true);
        Ok(Token { value, source })
    }

    /// Who gave it.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }
}

/// Whom to trust, and what to show.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    pub(crate) authority: Option<Authority>,
    pub(crate) token: Option<Token>,
    /// Instead of the address's own name.
    pub(crate) server_name: Option<String>,
}

impl Credentials {
    /// TLS that trusts the authority and nobody else; none without one.
    pub(crate) fn tls(&self) -> Option<ClientTlsConfig> {
        let authority = self.authority.as_ref()?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem));
        Some(match &self.server_name {
            Some(name) => tls.domain_name(name.clone()),
            None => tls,
        })
    }

    /// What puts the token into each request.
    pub(crate) fn bearer(&self) -> Bearer {
        Bearer(self.token.as_ref().map(|token| token.value.clone()))
    }

    /// What to do about a connection that failed for its certificate; none where that was not the reason.
    pub(crate) fn advice(&self, error: &(dyn Error + 'static), host: &str) -> Option<String> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let source = self.authority.as_ref().map_or("nobody", Authority::source);
        Some(match find_tls_error(error)? {
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                    "its certificate is not signed by the authority in {source}: either this is another program, or the \
                     decider's authority has been replaced\n{WHERE_THE_CA_IS}"
                ),
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
                    "its certificate does not hold for {name}: {error}\nWhere the decider is reached by another name, as \
                     through a port-forward, say which it has: --tls-server-name infer-decider"
                ),
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => {
                    format!("{error}: is this machine's clock right, and the decider's?")
                }
                _ => format!("its certificate cannot be used: {error}"),
            },
            rustls::Error::InvalidMessage(_) => "no TLS is spoken there: is it http://, or another port?".to_owned(),
            _ => return None,
        })
    }
}

/// The decider writes its authority's certificates there, for the API server.
pub(crate) const WHERE_THE_CA_IS: &str = "Its certificates are in the cluster (--kube takes them from there): \
                                          kubectl get mutatingwebhookconfiguration infer-decider \
                                          -o jsonpath='{.webhooks[0].clientConfig.caBundle}' | base64 -d >ca.pem";

/// Puts the token into each request.
#[derive(Clone)]
pub(crate) struct Bearer(Option<AsciiMetadataValue>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// It lies below tonic's and the connector's wrappers, in an `io::Error` that does not name it as its source.
fn find_tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref());
        if let Some(found) = error.downcast_ref().or(inner) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_and_is_never_shown() {
        for bad in ["", "\n", "two\nlines", "a b", "sch\u{f6}n"] {
            let failure = Token::new(bad, "a file".to_owned()).expect_err(bad);
            let message = failure.message().unwrap_or_default();
            assert!(message.contains("no token in a file"), "{message}");
            assert!(bad.trim().is_empty() || !message.contains(bad), "{message}");
        }
        let token = Token::new("abc.DEF-1_2\n", "a file".to_owned()).expect("good");
        assert_eq!(token.value.to_str().ok(), Some("Bearer abc.DEF-1_2"));
        assert!(!format!("{token:?}").contains("abc"), "{token:?}");
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for (pem, part) in [
            ("hello", "there is none"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "number 1 cannot be used",
            ),
            ("-----BEGIN CERTIFICATE-----\nAA", "not PEM"),
        ] {
            let failure = Authority::new(pem.to_owned(), "ca.pem".to_owned()).expect_err(pem);
            let message = failure.message().unwrap_or_default();
            assert!(
                message.starts_with("the certificates in ca.pem: ") && message.contains(part),
                "{message}"
            );
        }
    }
}
