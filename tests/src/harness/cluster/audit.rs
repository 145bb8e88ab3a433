//! What the API server's audit log says was asked of it.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use serde::Deserialize;
use serde_json::Value;

use super::Error;

const WRITES: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

/// The log, and places in it.
#[derive(Debug, Clone)]
pub struct Audit {
    path: PathBuf,
}

/// One request that has been answered (a watch: that has begun).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Unique.
    pub id: String,
    /// Who asked.
    pub user: String,
    /// With what.
    pub user_agent: String,
    /// "get", "list", "watch", "create", "update", "patch", "delete", …
    pub verb: String,
    /// Plural, such as "deployments"; empty for paths that are no resources.
    pub resource: String,
    /// Such as "scale"; empty for none.
    pub subresource: String,
    /// Empty for none.
    pub namespace: String,
    /// Empty for none.
    pub name: String,
    /// Replicas that are asked for, where it writes the scale subresource of a kind in `apps`.
    pub replicas: Option<u64>,
    /// HTTP's.
    pub code: u16,
    /// When it came, as RFC 3339 in UTC with microseconds: later is greater.
    pub received: String,
    /// When it was answered.
    pub answered: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "auditID")]
    audit_id: String,
    verb: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: ObjectRef,
    #[serde(default)]
    response_status: ResponseStatus,
    #[serde(default)]
    request_object: Value,
    #[serde(default)]
    request_received_timestamp: String,
    #[serde(default)]
    stage_timestamp: String,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
}

impl Request {
    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        WRITES.contains(&self.verb.as_str())
    }

    /// Whether it has changed something.
    pub fn succeeded(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Whether it wrote a number of replicas by the scale subresource.
    pub fn is_scale(&self) -> bool {
        self.is_write() && self.subresource == "scale"
    }
}

impl Audit {
    pub(super) fn new(path: PathBuf) -> Self {
        Audit { path }
    }

    /// The end of the log as it is now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn mark(&self) -> Result<u64, Error> {
        let file = File::open(&self.path).map_err(Error::io("read", &self.path))?;
        let metadata = file.metadata().map_err(Error::io("read", &self.path))?;
        Ok(metadata.len())
    }

    /// What was asked since then and is of interest, oldest first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn since(&self, mark: u64, wanted: impl Fn(&Request) -> bool) -> Result<Vec<Request>, Error> {
        let mut file = File::open(&self.path).map_err(Error::io("read", &self.path))?;
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(mark))
            .and_then(|_| file.read_to_end(&mut text))
            .map_err(Error::io("read", &self.path))?;
        Ok(read(&text, wanted))
    }
}

/// The last line may be half written.
fn read(text: &[u8], wanted: impl Fn(&Request) -> bool) -> Vec<Request> {
    let mut seen = BTreeSet::new();
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Entry>(line).ok())
        .map(Request::from)
        .filter(wanted)
        // A watch has an entry when it begins and one when it ends.
        .filter(|request| seen.insert(request.id.clone()))
        .collect()
}

impl From<Entry> for Request {
    fn from(entry: Entry) -> Self {
        Request {
            id: entry.audit_id,
            user: entry.user.username,
            user_agent: entry.user_agent,
            verb: entry.verb,
            resource: entry.object_ref.resource,
            subresource: entry.object_ref.subresource,
            namespace: entry.object_ref.namespace,
            name: entry.object_ref.name,
            replicas: replicas(&entry.request_object),
            code: entry.response_status.code,
            received: entry.request_received_timestamp,
            answered: entry.stage_timestamp,
        }
    }
}

/// Of a whole object or a merge patch, or of a list of JSON patches.
fn replicas(body: &Value) -> Option<u64> {
    let patches = body.as_array().into_iter().flatten();
    let mut values = patches.filter(|patch| patch["path"] == "/spec/replicas" && patch["op"] != "test");
    let patched = values.next().and_then(|patch| patch["value"].as_u64());
    patched.or_else(|| body["spec"]["replicas"].as_u64())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_way_of_scaling_is_understood() {
        let patches = json!([
            {"op": "test", "path": "/spec/replicas", "value": 1},
            {"op": "replace", "path": "/spec/replicas", "value": 4},
        ]);
        assert_eq!(replicas(&patches), Some(4));
        assert_eq!(replicas(&json!({"spec": {"replicas": 2}})), Some(2));
        assert_eq!(replicas(&json!({"metadata": {}})), None);
        assert_eq!(replicas(&Value::Null), None);
    }

    #[test]
    fn entries_are_requests_once_each() {
        let watch = r#"{"auditID":"a","verb":"watch","user":{"username":"u"},"objectRef":{"resource":"pods"},"responseStatus":{"code":200}}"#;
        let scale = r#"{"auditID":"b","verb":"patch","user":{"username":"u"},"objectRef":{"resource":"deployments","subresource":"scale","namespace":"n","name":"web"},"responseStatus":{"code":409},"requestObject":{"spec":{"replicas":3}}}"#;
        let text = format!("{watch}\n{watch}\n{scale}\n{{\"auditID\":\"c\",");
        let all = read(text.as_bytes(), |_| true);
        assert_eq!(
            all.iter().map(|request| request.id.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!((all[0].replicas, all[1].replicas), (None, Some(3)));
        assert!(!all[0].is_write() && all[1].is_scale() && !all[1].succeeded());
        assert!(read(text.as_bytes(), |request| request.user != "u").is_empty());
    }
}
