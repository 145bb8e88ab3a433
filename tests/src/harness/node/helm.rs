//! The chart, installed by helm itself.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::harness::{Error, cluster, cluster::Cluster};

/// The chart in the checkout.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/matrix-infer-autoscaler");

/// helm for one cluster, as its administrator.
#[derive(Debug)]
pub struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Helm {
    /// Finds the program.
    ///
    /// # Errors
    /// It is not built; a cluster that is not the harness's own.
    pub fn new(cluster: &Cluster) -> Result<Self, cluster::Error> {
        let directory = cluster.directory().ok_or(cluster::Error::NotOurs)?;
        Ok(Helm {
            program: cluster.program("helm")?,
            kubeconfig: cluster.kubeconfig().to_path_buf(),
            // The user's own repositories and plugins are none of ours.
            home: directory.join("helm"),
        })
    }

    /// Installs the chart and returns when the API server has its objects.
    ///
    /// # Errors
    /// What helm says.
    pub async fn install(&self, release: &str, namespace: &str, values: &[&str]) -> Result<(), Error> {
        let mut arguments = vec!["install", release, CHART, "--namespace", namespace];
        arguments.extend(values.iter().flat_map(|value| ["--set", value]));
        self.run(&arguments).await
    }

    /// Uninstalls it and returns when its objects are gone.
    ///
    /// # Errors
    /// What helm says.
    pub async fn uninstall(&self, release: &str, namespace: &str) -> Result<(), Error> {
        let arguments = [
            "uninstall",
            release,
            "--namespace",
            namespace,
            "--wait",
            "--timeout",
            "120s",
        ];
        self.run(&arguments).await
    }

    async fn run(&self, arguments: &[&str]) -> Result<(), Error> {
        let output = Command::new(&self.program)
            .args(arguments)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .env("HOME", &self.home)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| io("start", &self.program, source))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Failed {
            program: format!("helm {}", arguments.join(" ")),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}
