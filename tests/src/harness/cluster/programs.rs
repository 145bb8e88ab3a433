//! Where a control plane comes from.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The user names a cluster on purpose: its kubeconfig. `KUBECONFIG` is not looked at: tests write, and nobody should
/// find them in a cluster that he only happened to be logged in to.
const GIVEN: &str = "INFER_TEST_KUBECONFIG";
/// Directory of etcd, kube-apiserver and kubectl, as setup-envtest leaves it.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
const NEEDED: [&str; 2] = ["etcd", "kube-apiserver"];

/// Directories with programs, the first one that has a program wins.
#[derive(Debug, Clone)]
pub struct Programs {
    directories: Vec<PathBuf>,
}

/// Where to get a cluster.
#[derive(Debug, Clone)]
pub enum Source {
    /// A running one, by its kubeconfig.
    Given(PathBuf),
    /// Programs to start.
    Programs(Programs),
    /// Nowhere, and why.
    None(String),
}

impl Source {
    /// In this order: a cluster that the user names, envtest's programs, the project's own build
    /// (`tests/cluster/build.sh`, which `make test` runs). Nothing is built here: a test that is silent for ten minutes
    /// looks like one that hangs.
    pub fn choose() -> Source {
        if let Some(kubeconfig) = env::var_os(GIVEN).filter(|path| !path.is_empty()) {
            return Source::Given(PathBuf::from(kubeconfig));
        }
        let assets = env::var_os(ASSETS).filter(|path| !path.is_empty()).map(PathBuf::from);
        let built = built();
        // envtest has neither controllers nor kwok; what the own build has of them comes in addition.
        let programs = Programs {
            directories: assets.iter().chain(&built).cloned().collect(),
        };
        match NEEDED.iter().find(|name| !programs.has(name)) {
            None => Source::Programs(programs),
            Some(name) => Source::None(format!(
                "no {name}; run tests/cluster/build.sh (needs Go 1.26, takes 7 to 12 minutes once), or set {ASSETS} or {GIVEN}"
            )),
        }
    }
}

impl Programs {
    /// Whether one is there.
    pub fn has(&self, name: &str) -> bool {
        self.directories.iter().any(|directory| directory.join(name).is_file())
    }

    /// Where one is; its bare name when it is nowhere.
    pub fn path(&self, name: &str) -> PathBuf {
        let paths = self.directories.iter().map(|directory| directory.join(name));
        paths
            .into_iter()
            .find(|path| path.is_file())
            .unwrap_or_else(|| PathBuf::from(name))
    }
}

/// Where the project's own build is, if there is a checkout.
fn built() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/build.sh");
    let output = Command::new(script).arg("--where").output().ok()?;
    let directory = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(directory.trim())).filter(|path| path.is_dir())
}
