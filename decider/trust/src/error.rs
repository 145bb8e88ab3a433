//! What can be wrong with certificates and keys.

/// What can be wrong with certificates and keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Text that should be PEM is not.
    #[error("{what} is not PEM: {problem}; expected a section `-----BEGIN {expected}-----`")]
    NotPem {
        /// What was read.
        what: &'static str,
        /// What the parser says.
        problem: String,
        /// Name of the section that was looked for.
        expected: &'static str,
    },
    /// A certificate that cannot be read.
    #[error("certificate {index} of {what} cannot be read: {problem}")]
    Certificate {
        /// What was read.
        what: &'static str,
        /// Place in the PEM text, from 1.
        index: usize,
        /// What the parser says.
        problem: String,
    },
    /// A private key of a kind that cannot sign here.
    #[error(
        "the private key cannot be used: {0}; usable are ECDSA P-256 or P-384, Ed25519 and RSA of 2048 bits or more"
    )]
    Key(String),
    /// A key that belongs to none of the certificates.
    #[error("the private key belongs to none of the {certificates} certificates of {what}")]
    KeyMismatch {
        /// What was read.
        what: &'static str,
        /// How many certificates there are.
        certificates: usize,
    },
    /// A certificate that may not sign others.
    #[error("the certificate {subject:?} is no certificate authority: {problem}")]
    NotAnAuthority {
        /// Its subject.
        subject: String,
        /// What is missing.
        problem: &'static str,
    },
    /// A CA that is not valid at the time of signing.
    #[error(
        "the certificate authority {subject:?} is valid from {not_before_unix_s} to {not_after_unix_s} (Unix seconds), and it is {now_unix_s}"
    )]
    NotValidNow {
        /// Its subject.
        subject: String,
        /// Start of its validity.
        not_before_unix_s: u64,
        /// End of its validity.
        not_after_unix_s: u64,
        /// The time given.
        now_unix_s: u64,
    },
    /// A name that cannot stand in a certificate.
    #[error("{0:?} is neither an IP address nor a DNS name, such as infer-decider.infer-system.svc")]
    Name(String),
    /// A certificate without a name is good for nothing.
    #[error("a server certificate needs at least one name")]
    NoNames,
    /// A time before 1970 or after 9999.
    #[error("the time {0} (Unix seconds) cannot stand in a certificate")]
    Time(i64),
    /// Signing failed.
    #[error("cannot sign the certificate: {0}")]
    Sign(String),
    /// rustls refuses what it was given.
    #[error("TLS configuration: {0}")]
    Tls(String),
}
