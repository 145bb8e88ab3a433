//! Several deciders, and agents that have to show who they are.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use infer_core::decision::Control;
use infer_decider::{
    actuate::BoxFuture,
    auth::{Access, Authenticate},
    hooks::{Hooks, Owner, Ownership},
};
use infer_proto::v1::{self, decider_message::Body as Answer};
use tonic::{Code, Request, Status};

use crate::support::{Agent, Decider, Table, hello, hello_from, sample, spec};

/// Owners by target; Pods are `<target>-<index>`.
#[derive(Default)]
struct Owners(Mutex<BTreeMap<String, Owner>>);

impl Owners {
    fn set(&self, target: &str, owner: Owner) {
        self.0.lock().unwrap().insert(target.to_owned(), owner);
    }
}

impl Ownership for Owners {
    fn of_pod(&self, _: &str, pod: &str) -> Owner {
        self.of_target(pod.rsplit_once('-').unwrap().0)
    }

    fn of_target(&self, target: &str) -> Owner {
        self.0.lock().unwrap().get(target).cloned().unwrap_or(Owner::Mine)
    }
}

fn other() -> Owner {
    Owner::Other {
        endpoint: "https://10.0.0.7:9400".to_owned(),
    }
}

async fn start(directory: &std::path::Path, hooks: Hooks) -> Decider {
    let table = Arc::new(Table::default());
    table.set("chat", 2);
    Decider::start_among(directory, table, vec![spec("chat", Control::Auto)], hooks).await
}

fn redirected(answer: Result<Answer, Status>) -> String {
    match answer {
        Ok(Answer::Redirect(redirect)) => redirect.endpoint,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn agents_are_sent_to_the_owner() {
    let directory = tempfile::tempdir().unwrap();
    let owners = Arc::new(Owners::default());
    let hooks = Hooks {
        ownership: Arc::clone(&owners) as _,
        ..Hooks::default()
    };
    let decider = start(directory.path(), hooks).await;
    let (mut agent, _) = Agent::greet(&decider, "chat", "chat-0", "boot", 1).await;
    owners.set("chat", Owner::Unknown);
    let mut early = Agent::connect(&decider).await;
    early.send(hello("chat", "chat-1", "boot", 1)).await;
    assert_eq!(early.receive().await.unwrap_err().code(), Code::Unavailable);
    // The stream that is there goes on until the target is given up.
    agent.report(sample(&agent, 1, 0, 1.0, 0.0)).await.unwrap();
    owners.set("chat", other());
    decider.shared.unbind("chat");
    assert_eq!(redirected(agent.receive().await), "https://10.0.0.7:9400");
    assert_eq!(agent.receive().await.unwrap_err().code(), Code::Ok);
    let mut late = Agent::connect(&decider).await;
    late.send(hello("chat", "chat-1", "boot", 1)).await;
    assert_eq!(redirected(late.receive().await), "https://10.0.0.7:9400");
    let asked = decider
        .ask()
        .await
        .resume(v1::ResumeRequest {
            target: "chat".to_owned(),
        })
        .await;
    let status = asked.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("https://10.0.0.7:9400"), "{status:?}");
}

#[tokio::test]
async fn orders_to_drain_reach_an_agent_at_once_and_after_each_welcome() {
    let directory = tempfile::tempdir().unwrap();
    let decider = start(directory.path(), Hooks::default()).await;
    let draining = |answer: Result<Answer, Status>| match answer {
        Ok(Answer::Drain(drain)) => drain.draining,
        other => panic!("{other:?}"),
    };
    let (mut agent, _) = Agent::greet(&decider, "chat", "chat-0", "boot", 1).await;
    decider.shared.drain("chat", "chat-0", true);
    assert!(draining(agent.receive().await));
    decider.shared.drain("chat", "chat-1", true);
    let (mut second, _) = Agent::greet(&decider, "chat", "chat-1", "boot", 1).await;
    assert!(draining(second.receive().await));
    decider.shared.drain("chat", "chat-1", false);
    assert!(!draining(second.receive().await));
    // A new stream takes the place of the one before.
    let (mut again, _) = Agent::greet(&decider, "chat", "chat-0", "boot", 1).await;
    assert!(draining(again.receive().await));
    assert_eq!(agent.receive().await.unwrap_err().code(), Code::AlreadyExists);
    again.report(sample(&again, 1, 0, 1.0, 0.0)).await.unwrap();
    decider.shared.drain("nobody", "chat-0", true);
    // A replica that is gone and comes back is not drained.
    decider.table.set("chat", 1);
    decider
        .until("one replica", |shared| shared.state().targets["chat"].drains.len() == 1)
        .await;
    decider.table.set("chat", 0);
    decider
        .until("none", |shared| shared.state().targets["chat"].drains.is_empty())
        .await;
}

/// Tokens: "pod:<name>" for agents, "read" and "write" for people.
struct Tokens;

impl Authenticate for Tokens {
    fn agent(&self, token: Option<String>, pod: v1::PodIdentity) -> BoxFuture<Result<(), Status>> {
        Box::pin(async move {
            let token = token.ok_or_else(|| Status::unauthenticated("a token is missing"))?;
            if token == format!("pod:{}", pod.name) {
                Ok(())
            } else {
                Err(Status::permission_denied("the token is another Pod's"))
            }
        })
    }

    fn person(&self, token: Option<String>, access: Access, namespace: String) -> BoxFuture<Result<(), Status>> {
        Box::pin(async move {
            let token = token.ok_or_else(|| Status::unauthenticated("a token is missing"))?;
            match (token.as_str(), access) {
                ("write", _) | ("read", Access::Read) => Ok(()),
                _ => Err(Status::permission_denied(format!("may not in {namespace:?}"))),
            }
        })
    }
}

#[tokio::test]
async fn nobody_speaks_for_another_pod_and_nobody_orders_without_leave() {
    let directory = tempfile::tempdir().unwrap();
    let hooks = Hooks {
        authenticate: Arc::new(Tokens),
        ..Hooks::default()
    };
    let decider = start(directory.path(), hooks).await;
    for (token, code) in [
        (None, Some(Code::Unauthenticated)),
        (Some("pod:chat-1"), Some(Code::PermissionDenied)),
        (Some("pod:chat-0"), None),
    ] {
        let mut agent = Agent::connect_with(&decider, token).await;
        agent.send(hello_from("", "chat-0", "boot")).await;
        match (agent.receive().await, code) {
            (Ok(Answer::Welcome(_)), None) => {}
            (Err(status), Some(code)) => assert_eq!(status.code(), code),
            other => panic!("{other:?}"),
        }
    }
    let mut people = decider.ask().await;
    let with = |token: &str, message| {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", format!("bearer {token}").parse().unwrap());
        request
    };
    let pause = || v1::PauseRequest {
        target: "chat".to_owned(),
        ..Default::default()
    };
    assert_eq!(people.pause(pause()).await.unwrap_err().code(), Code::Unauthenticated);
    let status = people.pause(with("read", pause())).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "may not in \"\"")
    );
    assert_eq!(decider.shared.state().targets["chat"].control(), Control::Auto);
    people.pause(with("write", pause())).await.unwrap();
    let list = |token| {
        let mut request = Request::new(v1::ListTargetsRequest {});
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        request
    };
    assert!(people.list_targets(list("read")).await.is_ok());
    assert_eq!(
        people.list_targets(list("nobody")).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        people.get_status(v1::GetStatusRequest {}).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    let refused = decider
        .shared
        .counters
        .unauthenticated
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(refused, 6);
}
