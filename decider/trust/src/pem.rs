//! PEM and DER in and out: certificate chains, and private keys of every encoding that cert-manager and openssl write.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::Error;

/// What is needed of a certificate, read once.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) subject: String,
    pub(crate) subject_der: Vec<u8>,
    pub(crate) issuer_der: Vec<u8>,
    /// SubjectPublicKeyInfo.
    pub(crate) public_key_der: Vec<u8>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) is_ca: bool,
    /// False when there is a key usage extension and it does not allow signing certificates.
    pub(crate) may_sign: bool,
    /// False for names that rcgen cannot carry over: a relative name of no or of several attributes.
    pub(crate) plain_subject: bool,
}

impl Seen {
    /// Whether subject and issuer are the same.
    pub(crate) fn is_self_issued(&self) -> bool {
        self.subject_der == self.issuer_der
    }
}

/// All certificates of a PEM text, at least one.
pub(crate) fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let not_pem = |problem: String| Error::NotPem {
        what,
        problem,
        expected: "CERTIFICATE",
    };
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| not_pem(error.to_string()))?;
    if found.is_empty() {
        return Err(not_pem("there is no certificate in it".to_owned()));
    }
    Ok(found)
}

/// Reads one certificate; `index` counts from 0.
pub(crate) fn read(what: &'static str, index: usize, der: &CertificateDer<'_>) -> Result<Seen, Error> {
    let wrong = |problem: String| Error::Certificate {
        what,
        index: index + 1,
        problem,
    };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| wrong(error.to_string()))?;
    let constraints = certificate
        .basic_constraints()
        .map_err(|error| wrong(error.to_string()))?;
    let usage = certificate.key_usage().map_err(|error| wrong(error.to_string()))?;
    let subject = certificate.subject();
    Ok(Seen {
        der: der.clone().into_owned(),
        subject: subject.to_string(),
        subject_der: subject.as_raw().to_vec(),
        issuer_der: certificate.issuer().as_raw().to_vec(),
        public_key_der: certificate.public_key().raw.to_vec(),
        not_before: from_unix_s(certificate.validity().not_before.timestamp()),
        not_after: from_unix_s(certificate.validity().not_after.timestamp()),
        is_ca: constraints.is_some_and(|constraints| constraints.value.ca),
        may_sign: usage.is_none_or(|usage| usage.value.key_cert_sign()),
        plain_subject: subject.iter().all(|name| name.iter().count() == 1),
    })
}

/// PEM text of certificates, in their order.
pub(crate) fn write_certificates<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    certificates
        .into_iter()
        .map(|der| section("CERTIFICATE", der))
        .collect()
}

/// A PEM section, lines of 64 characters (RFC 7468).
pub(crate) fn section(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    // 48 bytes are the 64 characters of a line.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bytes = [
                group[0],
                group.get(1).copied().unwrap_or(0),
                group.get(2).copied().unwrap_or(0),
            ];
            let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
            for place in 0..4 {
                if place <= group.len() {
                    let six = (bits >> (18 - 6 * place)) & 63;
                    text.push(char::from(ALPHABET[six as usize]));
                } else {
                    text.push('=');
                }
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// The first private key of a PEM text, in whichever encoding: PKCS #8 (`PRIVATE KEY`), SEC 1 (`EC PRIVATE KEY`, what
/// cert-manager writes for ECDSA) or PKCS #1 (`RSA PRIVATE KEY`, what it writes for RSA).
pub(crate) fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| Error::NotPem {
        what: "the private key",
        problem: error.to_string(),
        expected: "PRIVATE KEY",
    })
}

// DER of the algorithm identifiers that PKCS #8 puts before a key (RFC 5480, RFC 8017).
const EC_P256: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03,
    0x01, 0x07,
];
const EC_P384: &[u8] = &[
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22,
];
const RSA: &[u8] = &[
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];

/// A key that can sign certificates. rcgen with ring reads PKCS #8 only, so the other encodings are wrapped into it.
pub(crate) fn signing_key(pem: &str) -> Result<KeyPair, Error> {
    let key = private_key(pem)?;
    let candidates = match &key {
        PrivateKeyDer::Pkcs8(key) => vec![key.secret_pkcs8_der().to_vec()],
        // The curve is optional inside SEC 1, so both are tried.
        PrivateKeyDer::Sec1(key) => vec![
            wrapped(EC_P256, key.secret_sec1_der()),
            wrapped(EC_P384, key.secret_sec1_der()),
        ],
        PrivateKeyDer::Pkcs1(key) => vec![wrapped(RSA, key.secret_pkcs1_der())],
        _ => return Err(Error::Key("an unknown encoding".to_owned())),
    };
    let mut problem = String::new();
    for candidate in candidates {
        match KeyPair::try_from(&PrivatePkcs8KeyDer::from(candidate)) {
            Ok(key) => return Ok(key),
            Err(error) => problem = error.to_string(),
        }
    }
    Err(Error::Key(problem))
}

/// `PrivateKeyInfo` of RFC 5958: version 0, the algorithm, the key in its own encoding.
fn wrapped(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let mut inner = vec![0x02, 0x01, 0x00];
    inner.extend_from_slice(algorithm);
    inner.extend(tagged(0x04, key));
    tagged(0x30, &inner)
}

/// DER of a value with its tag and length.
fn tagged(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    let length = value.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    match significant {
        [] => der.push(0),
        [short] if *short < 0x80 => der.push(*short),
        // At most 8 bytes of length.
        long => {
            der.push(0x80 | long.len() as u8);
            der.extend_from_slice(long);
        }
    }
    der.extend_from_slice(value);
    der
}

/// A time of a certificate; before 1970 counts as 1970.
pub(crate) fn from_unix_s(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Seconds since 1970; 0 for times before.
pub(crate) fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_text_of_every_length_is_read_back() {
        for length in 0..200_u8 {
            let der: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            let text = section("CERTIFICATE", &der);
            let back = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
            assert_eq!(back.as_ref(), der, "{text}");
        }
    }

    #[test]
    fn der_lengths_have_their_shortest_form() {
        assert_eq!(tagged(4, &[])[..], [4, 0]);
        assert_eq!(tagged(4, &[0; 127])[..2], [4, 127]);
        assert_eq!(tagged(4, &[0; 128])[..3], [4, 0x81, 128]);
        assert_eq!(tagged(4, &[0; 256])[..4], [4, 0x82, 1, 0]);
    }

    #[test]
    fn a_sec1_key_of_either_curve_is_the_same_key() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            // The last element of PrivateKeyInfo is the SEC 1 key: it starts with a sequence and version 1.
            let pkcs8 = key.serialize_der();
            let start = (3..pkcs8.len())
                .find(|&at| {
                    let short = pkcs8[at] == 0x30 && pkcs8[at + 2..].starts_with(&[2, 1, 1, 4]);
                    let long = pkcs8[at] == 0x30 && pkcs8[at + 3..].starts_with(&[2, 1, 1, 4]);
                    short || long
                })
                .unwrap();
            let again = signing_key(&section("EC PRIVATE KEY", &pkcs8[start..])).unwrap();
            assert_eq!(again.public_key_raw(), key.public_key_raw());
        }
    }

    #[test]
    fn what_is_no_key_is_said_to_be_none() {
        let none = signing_key("hello").unwrap_err().to_string();
        assert!(none.contains("-----BEGIN PRIVATE KEY-----"), "{none}");
        let garbage = signing_key(&section("PRIVATE KEY", b"garbage"))
            .unwrap_err()
            .to_string();
        assert!(garbage.contains("P-256"), "{garbage}");
        let garbage = signing_key(&section("EC PRIVATE KEY", b"garbage"))
            .unwrap_err()
            .to_string();
        assert!(garbage.contains("P-256"), "{garbage}");
    }
}
