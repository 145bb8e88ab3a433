//! The API server in plain JSON: objects go in as they stand in manifests and come out as `Value`s.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Method, Request};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Error;
use crate::harness::until;

/// An answer that has not come by then does not come.
const ANSWER: Duration = Duration::from_secs(20);
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";
/// Who applies, as managedFields have it.
const MANAGER: &str = "infer-test";

/// A connection to an API server.
#[derive(Clone)]
pub struct Api {
    client: Client,
    /// By apiVersion: kind, plural, whether namespaced.
    kinds: Arc<Mutex<BTreeMap<String, Vec<Kind>>>>,
}

#[derive(Debug, Clone)]
struct Kind {
    kind: String,
    plural: String,
    namespaced: bool,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

/// One of an object's `status.conditions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// "True", "False" or "Unknown".
    pub status: String,
    /// In one word.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Condition {
    /// An object's condition of this type.
    pub fn of(object: &Value, kind: &str) -> Option<Self> {
        let conditions = object["status"]["conditions"].as_array()?;
        let condition = conditions.iter().find(|condition| condition["type"] == kind)?;
        let text = |name: &str| condition[name].as_str().unwrap_or_default().to_owned();
        Some(Condition {
            status: text("status"),
            reason: text("reason"),
            message: text("message"),
        })
    }
}

/// The documents of a YAML text.
///
/// # Errors
/// [`Error::Yaml`].
pub fn documents(text: &str) -> Result<Vec<Value>, Error> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| Error::Yaml(error.to_string()))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

impl Api {
    /// Reads a kubeconfig; connects with the first request. It belongs to the runtime that asks for it.
    ///
    /// # Errors
    /// [`Error::Kubeconfig`].
    pub async fn connect(kubeconfig: &Path) -> Result<Self, Error> {
        let bad = |message: String| Error::Kubeconfig {
            path: kubeconfig.to_path_buf(),
            message,
        };
        let file = Kubeconfig::read_from(kubeconfig).map_err(|error| bad(error.to_string()))?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .map_err(|error| bad(error.to_string()))?;
        // The harness's answers come from this machine, whatever proxy the user has.
        config.proxy_url = None;
        Ok(Api {
            client: Client::try_from(config)?,
            kinds: Arc::default(),
        })
    }

    /// For what needs a client of its own.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// An exchange whose answer is no JSON.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Exchange`].
    pub async fn text(&self, path: &str) -> Result<String, Error> {
        self.exchange(Method::GET, path, JSON, None).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<String, Error> {
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("accept", "application/json, */*")
            .body(bytes)
            .map_err(|error| Error::Exchange(error.to_string()))?;
        timeout(ANSWER, self.client.request_text(request))
            .await
            .map_err(|_| Error::Exchange(format!("no answer for {path}")))?
            .map_err(Error::from)
    }

    async fn call(&self, method: Method, path: &str, content_type: &str, body: Option<&Value>) -> Result<Value, Error> {
        let text = self.exchange(method, path, content_type, body).await?;
        serde_json::from_str(&text).map_err(|error| Error::Exchange(format!("{error}: {text}")))
    }

    /// GET.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Exchange`]; so have all that follow.
    #[allow(clippy::missing_errors_doc, reason = "said here")]
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::GET, path, JSON, None).await
    }

    /// The items of a list.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, Error> {
        match self.get(path).await?["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Err(Error::Exchange(format!("{path} is no list"))),
        }
    }

    /// POST to a path, such as a subresource that is made and not stored.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.call(Method::POST, path, JSON, Some(body)).await
    }

    /// A JSON merge patch.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.call(Method::PATCH, path, MERGE, Some(body)).await
    }

    /// Deletes; what is not there is deleted.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn delete(&self, path: &str) -> Result<(), Error> {
        match self.call(Method::DELETE, path, JSON, None).await {
            Err(error) if !error.is("NotFound") => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes with options: a grace period, preconditions. What is not there is deleted.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn delete_with(&self, path: &str, options: &Value) -> Result<(), Error> {
        let mut options = options.clone();
        options["apiVersion"] = json!("v1");
        options["kind"] = json!("DeleteOptions");
        match self.call(Method::DELETE, path, JSON, Some(&options)).await {
            Err(error) if !error.is("NotFound") => Err(error),
            _ => Ok(()),
        }
    }

    /// Creates an object where it says it belongs.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn create(&self, object: &Value) -> Result<Value, Error> {
        let (collection, _) = self.place(object).await?;
        let strict = format!("{collection}?fieldValidation=Strict&fieldManager={MANAGER}");
        self.call(Method::POST, &strict, JSON, Some(object)).await
    }

    /// Server-side apply of every document of a YAML text, in a namespace unless they name one.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn apply(&self, namespace: &str, text: &str) -> Result<Vec<Value>, Error> {
        let mut applied = Vec::new();
        for mut document in documents(text)? {
            if document["metadata"]["namespace"].is_null() {
                document["metadata"]["namespace"] = json!(namespace);
            }
            applied.push(self.apply_object(&document).await?);
        }
        Ok(applied)
    }

    /// Server-side apply of one object.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn apply_object(&self, object: &Value) -> Result<Value, Error> {
        let (collection, namespaced) = self.place(object).await?;
        let mut object = object.clone();
        if !namespaced && let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("namespace");
        }
        let name = text(&object["metadata"]["name"], "metadata.name")?;
        let path = format!("{collection}/{name}?fieldManager={MANAGER}&force=true&fieldValidation=Strict");
        self.call(Method::PATCH, &path, APPLY, Some(&object)).await
    }

    /// Where an object is.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn path(&self, object: &Value) -> Result<String, Error> {
        let (collection, _) = self.place(object).await?;
        Ok(format!(
            "{collection}/{}",
            text(&object["metadata"]["name"], "metadata.name")?
        ))
    }

    /// The collection that an object belongs to, and whether its kind is namespaced.
    async fn place(&self, object: &Value) -> Result<(String, bool), Error> {
        let api_version = text(&object["apiVersion"], "apiVersion")?;
        let kind = text(&object["kind"], "kind")?;
        let group = if api_version.contains('/') { "apis" } else { "api" };
        let root = format!("/{group}/{api_version}");
        let known = self.kind(&root, api_version, kind).await?;
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        let collection = if known.namespaced {
            format!("{root}/namespaces/{namespace}/{}", known.plural)
        } else {
            format!("{root}/{}", known.plural)
        };
        Ok((collection, known.namespaced))
    }

    async fn kind(&self, root: &str, api_version: &str, kind: &str) -> Result<Kind, Error> {
        let find = |kinds: &[Kind]| kinds.iter().find(|known| known.kind == kind).cloned();
        let known = || self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(api_version).and_then(|kinds| find(kinds)) {
            return Ok(found);
        }
        let missing = || Error::NoKind {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        };
        let list = match self.get(root).await {
            Err(error) if error.is("NotFound") => return Err(missing()),
            other => other?,
        };
        let resources = list["resources"].as_array().cloned().unwrap_or_default();
        let kinds: Vec<_> = resources
            .iter()
            .filter_map(|resource| {
                let plural = resource["name"].as_str().filter(|name| !name.contains('/'))?;
                Some(Kind {
                    kind: resource["kind"].as_str()?.to_owned(),
                    plural: plural.to_owned(),
                    namespaced: resource["namespaced"].as_bool()?,
                })
            })
            .collect();
        let found = find(&kinds).ok_or_else(missing)?;
        known().insert(api_version.to_owned(), kinds);
        Ok(found)
    }

    /// Asks again and again until the object is as wanted, and returns it. One that is not there is not as wanted;
    /// neither is an API server that does not answer.
    ///
    /// # Errors
    /// [`Error::Wait`] with the object's status as it was last.
    pub async fn wait_for(
        &self,
        path: &str,
        within: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let wanted = &wanted;
        let look = || async move {
            let object = self.get(path).await.map_err(|error| error.to_string())?;
            if wanted(&object) {
                Ok(object)
            } else {
                Err(format!(
                    "spec.replicas {}, status {}",
                    object["spec"]["replicas"], object["status"]
                ))
            }
        };
        Ok(until(within, &format!("{what} ({path})"), look).await?)
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    /// [`Error::Wait`].
    pub async fn wait_gone(&self, path: &str, within: Duration) -> Result<(), Error> {
        let look = || async move {
            match self.get(path).await {
                Err(error) if error.is("NotFound") => Ok(()),
                Err(error) => Err(error.to_string()),
                Ok(_) => Err("still there".to_owned()),
            }
        };
        Ok(until(within, &format!("{path} to go"), look).await?)
    }

    /// Waits until a CustomResourceDefinition's kind can be used.
    ///
    /// # Errors
    /// [`Error::Wait`].
    pub async fn wait_established(&self, name: &str, within: Duration) -> Result<(), Error> {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        let established =
            |crd: &Value| Condition::of(crd, "Established").is_some_and(|condition| condition.status == "True");
        self.wait_for(&path, within, "an established kind", established).await?;
        Ok(())
    }

    /// A token of a ServiceAccount for an audience, bound to a Pod: what a kubelet projects into it.
    #[allow(clippy::missing_errors_doc, reason = "as get")]
    pub async fn pod_token(&self, pod: &Value, audience: &str) -> Result<String, Error> {
        let metadata = &pod["metadata"];
        let namespace = text(&metadata["namespace"], "metadata.namespace")?;
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": [audience], "expirationSeconds": 3600,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]},
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self.post(&path, &request).await?;
        Ok(text(&answer["status"]["token"], "status.token")?.to_owned())
    }
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, Error> {
    value
        .as_str()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| Error::NoObject(format!("{field} is missing")))
}
