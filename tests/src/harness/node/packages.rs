//! The programs that a node needs from the distribution.

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
const PLUGINS_PACKAGE: &str = "containernetworking-plugins";

/// Installs what is missing with `apt-get`, where that is there and we are root; what it says goes to stderr.
///
/// # Errors
/// The packages that are still missing, and why.
pub fn install() -> Result<(), String> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_root() || !is_program("apt-get") {
        return Err(format!("missing: {names} (names of Debian packages)"));
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
