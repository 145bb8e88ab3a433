//! A real control plane under a test's hand: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and kwok for
//! nodes without machines. Everything on loopback, in a directory of its own, gone when the test process is gone.

mod api;
mod audit;
mod decider;
mod dns;
mod error;
mod fake;
mod front;
mod guard;
mod images;
mod keys;
mod network;
mod node;
mod parts;
mod programs;
mod runner;

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

pub use api::{Api, Condition, documents};
pub use audit::{Audit, Request};
pub use decider::{KubernetesDecider, KubernetesOptions};
pub use error::Error;
pub use fake::{Load, Loads};
pub use front::Front;
pub use guard::Child;
pub use images::{image, pause};
pub use node::{NODE, PAUSE};
pub use programs::{Programs, Source};
pub use runner::{Agents, Engines, RUN_LABEL, Runner};

use self::{dns::Dns, guard::Guard, keys::Keys, network::Network, parts::Layout};
use super::{free_range, until};

/// API server, etcd (clients, peers), kwok.
const PORTS: u16 = 4;
/// From nothing to a default ServiceAccount: 5 s on an idle machine with two cores, 12 s on a busy one.
const START: Duration = Duration::from_secs(90);
/// What has been killed is gone within this.
const END: Duration = Duration::from_secs(10);
/// Label of the nodes that kwok looks after. It leaves others alone.
pub const KWOK_LABEL: &str = "infer-test/kwok";
/// A node of kwok's takes as many Pods as a test wants.
const PODS_PER_NODE: u32 = 10_000;
/// Most lines of a log in a message.
const LOG_LINES: usize = 20;
/// Set: the directory stays when the cluster ends.
const KEEP: &str = "INFER_TEST_KEEP";

/// What a cluster can do for a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Abilities {
    /// An API server: objects are checked, stored and watched.
    Api,
    /// Deployments get Pods, Pods get nodes and become ready; and the cluster is ours: it can be broken.
    Fleet,
}

/// A running cluster. Dropping it ends it.
#[derive(Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    abilities: Abilities,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    programs: Programs,
    layout: Layout,
    keys: Keys,
    api_server: tokio::sync::Mutex<Option<Child>>,
    guard: Guard,
    /// Names for Pods of a real node.
    #[allow(dead_code, reason = "it ends when it is dropped")]
    dns: Option<Dns>,
}

impl Cluster {
    /// Starts one, or takes the one that the user names with `INFER_TEST_KUBECONFIG`. `Ok(None)` when there is none to be
    /// had here; then one line on stderr has said what is missing.
    ///
    /// # Errors
    /// Programs that are there and do not start.
    pub async fn start() -> Result<Option<Self>, Error> {
        match Source::choose() {
            Source::Given(kubeconfig) => {
                let cluster = Cluster {
                    kubeconfig,
                    abilities: Abilities::Api,
                    own: None,
                };
                cluster.api().await?.get("/version").await?;
                Ok(Some(cluster))
            }
            Source::Programs(programs) => {
                guard::end_leftovers();
                Self::launch(programs, Guard::new()?, None).await.map(Some)
            }
            Source::None(why) => {
                skip(&format!("no control plane: {why}"));
                Ok(None)
            }
        }
    }

    /// Starts one with a real node, [`NODE`], that has the images (OCI archives) of a directory. `Ok(None)` when that is
    /// not possible here; then one line on stderr has said what is missing.
    ///
    /// # Errors
    /// Programs that are there and do not start.
    pub async fn start_with_node(images: &Path) -> Result<Option<Self>, Error> {
        let programs = match Source::choose() {
            Source::Programs(programs) => programs,
            Source::Given(_) => {
                skip("no node of the harness's own in a cluster that you name");
                return Ok(None);
            }
            Source::None(why) => {
                skip(&format!("no control plane: {why}"));
                return Ok(None);
            }
        };
        let missing = node::missing(&programs);
        if !missing.is_empty() {
            skip(&format!("no real node: it needs {}", missing.join(", ")));
            return Ok(None);
        }
        guard::end_leftovers();
        let guard = Guard::new()?;
        let network = Network::create(&guard)?;
        let mut cluster = Self::launch(programs, guard, Some(network)).await?;
        let dns = Dns::serve(network.host(), cluster.api().await?).await?;
        if let Some(own) = &mut cluster.own {
            own.dns = Some(dns);
        }
        let own = cluster.own()?;
        node::start(&own.layout, &own.keys, &own.programs, &own.guard, network, images)?;
        let ready = |node: &Value| Condition::of(node, "Ready").is_some_and(|condition| condition.status == "True");
        let path = format!("/api/v1/nodes/{NODE}");
        cluster
            .api()
            .await?
            .wait_for(&path, START, "a Ready node", ready)
            .await?;
        Ok(Some(cluster))
    }

    async fn launch(programs: Programs, guard: Guard, network: Option<Network>) -> Result<Self, Error> {
        let directory = guard.directory().to_owned();
        let first = free_range(PORTS)?;
        let layout = Layout::new(directory, first, network);
        let keys = Keys::create(&layout.directory, &layout.addresses())?;
        layout.write_files()?;
        let own = Own {
            programs,
            layout,
            keys,
            api_server: tokio::sync::Mutex::new(None),
            guard,
            dns: None,
        };
        let mut cluster = Cluster {
            kubeconfig: own.layout.kubeconfig("admin"),
            abilities: Abilities::Api,
            own: None,
        };
        own.spawn("etcd")?;
        own.etcd_is_up().await?;
        own.start_api_server(&cluster.kubeconfig).await?;
        if own.programs.has("kube-controller-manager") && own.programs.has("kube-scheduler") {
            own.spawn("kube-controller-manager")?;
            own.spawn("kube-scheduler")?;
            if own.programs.has("kwok") {
                own.spawn("kwok")?;
                cluster.abilities = Abilities::Fleet;
            }
            let api = cluster.api().await?;
            let account = || async {
                let path = "/api/v1/namespaces/default/serviceaccounts/default";
                api.get(path).await.map_err(|error| error.to_string())
            };
            // Without it no Pod is admitted; /readyz is true long before.
            until(START, "the default ServiceAccount", account).await?;
        }
        cluster.own = Some(own);
        if std::env::var_os(KEEP).is_some_and(|value| !value.is_empty()) {
            cluster.keep_logs();
        }
        Ok(cluster)
    }

    /// What it can do.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Logs, keys and the audit log; `None` for a cluster that is not ours.
    pub fn directory(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.layout.directory.as_path())
    }

    /// A connection with the administrator's rights. It belongs to the runtime that asks for it: one per test.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read.
    pub async fn api(&self) -> Result<Api, Error> {
        Api::connect(&self.kubeconfig).await
    }

    /// A kubeconfig for any user of any one group: a client certificate with these names.
    ///
    /// # Errors
    /// [`Error::NotOurs`]; a file that cannot be written.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<PathBuf, Error> {
        let own = self.own()?;
        let name = format!("{}-{:08x}", user.replace([':', '/'], "-"), fastrand::u32(..));
        own.keys.client(&own.layout.directory, &name, user, group)?;
        own.layout.write_kubeconfig(&name)
    }

    /// Creates nodes that take Pods which tolerate the taint `infer-test/kwok`.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn add_nodes(&self, names: &[String]) -> Result<(), Error> {
        let api = self.api().await?;
        for name in names {
            let node = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {KWOK_LABEL: "yes", "kubernetes.io/hostname": name}},
                "spec": {"taints": [{"key": KWOK_LABEL, "effect": "NoSchedule"}]},
                "status": {
                    "allocatable": {"cpu": "10k", "memory": "10Ti", "pods": PODS_PER_NODE},
                    "capacity": {"cpu": "10k", "memory": "10Ti", "pods": PODS_PER_NODE},
                },
            });
            match api.create(&node).await {
                Err(error) if error.is("AlreadyExists") => {}
                other => drop(other?),
            }
        }
        let ready = |node: &Value| Condition::of(node, "Ready").is_some_and(|condition| condition.status == "True");
        for name in names {
            api.wait_for(&format!("/api/v1/nodes/{name}"), START, "a Ready node", ready)
                .await?;
        }
        Ok(())
    }

    /// A further program of the control plane's build, such as helm.
    ///
    /// # Errors
    /// [`Error::NotOurs`]; [`Error::Wait`] when it is not there.
    pub fn program(&self, name: &str) -> Result<PathBuf, Error> {
        let programs = &self.own()?.programs;
        let path = programs.path(name);
        if programs.has(name) {
            Ok(path)
        } else {
            Err(super::Error::NotBuilt { path }.into())
        }
    }

    /// The audit log: every request since the cluster's start.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub fn audit(&self) -> Result<Audit, Error> {
        Ok(Audit::new(self.own()?.layout.audit_log()))
    }

    /// `kill -9` of the API server, nothing else.
    ///
    /// # Errors
    /// [`Error::NotOurs`]; a process that does not go.
    pub async fn stop_api_server(&self) -> Result<(), Error> {
        let own = self.own()?;
        match own.api_server.lock().await.take() {
            Some(child) => child.end(END),
            None => Ok(()),
        }
    }

    /// The API server again, at the same address with the same data.
    ///
    /// # Errors
    /// [`Error::NotOurs`]; [`Error::Ended`]; [`Error::Wait`].
    pub async fn start_api_server(&self) -> Result<(), Error> {
        self.own()?.start_api_server(&self.kubeconfig).await
    }

    /// Leaves the directory with its logs when the cluster ends, and says where.
    pub fn keep_logs(&self) {
        if let Some(own) = &self.own
            && own.guard.keep()
        {
            say(&format!("kept for inspection: {}", own.layout.directory.display()));
        }
    }

    /// Starts a program that ends with the cluster at the latest.
    ///
    /// # Errors
    /// [`Error::NotOurs`]; [`Error::Io`].
    pub fn spawn(&self, command: std::process::Command, log: &Path) -> Result<Child, Error> {
        self.own()?.guard.spawn(command, log)
    }

    fn own(&self) -> Result<&Own, Error> {
        self.own.as_ref().ok_or(Error::NotOurs)
    }
}

impl Own {
    fn spawn(&self, name: &'static str) -> Result<Child, Error> {
        let command = self.layout.command(name, &self.programs.path(name));
        self.guard.spawn(command, &self.layout.log(name))
    }

    async fn etcd_is_up(&self) -> Result<(), Error> {
        let address = (Ipv4Addr::LOCALHOST, self.layout.etcd_port);
        let connect = || async {
            tokio::net::TcpStream::connect(address)
                .await
                .map_err(|error| error.to_string())
        };
        until(START, "etcd", connect).await?;
        Ok(())
    }

    async fn start_api_server(&self, kubeconfig: &Path) -> Result<(), Error> {
        let mut running = self.api_server.lock().await;
        if running.is_some() {
            return Ok(());
        }
        let child = self.spawn("kube-apiserver")?;
        let log = self.layout.log("kube-apiserver");
        let ready = || async {
            if !child.is_alive() {
                return Ok(false);
            }
            let api = Api::connect(kubeconfig).await.map_err(|error| error.to_string())?;
            api.text("/readyz").await.map_err(|error| error.to_string())?;
            Ok(true)
        };
        let alive = until(START, "the API server's /readyz", ready).await;
        match alive {
            Ok(true) => {
                *running = Some(child);
                Ok(())
            }
            Ok(false) => Err(Error::ended("kube-apiserver", &log)),
            Err(error) => {
                say(&tail(&log));
                Err(error.into())
            }
        }
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// Says on one line what is not tested and why.
pub fn skip(why: &str) {
    say(&format!("skipped: {why}"));
}

/// To the person who runs the tests.
pub(super) fn say(text: &str) {
    use std::io::Write as _;
    // Not `eprintln!`: a test runner would swallow it.
    let _ = writeln!(std::io::stderr(), "{text}");
}
