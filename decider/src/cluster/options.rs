//! What `infer-decider kubernetes` is started with.

use std::{net::SocketAddr, path::PathBuf};

/// Where a Pod finds its own namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Options of `infer-decider kubernetes`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How to reach the API server; without it: KUBECONFIG, ~/.kube/config, or the Pod's own service account.
    #[arg(long, env = "INFER_DECIDER_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; without it, its current one.
    #[arg(long, env = "INFER_DECIDER_CONTEXT")]
    pub context: Option<String>,
    /// Namespace to look at; may be repeated, or given as a list with commas. Without it, all.
    #[arg(long = "namespace", env = "INFER_DECIDER_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Address for gRPC over TLS: agents report here, inferctl asks here.
    #[arg(long, env = "INFER_DECIDER_LISTEN", default_value = "0.0.0.0:9400")]
    pub listen: SocketAddr,
    /// Address for /metrics, /livez and /readyz, without TLS.
    #[arg(long, env = "INFER_DECIDER_HTTP_LISTEN", default_value = "0.0.0.0:9401")]
    pub http_listen: SocketAddr,
    /// Address for the admission webhooks, over TLS.
    #[arg(long, env = "INFER_DECIDER_WEBHOOK_LISTEN", default_value = "0.0.0.0:9443")]
    pub webhook_listen: SocketAddr,
    /// No admission webhooks: agents are injected by `inferctl inject`, and a second owner of a target is only reported.
    #[arg(long, env = "INFER_DECIDER_NO_WEBHOOKS")]
    pub no_webhooks: bool,
    /// Who this is, in Leases: the Pod's name.
    #[arg(long, env = "INFER_DECIDER_IDENTITY", default_value = "infer-decider")]
    pub identity: String,
    /// Where agents reach this very decider: they are sent here by others. Such as `https://10.0.0.7:9400`.
    #[arg(long, env = "INFER_DECIDER_ADVERTISE")]
    pub advertise: String,
    /// The decider's own namespace: Leases and the certificate authority's Secret are there. Without it, the Pod's.
    #[arg(long, env = "INFER_DECIDER_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Into how many parts bindings are divided among deciders. All deciders must have the same.
    #[arg(long, env = "INFER_DECIDER_SHARDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub shards: u32,
    /// Name of the Service before the deciders, alone or as NAME.NAMESPACE.svc; the certificate is for its names in the cluster
    /// and for --advertise.
    #[arg(long, env = "INFER_DECIDER_SERVICE", default_value = "infer-decider")]
    pub service: String,
    /// Further DNS name or IP address in the certificate; may be repeated.
    #[arg(
        long = "certificate-name",
        env = "INFER_DECIDER_CERTIFICATE_NAMES",
        value_delimiter = ','
    )]
    pub certificate_names: Vec<String>,
    /// Secret of the certificate authority; made if it is not there.
    #[arg(long, env = "INFER_DECIDER_CA_SECRET", default_value = infer_kube::ca::SECRET)]
    pub ca_secret: String,
    /// Directory with tls.crt, tls.key and ca.crt from elsewhere, such as a cert-manager Secret's volume; read again when they
    /// change. Without it the decider mints and rotates its own.
    #[arg(long, env = "INFER_DECIDER_TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Name of the MutatingWebhookConfiguration and the ValidatingWebhookConfiguration whose caBundle is kept up to date.
    #[arg(long, env = "INFER_DECIDER_WEBHOOK_CONFIGURATION", default_value = infer_kube::ca::WEBHOOKS)]
    pub webhook_configuration: String,
    /// Image of injected agents.
    #[arg(long, env = "INFER_DECIDER_AGENT_IMAGE")]
    pub agent_image: Option<String>,
    /// When injected agents' image is pulled: Always, IfNotPresent or Never. Without it, as Kubernetes does by itself.
    #[arg(long, env = "INFER_DECIDER_AGENT_IMAGE_PULL_POLICY")]
    pub agent_image_pull_policy: Option<String>,
    /// User and group of injected agents; "image" for the image's own.
    #[arg(long, env = "INFER_DECIDER_AGENT_USER", default_value = "65532", value_parser = agent_user)]
    pub agent_user: AgentUser,
    /// Where injected agents reach the deciders; without it `https://SERVICE.NAMESPACE.svc:9400`.
    #[arg(long, env = "INFER_DECIDER_AGENT_DECIDER_URL")]
    pub agent_decider_url: Option<String>,
    /// Inject agents as ordinary containers, for clusters before Kubernetes 1.29.
    #[arg(long, env = "INFER_DECIDER_NO_NATIVE_SIDECARS")]
    pub no_native_sidecars: bool,
    /// Where the journal is kept. It need not outlive the Pod.
    #[arg(long, env = "INFER_DECIDER_STATE_DIR", default_value = ".run/decider")]
    pub state_dir: PathBuf,
}

/// User and group of injected agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentUser {
    /// The image's own.
    Image,
    /// This one.
    Id(u32),
}

fn agent_user(text: &str) -> Result<AgentUser, String> {
    match text {
        "image" => Ok(AgentUser::Image),
        id => id
            .parse()
            .map(AgentUser::Id)
            .map_err(|_| "neither a user id nor \"image\"".to_owned()),
    }
}

impl Options {
    /// The decider's own namespace.
    pub fn own_namespace(&self) -> String {
        let own = || {
            let read = std::fs::read_to_string(NAMESPACE_FILE).ok()?;
            Some(read.trim().to_owned()).filter(|namespace| !namespace.is_empty())
        };
        self.lease_namespace
            .clone()
            .or_else(own)
            .unwrap_or_else(|| "infer-system".to_owned())
    }

    /// The Service's name and namespace.
    fn service(&self) -> (String, String) {
        let mut labels = self.service.split('.').map(str::to_owned);
        let name = labels.next().unwrap_or_default();
        (name, labels.next().unwrap_or_else(|| self.own_namespace()))
    }

    /// The host of --advertise.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn advertised_host(&self) -> Result<String, String> {
        let wrong = |why: &str| format!("--advertise {:?}: {why}; such as https://10.0.0.7:9400", self.advertise);
        let uri: http::Uri = self.advertise.parse().map_err(|_| wrong("not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong("agents are reached over TLS, so it begins with https://"));
        }
        if uri.port().is_none() {
            return Err(wrong("the port is missing"));
        }
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| wrong("the host is missing"))?;
        Ok(host.trim_start_matches('[').trim_end_matches(']').to_owned())
    }

    /// DNS names and IP addresses of the certificate: short and long names of the Service, the advertised host, and what else
    /// was asked for.
    ///
    /// # Errors
    /// As [`Options::advertised_host`].
    pub fn certificate_names(&self) -> Result<Vec<String>, String> {
        let (service, namespace) = self.service();
        let mut names = vec![
            service.clone(),
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
            self.advertised_host()?,
        ];
        names.extend(self.certificate_names.iter().cloned());
        let mut known = std::collections::BTreeSet::new();
        names.retain(|name| known.insert(name.clone()));
        Ok(names)
    }

    /// Where injected agents reach the deciders.
    pub fn agent_decider_url(&self) -> String {
        let service = || {
            let (service, namespace) = self.service();
            format!("https://{service}.{namespace}.svc:{}", self.listen.port())
        };
        self.agent_decider_url.clone().unwrap_or_else(service)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn options(args: &[&str]) -> Options {
        let args = ["decider", "--lease-namespace", "infer"].iter().chain(args);
        Command::try_parse_from(args).unwrap().options
    }

    #[test]
    fn the_certificate_is_for_the_service_and_for_this_very_decider() {
        let options = options(&[
            "--advertise",
            "https://[fd00::7]:9400",
            "--certificate-name",
            "d.example.org,infer-decider",
        ]);
        let names = options.certificate_names().unwrap();
        assert_eq!(
            names,
            [
                "infer-decider",
                "infer-decider.infer",
                "infer-decider.infer.svc",
                "infer-decider.infer.svc.cluster.local",
                "fd00::7",
                "d.example.org"
            ]
        );
        assert_eq!(options.agent_decider_url(), "https://infer-decider.infer.svc:9400");
        let long = ["--advertise", "https://a:1", "--service", "d.elsewhere.svc"];
        assert_eq!(self::options(&long).agent_decider_url(), "https://d.elsewhere.svc:9400");
    }

    #[test]
    fn an_address_that_agents_cannot_use_is_refused() {
        for (advertise, why) in [
            ("http://10.0.0.7:9400", "begins with https://"),
            ("https://10.0.0.7", "the port is missing"),
            ("10.0.0.7:9400", "begins with https://"),
            ("https:// x", "not a URL"),
        ] {
            let problem = options(&["--advertise", advertise]).certificate_names().unwrap_err();
            assert!(problem.contains(why), "{advertise}: {problem}");
        }
    }
}
