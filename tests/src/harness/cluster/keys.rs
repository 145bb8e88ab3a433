//! The cluster's certificate authority, and keys for everybody who takes part.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::Error;

/// The group that may do everything.
const MASTERS: &str = "system:masters";
/// File name, user, group of every fixed client.
const CLIENTS: [(&str, &str, Option<&str>); 4] = [
    ("admin", "admin", Some(MASTERS)),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kwok", "kwok", Some(MASTERS)),
];

/// The authority.
pub(super) struct Keys {
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = directory.join(name);
    fs::write(&path, text).map_err(Error::io("write", &path))
}

impl Keys {
    /// Writes `ca.crt`, `apiserver.crt` and `.key`, `sa.key` and `sa.pub` (for ServiceAccounts' tokens), and a key of
    /// each fixed client. The directory is nobody else's to read.
    pub(super) fn create(directory: &Path, addresses: &[String]) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("infer-test-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        write(directory, "ca.crt", &params.self_signed(&key)?.pem())?;
        write(directory, "ca.key", &key.serialize_pem())?;
        let keys = Keys {
            issuer: Issuer::new(params, key),
        };
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ];
        let hosts: Vec<_> = addresses.iter().map(String::as_str).chain(names).collect();
        keys.server(directory, "apiserver", &hosts)?;
        let key = KeyPair::generate()?;
        write(directory, "sa.key", &key.serialize_pem())?;
        write(directory, "sa.pub", &key.public_key_pem())?;
        for (name, user, group) in CLIENTS {
            keys.client(directory, name, user, group)?;
        }
        Ok(keys)
    }

    /// A client's certificate: `NAME.crt` and `NAME.key`.
    pub(super) fn client(&self, directory: &Path, name: &str, user: &str, group: Option<&str>) -> Result<(), Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(user, group);
        self.issue(directory, name, params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server's certificate, for names and addresses: `NAME.crt` and `NAME.key`.
    pub(super) fn server(&self, directory: &Path, name: &str, hosts: &[&str]) -> Result<(), Error> {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name = named(name, None);
        self.issue(directory, name, params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn issue(
        &self,
        directory: &Path,
        name: &str,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(), Error> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(directory, &format!("{name}.crt"), &certificate.pem())?;
        write(directory, &format!("{name}.key"), &key.serialize_pem())
    }
}

/// Kubernetes reads the user from CN and a group from O.
fn named(user: &str, group: Option<&str>) -> rcgen::DistinguishedName {
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}
