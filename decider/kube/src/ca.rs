//! The certificate authority where all deciders find it, and the webhooks that are told to trust it.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::ObjectMeta,
};
use serde_json::{Value, json};
use thiserror::Error;

use crate::failure::{Failure, in_time};

/// Name of the Secret.
pub const SECRET: &str = "infer-decider-ca";
/// Name of both webhook configurations.
pub const WEBHOOKS: &str = "infer-decider";

const CERTIFICATES: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Others that change the same object at the same moment are few.
const TRIES: u32 = 5;

/// What is kept: PEM of the certificates (the current CA first) and of the current CA's key.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// Certificates.
    pub certificates: String,
    /// Private key.
    pub key: String,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}

/// What is kept, and which version of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The authority.
    pub pem: Pem,
    version: String,
}

/// Why the authority could not be read or written.
#[derive(Debug, Error)]
pub enum Error {
    /// The Secret is there and is not usable. It is never overwritten: whoever trusts it would be cut off.
    #[error("Secret {namespace}/{name}: {problem}; delete it and a new authority is made")]
    Unusable {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Making a new authority failed.
    #[error("a new certificate authority could not be made: {0}")]
    Generate(String),
    /// The API server refused, failed or did not answer.
    #[error("{what}: {problem}")]
    Api {
        /// What was tried.
        what: String,
        /// What it said.
        problem: String,
        /// Whether it said that a rule is missing.
        forbidden: bool,
    },
}

/// The authority of this installation: that of the Secret, or a new one if there is none. Of several deciders that make
/// one at the same moment, all get the same.
///
/// # Errors
/// See [`Error`].
pub async fn ensure_authority(
    client: &Client,
    namespace: &str,
    name: &str,
    generate: impl FnOnce() -> Result<Pem, String>,
) -> Result<Stored, Error> {
    let found = in_time(api(client, namespace).get_opt(name)).await;
    let found = found.map_err(|failure| failed("get", namespace, name, failure))?;
    if let Some(secret) = found.as_ref().filter(|secret| !is_empty(secret)) {
        return stored(namespace, name, secret);
    }
    let pem = generate().map_err(Error::Generate)?;
    match found {
        // The chart has one without content, so that it goes with the release.
        Some(empty) => {
            let version = empty.metadata.resource_version.unwrap_or_default();
            write(client, namespace, name, &version, &pem).await
        }
        None => match in_time(api(client, namespace).create(&post(), &secret_of(namespace, name, &pem))).await {
            Ok(created) => stored(namespace, name, &created),
            Err(Failure::Api(status)) if status.is_already_exists() => read_authority(client, namespace, name)
                .await?
                .ok_or_else(|| failed("get", namespace, name, Failure::Timeout)),
            Err(failure) => Err(failed("create", namespace, name, failure)),
        },
    }
}

fn is_empty(secret: &Secret) -> bool {
    let is_empty = |key: &str| {
        secret
            .data
            .as_ref()
            .and_then(|data| data.get(key))
            .is_none_or(|bytes| bytes.0.is_empty())
    };
    is_empty(CERTIFICATES) && is_empty(KEY)
}

/// The authority as it is now, `None` where there is none: for those who look whether another decider has rotated it.
///
/// # Errors
/// See [`Error`].
pub async fn read_authority(client: &Client, namespace: &str, name: &str) -> Result<Option<Stored>, Error> {
    match in_time(api(client, namespace).get_opt(name)).await {
        Ok(Some(secret)) if !is_empty(&secret) => stored(namespace, name, &secret).map(Some),
        Ok(_) => Ok(None),
        Err(failure) => Err(failed("get", namespace, name, failure)),
    }
}

/// Puts a successor in the place of `before`. If somebody else has done so already, theirs holds and is what is
/// returned: the caller's is to be forgotten.
///
/// # Errors
/// See [`Error`].
pub async fn replace_authority(
    client: &Client,
    namespace: &str,
    name: &str,
    before: &Stored,
    next: &Pem,
) -> Result<Stored, Error> {
    write(client, namespace, name, &before.version, next).await
}

/// Writes the two fields if the Secret is still of `version`; else whatever somebody else has written.
async fn write(client: &Client, namespace: &str, name: &str, version: &str, pem: &Pem) -> Result<Stored, Error> {
    let patch = json!({"metadata": {"resourceVersion": version}, "data": data_of(pem)});
    let params = PatchParams {
        field_manager: Some(crate::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match in_time(api(client, namespace).patch(name, &params, &Patch::Merge(&patch))).await {
        Ok(written) => stored(namespace, name, &written),
        Err(Failure::Api(status)) if status.is_conflict() || status.is_not_found() => {
            read_authority(client, namespace, name)
                .await?
                .ok_or_else(|| failed("patch", namespace, name, Failure::Api(status)))
        }
        Err(failure) => Err(failed("patch", namespace, name, failure)),
    }
}

fn api(client: &Client, namespace: &str) -> Api<Secret> {
    Api::namespaced(client.clone(), namespace)
}

fn post() -> PostParams {
    PostParams {
        field_manager: Some(crate::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn data_of(pem: &Pem) -> BTreeMap<String, ByteString> {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    BTreeMap::from([
        (CERTIFICATES.to_owned(), bytes(&pem.certificates)),
        (KEY.to_owned(), bytes(&pem.key)),
    ])
}

fn secret_of(namespace: &str, name: &str, pem: &Pem) -> Secret {
    let labels = [("app.kubernetes.io/managed-by", crate::FIELD_MANAGER)];
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        data: Some(data_of(pem)),
        ..Secret::default()
    }
}

fn stored(namespace: &str, name: &str, secret: &Secret) -> Result<Stored, Error> {
    let unusable = |problem: String| Error::Unusable {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        problem,
    };
    let field = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        text.filter(|text| text.contains("-----BEGIN "))
            .ok_or_else(|| unusable(format!("{key} is missing or is no PEM")))
    };
    Ok(Stored {
        pem: Pem {
            certificates: field(CERTIFICATES)?,
            key: field(KEY)?,
        },
        version: secret.metadata.resource_version.clone().unwrap_or_default(),
    })
}

/// What came of telling the webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Patched {
    /// Webhooks that trusted something else before.
    pub changed: usize,
    /// Webhooks in all; 0: there is no configuration (yet).
    pub webhooks: usize,
}

/// Makes every webhook of both configurations called `name` trust `bundle` (PEM). One that is missing is no mistake:
/// injection or validation is switched off. Nothing else in them is touched.
///
/// # Errors
/// See [`Error`].
pub async fn patch_ca_bundle(client: &Client, name: &str, bundle: &str) -> Result<Patched, Error> {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let first = patch_kind("mutatingwebhookconfigurations", &mutating, name, bundle, |object| {
        let webhooks = object.webhooks.iter().flatten();
        webhooks
            .map(|webhook| (webhook.name.clone(), webhook.client_config.ca_bundle.clone()))
            .collect()
    })
    .await?;
    let second = patch_kind("validatingwebhookconfigurations", &validating, name, bundle, |object| {
        let webhooks = object.webhooks.iter().flatten();
        webhooks
            .map(|webhook| (webhook.name.clone(), webhook.client_config.ca_bundle.clone()))
            .collect()
    })
    .await?;
    Ok(Patched {
        changed: first.changed + second.changed,
        webhooks: first.webhooks + second.webhooks,
    })
}

/// A webhook's name and whom it trusts.
type Trusts = (String, Option<ByteString>);

async fn patch_kind<K>(
    plural: &str,
    api: &Api<K>,
    name: &str,
    bundle: &str,
    webhooks: impl Fn(&K) -> Vec<Trusts>,
) -> Result<Patched, Error>
where
    K: kube::Resource + Clone + fmt::Debug + serde::de::DeserializeOwned,
{
    let failed = |verb: &str, failure: Failure| Error::Api {
        what: format!("{verb} {plural} {name}"),
        forbidden: failure.is_forbidden(),
        problem: failure.to_string(),
    };
    let wanted = ByteString(bundle.as_bytes().to_vec());
    let params = PatchParams {
        field_manager: Some(crate::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let found = in_time(api.get_opt(name))
            .await
            .map_err(|failure| failed("get", failure))?;
        let Some(object) = found else {
            return Ok(Patched::default());
        };
        let present = webhooks(&object);
        let others: Vec<&Trusts> = present
            .iter()
            .filter(|(_, trusts)| trusts.as_ref() != Some(&wanted))
            .collect();
        let patched = Patched {
            changed: others.len(),
            webhooks: present.len(),
        };
        if others.is_empty() {
            return Ok(patched);
        }
        let version = object.meta().resource_version.as_deref().unwrap_or_default();
        let patch = bundle_patch(version, &others, &wanted);
        match in_time(api.patch(name, &params, &Patch::Strategic(&patch))).await {
            Ok(_) => return Ok(patched),
            // Somebody else changed it in between: look again.
            Err(Failure::Api(status)) if status.is_conflict() && tries < TRIES => {}
            Err(failure) => return Err(failed("patch", failure)),
        }
    }
}

/// Webhooks are merged by name; the version keeps one that has gone in between from coming back as a torso.
fn bundle_patch(version: &str, others: &[&Trusts], wanted: &ByteString) -> Value {
    let set = others
        .iter()
        .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": wanted}}));
    json!({"metadata": {"resourceVersion": version}, "webhooks": set.collect::<Vec<_>>()})
}

fn failed(verb: &str, namespace: &str, name: &str, failure: Failure) -> Error {
    Error::Api {
        what: format!("{verb} Secret {namespace}/{name}"),
        forbidden: failure.is_forbidden(),
        problem: failure.to_string(),
    }
}
