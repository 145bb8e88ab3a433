//! `inject` and `uninject`, which need no decider.

use std::time::SystemTime;

use infer_inject::{Options, inject};
use infer_trust::Authority;
use serde_json::Value;

use crate::{Run, file, run, run_with};

const SERVICE: &str = "# The way in.\nkind: Service\nmetadata: {name: chat}\n";
const POD: &str = "\
kind: Pod
metadata:
  name: chat
spec:
  terminationGracePeriodSeconds: 60
  containers:
  - name: engine
    image: vllm/vllm-openai
";

/// A certificate of an authority, PEM.
fn certificate() -> String {
    let authority = Authority::generate(SystemTime::now()).expect("an authority");
    authority.bundle().to_owned()
}

#[test]
fn a_pod_gets_what_the_webhook_would_give_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let certificate = certificate();
    let ca = file(&directory, "ca.pem", &certificate);
    let manifest = format!("{SERVICE}---\n{POD}");
    let out = run_with(&format!("inject -f - --ca-file {ca}"), &manifest).ok();
    let (service, pod) = out.split_once("---\n").expect("two documents");
    assert_eq!(service, SERVICE);
    let pod: Value = serde_saphyr::from_str(pod).expect("YAML");
    let mut admitted: Value = serde_saphyr::from_str(POD).expect("YAML");
    let options = Options {
        ca_pem: Some(certificate),
        ..Options::default()
    };
    inject(&mut admitted, &options).expect("as the webhook does");
    assert_eq!(pod, admitted);
    assert_eq!(
        run_with(&format!("inject --file - --ca-file {ca}"), &out).ok_with_note("has its agent already"),
        out
    );
    assert_eq!(run_with("uninject -f -", &out).ok(), manifest);
}

impl Run {
    /// The output of a run that had one thing to say.
    #[track_caller]
    fn ok_with_note(self, note: &str) -> String {
        assert_eq!((self.code, self.stderr.lines().count()), (0, 1), "{}", self.stderr);
        assert!(self.stderr.contains(note), "{}", self.stderr);
        self.stdout
    }
}

#[test]
fn flags_say_what_is_injected() {
    let directory = tempfile::tempdir().expect("a directory");
    let certificate = certificate();
    let (pod, ca) = (
        file(&directory, "pod.yaml", POD),
        file(&directory, "ca.pem", &certificate),
    );
    let flags = format!("-f {pod} --decider-url https://d:1 --ca-file {ca} --agent-image agent:7 --fallback");
    let out = run(&format!("inject {flags}")).ok();
    let injected: Value = serde_saphyr::from_str(&out).expect("YAML");
    let mut expected: Value = serde_saphyr::from_str(POD).expect("YAML");
    let options = Options {
        decider_url: "https://d:1".into(),
        ca_pem: Some(certificate),
        agent_image: "agent:7".into(),
        native_sidecar: false,
        ..Options::default()
    };
    inject(&mut expected, &options).expect("it can be injected");
    assert_eq!(injected, expected);
    assert_eq!(injected["spec"]["containers"][1]["image"], "agent:7");
}

#[test]
fn https_needs_the_authority() {
    run_with("inject -f -", POD).ok_with_note("inferctl: without --ca-file no agent will trust https://");
}

#[test]
fn notes_name_their_document() {
    let manifest = format!(
        "{SERVICE}---\n{}",
        POD.replace("  terminationGracePeriodSeconds: 60\n", "")
    );
    let run = run_with("inject -f -", &manifest);
    assert_eq!(run.code, 0);
    assert!(
        run.stderr
            .starts_with("<stdin>: document 2, Pod chat: terminationGracePeriodSeconds is 30: "),
        "{}",
        run.stderr
    );
}

#[test]
fn mistakes_are_told_with_exit_code_2() {
    let directory = tempfile::tempdir().expect("a directory");
    let several = POD.replace("vllm/vllm-openai\n", "x\n  - name: other\n    image: y\n");
    let path = file(&directory, "several.yaml", &format!("{SERVICE}---\n{several}"));
    let message = run(&format!("inject -f {path}")).failed(2);
    assert!(message.starts_with(&format!(
        "{path}: line 5: document 2, Pod chat: none of the containers engine, other "
    )));
    assert!(
        message.contains("autoscaling.matrixinfer.ai/engine-container"),
        "{message}"
    );
    let message = run_with("uninject -f -", "a: [1\n").failed(2);
    assert!(message.starts_with("<stdin>: line "), "{message}");

    assert!(
        run("inject -f /nowhere.yaml")
            .failed(2)
            .contains("cannot read /nowhere.yaml")
    );
    assert!(run("inject").failed(2).contains("--file <FILE>"));
    let (pod, key) = (
        file(&directory, "pod.yaml", POD),
        file(
            &directory,
            "key.pem",
            &format!(
                "{}-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
                certificate()
            ),
        ),
    );
    for (flags, word) in [
        ("--decider-url d:1".to_owned(), "--decider-url: \"d:1\" is no address"),
        // The agent would refuse to start: its token goes over TLS only.
        (
            "--decider-url http://d:1".to_owned(),
            "--decider-url: \"http://d:1\" is no address",
        ),
        (format!("--ca-file {pod}"), "BEGIN CERTIFICATE----- are expected"),
        (format!("--ca-file {key}"), "private key"),
        ("--agent-image=".to_owned(), "--agent-image"),
    ] {
        let message = run(&format!("inject -f {pod} {flags}")).failed(2);
        assert!(message.contains(word), "{message}");
    }
}
