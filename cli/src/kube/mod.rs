//! Finds a decider in a cluster with `kubectl`, which knows how to get there: certificates, a token, a way in.
//!
//! Nothing here speaks to an API server itself, so whatever works for `kubectl` (contexts, proxies, log-ins) works here.
//! Each failure names the command that failed.

mod forward;
mod token;

use std::io::{IsTerminal, Write};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tokio::process::Command;

pub(crate) use self::forward::Forward;
use crate::args::KubeArgs;
use crate::credentials::{Authority, Credentials, Token};
use crate::failure::Failure;

/// The decider's Service, its webhook configurations, and how its Leases begin.
const DECIDER: &str = "infer-decider";
/// Where the decider that holds a Lease is reached in the cluster.
const ENDPOINT: &str = "autoscaling.matrixinfer.ai/endpoint";

/// How `kubectl` is called.
#[derive(Debug)]
pub(crate) struct Kube {
    args: KubeArgs,
    /// Of each command.
    timeout: Duration,
}

/// A decider, and what it decides on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    pod: String,
    endpoint: String,
    /// The first of its shards.
    shard: u32,
}

impl Kube {
    pub(crate) fn new(args: KubeArgs, timeout: Duration) -> Self {
        Kube { args, timeout }
    }

    /// What is missing of `given` comes from the cluster.
    pub(crate) async fn credentials(&self, given: Credentials) -> Result<Credentials, Failure> {
        let authority = match given.authority {
            Some(authority) => authority,
            None => self.authority().await?,
        };
        let token: Token = match given.token {
            Some(token) => token,
            None => self.token().await?,
        };
        // The name that every certificate for a Service has, those from elsewhere too.
        let service = || format!("{DECIDER}.{}.svc", self.args.namespace);
        Ok(Credentials {
            authority: Some(authority),
            token: Some(token),
            server_name: given.server_name.or_else(|| Some(service())),
        })
    }

    /// The certificates that the decider has written into its webhook configuration, for the API server.
    pub(crate) async fn authority(&self) -> Result<Authority, Failure> {
        let command = ["get", "mutatingwebhookconfiguration", DECIDER, "-o", "json"];
        let elsewhere = || {
            format!(
                "Without webhooks the certificates are in a Secret; give them with --ca-file: kubectl -n {} get secret \
                 {DECIDER}-ca -o jsonpath='{{.data.tls\\.crt}}' | base64 -d >ca.pem",
                self.args.namespace
            )
        };
        let configuration = self.json(&command).await.map_err(|failure| match failure {
            Failure::Work(message) if message.contains("NotFound") || message.contains("Forbidden") => {
                Failure::Work(format!("{message}\n{}", elsewhere()))
            }
            other => other,
        })?;
        let source = format!("MutatingWebhookConfiguration {DECIDER}");
        match bundle(&configuration) {
            Some(pem) => Authority::new(pem, source),
            None => Err(Failure::Work(format!(
                "{source} has no caBundle yet: the decider writes it once it runs\n{}",
                elsewhere()
            ))),
        }
    }

    /// A way to the decider that has that endpoint, else to the one that was asked for, else to the one that decides; and in
    /// which words to speak of it. `lists` where the answer is about everything that one decider has.
    pub(crate) async fn forward(&self, endpoint: Option<&str>, lists: bool) -> Result<(Forward, String), Failure> {
        let namespace = &self.args.namespace;
        let to = match (&self.args.decider, endpoint) {
            (Some(pod), None) => format!("pod/{pod}"),
            _ => match self.holders().await {
                Ok(holders) => format!("pod/{}", self.choose(&holders, endpoint, lists)?.pod),
                Err(failure) if endpoint.is_none() => {
                    let why = failure.message().unwrap_or_default();
                    self.note(&format!(
                        "which decider decides cannot be told, any is asked ({})",
                        why.trim_end()
                    ));
                    format!("service/{DECIDER}")
                }
                Err(failure) => return Err(failure),
            },
        };
        let forward = Forward::start(self, &to).await?;
        let shown = format!("{to} in namespace {namespace}").replacen("pod/", "pod ", 1);
        Ok((forward, shown.replacen("service/", "service ", 1)))
    }

    fn choose<'a>(&self, holders: &'a [Holder], endpoint: Option<&str>, lists: bool) -> Result<&'a Holder, Failure> {
        let namespace = &self.args.namespace;
        if let Some(endpoint) = endpoint {
            let found = holders.iter().find(|holder| holder.endpoint == endpoint);
            return found.ok_or_else(|| {
                Failure::Work(format!(
                    "no Lease in namespace {namespace} says which decider is at {endpoint}"
                ))
            });
        }
        let Some(first) = holders.first() else {
            return Err(Failure::Work(format!(
                "no decider has a Lease in namespace {namespace}: is it there (--namespace), and does it run? See kubectl \
                 -n {namespace} get pods,leases"
            )));
        };
        if lists && holders.len() > 1 {
            let others: Vec<&str> = holders[1..].iter().map(|holder| holder.pod.as_str()).collect();
            self.note(&format!(
                "{} deciders share the work; this is what {} has. Ask the others with --decider: {}",
                holders.len(),
                first.pod,
                others.join(", ")
            ));
        }
        Ok(first)
    }

    async fn holders(&self) -> Result<Vec<Holder>, Failure> {
        let leases = self
            .json(&["-n", &self.args.namespace, "get", "leases", "-o", "json"])
            .await?;
        Ok(holders(&leases))
    }

    fn note(&self, text: &str) {
        let _ = writeln!(anstream::stderr(), "inferctl: {text}");
    }

    fn full<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let context = self.args.context.as_deref();
        let context = context.map(|context| ["--context", context]).into_iter().flatten();
        context.chain(args.iter().copied()).collect()
    }

    async fn json(&self, args: &[&str]) -> Result<Value, Failure> {
        let text = self.kubectl(args).await?;
        serde_json::from_str(&text)
            .map_err(|error| Failure::Work(format!("{}: the answer is not JSON: {error}", words(&self.full(args)))))
    }

    /// What `kubectl` with these arguments prints.
    async fn kubectl(&self, args: &[&str]) -> Result<String, Failure> {
        let args = self.full(args);
        let mut command = Command::new("kubectl");
        command.args(&args);
        self.run(command, &words(&args)).await
    }

    /// Runs a command that ends by itself; its words are for messages.
    async fn run(&self, mut command: Command, words: &str) -> Result<String, Failure> {
        let failed = |why: &str| Failure::Work(format!("{words}: {why}"));
        // A log-in may ask something, and what comes from elsewhere is no answer.
        let stdin = if std::io::stdin().is_terminal() {
            Stdio::inherit()
        } else {
            Stdio::null()
        };
        let output = command.stdin(stdin).kill_on_drop(true).output();
        let output = match tokio::time::timeout(self.timeout, output).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(failed(&not_started(&error))),
            Err(_) => {
                return Err(failed(&format!(
                    "not done within {:?}; wait longer with --timeout, or log in before",
                    self.timeout
                )));
            }
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(&match said.trim() {
                "" => output.status.to_string(),
                said => said.to_owned(),
            }));
        }
        String::from_utf8(output.stdout).map_err(|_| failed("the answer is not text"))
    }
}

fn words(args: &[&str]) -> String {
    format!("kubectl {}", args.join(" "))
}

fn not_started(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "not found on PATH, and --kube needs it".to_owned(),
        _ => format!("cannot be started: {error}"),
    }
}

fn bundle(configuration: &Value) -> Option<String> {
    let webhooks = configuration.get("webhooks")?.as_array()?;
    let mut bundles = webhooks
        .iter()
        .filter_map(|webhook| webhook.pointer("/clientConfig/caBundle")?.as_str());
    let decoded = BASE64_STANDARD
        .decode(bundles.find(|bundle| !bundle.is_empty())?)
        .ok()?;
    String::from_utf8(decoded).ok()
}

/// Who holds Leases, each once, by their first shard.
fn holders(leases: &Value) -> Vec<Holder> {
    let items = leases.get("items").and_then(Value::as_array);
    let mut holders: Vec<Holder> = items.into_iter().flatten().filter_map(holder).collect();
    holders.sort_by_key(|holder| holder.shard);
    let mut seen = std::collections::BTreeSet::new();
    holders.retain(|holder| seen.insert(holder.pod.clone()));
    holders
}

fn holder(lease: &Value) -> Option<Holder> {
    let name = lease.pointer("/metadata/name")?.as_str()?;
    let shard = name.strip_prefix(DECIDER)?.strip_prefix("-shard-")?.parse().ok()?;
    // After the Pod's name, which has no underscore, stands which of its processes it is.
    let holder = lease.pointer("/spec/holderIdentity")?.as_str()?;
    let pod = holder.split_once('_').map_or(holder, |(pod, _)| pod);
    let annotations = lease.pointer("/metadata/annotations");
    let endpoint = annotations.and_then(|annotations| annotations.get(ENDPOINT)?.as_str());
    (!pod.is_empty()).then(|| Holder {
        pod: pod.to_owned(),
        endpoint: endpoint.unwrap_or_default().to_owned(),
        shard,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_decider_is_who_holds_a_lease() {
        let lease = |name: &str, holder: &str, endpoint: &str| {
            json!({
                "metadata": {"name": name, "annotations": {ENDPOINT: endpoint}},
                "spec": {"holderIdentity": holder}
            })
        };
        let leases = json!({"items": [
            lease("infer-decider-shard-10", "d-b", "https://10.0.0.2:9400"),
            lease("infer-decider-shard-2", "d-a_4f1", "https://10.0.0.1:9400"),
            lease("infer-decider-shard-3", "d-a_4f1", "https://10.0.0.1:9400"),
            lease("infer-decider-shard-0", "", ""),
            lease("somebody-else", "x", ""),
            {"metadata": {"name": "infer-decider-shard-1"}, "spec": {}},
        ]});
        let expected = [
            ("d-a", "https://10.0.0.1:9400", 2),
            ("d-b", "https://10.0.0.2:9400", 10),
        ];
        let expected = expected.map(|(pod, endpoint, shard)| Holder {
            pod: pod.to_owned(),
            endpoint: endpoint.to_owned(),
            shard,
        });
        assert_eq!(holders(&leases), expected);
        assert!(holders(&json!({})).is_empty());
    }

    #[test]
    fn the_bundle_is_the_first_that_is_there() {
        let of = |bundles: &[&str]| {
            let webhooks: Vec<Value> = bundles
                .iter()
                .map(|bundle| json!({"clientConfig": {"caBundle": bundle}}))
                .collect();
            bundle(&json!({"webhooks": webhooks}))
        };
        assert_eq!(of(&["", "aGVsbG8="]), Some("hello".to_owned()));
        assert_eq!(of(&["?"]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(bundle(&json!({"webhooks": [{"clientConfig": {}}]})), None);
    }
}
