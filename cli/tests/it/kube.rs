//! `--kube`, with a kubectl of canned answers, and with a real one.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use infer_trust::Authority;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Server, TOKEN};
use crate::{Run, file, inferctl};

/// What the cluster's certificates are for.
const NAME: &str = "infer-decider.infer-system.svc";

/// A directory with a `kubectl` in it, and what that answers.
struct Kubectl {
    authority: Authority,
    directory: TempDir,
}

impl Kubectl {
    /// Leases are held by these deciders, in this order; a port-forward to one of them ends at its server.
    fn new(authority: Authority, deciders: &[(&str, &Server)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let bundle = BASE64_STANDARD.encode(authority.bundle());
        let webhooks = json!({"webhooks": [{"clientConfig": {"caBundle": bundle}}]});
        file(&directory, "webhooks.json", &webhooks.to_string());
        let leases: Vec<Value> = deciders
            .iter()
            .enumerate()
            .map(|(shard, (pod, _))| {
                json!({
                    "metadata": {
                        "name": format!("infer-decider-shard-{shard}"),
                        "annotations": {"autoscaling.matrixinfer.ai/endpoint": endpoint(pod)}
                    },
                    "spec": {"holderIdentity": format!("{pod}_0001")}
                })
            })
            .collect();
        file(&directory, "leases.json", &json!({"items": leases}).to_string());
        let forwards: String = deciders.iter().map(|(pod, server)| forward(pod, server)).collect();
        let kubectl = Kubectl { authority, directory };
        kubectl.script(&format!(
            "case \"$*\" in\n\
             *'get mutatingwebhookconfiguration infer-decider '*) cat \"$dir/webhooks.json\" ;;\n\
             *'get leases '*) cat \"$dir/leases.json\" ;;\n\
             *'create token reader '*) echo {TOKEN} ;;\n\
             *'config view '*) cat \"$dir/config.json\" ;;\n\
             {forwards}\
             *) echo \"error: $* is not known here\" >&2; exit 1 ;;\n\
             esac\n"
        ));
        kubectl
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Every call leaves its arguments behind, and a port-forward its process.
    fn script(&self, body: &str) {
        let directory = self.directory.path().display();
        let text = format!("#!/bin/sh\ndir='{directory}'\necho \"$*\" >>\"$dir/calls\"\n{body}");
        let path = file(&self.directory, "kubectl", &text);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it may run");
    }

    fn command(&self, args: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = inferctl(args);
        command.env("PATH", format!("{}:{path}", self.directory.path().display()));
        command
    }

    fn run(&self, args: &str) -> Run {
        Run::of(self.command(args).output().expect("inferctl runs"))
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// The process of the last port-forward.
    fn forward(&self) -> PathBuf {
        let pid = std::fs::read_to_string(self.path("pid")).expect("there was one");
        Path::new("/proc").join(pid.trim())
    }
}

fn endpoint(pod: &str) -> String {
    format!("https://{pod}:9400")
}

/// A branch of the script.
fn forward(pod: &str, server: &Server) -> String {
    let port = server.address.port();
    format!(
        "*'port-forward --address 127.0.0.1 pod/{pod} :9400') echo $$ >\"$dir/pid\"\n\
         echo 'Forwarding from 127.0.0.1:{port} -> 9400'; exec sleep 600 ;;\n"
    )
}

fn authority() -> Authority {
    Authority::generate(SystemTime::now()).expect("an authority")
}

#[test]
fn the_decider_that_decides_is_found() {
    let authority = authority();
    let server = Server::secure(&["ml/chat"], &authority, &[NAME], None);
    let kubectl = Kubectl::new(authority, &[("d-0", &server)]);
    let text = kubectl
        .run("status --kube --context far --service-account ml/reader")
        .ok();
    assert!(
        text.starts_with("infer-decider 0.1.0 at pod d-0 in namespace infer-system is degraded"),
        "{text}"
    );
    assert_eq!(server.canned.tokens.lock().expect("no panic").as_slice(), [TOKEN]);
    assert_eq!(
        kubectl.calls(),
        "--context far get mutatingwebhookconfiguration infer-decider -o json\n\
         --context far -n ml create token reader --audience infer-decider --duration 10m\n\
         --context far -n infer-system get leases -o json\n\
         --context far -n infer-system port-forward --address 127.0.0.1 pod/d-0 :9400\n"
    );
    assert!(!kubectl.forward().exists(), "the port-forward has ended");
}

#[test]
fn it_is_a_plugin_of_kubectl() {
    let authority = authority();
    let server = Server::secure(&["ml/chat"], &authority, &[NAME], None);
    let kubectl = Kubectl::new(authority, &[("d-0", &server)]);
    let plugin = kubectl.path("kubectl-infer");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_inferctl"), &plugin).expect("a link");
    let run = |args: &[&str]| {
        let ours = kubectl.command("");
        let mut command = Command::new(&plugin);
        command
            .args(args)
            .envs(ours.get_envs().filter_map(|(key, value)| Some((key, value?))));
        Run::of(command.output().expect("it runs"))
    };
    let text = run(&["targets", "--service-account", "ml/reader"]).ok();
    assert!(text.contains("ml/chat"), "{text}");
    assert!(run(&["--help"]).ok().contains("Usage: kubectl infer "));
    let message = run(&["status", "--server", "127.0.0.1:1"]).failed(1);
    assert!(message.contains("http://127.0.0.1:1 (from --server)"), "{message}");
}

#[test]
fn of_several_deciders_the_right_one_is_asked() {
    let authority = authority();
    let second = Server::secure(&["ml/chat"], &authority, &[NAME], None);
    let first = Server::secure(&["ml/code"], &authority, &[NAME], Some(&endpoint("d-1")));
    let kubectl = Kubectl::new(authority, &[("d-0", &first), ("d-1", &second)]);
    let flags = "--kube --service-account ml/reader";
    assert!(
        kubectl
            .run(&format!("targets ml/chat {flags}"))
            .ok()
            .starts_with("ml/chat: ")
    );
    assert!(!kubectl.forward().exists(), "both port-forwards have ended");

    let run = kubectl.run(&format!("targets {flags}"));
    assert_eq!(run.code, 0);
    assert!(
        run.stdout.contains("ml/code") && !run.stdout.contains("ml/chat"),
        "{}",
        run.stdout
    );
    let note = "2 deciders share the work; this is what d-0 has. Ask the others with --decider: d-1";
    assert!(run.stderr.contains(note), "{}", run.stderr);
    let text = kubectl.run(&format!("targets {flags} --decider d-1")).ok();
    assert!(text.contains("ml/chat") && !text.contains("ml/code"), "{text}");
}

#[test]
fn the_kubeconfig_may_have_a_token() {
    let authority = authority();
    let server = Server::secure(&["ml/chat"], &authority, &[NAME], None);
    let kubectl = Kubectl::new(authority, &[("d-0", &server)]);
    let config = |user: Value| {
        let config = json!({"current-context": "here", "users": [{"name": "me", "user": user}]});
        file(&kubectl.directory, "config.json", &config.to_string());
        kubectl.run("status --kube")
    };
    config(json!({"token": TOKEN})).ok();
    let token = file(&kubectl.directory, "token", TOKEN);
    config(json!({"tokenFile": token})).ok();
    let print = r#"test -n "$KUBERNETES_EXEC_INFO" && echo "{\"status\": {\"token\": \"$WHO\"}}""#;
    let env = json!([{"name": "WHO", "value": TOKEN}]);
    config(json!({"exec": {"command": "sh", "args": ["-c", print], "env": env}})).ok();

    let message = config(json!({"client-certificate-data": "…"})).failed(2);
    assert!(
        message.contains("no token in the kubeconfig's context here") && message.contains("--service-account"),
        "{message}"
    );
    let exec = json!({"command": "sh", "args": ["-c", "echo log in first >&2; exit 3"]});
    let message = config(json!({"exec": exec})).failed(1);
    assert!(
        message.contains("the kubeconfig's sh -c") && message.contains("log in first"),
        "{message}"
    );
}

#[test]
fn each_failure_names_the_command() {
    let authority = authority();
    let server = Server::secure(&["ml/chat"], &authority, &[NAME], None);
    let kubectl = Kubectl::new(authority, &[("d-0", &server)]);
    for (args, parts) in [
        (
            "--service-account ml/ghost",
            ["kubectl -n ml create token ghost", "is not known here"],
        ),
        (
            "--service-account ml/reader --decider d-9",
            [
                "kubectl -n infer-system port-forward --address 127.0.0.1 pod/d-9 :9400: error:",
                "is not known here",
            ],
        ),
    ] {
        let message = kubectl.run(&format!("status --kube {args}")).failed(1);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    file(&kubectl.directory, "leases.json", "{\"items\": []}");
    let message = kubectl.run("status --kube --service-account ml/reader").failed(1);
    assert!(
        message.contains("no decider has a Lease in namespace infer-system"),
        "{message}"
    );
    file(&kubectl.directory, "webhooks.json", "{}");
    let message = kubectl.run("status --kube --service-account ml/reader").failed(1);
    assert!(
        message.contains("has no caBundle yet") && message.contains("get secret infer-decider-ca"),
        "{message}"
    );

    let empty = tempfile::tempdir().expect("a directory");
    let output = inferctl("status --kube").env("PATH", empty.path()).output();
    let message = Run::of(output.expect("inferctl runs")).failed(1);
    assert!(message.contains("not found on PATH, and --kube needs it"), "{message}");
}

#[test]
fn a_manifest_gets_the_certificates_of_the_cluster() {
    let authority = authority();
    let kubectl = Kubectl::new(authority, &[]);
    let pod = "kind: Pod\nmetadata: {name: chat}\nspec: {terminationGracePeriodSeconds: 600, containers: [{name: engine, image: vllm/vllm-openai}]}\n";
    let pod = file(&kubectl.directory, "pod.yaml", pod);
    let text = kubectl.run(&format!("inject --kube -f {pod}")).ok();
    let injected: Value = serde_saphyr::from_str(&text).expect("YAML");
    let env = &injected["spec"]["initContainers"][0]["env"];
    let env = env.as_array().expect("a list").iter();
    let ca = env
        .filter(|variable| variable["name"] == "INFER_AGENT_CA_PEM")
        .map(|variable| &variable["value"]);
    assert_eq!(ca.collect::<Vec<_>>(), [kubectl.authority.bundle()]);
}

/// Waits for something that other processes bring about.
#[track_caller]
fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nothing_is_left_behind_however_it_ends() {
    let authority = authority();
    let server = Server::secure(&["live"], &authority, &[NAME], None);
    let kubectl = Kubectl::new(authority, &[("d-0", &server)]);
    let mut child = kubectl
        .command("watch live --kube --service-account ml/reader")
        .stdout(Stdio::piped())
        .spawn()
        .expect("inferctl runs");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("it watches");
    let forward = kubectl.forward();
    assert!(line.contains(" live: ") && forward.exists(), "{line}");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    until("the port-forward ends by itself", || !forward.exists());
}

/// Everything but the port-forward, which needs a kubelet.
#[test]
fn a_real_api_server_makes_the_token_and_knows_the_decider() {
    let Ok(kubeconfig) = std::env::var("INFER_TEST_KUBECONFIG") else {
        eprintln!("skipped: INFER_TEST_KUBECONFIG names no cluster");
        return;
    };
    let which = Command::new("sh")
        .args(["-c", "command -v kubectl"])
        .output()
        .expect("sh runs");
    let real = String::from_utf8(which.stdout).expect("UTF-8");
    if real.trim().is_empty() {
        eprintln!("skipped: kubectl not found");
        return;
    }
    let wrapper = tempfile::tempdir().expect("a directory");
    let at = format!("--kubeconfig={kubeconfig}");
    let namespace = format!("inferctl-{}", std::process::id());
    let plain = |args: &[&str]| {
        let output = Command::new("kubectl")
            .arg(&at)
            .args(args)
            .output()
            .expect("kubectl runs");
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    plain(&["create", "namespace", &namespace]);
    let _namespace = Namespace(at.clone(), namespace.clone());
    plain(&["-n", &namespace, "create", "serviceaccount", "reader"]);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "infer-decider-shard-0", "namespace": namespace},
        "spec": {"holderIdentity": "d-0_0001"}
    });
    let lease = file(&wrapper, "lease.json", &lease.to_string());
    plain(&["apply", "-f", &lease]);

    let authority = authority();
    let name = format!("infer-decider.{namespace}.svc");
    let server = Server::secure(&["ml/chat"], &authority, &[&name], None);
    let ca = file(&wrapper, "ca.pem", authority.bundle());
    let kubectl = Kubectl::new(authority, &[]);
    let real = real.trim();
    let delegate = format!("exec {real} \"$@\"");
    kubectl.script(&format!(
        "case \"$*\" in\n{}*) {delegate} ;;\nesac\n",
        forward("d-0", &server)
    ));
    let run = |args: &str| {
        let mut command = kubectl.command(&format!("status --kube --namespace {namespace} --ca-file {ca} {args}"));
        Run::of(command.env("KUBECONFIG", &kubeconfig).output().expect("inferctl runs"))
    };
    run(&format!("--service-account {namespace}/reader")).ok();
    let token = server.canned.tokens.lock().expect("no panic")[0].clone();
    let claims = token.split('.').nth(1).expect("a JWT");
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).expect("base64");
    let claims: Value = serde_json::from_slice(&claims).expect("JSON");
    assert_eq!(claims["aud"], json!(["infer-decider"]));
    assert_eq!(claims["sub"], format!("system:serviceaccount:{namespace}:reader"));

    let message = run(&format!("--service-account {namespace}/ghost")).failed(1);
    assert!(
        message.contains("create token ghost") && message.contains("not found"),
        "{message}"
    );
    let message = run(&format!("--service-account {namespace}/reader --decider d-7")).failed(1);
    assert!(
        message.contains("port-forward") && message.contains("\"d-7\" not found"),
        "{message}"
    );
    let message = run(&format!("--service-account {namespace}/reader --context nowhere")).failed(1);
    assert!(
        message.contains("--context nowhere") && message.contains("nowhere"),
        "{message}"
    );
}

/// A namespace of the test's own, gone when dropped.
struct Namespace(String, String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let Namespace(at, namespace) = self;
        let _ = Command::new("kubectl")
            .args([at.as_str(), "delete", "namespace", namespace, "--wait=false"])
            .output();
    }
}
