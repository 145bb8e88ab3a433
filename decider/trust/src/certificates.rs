//! The certificate a server shows now, and its change while connections are open.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{
    Authority, Error, Leaf,
    authority::due,
    pem::{self, Seen},
    provider,
};

const WHAT: &str = "the server certificate";

/// The certificate a server shows to who connects next. Cheap to clone; all clones show the same.
#[derive(Clone)]
pub struct Certificates(Arc<Inner>);

struct Inner {
    source: Mutex<Source>,
    /// Read at each handshake, written a few times a year.
    current: RwLock<Current>,
}

/// Where the next leaf comes from.
enum Source {
    /// Issued here.
    Authority { authority: Authority, names: Vec<String> },
    /// Given, and renewed by who gave it.
    Given,
}

#[derive(Clone)]
struct Current {
    key: Arc<CertifiedKey>,
    leaf: Arc<Seen>,
}

impl Certificates {
    /// Issues a first leaf for `names`; [`Certificates::renew_if_due`] issues the next ones.
    pub fn issue(authority: Authority, names: Vec<String>, now: SystemTime) -> Result<Self, Error> {
        let current = Current::of(&authority.issue(&names, now)?)?;
        Ok(Self::new(Source::Authority { authority, names }, current))
    }

    /// Shows a certificate made elsewhere, for example by cert-manager: `cert` is the leaf and then its chain.
    /// [`Certificates::swap_pem`] takes its renewals.
    pub fn from_pem(cert: &str, key: &str) -> Result<Self, Error> {
        Ok(Self::new(Source::Given, Current::from_pem(cert, key)?))
    }

    fn new(source: Source, current: Current) -> Self {
        Certificates(Arc::new(Inner {
            source: Mutex::new(source),
            current: RwLock::new(current),
        }))
    }

    /// Shows another certificate made elsewhere from the next handshake on. On an error the present one stays.
    pub fn swap_pem(&self, cert: &str, key: &str) -> Result<(), Error> {
        let current = Current::from_pem(cert, key)?;
        let mut source = self.source();
        *source = Source::Given;
        self.show(current);
        Ok(())
    }

    /// Shows a leaf of another authority, for the same names, from the next handshake on. On an error the present one
    /// stays. Certificates that were given from outside change nothing: `false`.
    pub fn swap_authority(&self, next: Authority, now: SystemTime) -> Result<bool, Error> {
        let mut source = self.source();
        let Source::Authority { authority, names } = &mut *source else {
            return Ok(false);
        };
        let current = Current::of(&next.issue(names, now)?)?;
        *authority = next;
        self.show(current);
        Ok(true)
    }

    /// Issues a new leaf when two thirds of the present one's life have passed; whether it did. On an error the
    /// present one stays. A certificate that was given from outside is never due here.
    pub fn renew_if_due(&self, now: SystemTime) -> Result<bool, Error> {
        let source = self.source();
        let Source::Authority { authority, names } = &*source else {
            return Ok(false);
        };
        let leaf = self.current().leaf;
        // A clock that was set back before the leaf's life is a reason as well: no client would take it.
        if now < due(leaf.not_before, leaf.not_after) && now >= leaf.not_before {
            return Ok(false);
        }
        let current = Current::of(&authority.issue(names, now)?)?;
        self.show(current);
        Ok(true)
    }

    /// When the present leaf is due for renewal; of one given from outside, when two thirds of its life have passed.
    pub fn renewal_due_at(&self) -> SystemTime {
        let leaf = self.current().leaf;
        due(leaf.not_before, leaf.not_after)
    }

    /// End of the present leaf's life.
    pub fn not_after(&self) -> SystemTime {
        self.current().leaf.not_after
    }

    /// What clients should trust, PEM; `None` for certificates given from outside.
    pub fn bundle(&self) -> Option<String> {
        match &*self.source() {
            Source::Authority { authority, .. } => Some(authority.bundle().to_owned()),
            Source::Given => None,
        }
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        // Nothing panics while it is held, and what it protects is whole at any time.
        self.0.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Current {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, current: Current) {
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = current;
    }
}

impl Current {
    fn of(leaf: &Leaf) -> Result<Self, Error> {
        Self::from_pem(&leaf.cert_pem, &leaf.key_pem)
    }

    fn from_pem(cert: &str, key: &str) -> Result<Self, Error> {
        let chain = pem::certificates(WHAT, cert)?;
        let private = pem::private_key(key)?;
        let leaf = match chain.first() {
            Some(first) => pem::read(WHAT, 0, first)?,
            None => {
                return Err(Error::KeyMismatch {
                    what: WHAT,
                    certificates: 0,
                });
            }
        };
        let signer = provider()
            .key_provider
            .load_private_key(private)
            .map_err(|error| Error::Key(error.to_string()))?;
        // The leaf comes first; a key of another certificate of the chain is no use.
        if signer
            .public_key()
            .is_some_and(|key| key.as_ref() != leaf.public_key_der)
        {
            return Err(Error::KeyMismatch {
                what: WHAT,
                certificates: chain.len(),
            });
        }
        Ok(Current {
            key: Arc::new(CertifiedKey::new(chain, signer)),
            leaf: Arc::new(leaf),
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // The same for every name: an API server calls a Service by name, an agent by address.
        Some(self.current().key)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = self.current().leaf;
        f.debug_struct("Certificates")
            .field("subject", &leaf.subject)
            .field("not_after", &leaf.not_after)
            .finish_non_exhaustive()
    }
}
