//! What a node needs of the machine: root, programs from the distribution, and a kernel that lets containers be.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
};

/// A file that a Debian package brings, and the package.
const NEEDED: [(&str, &str); 7] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
];
const PLUGINS: [&str; 3] = ["ptp", "host-local", "loopback"];
const PLUGIN_DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Run by a shell in fresh namespaces.
const PROBE: &str = include_str!("probe.sh");
const PLUGINS_PACKAGE: &str = "containernetworking-plugins";

/// Looks whether a node can run here. Programs that are missing are installed with `apt-get` where that is there; what it
/// says goes to stderr.
///
/// # Errors
/// Everything that is missing, in one line.
pub fn prepare() -> Result<(), String> {
    if !is_root() {
        return Err("it needs root".to_owned());
    }
    install()?;
    let lacking = probe().map_err(|error| format!("cannot try what it needs: {error}"))?;
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(format!("this machine lacks {}", lacking.join(", ")))
    }
}

fn install() -> Result<(), String> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_program("apt-get") {
        return Err(format!("missing, by the names of Debian's packages: {names}"));
    }
    crate::harness::cluster::say(&format!("apt-get install {names}"));
    let status = Command::new("apt-get")
        .args(["install", "-y", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Its talk is no data.
        .stdout(Stdio::from(std::io::stderr()))
        .status();
    match status {
        Ok(status) if status.success() && self::missing().is_empty() => Ok(()),
        Ok(status) => Err(format!("missing: {names}; apt-get: {status}")),
        Err(error) => Err(format!("missing: {names}; apt-get: {error}")),
    }
}

/// What does not work of all that a node does.
fn probe() -> Result<Vec<String>, String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let output = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            PROBE,
            "infer-probe",
        ])
        .arg(directory.path())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(vec![format!("network, mount and process namespaces ({said})")])
    }
}

fn missing() -> Vec<&'static str> {
    let programs = NEEDED.iter().filter(|(program, _)| !is_program(program));
    let mut packages: Vec<_> = programs.map(|(_, package)| *package).collect();
    let has_plugins = |directory: &&str| PLUGINS.iter().all(|plugin| Path::new(directory).join(plugin).is_file());
    if !PLUGIN_DIRECTORIES.iter().any(has_plugins) {
        packages.push(PLUGINS_PACKAGE);
    }
    packages.dedup();
    packages
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn is_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(name).is_file())
}
