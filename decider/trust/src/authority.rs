//! The certificate authority: generated or given, rotated without a client losing trust.

use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, DnsName};
use time::OffsetDateTime;

use crate::{
    Error,
    pem::{self, Seen},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a generated CA is valid. It is due for rotation at two thirds.
pub const CA_LIFETIME: Duration = Duration::from_secs(3650 * DAY.as_secs());
/// How long a leaf is valid, if its CA is. It is due for renewal at two thirds.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(90 * DAY.as_secs());
/// Certificates are valid since this long before they are made, for peers whose clocks are behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// CAs kept beside the current one. A CA is followed after two thirds of its life, so at its own pace there is one
/// older that is still valid; the rest is room for rotations by hand.
const OLDER_MAX: usize = 7;

const WHAT: &str = "the certificate authority";

/// A certificate authority with its key: signs leafs and says whom to trust. Cheap to clone.
///
/// After a rotation the bundle holds the new CA and the older ones, and leafs are shown with the new CA's certificate
/// signed by the one before: who trusts only the old CA (an agent in a Pod that was injected before) still verifies
/// them, for as long as the old CA is valid.
#[derive(Clone)]
pub struct Authority(Arc<Inner>);

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    anchor: Seen,
    /// Certificates that link the anchor to older CAs; sent after a leaf.
    links: Vec<Seen>,
    /// CAs still to be trusted.
    older: Vec<Seen>,
    bundle: String,
}

/// An authority as it is kept in a Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityPem {
    /// Certificates, for `tls.crt`: the current CA first.
    pub certificates: String,
    /// The current CA's private key, PKCS #8, for `tls.key`.
    pub key: String,
}

impl fmt::Debug for AuthorityPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityPem")
            .field("certificates", &self.certificates)
            .finish_non_exhaustive()
    }
}

/// A server's certificate with its key.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate, then those that link its CA to older ones.
    pub cert_pem: String,
    /// Its private key, PKCS #8.
    pub key_pem: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("cert_pem", &self.cert_pem)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("subject", &self.0.anchor.subject)
            .field("not_after", &self.0.anchor.not_after)
            .field("older", &self.0.older.len())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new CA: ECDSA P-256, valid for [`CA_LIFETIME`].
    pub fn generate(now: SystemTime) -> Result<Self, Error> {
        let (key, params) = new_ca(now)?;
        let certificate = params.self_signed(&key).map_err(sign)?;
        Self::assemble(vec![certificate.der().clone()], key)
    }

    /// An authority as [`Authority::to_pem`] or cert-manager has written it.
    ///
    /// `certificates` holds the CA that `key` belongs to, and may hold others, in any order: self-signed ones are
    /// trusted as well, the rest is sent along with leafs. The key may be PKCS #8, SEC 1 or PKCS #1.
    pub fn from_pem(certificates: &str, key: &str) -> Result<Self, Error> {
        Self::assemble(pem::certificates(WHAT, certificates)?, pem::signing_key(key)?)
    }

    fn assemble(certificates: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self, Error> {
        let mut seen: Vec<Seen> = Vec::with_capacity(certificates.len());
        for (index, der) in certificates.iter().enumerate() {
            if seen.iter().all(|known| known.der != *der) {
                seen.push(pem::read(WHAT, index, der)?);
            }
        }
        let public_key = key.subject_public_key_info();
        let is_own = |certificate: &Seen| certificate.public_key_der == public_key;
        let found = seen
            .iter()
            .position(|certificate| is_own(certificate) && certificate.is_self_issued())
            .or_else(|| seen.iter().position(is_own))
            .ok_or(Error::KeyMismatch {
                what: WHAT,
                certificates: certificates.len(),
            })?;
        let anchor = seen.remove(found);
        let refuse = |problem| {
            Err(Error::NotAnAuthority {
                subject: anchor.subject.clone(),
                problem,
            })
        };
        if !anchor.is_ca {
            return refuse("its basic constraints do not say CA:TRUE");
        }
        if !anchor.may_sign {
            return refuse("its key usage does not allow signing certificates");
        }
        if !anchor.plain_subject {
            return refuse("its subject has a part of several attributes, which cannot be written into leafs");
        }
        let issuer = Issuer::from_ca_cert_der(&anchor.der, key).map_err(|error| Error::Certificate {
            what: WHAT,
            index: found + 1,
            problem: error.to_string(),
        })?;
        let (older, links): (Vec<Seen>, Vec<Seen>) = seen
            .into_iter()
            .partition(|certificate| !is_own(certificate) && certificate.is_self_issued() && certificate.is_ca);
        let bundle = pem::write_certificates(std::iter::once(&anchor).chain(&older).map(|ca| &ca.der));
        let authority = Authority(Arc::new(Inner {
            issuer,
            anchor,
            links,
            older,
            bundle,
        }));
        authority.check_subject()?;
        Ok(authority)
    }

    /// Whether leafs will name this CA exactly as it names itself: a subject with a repeated attribute would not
    /// survive, and no client would find the CA.
    fn check_subject(&self) -> Result<(), Error> {
        let anchor = &self.0.anchor;
        let leaf = self.sign(&["probe.invalid".to_owned()], anchor.not_before, anchor.not_after)?;
        let first = pem::certificates(WHAT, &leaf.cert_pem)?;
        let matches = match first.first() {
            Some(der) => pem::read(WHAT, 0, der)?.issuer_der == anchor.subject_der,
            None => false,
        };
        if matches {
            return Ok(());
        }
        Err(Error::NotAnAuthority {
            subject: anchor.subject.clone(),
            problem: "its subject cannot be written into leafs as it is; one with CN and O only can",
        })
    }

    /// A successor: a new CA, trusted together with this one and those before that are still valid at `now`.
    ///
    /// Of a CA made elsewhere, this presumes that its path length constraint, if any, leaves room for one more below it.
    ///
    /// The order of things when several servers share a CA: keep the successor where the others read it, publish its
    /// bundle, then [`Certificates::swap_authority`](crate::Certificates::swap_authority).
    pub fn rotate(&self, now: SystemTime) -> Result<Self, Error> {
        let (key, params) = new_ca(now)?;
        let own = params.self_signed(&key).map_err(sign)?;
        let mut certificates = vec![own.der().clone()];
        if self.is_valid_at(now) {
            let mut link = params.clone();
            link.not_after = link.not_after.min(date(self.0.anchor.not_after)?);
            link.use_authority_key_identifier_extension = true;
            let link = link.signed_by(&key, &self.0.issuer).map_err(sign)?;
            certificates.push(link.der().clone());
        }
        let valid = |seen: &&Seen| seen.not_after > now;
        certificates.extend(
            self.0
                .links
                .iter()
                .filter(valid)
                .take(OLDER_MAX)
                .map(|link| link.der.clone()),
        );
        let older = std::iter::once(&self.0.anchor).chain(&self.0.older);
        certificates.extend(older.filter(valid).take(OLDER_MAX).map(|ca| ca.der.clone()));
        Self::assemble(certificates, key)
    }

    /// Whether two thirds of the CA's life have passed.
    pub fn is_rotation_due(&self, now: SystemTime) -> bool {
        now >= due(self.0.anchor.not_before, self.0.anchor.not_after)
    }

    /// Whether the CA may sign at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.0.anchor.not_before..self.0.anchor.not_after).contains(&now)
    }

    /// End of the CA's life.
    pub fn not_after(&self) -> SystemTime {
        self.0.anchor.not_after
    }

    /// What clients trust: PEM of the current CA, then of older ones.
    pub fn bundle(&self) -> &str {
        &self.0.bundle
    }

    /// The authority with its key, to be kept in a Secret; [`Authority::from_pem`] reads it back.
    pub fn to_pem(&self) -> AuthorityPem {
        let all = std::iter::once(&self.0.anchor)
            .chain(&self.0.links)
            .chain(&self.0.older);
        AuthorityPem {
            certificates: pem::write_certificates(all.map(|certificate| &certificate.der)),
            key: self.0.issuer.key().serialize_pem(),
        }
    }

    /// A server certificate for `names` (DNS names and IP addresses), with a new ECDSA P-256 key: valid from
    /// [`CLOCK_SKEW`] before `now` for [`LEAF_LIFETIME`], and not longer than the CA.
    pub fn issue(&self, names: &[String], now: SystemTime) -> Result<Leaf, Error> {
        let anchor = &self.0.anchor;
        if !self.is_valid_at(now) {
            return Err(Error::NotValidNow {
                subject: anchor.subject.clone(),
                not_before_unix_s: pem::unix_s(anchor.not_before),
                not_after_unix_s: pem::unix_s(anchor.not_after),
                now_unix_s: pem::unix_s(now),
            });
        }
        // Nested validity keeps strict verifiers content.
        let not_before = (now - CLOCK_SKEW).max(anchor.not_before);
        let not_after = (now + LEAF_LIFETIME).min(anchor.not_after);
        self.sign(names, not_before, not_after)
    }

    fn sign(&self, names: &[String], not_before: SystemTime, not_after: SystemTime) -> Result<Leaf, Error> {
        let key = KeyPair::generate().map_err(sign)?;
        let mut params = params("infer-decider", not_before, not_after)?;
        params.subject_alt_names = alternative_names(names)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.0.issuer).map_err(sign)?;
        // An imported intermediate is sent as well: its root may be what a client trusts.
        let own = Some(&self.0.anchor).filter(|anchor| !anchor.is_self_issued());
        let links = own.into_iter().chain(&self.0.links).map(|link| &link.der);
        Ok(Leaf {
            cert_pem: pem::write_certificates(std::iter::once(certificate.der()).chain(links)),
            key_pem: key.serialize_pem(),
            not_before: whole_seconds(not_before),
            not_after: whole_seconds(not_after),
        })
    }
}

/// When two thirds of a life have passed.
pub(crate) fn due(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    not_before + life / 3 * 2
}

fn new_ca(now: SystemTime) -> Result<(KeyPair, CertificateParams), Error> {
    let key = KeyPair::generate().map_err(sign)?;
    let mut params = params("", now - CLOCK_SKEW, now + CA_LIFETIME)?;
    // A name of its own for each CA: verifiers look issuers up by name, and old and new are trusted side by side.
    let id = params.key_identifier(&key);
    let id: String = id.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("infer-decider CA {id}"));
    // Links may be chained by rotations by hand, so the length of a path stays open.
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((key, params))
}

fn params(common_name: &str, not_before: SystemTime, not_after: SystemTime) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.not_before = date(not_before)?;
    params.not_after = date(not_after)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "matrixinfer");
    if !common_name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    Ok(params)
}

fn alternative_names(names: &[String]) -> Result<Vec<SanType>, Error> {
    if names.is_empty() {
        return Err(Error::NoNames);
    }
    let mut found: Vec<SanType> = Vec::with_capacity(names.len());
    for name in names {
        let wrong = || Error::Name(name.clone());
        let name = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => {
                DnsName::try_from(name.as_str()).map_err(|_| wrong())?;
                SanType::DnsName(name.as_str().try_into().map_err(|_| wrong())?)
            }
        };
        if !found.contains(&name) {
            found.push(name);
        }
    }
    Ok(found)
}

fn date(time: SystemTime) -> Result<OffsetDateTime, Error> {
    let seconds = i64::try_from(pem::unix_s(time)).map_err(|_| Error::Time(i64::MAX))?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::Time(seconds))
}

/// Certificates know no fractions of a second.
fn whole_seconds(time: SystemTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(pem::unix_s(time))
}

fn sign(error: rcgen::Error) -> Error {
    Error::Sign(error.to_string())
}
