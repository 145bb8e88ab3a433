//! The certificate authority of an installation: made once, kept in a Secret, shared by all deciders, rotated in time.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use infer_kube::ca::{self, Pem, Stored};
use infer_trust::{Authority, AuthorityPem, Certificates};
use infer_webhook::AgentInjector;
use kube::Client;
use tokio::sync::watch;

use super::{Error, Options};

/// Another decider may have rotated the authority, and somebody may have put the webhook configurations there or taken the
/// caBundle out of them: looked at this often. Three requests a minute.
const LOOK: Duration = Duration::from_secs(60);
/// The API server may not be there yet when everything starts at once.
const RETRY: Duration = Duration::from_secs(2);

/// The authority and what is shown of it.
pub(crate) struct Trust {
    client: Client,
    configuration: Option<String>,
    source: Source,
    /// What gRPC and the webhooks show.
    pub(crate) certificates: Certificates,
}

/// Where certificates come from.
enum Source {
    /// An authority of our own.
    Own(Box<Own>),
    /// Files that somebody else renews.
    Given { directory: PathBuf, files: Files },
}

struct Own {
    namespace: String,
    secret: String,
    stored: Stored,
    authority: Authority,
}

/// What is in a directory of the kind that cert-manager's Secrets make.
#[derive(Clone, PartialEq)]
struct Files {
    certificate: String,
    key: String,
    authority: String,
}

impl Files {
    fn read(directory: &Path) -> Result<Files, String> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        Ok(Files {
            certificate: read("tls.crt")?,
            key: read("tls.key")?,
            authority: read("ca.crt")?,
        })
    }
}

fn pem(authority: &Authority) -> Pem {
    let AuthorityPem { certificates, key } = authority.to_pem();
    Pem { certificates, key }
}

fn read(stored: &Stored) -> Result<Authority, infer_trust::Error> {
    Authority::from_pem(&stored.pem.certificates, &stored.pem.key)
}

impl Trust {
    /// Reads the authority, or makes it; waits for an API server that is not there yet.
    ///
    /// # Errors
    /// A Secret or files that are there and not usable, or names that are none.
    pub(crate) async fn establish(client: Client, options: &Options, names: Vec<String>) -> Result<Trust, Error> {
        let configuration = (!options.no_webhooks).then(|| options.webhook_configuration.clone());
        if let Some(directory) = options.tls_dir.clone() {
            let files = Files::read(&directory).map_err(|problem| Error::Usage(format!("--tls-dir: {problem}")))?;
            return Ok(Trust {
                client,
                configuration,
                certificates: Certificates::from_pem(&files.certificate, &files.key)?,
                source: Source::Given { directory, files },
            });
        }
        let namespace = options.own_namespace();
        let now = SystemTime::now();
        let generate = || {
            Authority::generate(now)
                .map(|made| pem(&made))
                .map_err(|error| error.to_string())
        };
        let stored = loop {
            match ca::ensure_authority(&client, &namespace, &options.ca_secret, generate).await {
                Ok(stored) => break stored,
                Err(error @ (ca::Error::Unusable { .. } | ca::Error::Generate(_))) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, "waiting for the certificate authority's Secret");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        let authority = read(&stored)?;
        let certificates = Certificates::issue(authority.clone(), names, now)?;
        Ok(Trust {
            client,
            configuration,
            certificates,
            source: Source::Own(Box::new(Own {
                namespace,
                secret: options.ca_secret.clone(),
                stored,
                authority,
            })),
        })
    }

    /// What agents and the API server trust.
    pub(crate) fn bundle(&self) -> &str {
        match &self.source {
            Source::Own(own) => own.authority.bundle(),
            Source::Given { files, .. } => &files.authority,
        }
    }

    /// Keeps certificate, authority and webhook configurations up to date until `stopped` turns true. Never fails: what cannot
    /// be done now is tried again.
    pub(crate) async fn keep(mut self, injector: Option<AgentInjector>, mut stopped: watch::Receiver<bool>) {
        loop {
            let next = match self.look(injector.as_ref()).await {
                Ok(()) => LOOK,
                Err(problem) => {
                    tracing::warn!(problem, "certificates are not up to date");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                () = crate::stopped(&mut stopped) => return,
            }
        }
    }

    async fn look(&mut self, injector: Option<&AgentInjector>) -> Result<(), String> {
        let now = SystemTime::now();
        let Trust {
            client,
            configuration,
            source,
            certificates,
        } = self;
        let publish = Publish {
            client,
            configuration: configuration.as_deref(),
            injector,
        };
        match source {
            Source::Own(own) => {
                own.look(certificates, &publish, now).await?;
                publish.bundle(own.authority.bundle()).await?;
            }
            Source::Given { directory, files } => {
                let found = Files::read(directory)?;
                if found != *files {
                    certificates
                        .swap_pem(&found.certificate, &found.key)
                        .map_err(|error| error.to_string())?;
                    tracing::info!("going over to the certificate that the directory has now");
                    *files = found;
                }
                publish.bundle(&files.authority).await?;
            }
        }
        if certificates.renew_if_due(now).map_err(|error| error.to_string())? {
            tracing::info!("the server certificate has been renewed");
        }
        Ok(())
    }
}

impl Own {
    /// Takes over what other deciders have done, and does what is due.
    async fn look(
        &mut self,
        certificates: &Certificates,
        publish: &Publish<'_>,
        now: SystemTime,
    ) -> Result<(), String> {
        let found = ca::read_authority(publish.client, &self.namespace, &self.secret)
            .await
            .map_err(|error| error.to_string())?;
        // A Secret that somebody has deleted comes back as it was: whoever trusts this authority goes on to.
        let found = match found {
            Some(found) => found,
            None => {
                let own = || Ok(pem(&self.authority));
                ca::ensure_authority(publish.client, &self.namespace, &self.secret, own)
                    .await
                    .map_err(|error| error.to_string())?
            }
        };
        self.adopt(certificates, found, now)?;
        if self.authority.is_rotation_due(now) {
            let next = self.authority.rotate(now).map_err(|error| error.to_string())?;
            let next = pem(&next);
            let stored = ca::replace_authority(publish.client, &self.namespace, &self.secret, &self.stored, &next)
                .await
                .map_err(|error| error.to_string())?;
            tracing::info!("the certificate authority has been rotated");
            // Trusted first, shown then.
            let authority = read(&stored).map_err(|error| error.to_string())?;
            publish.bundle(authority.bundle()).await?;
            self.adopt(certificates, stored, now)?;
        }
        Ok(())
    }

    /// Goes over to another authority, if it is another.
    fn adopt(&mut self, certificates: &Certificates, found: Stored, now: SystemTime) -> Result<(), String> {
        if found.pem != self.stored.pem {
            let next = read(&found).map_err(|error| error.to_string())?;
            certificates
                .swap_authority(next.clone(), now)
                .map_err(|error| error.to_string())?;
            tracing::info!("going over to the certificate authority that the Secret has now");
            self.authority = next;
        }
        self.stored = found;
        Ok(())
    }
}

/// Who is to know whom to trust.
struct Publish<'a> {
    client: &'a Client,
    configuration: Option<&'a str>,
    injector: Option<&'a AgentInjector>,
}

impl Publish<'_> {
    /// Makes Pods created from now on, and the API server, trust it.
    async fn bundle(&self, bundle: &str) -> Result<(), String> {
        if let Some(injector) = self.injector {
            let options = injector.options();
            if options.ca_pem.as_deref() != Some(bundle) {
                injector.set_options(infer_inject::Options {
                    ca_pem: Some(bundle.to_owned()),
                    ..(*options).clone()
                });
            }
        }
        let Some(name) = self.configuration else {
            return Ok(());
        };
        let patched = ca::patch_ca_bundle(self.client, name, bundle)
            .await
            .map_err(|error| error.to_string())?;
        if patched.changed > 0 {
            tracing::info!(
                webhooks = patched.changed,
                "webhook configurations trust this authority now"
            );
        }
        Ok(())
    }
}
