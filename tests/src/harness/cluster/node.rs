//! A real node: containerd, kubelet and kube-proxy in namespaces of their own, with real Pods.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use super::{Child, Error, guard::Guard, keys::Keys, network::Network, parts::Layout, programs::Programs};

/// The node's name.
pub const NODE: &str = "node-1";
const SCRIPT: &str = include_str!("node.sh");
const TOOLS: [&str; 7] = ["containerd", "ctr", "runc", "ip", "nsenter", "unshare", "nft"];
const PARTS: [&str; 2] = ["kubelet", "kube-proxy"];
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// The image of the process that holds a Pod's namespaces.
pub const PAUSE: &str = "localhost/infer-test-pause:1";

/// What is missing here for a node; empty: nothing.
pub(super) fn missing(programs: &Programs) -> Vec<String> {
    let mut missing = Vec::new();
    if !is_root() {
        missing.push("root".to_owned());
    }
    let found = |name: &&&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
    };
    let tools = TOOLS.iter().filter(|name| !found(name)).map(|name| (*name).to_owned());
    missing.extend(tools);
    let parts = PARTS.iter().filter(|name| !programs.has(name));
    missing.extend(parts.map(|name| format!("{name} (tests/cluster/build.sh node)")));
    if plugins().is_none() {
        missing.push("the CNI plugins ptp and host-local".to_owned());
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.lines().any(|line| line.ends_with("\toverlay")) {
        missing.push("overlayfs in the kernel".to_owned());
    }
    if !Path::new("/proc/self/ns/net").exists() {
        missing.push("network namespaces in the kernel".to_owned());
    }
    missing
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn plugins() -> Option<&'static str> {
    PLUGINS
        .into_iter()
        .find(|directory| Path::new(directory).join("ptp").is_file())
}

/// Writes the node's files and starts it. `images` holds OCI archives, the pause image among them.
pub(super) fn start(
    layout: &Layout,
    keys: &Keys,
    programs: &Programs,
    guard: &Guard,
    network: Network,
    images: &Path,
) -> Result<Child, Error> {
    let directory = layout.directory.join("node");
    fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    let address = network.node().to_string();
    keys.client(
        &layout.directory,
        "kubelet",
        &format!("system:node:{NODE}"),
        Some("system:nodes"),
    )?;
    keys.client(&layout.directory, "kube-proxy", "system:kube-proxy", None)?;
    keys.server(&layout.directory, "kubelet-server", &[&address, NODE])?;
    let kubelet = layout.write_kubeconfig("kubelet")?;
    let proxy = layout.write_kubeconfig("kube-proxy")?;
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).map_err(Error::io("write", &path))
    };
    let copy = |from: &Path, name: &str| {
        let to = directory.join(name);
        fs::copy(from, &to).map(|_| ()).map_err(Error::io("write", &to))
    };
    copy(&kubelet, "kubelet.kubeconfig")?;
    let plugins = plugins().ok_or_else(|| Error::Node("no CNI plugins".to_owned()))?;
    write("containerd.toml", containerd(plugins))?;
    write("kubelet.yaml", kubelet_yaml(layout, network))?;
    write("kube-proxy.yaml", proxy_yaml(&proxy, network))?;
    write("resolv.conf", format!("nameserver {}\n", network.host()))?;
    let cni = directory.join("run/cni");
    fs::create_dir_all(&cni).map_err(Error::io("create", &cni))?;
    write("run/cni/10-pods.conflist", conflist(network))?;
    let program = programs.path("kubelet");
    let programs = program.parent().unwrap_or(Path::new(".")).to_path_buf();
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", network.namespace().display()))
        .args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", SCRIPT, "infer-test-node"])
        .arg(&directory)
        .args([NODE, &address])
        .arg(programs)
        .arg(network.name())
        .arg(images);
    guard.spawn(command, &layout.log("node"))
}

fn containerd(plugins: &str) -> String {
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
disable_apparmor = true
# Not every container's root may make itself more important than the machine's own processes.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "/run/cni"
"#
    )
}

fn conflist(network: Network) -> String {
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{"type": "ptp", "mtu": 1400, "ipMasq": false, "ipam": {{
  "type": "host-local", "dataDir": "/run/cni-addresses", "ranges": [[{{"subnet": "{}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}
"#,
        network.pods()
    )
}

fn kubelet_yaml(layout: &Layout, network: Network) -> String {
    let file = |name: &str| layout.directory.join(name).display().to_string();
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
address: {address}
healthzBindAddress: 127.0.0.1
readOnlyPort: 0
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: "{ca}"}}}}
authorization: {{mode: Webhook}}
tlsCertFile: "{certificate}"
tlsPrivateKeyFile: "{key}"
resolvConf: "{resolver}"
clusterDomain: cluster.local
clusterDNS: ["{host}"]
failSwapOn: false
# The machine's disk is the machine's business.
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 50Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}}
makeIPTablesUtilChains: false
protectKernelDefaults: true
volumePluginDir: /run/kubelet-volume-plugins
nodeStatusUpdateFrequency: 5s
"#,
        cgroup = network.name(),
        address = network.node(),
        host = network.host(),
        ca = file("ca.crt"),
        certificate = file("kubelet-server.crt"),
        key = file("kubelet-server.key"),
        resolver = file("node/resolv.conf"),
    )
}

fn proxy_yaml(kubeconfig: &Path, network: Network) -> String {
    format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {{kubeconfig: "{}"}}
hostnameOverride: {NODE}
bindAddress: {}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
clusterCIDR: {}
# These limits are the machine's.
conntrack: {{maxPerCore: 0, min: 0}}
nftables: {{syncPeriod: 30s, minSyncPeriod: 100ms}}
"#,
        kubeconfig.display(),
        network.node(),
        network.pods()
    )
}
