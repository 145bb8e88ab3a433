//! The parts of a control plane: their files and how each is started.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Error, network::Network};

/// Metadata of everything; of scaling also to what.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Request
    resources: [{group: apps, resources: [\"*/scale\"]}]
  - level: Metadata
";
const STAGES: &str = include_str!("stages.yaml");
/// Addresses of Services where there is no node, and of kwok's Pods. Nothing is routed there.
const SERVICES: &str = "10.96.0.0/16";
const PODS: &str = "10.200.0.1/16";

/// Files and ports of one cluster.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) directory: PathBuf,
    /// The API server's address.
    host: Ipv4Addr,
    /// Addresses of Services.
    services: String,
    api_port: u16,
    pub(super) etcd_port: u16,
    peer_port: u16,
    kwok_port: u16,
}

impl Layout {
    /// Four ports from the first.
    pub(super) fn new(directory: PathBuf, first: u16, network: Option<Network>) -> Self {
        let services = network.map_or_else(|| SERVICES.to_owned(), Network::services);
        Layout {
            directory,
            host: network.map_or(Ipv4Addr::LOCALHOST, Network::host),
            services,
            api_port: first,
            etcd_port: first + 1,
            peer_port: first + 2,
            kwok_port: first + 3,
        }
    }

    /// The API server's host.
    pub(super) fn server(&self) -> String {
        self.host.to_string()
    }

    /// Where the API server answers: at its host, and for Pods at the first address of Services.
    pub(super) fn addresses(&self) -> Vec<String> {
        let network = self.services.split('/').next().unwrap_or_default();
        let first = network
            .parse::<Ipv4Addr>()
            .map(|network| Ipv4Addr::from_bits(network.to_bits() + 1));
        let first = first.ok().map(|address| address.to_string());
        std::iter::once(self.server()).chain(first).collect()
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.directory.join("audit.log")
    }

    pub(super) fn kubeconfig(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.kubeconfig"))
    }

    /// Everything that is not a key.
    pub(super) fn write_files(&self) -> Result<(), Error> {
        for (name, text) in [("audit-policy.yaml", AUDIT_POLICY), ("stages.yaml", STAGES)] {
            let path = self.directory.join(name);
            fs::write(&path, text).map_err(Error::io("write", &path))?;
        }
        for name in ["admin", "kube-controller-manager", "kube-scheduler", "kwok"] {
            self.write_kubeconfig(name)?;
        }
        Ok(())
    }

    /// The kubeconfig of somebody whose key is there.
    pub(super) fn write_kubeconfig(&self, name: &str) -> Result<PathBuf, Error> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let text = format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: \"https://{}:{}\", certificate-authority: \"{}\"}}}}]
users: [{{name: test, user: {{client-certificate: \"{}\", client-key: \"{}\"}}}}]
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
current-context: test
",
            self.server(),
            self.api_port,
            file("ca.crt"),
            file(&format!("{name}.crt")),
            file(&format!("{name}.key")),
        );
        let path = self.kubeconfig(name);
        fs::write(&path, text).map_err(Error::io("write", &path))?;
        Ok(path)
    }

    /// How a part is started.
    pub(super) fn command(&self, name: &str, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.directory);
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig(name).display());
        match name {
            "etcd" => command.args(self.etcd()),
            "kube-apiserver" => command.args(self.api_server()),
            "kube-controller-manager" => command.arg(kubeconfig).args(self.controllers()),
            "kube-scheduler" => command
                .arg(kubeconfig)
                .args(["--leader-elect=false", "--secure-port=0"]),
            _ => command.arg(kubeconfig).args(self.kwok()),
        };
        command
    }

    fn etcd(&self) -> Vec<String> {
        let url = |port| format!("http://{}:{port}", Ipv4Addr::LOCALHOST);
        let (clients, peers) = (url(self.etcd_port), url(self.peer_port));
        vec![
            "--name=test".to_owned(),
            "--data-dir=etcd".to_owned(),
            // The data need not outlive the machine.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=test={peers}"),
        ]
    }

    fn api_server(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--etcd-servers=http://{}:{}", Ipv4Addr::LOCALHOST, self.etcd_port),
            format!("--bind-address={}", self.server()),
            // The port under which Pods would reach it needs an address of this machine; without a default route it
            // cannot be guessed.
            format!("--advertise-address={}", self.server()),
            format!("--secure-port={}", self.api_port),
            format!("--service-cluster-ip-range={}", self.services),
            format!("--audit-log-path={}", self.audit_log().display()),
        ];
        let fixed = [
            "--tls-cert-file=apiserver.crt",
            "--tls-private-key-file=apiserver.key",
            "--client-ca-file=ca.crt",
            "--cert-dir=apiserver-certs",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--api-audiences=https://kubernetes.default.svc",
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            // For logs of Pods of a real node.
            "--kubelet-client-certificate=admin.crt",
            "--kubelet-client-key=admin.key",
            "--kubelet-certificate-authority=ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--audit-policy-file=audit-policy.yaml",
            // A test reads an entry as soon as it has its answer.
            "--audit-log-mode=blocking-strict",
            // In one file, so that nothing that was counted on is rotated away; in MB.
            "--audit-log-maxsize=4096",
        ];
        arguments.extend(fixed.map(str::to_owned));
        arguments
    }

    fn controllers(&self) -> Vec<String> {
        let fixed = [
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials=true",
            // With the default a namespace gets its ServiceAccount seconds late.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--service-account-private-key-file=sa.key",
            "--root-ca-file=ca.crt",
            "--cluster-signing-cert-file=ca.crt",
            "--cluster-signing-key-file=ca.key",
            "--flex-volume-plugin-dir=flex-volumes",
        ];
        fixed.map(str::to_owned).to_vec()
    }

    fn kwok(&self) -> Vec<String> {
        vec![
            "--config=stages.yaml".to_owned(),
            format!("--manage-nodes-with-label-selector={}=yes", super::KWOK_LABEL),
            format!("--cidr={PODS}"),
            format!("--node-ip={}", self.server()),
            "--node-lease-duration-seconds=40".to_owned(),
            format!("--server-address={}:{}", Ipv4Addr::LOCALHOST, self.kwok_port),
        ]
    }
}
