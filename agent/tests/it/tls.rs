//! Who the decider is, and who the agent is.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use infer_agent::{Credentials, Options};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tonic::transport::Identity;

use crate::{
    PATIENCE, Running,
    decider::{Decider, Manners},
    engine::Engine,
    options,
};

/// Signs deciders' certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn identity(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let params = CertificateParams::new(names).expect("names");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }

    fn decider(&self, names: &[&str]) -> Decider {
        Decider::start(Manners {
            tls: Some(self.identity(names)),
            ..Manners::default()
        })
    }

    fn credentials(&self) -> Credentials {
        Credentials {
            ca_pem: Some(self.pem()),
            ..Credentials::default()
        }
    }
}

#[test]
fn an_address_is_an_address_in_the_certificate() {
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    assert!(matches!(params.subject_alt_names[..], [SanType::IpAddress(_)]));
}

#[tokio::test]
async fn a_decider_is_known_by_the_address_in_its_certificate_and_a_redirect_by_the_next_ones() {
    let authority = Authority::new();
    let engine = Engine::start().await;
    let owner = authority.decider(&["127.0.0.1"]);
    let other = Decider::start(Manners {
        tls: Some(authority.identity(&["127.0.0.1"])),
        redirects_to: Some(owner.url()),
        ..Manners::default()
    });
    assert!(owner.url().starts_with("https://127.0.0.1:"));
    let agent = Running::start(Options {
        credentials: authority.credentials(),
        ..options(&engine, &other)
    });
    owner
        .until("three samples", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    assert_eq!(other.heard().len(), 1);
    assert_eq!(owner.heard()[0].authorization, None);
    assert!(agent.stop().await.drained);
}

#[tokio::test]
async fn a_redirect_away_from_tls_is_not_followed() {
    let authority = Authority::new();
    let engine = Engine::start().await;
    let open = Decider::start(Manners::default());
    let other = Decider::start(Manners {
        tls: Some(authority.identity(&["127.0.0.1"])),
        redirects_to: Some(open.url()),
        ..Manners::default()
    });
    let agent = Running::start(Options {
        credentials: authority.credentials(),
        drain_ms: 100,
        ..options(&engine, &other)
    });
    other.until("three attempts", |heard| heard.len() >= 3).await;
    assert!(open.heard().is_empty());
    assert!(!agent.stop().await.drained);
}

#[tokio::test]
async fn the_token_and_the_ca_are_those_of_now() {
    let folder = tempfile::tempdir().expect("a folder");
    let (token_file, ca_file) = (folder.path().join("token"), folder.path().join("ca.pem"));
    let (authority, next_authority) = (Authority::new(), Authority::new());
    let engine = Engine::start().await;
    let manners = |authority: &Authority, token| Manners {
        tls: Some(authority.identity(&["127.0.0.1"])),
        token: Some(token),
        ..Manners::default()
    };
    let decider = Decider::start(manners(&authority, "first"));
    // The kubelet has not written it yet.
    std::fs::write(&ca_file, authority.pem()).expect("written");
    let agent = Running::start(Options {
        credentials: Credentials {
            ca_pem: None,
            ca_file: Some(ca_file.clone()),
            token_file: Some(token_file.clone()),
        },
        ..options(&engine, &decider)
    });
    engine.until(|state| state.full_requests >= 3).await;
    assert!(decider.heard().is_empty(), "nothing is said without the token");
    std::fs::write(&token_file, "first\n").expect("written");
    let heard = decider
        .until("samples", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    assert_eq!(heard[0].authorization.as_deref(), Some("Bearer first"));

    // Both are replaced, and the decider with them.
    std::fs::write(&token_file, "second\n").expect("written");
    std::fs::write(&ca_file, authority.pem() + &next_authority.pem()).expect("written");
    let decider = Decider::start_at(decider.kill(), manners(&next_authority, "second"));
    let heard = decider
        .until("samples", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    assert_eq!(heard[0].authorization.as_deref(), Some("Bearer second"));
    assert!(agent.stop().await.drained);
}

#[tokio::test]
async fn a_token_that_is_not_accepted_is_shown_again_only_after_a_while() {
    let folder = tempfile::tempdir().expect("a folder");
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "another Pod's".replace(' ', "-")).expect("written");
    let authority = Authority::new();
    let engine = Engine::start().await;
    let decider = Decider::start(Manners {
        tls: Some(authority.identity(&["127.0.0.1"])),
        token: Some("right"),
        ..Manners::default()
    });
    let agent = Running::start(Options {
        credentials: Credentials {
            token_file: Some(token_file.clone()),
            ..authority.credentials()
        },
        ..options(&engine, &decider)
    });
    decider.until("an attempt", |heard| heard.len() == 1).await;
    std::fs::write(&token_file, "right").expect("written");
    let heard = decider
        .until("samples", |heard| heard.iter().any(|c| c.newest() >= 3))
        .await;
    assert_eq!(heard.len(), 2);
    assert!(
        (heard[1].at - heard[0].at).as_millis() >= 2_500,
        "half of the first pause"
    );
    assert_eq!(heard[1].samples[0].sequence, 1, "nothing was lost meanwhile");
    assert!(agent.stop().await.drained);
}

/// The program, with a log on stderr.
fn run(arguments: &[&str], engine: &Engine, ca_pem: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_infer-agent"))
        .args([
            "run",
            "--engine-url",
            &engine.url(),
            "--pod-name",
            "chat-0",
            "--drain-ms",
            "50",
        ])
        .args(arguments)
        .env("INFER_AGENT_CA_PEM", ca_pem)
        .env_remove("POD_UID")
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs")
}

/// The first line of its log with this in it; the program is ended then.
async fn says(mut agent: Child, part: &'static str) -> String {
    let stderr = agent.stderr.take().expect("piped");
    let reading = tokio::task::spawn_blocking(move || {
        let mut seen = String::new();
        for line in BufReader::new(stderr).lines() {
            let line = line.expect("UTF-8");
            if line.contains(part) {
                return Ok(line);
            }
            seen = seen + &line + "\n";
        }
        Err(seen)
    });
    let line = tokio::time::timeout(PATIENCE, reading).await;
    agent.kill().expect("killed");
    agent.wait().expect("ended");
    line.unwrap_or_else(|_| panic!("it does not say {part:?} in time"))
        .expect("no panic")
        .unwrap_or_else(|seen| panic!("it does not say {part:?} but {seen}"))
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_and_what_to_do() {
    let (authority, wrong) = (Authority::new(), Authority::new());
    let engine = Engine::start().await;
    let decider = authority.decider(&["127.0.0.1"]);
    let url = decider.url();
    let line = says(run(&["--decider", &url], &engine, &wrong.pem()), "not signed by the CA").await;
    assert!(
        line.contains("INFER_AGENT_CA_PEM") && line.contains("created anew"),
        "{line}"
    );

    let elsewhere = authority.decider(&["10.9.8.7", "infer-decider.infer-system.svc"]);
    let url = elsewhere.url();
    let line = says(
        run(&["--decider", &url], &engine, &authority.pem()),
        "does not hold for",
    )
    .await;
    assert!(line.contains("127.0.0.1") && line.contains("10.9.8.7"), "{line}");

    let open = Decider::start(Manners::default());
    let url = open.url().replace("http://", "https://");
    says(
        run(&["--decider", &url], &engine, &authority.pem()),
        "no TLS is spoken there",
    )
    .await;

    let wants_token = Decider::start(Manners {
        tls: Some(authority.identity(&["127.0.0.1"])),
        token: Some("right"),
        ..Manners::default()
    });
    let url = wants_token.url();
    says(
        run(&["--decider", &url], &engine, &authority.pem()),
        "give --token-file",
    )
    .await;
    for decider in [&decider, &elsewhere, &open] {
        assert!(decider.heard().is_empty());
    }
}

#[tokio::test]
async fn in_a_pod_the_identity_is_the_downward_apis() {
    let engine = Engine::start().await;
    let decider = Decider::start(Manners::default());
    let mut agent = Command::new(env!("CARGO_BIN_EXE_infer-agent"))
        .args(["run", "--engine-url", &engine.url(), "--decider", &decider.url()])
        // The default port may be another Pod's on this machine.
        .args(["--http-listen", "127.0.0.1:0"])
        .envs([
            ("POD_NAME", "chat-7f9c-x2"),
            ("POD_NAMESPACE", "models"),
            ("POD_UID", "8d1f"),
        ])
        .spawn()
        .expect("it runs");
    let heard = decider.until("hello", |heard| !heard.is_empty()).await;
    agent.kill().expect("killed");
    agent.wait().expect("ended");
    let pod = heard[0].hello.pod.clone().expect("always there");
    assert_eq!(
        (
            pod.name.as_str(),
            pod.namespace.as_str(),
            pod.uid.as_str(),
            pod.target.as_str()
        ),
        ("chat-7f9c-x2", "models", "8d1f", "")
    );
}
