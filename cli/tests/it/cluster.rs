//! A decider as in a cluster: TLS, tokens, and several of them.

use std::time::SystemTime;

use infer_trust::Authority;
use tempfile::TempDir;

use crate::server::{Server, TOKEN};
use crate::{Run, file, inferctl, run};

/// What people have of a cluster: the authority's certificates and a token, as files.
struct Given {
    authority: Authority,
    directory: TempDir,
    ca: String,
    token: String,
}

impl Given {
    fn new() -> Self {
        let authority = Authority::generate(SystemTime::now()).expect("an authority");
        let directory = tempfile::tempdir().expect("a directory");
        Given {
            ca: file(&directory, "ca.pem", authority.bundle()),
            token: file(&directory, "token", &format!("{TOKEN}\n")),
            authority,
            directory,
        }
    }

    /// A decider that is reached by its address.
    fn decider(&self, targets: &[&str], elsewhere: Option<&str>) -> Server {
        Server::secure(targets, &self.authority, &["infer-decider", "127.0.0.1"], elsewhere)
    }

    fn flags(&self) -> String {
        format!("--ca-file {} --token-file {}", self.ca, self.token)
    }
}

#[test]
fn certificates_and_a_token_open_the_door() {
    let given = Given::new();
    let server = given.decider(&["chat"], None);
    let url = format!("https://{}", server.address);
    let text = run(&format!("status --server {url} {}", given.flags())).ok();
    assert!(text.starts_with(&format!("infer-decider 0.1.0 at {url} ")), "{text}");
    let output = inferctl("targets chat")
        .env("INFERCTL_SERVER", &url)
        .env("INFERCTL_CA_FILE", &given.ca)
        .env("INFERCTL_TOKEN", TOKEN)
        .output();
    assert!(Run::of(output.expect("inferctl runs")).ok().starts_with("chat: 3 of 5"));
}

#[test]
fn who_is_turned_away_is_told_what_is_missing() {
    let given = Given::new();
    let server = given.decider(&["chat"], None);
    let status = |flags: &str| run(&format!("status --server https://{} {flags}", server.address)).failed(1);

    let message = status(&format!("--ca-file {}", given.ca));
    assert!(
        message.contains("a token is missing") && message.contains("--token-file FILE or INFERCTL_TOKEN"),
        "{message}"
    );

    let old = file(&given.directory, "old", "secret-and-old");
    let message = status(&format!("--ca-file {} --token-file {old}", given.ca));
    assert!(
        message.contains(&format!("does not accept the token of {old}")) && !message.contains("secret-and-old"),
        "{message}"
    );

    let nobody = file(&given.directory, "nobody", "nobody");
    let message = status(&format!("--ca-file {} --token-file {nobody}", given.ca));
    assert!(
        message.contains("refuses: nobody may not get this")
            && message.contains("`update` of autoscalingpolicybindings"),
        "{message}"
    );
}

#[test]
fn another_authority_another_name_and_no_tls_are_told_apart() {
    let given = Given::new();
    let server = Server::secure(&["chat"], &given.authority, &["infer-decider"], None);
    let status = |ca: &str, more: &str| {
        let token = &given.token;
        run(&format!(
            "status --server https://{} --ca-file {ca} --token-file {token} {more}",
            server.address
        ))
    };

    let other = Authority::generate(SystemTime::now()).expect("an authority");
    let other = file(&given.directory, "other.pem", other.bundle());
    let message = status(&other, "--tls-server-name infer-decider").failed(1);
    assert!(
        message.contains(&format!("not signed by the authority in {other}"))
            && message.contains("kubectl get mutatingwebhookconfiguration"),
        "{message}"
    );

    let message = status(&given.ca, "").failed(1);
    assert!(
        message.contains("does not hold for 127.0.0.1") && message.contains("--tls-server-name infer-decider"),
        "{message}"
    );
    status(&given.ca, "--tls-server-name infer-decider").ok();

    let open = Server::start(&["chat"]);
    let message = run(&format!("status --server https://{} {}", open.address, given.flags())).failed(1);
    assert!(message.contains("no TLS is spoken there"), "{message}");

    let message = run(&format!("status --server {}", server.address)).failed(1);
    assert!(message.contains("Does it want https://"), "{message}");
}

#[test]
fn a_token_does_not_leave_this_machine_in_the_clear() {
    let given = Given::new();
    let message = run(&format!(
        "status --server http://192.0.2.1:9400 --token-file {}",
        given.token
    ))
    .failed(2);
    assert!(message.contains("for everybody on the way to read"), "{message}");
}

#[test]
fn a_decider_that_knows_who_decides_is_believed_once() {
    let given = Given::new();
    let owner = given.decider(&["ml/chat"], None);
    let endpoint = format!("https://{}", owner.address);
    let standby = given.decider(&[], Some(&endpoint));
    let ask = |args: &str, of: &Server| run(&format!("{args} --server https://{} {}", of.address, given.flags()));

    assert!(ask("targets ml/chat", &standby).ok().starts_with("ml/chat: 3 of 5"));
    assert!(
        ask("pause ml/chat --for 10m", &standby)
            .ok()
            .starts_with("ml/chat is paused")
    );
    assert!(owner.canned.last().contains("ml/chat"), "{}", owner.canned.last());
    assert!(ask("watch ml/chat", &standby).ok().contains(" ml/chat: "));

    // Two that point at each other are asked once each.
    let lost = given.decider(&[], Some("https://127.0.0.1:1"));
    let confused = given.decider(&[], Some(&format!("https://{}", lost.address)));
    let message = ask("windows ml/chat", &confused).failed(1);
    assert!(
        message.contains("is decided on by another decider: ask https://127.0.0.1:1"),
        "{message}"
    );
    assert!(!message.contains("From here that failed"), "{message}");

    let message = ask("windows ml/chat", &lost).failed(1);
    assert!(
        message.contains("ask https://127.0.0.1:1\nFrom here that failed") && message.contains("--kube"),
        "{message}"
    );

    let careless = given.decider(&[], Some("http://127.0.0.1:1"));
    let message = ask("windows ml/chat", &careless).failed(1);
    assert!(!message.contains("From here"), "never from TLS to the open: {message}");
}
