//! A decider in Kubernetes mode, as a process on this machine.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Agents, Api, Child, Cluster, END, Error, START, tail};
use crate::harness::{Binaries, free_range, http_get, until};

/// Secret with the decider's own certificate authority, and the part of it that others may know.
const AUTHORITY: (&str, &str) = ("infer-decider-ca", "tls.crt");
/// gRPC, HTTP, webhooks.
const PORTS: u16 = 3;

/// How a decider is started.
#[derive(Debug, Clone)]
pub struct KubernetesOptions {
    /// Its identity, unique among the deciders of one namespace.
    pub name: String,
    /// Where its Leases and its Secret are, and the only namespace that it looks at.
    pub namespace: String,
    /// With whose rights.
    pub kubeconfig: PathBuf,
    /// Whether it serves webhooks.
    pub webhooks: bool,
    /// Further arguments.
    pub arguments: Vec<String>,
}

/// A decider; ends with the cluster, or when it is dropped.
#[derive(Debug)]
pub struct KubernetesDecider {
    cluster: &'static Cluster,
    options: KubernetesOptions,
    directory: PathBuf,
    first_port: u16,
    child: Mutex<Option<Child>>,
}

impl KubernetesDecider {
    /// One that has addresses and does not run yet.
    ///
    /// # Errors
    /// [`Error::NotOurs`], [`Error::Io`], no free ports.
    pub fn new(cluster: &'static Cluster, options: KubernetesOptions) -> Result<Self, Error> {
        let root = cluster.directory().ok_or(Error::NotOurs)?;
        let directory = root.join("deciders").join(&options.namespace).join(&options.name);
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        Ok(KubernetesDecider {
            cluster,
            options,
            directory,
            first_port: free_range(PORTS)?,
            child: Mutex::default(),
        })
    }

    /// Starts one and waits until it says that it is ready.
    ///
    /// # Errors
    /// Programs that are not built; one that ends, or is not ready in time.
    pub async fn start(cluster: &'static Cluster, options: KubernetesOptions) -> Result<Self, Error> {
        let decider = KubernetesDecider::new(cluster, options)?;
        decider.launch()?;
        decider.wait_ready().await?;
        Ok(decider)
    }

    /// Starts it, or starts it again at the same addresses with the same state; does not wait.
    ///
    /// # Errors
    /// As [`KubernetesDecider::start`].
    pub fn launch(&self) -> Result<(), Error> {
        let binaries = Binaries::find()?;
        let KubernetesOptions {
            name,
            namespace,
            kubeconfig,
            webhooks,
            arguments,
        } = &self.options;
        let mut command = Command::new(binaries.path("infer-decider"));
        command
            .arg("kubernetes")
            .arg(format!("--state-dir={}", self.directory.display()))
            .arg(format!("--listen=127.0.0.1:{}", self.first_port))
            .arg(format!("--http-listen=127.0.0.1:{}", self.first_port + 1))
            .arg(format!("--identity={name}"))
            .arg(format!("--advertise={}", self.url()))
            .arg(format!("--lease-namespace={namespace}"))
            .arg(format!("--namespace={namespace}"))
            .args(arguments)
            .env("KUBECONFIG", kubeconfig);
        if *webhooks {
            command.arg(format!("--webhook-listen=127.0.0.1:{}", self.first_port + 2));
        } else {
            command.arg("--no-webhooks");
        }
        let child = self.cluster.spawn(command, &self.log())?;
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// [`Error::Ended`], [`Error::Wait`].
    pub async fn wait_ready(&self) -> Result<(), Error> {
        let url = format!("http://{}/readyz", self.http());
        let look = || async {
            if self.child().is_none_or(|child| !child.is_alive()) {
                return Ok(false);
            }
            match http_get(&url).await {
                Ok((200, _)) => Ok(true),
                Ok((status, body)) => Err(format!("{status}: {}", String::from_utf8_lossy(&body))),
                Err(error) => Err(error),
            }
        };
        match until(START, "a ready decider", look).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::ended("infer-decider", &self.log())),
            Err(error) => {
                super::say(&tail(&self.log()));
                Err(error.into())
            }
        }
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// [`Error::Undead`].
    pub fn kill(&self) -> Result<(), Error> {
        self.child().map_or(Ok(()), |child| child.end(END))
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// [`Error::Wait`].
    pub async fn stop(&self) -> Result<(), Error> {
        let Some(child) = self.child() else { return Ok(()) };
        child.terminate();
        let gone = || async {
            if child.is_alive() {
                Err("alive".to_owned())
            } else {
                Ok(())
            }
        };
        Ok(until(START, "the decider's end", gone).await?)
    }

    /// Where agents and people find it.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.first_port)
    }

    /// Host and port of its gRPC.
    pub fn grpc(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.first_port))
    }

    /// Host and port of its metrics and health.
    pub fn http(&self) -> String {
        format!("127.0.0.1:{}", self.first_port + 1)
    }

    /// Where it serves webhooks.
    pub fn webhooks(&self) -> String {
        format!("https://127.0.0.1:{}", self.first_port + 2)
    }

    /// Its log file.
    pub fn log(&self) -> PathBuf {
        self.directory.join("decider.log")
    }

    /// Its state directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its own metrics.
    ///
    /// # Errors
    /// [`Error::Exchange`].
    pub async fn metrics(&self) -> Result<String, Error> {
        let (_, body) = http_get(&format!("http://{}/metrics", self.http()))
            .await
            .map_err(Error::Exchange)?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Agents that report to it and trust the authority that its namespace's deciders have.
    ///
    /// # Errors
    /// [`Error::Wait`] when there is no authority.
    pub async fn agents(&self, api: &Api, within: Duration) -> Result<Agents, Error> {
        let (name, key) = AUTHORITY;
        let path = format!("/api/v1/namespaces/{}/secrets/{name}", self.options.namespace);
        let secret = api
            .wait_for(&path, within, "an authority", |secret| secret["data"][key].is_string())
            .await?;
        let pem = STANDARD
            .decode(secret["data"][key].as_str().unwrap_or_default())
            .map_err(|error| Error::NoObject(format!("{path}: {error}")))?;
        Ok(Agents {
            decider: self.url(),
            ca_pem: String::from_utf8_lossy(&pem).into_owned(),
            env: Vec::new(),
        })
    }

    fn child(&self) -> Option<Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for KubernetesDecider {
    fn drop(&mut self) {
        // One that does not go is the guard's.
        let _ = self.kill();
    }
}
