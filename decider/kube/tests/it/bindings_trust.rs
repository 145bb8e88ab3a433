//! Tokens and certificates against a real API server.

use std::time::Duration;

use infer_kube::{
    auth::{self, AUDIENCE, Access, Authenticator},
    ca::{self, Pem},
};
use kube::Client;
use serde_json::{Value, json};

use crate::{bindings_cluster::*, targets_cluster::*};

/// Answers hold for no time, so that what has changed is seen.
fn forgetful() -> auth::Options {
    auth::Options {
        yes_for: Duration::ZERO,
        no_for: Duration::ZERO,
        ..auth::Options::default()
    }
}

async fn token(space: &Space, account: &str, spec: Value) -> String {
    let path = format!("{}/{account}/token", space.all("v1", "serviceaccounts"));
    let answer = space
        .ask("POST", &path, Some(("application/json", json!({"spec": spec}))))
        .await
        .unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn agents_are_the_pods_of_their_tokens() {
    let Some(space) = space("agents").await else { return };
    let (client, record) = recorded(limited(&space).await);
    let authenticator = Authenticator::new(client.clone(), forgetful());
    let mut spec = pod_spec();
    spec["serviceAccountName"] = json!("engine");
    space
        .create(
            &space.all("v1", "serviceaccounts"),
            json!({"metadata": {"name": "engine"}}),
        )
        .await;
    space
        .create(
            &space.all("v1", "pods"),
            json!({"metadata": {"name": "chat-0"}, "spec": spec}),
        )
        .await;
    let pod = format!("{}/chat-0", space.all("v1", "pods"));
    let uid = space.get(&pod).await["metadata"]["uid"].as_str().unwrap().to_owned();
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "chat-0", "uid": uid});

    let good = token(
        &space,
        "engine",
        json!({"audiences": [AUDIENCE], "boundObjectRef": bound}),
    )
    .await;
    let agent = authenticator.agent(&good).await.unwrap();
    assert_eq!(
        (agent.namespace.as_str(), agent.pod.as_str(), agent.uid.as_str()),
        (space.name.as_str(), "chat-0", uid.as_str())
    );
    assert_eq!(agent.service_account, "engine");

    let elsewhere = token(
        &space,
        "engine",
        json!({"audiences": ["other"], "boundObjectRef": bound}),
    )
    .await;
    let unbound = token(&space, "engine", json!({"audiences": [AUDIENCE]})).await;
    let forged = format!("{}x", &good[..good.len() - 10]);
    for (what, token, is_denied) in [
        ("for somebody else", elsewhere.as_str(), false),
        ("of no Pod", unbound.as_str(), true),
        ("forged", forged.as_str(), false),
        ("none", "", false),
        ("garbage", "let me in", false),
    ] {
        let error = authenticator.agent(token).await.unwrap_err();
        let expected = if is_denied {
            matches!(error, auth::Error::Denied(_))
        } else {
            matches!(error, auth::Error::Unauthenticated(_))
        };
        assert!(expected, "{what}: {error:?}");
        assert!(token.is_empty() || !error.to_string().contains(token), "{what}");
    }

    // An answer is remembered for a moment.
    let remembering = Authenticator::new(client, auth::Options::default());
    let before = record.with("tokenreviews").len();
    for _ in 0..20 {
        remembering.agent(&good).await.unwrap();
        remembering.agent("let me in").await.unwrap_err();
    }
    assert_eq!(record.with("tokenreviews").len() - before, 2);

    // A Pod that is gone speaks no more.
    space
        .ask("DELETE", &format!("{pod}?gracePeriodSeconds=0"), None)
        .await
        .unwrap();
    until("the token ends", || async { authenticator.agent(&good).await.is_err() }).await;
    assert!(matches!(
        authenticator.agent(&good).await,
        Err(auth::Error::Unauthenticated(_))
    ));
}

#[tokio::test]
async fn people_may_do_what_their_role_says() {
    let Some(space) = space("people").await else { return };
    let authenticator = Authenticator::new(Client::try_from(limited(&space).await).unwrap(), forgetful());
    let name = &space.name;
    for (account, verbs) in [
        ("reader", json!(["get"])),
        ("writer", json!(["get", "update"])),
        ("nobody", json!(["list"])),
    ] {
        space
            .create(
                &space.all("v1", "serviceaccounts"),
                json!({"metadata": {"name": account}}),
            )
            .await;
        let rules = json!([{"apiGroups": ["autoscaling.matrixinfer.ai"], "resources": ["autoscalingpolicybindings"], "verbs": verbs}]);
        let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{name}");
        space
            .create(
                &format!("{roles}/roles"),
                json!({"metadata": {"name": account}, "rules": rules}),
            )
            .await;
        let binding = json!({"metadata": {"name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": name}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}});
        space.create(&format!("{roles}/rolebindings"), binding).await;
    }
    let (reader, writer, nobody) = (
        token(&space, "reader", json!({})).await,
        token(&space, "writer", json!({"audiences": [AUDIENCE]})).await,
        token(&space, "nobody", json!({})).await,
    );
    until("the rules are known", || async {
        authenticator.person(&writer, Access::Write, name).await.is_ok()
    })
    .await;
    let who = authenticator.person(&reader, Access::Read, name).await.unwrap();
    assert_eq!(who, format!("system:serviceaccount:{name}:reader"));
    authenticator.person(&writer, Access::Read, name).await.unwrap();
    for (token, access, namespace) in [
        (&reader, Access::Write, name.as_str()),
        (&reader, Access::Read, "default"),
        (&reader, Access::Read, ""),
        (&writer, Access::Write, ""),
        (&nobody, Access::Read, name.as_str()),
    ] {
        let error = authenticator.person(token, access, namespace).await.unwrap_err();
        assert!(
            matches!(&error, auth::Error::Denied(words) if words.contains("may not")),
            "{error:?}"
        );
    }
    let error = authenticator.person("let me in", Access::Read, name).await.unwrap_err();
    assert!(matches!(error, auth::Error::Unauthenticated(_)), "{error:?}");

    // A decider that is cut off says so, and lets nobody in.
    let mut nowhere = space.config.clone();
    nowhere.cluster_url = "http://127.0.0.1:1".parse().unwrap();
    let cut_off = Authenticator::new(Client::try_from(nowhere).unwrap(), forgetful());
    assert!(matches!(cut_off.agent(&writer).await, Err(auth::Error::Unavailable(_))));
}

/// A certificate as the API server checks it: it must be one.
fn pem(n: u32) -> Pem {
    let params = rcgen::CertificateParams::new(vec![format!("ca-{n}")]).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    Pem {
        certificates: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deciders_that_start_together_have_one_authority() {
    let Some(space) = space("ca").await else { return };
    let client = Client::try_from(limited(&space).await).unwrap();
    let name = &space.name;
    let racers = (0..8).map(|n| {
        let (client, name) = (client.clone(), name.clone());
        tokio::spawn(async move {
            ca::ensure_authority(&client, &name, ca::SECRET, || Ok(pem(n)))
                .await
                .unwrap()
        })
    });
    let mut all = Vec::new();
    for racer in racers.collect::<Vec<_>>() {
        all.push(racer.await.unwrap());
    }
    assert!(all.iter().all(|stored| *stored == all[0]));

    // Two rotate at the same moment: one of the two successors holds, for both.
    let (one, other) = (pem(100), pem(101));
    let (a, b) = tokio::join!(
        ca::replace_authority(&client, name, ca::SECRET, &all[0], &one),
        ca::replace_authority(&client, name, ca::SECRET, &all[0], &other),
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b);
    assert!(a.pem == one || a.pem == other);
    assert_eq!(ca::read_authority(&client, name, ca::SECRET).await.unwrap(), Some(a));

    // What is there and is no authority is not overwritten.
    let secret = format!("{}/{}", space.all("v1", "secrets"), ca::SECRET);
    space.ask("DELETE", &secret, None).await.unwrap();
    let broken = json!({"metadata": {"name": ca::SECRET}, "stringData": {"tls.crt": "x"}});
    space.create(&space.all("v1", "secrets"), broken).await;
    let refused = ca::ensure_authority(&client, name, ca::SECRET, || Ok(pem(7))).await;
    assert!(matches!(refused, Err(ca::Error::Unusable { .. })), "{refused:?}");
    // Where the manifests were left out, an administrator's client makes it.
    let elsewhere = ca::ensure_authority(&space.client, name, "another", || Ok(pem(8)))
        .await
        .unwrap();
    assert_eq!(elsewhere.pem.certificates.matches("BEGIN CERTIFICATE").count(), 1);
    // Nor is somebody else's Secret ours to read.
    let refused = ca::read_authority(&client, name, "other").await;
    assert!(
        matches!(refused, Err(ca::Error::Api { forbidden: true, .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn webhooks_are_told_whom_to_trust() {
    let Some(space) = space("hooks").await else { return };
    let client = &space.client;
    let name = &space.name;
    assert_eq!(
        ca::patch_ca_bundle(client, name, &pem(1).certificates).await.unwrap(),
        ca::Patched::default()
    );
    let hook = |name: &str| {
        json!({"name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Ignore",
            "timeoutSeconds": 3, "clientConfig": {"service": {"namespace": "x", "name": "y", "path": "/z"}},
            "namespaceSelector": {"matchLabels": {"never": "never"}},
            "rules": [{"apiGroups": ["none.example"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nothings"]}]})
    };
    let root = "/apis/admissionregistration.k8s.io/v1";
    let two = json!({"metadata": {"name": name}, "webhooks": [hook("a.example.com"), hook("b.example.com")]});
    let one = json!({"metadata": {"name": name}, "webhooks": [hook("a.example.com")]});
    let (mutating, validating) = (
        format!("{root}/mutatingwebhookconfigurations"),
        format!("{root}/validatingwebhookconfigurations"),
    );
    space.create(&mutating, two).await;
    space.create(&validating, one).await;
    let before = space.get(&format!("{mutating}/{name}")).await;
    let bundle = pem(1).certificates;
    let patched = ca::patch_ca_bundle(client, name, &bundle).await.unwrap();
    assert_eq!((patched.changed, patched.webhooks), (3, 3));
    assert_eq!(ca::patch_ca_bundle(client, name, &bundle).await.unwrap().changed, 0);
    let mut after = space.get(&format!("{mutating}/{name}")).await;
    let hooks = after["webhooks"].as_array_mut().unwrap();
    for hook in hooks.iter_mut() {
        let trusted = hook["clientConfig"]
            .as_object_mut()
            .unwrap()
            .remove("caBundle")
            .unwrap();
        assert!(trusted.as_str().unwrap().len() > 100);
    }
    assert_eq!(after["webhooks"], before["webhooks"], "nothing else was touched");
    assert_eq!(
        ca::patch_ca_bundle(client, name, &pem(2).certificates)
            .await
            .unwrap()
            .changed,
        3,
        "rotated"
    );
    for path in [mutating, validating] {
        space.ask("DELETE", &format!("{path}/{name}"), None).await.unwrap();
    }
}
