//! Targets that come, change and go while agents are connected.

use std::sync::Arc;

use infer_core::{
    TimeMs,
    behavior::Recommendation,
    decision::{Control, Memory},
    policy::Bounds,
    roles::Ratio,
};
use infer_decider::{bind::Inherited, roles::Coupling};
use infer_proto::v1::{self, decider_message::Body as Answer};
use tonic::Code;

use crate::support::{Agent, Decider, Table, hello, hello_from, sample, spec};

async fn start(directory: &std::path::Path) -> Decider {
    let table = Arc::new(Table::default());
    for name in ["team/chat", "team/code", "other/chat"] {
        table.set(name, 2);
    }
    Decider::start_among(directory, table, vec![], Default::default()).await
}

async fn bind(decider: &Decider, name: &str) {
    decider
        .shared
        .bind(spec(name, Control::Auto), Inherited::Predecessor(None));
    decider
        .until("a decision", |shared| {
            shared
                .state()
                .targets
                .get(name)
                .is_some_and(|entity| entity.latest.is_some())
        })
        .await;
}

#[tokio::test]
async fn a_pod_finds_its_target_by_namespace_and_name() {
    let directory = tempfile::tempdir().unwrap();
    let decider = start(directory.path()).await;
    let mut early = Agent::connect(&decider).await;
    early.send(hello_from("team", "team/code-1", "boot")).await;
    let status = early.receive().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("\"team/code-1\" of namespace \"team\""),
        "{status:?}"
    );
    for name in ["team/chat", "team/code", "other/chat"] {
        bind(&decider, name).await;
    }
    let mut agent = Agent::connect(&decider).await;
    agent.send(hello_from("team", "team/code-1", "boot")).await;
    assert!(matches!(agent.receive().await, Ok(Answer::Welcome(_))));
    agent.report(sample(&agent, 1, 0, 3.0, 0.0)).await.unwrap();
    assert_eq!(decider.shared.load("team/code", "team/code-1"), Some(3.0));
    assert_eq!(decider.shared.load("team/chat", "team/code-1"), None);
    // Neither by chance nor by its own word does a Pod get into another namespace's target.
    let mut agent = Agent::connect(&decider).await;
    agent.send(hello_from("other", "team/code-1", "boot")).await;
    assert_eq!(agent.receive().await.unwrap_err().code(), Code::Unavailable);
    let mut agent = Agent::connect(&decider).await;
    agent.send(hello("team/code", "team/code-1", "boot-2", 2)).await;
    assert_eq!(agent.receive().await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_policy_that_changes_keeps_what_was_measured_and_tells_the_agents() {
    let directory = tempfile::tempdir().unwrap();
    let decider = start(directory.path()).await;
    bind(&decider, "team/chat").await;
    let mut agent = Agent::connect(&decider).await;
    agent.send(hello_from("team", "team/chat-0", "boot")).await;
    let Ok(Answer::Welcome(welcome)) = agent.receive().await else {
        panic!("no welcome")
    };
    agent.report(sample(&agent, 1, 0, 3.0, 0.0)).await.unwrap();
    let mut changed = spec("team/chat", Control::Advisory);
    changed.bounds = Bounds { min: 1, max: 4 };
    let mut policy = (*changed.policy).clone();
    policy.kpa.stable_window_s = 900.0;
    changed.policy = Arc::new(policy);
    decider.shared.bind(changed.clone(), Inherited::Predecessor(None));
    match agent.receive().await {
        Ok(Answer::Wanted(wanted)) => {
            assert_eq!(welcome.wanted.unwrap().replay_horizon_ms, 600_000);
            assert_eq!(wanted.replay_horizon_ms, 900_000);
        }
        other => panic!("{other:?}"),
    }
    // The same again is nothing new, and the stream goes on.
    decider.shared.bind(changed, Inherited::Predecessor(None));
    agent.report(sample(&agent, 2, 0, 3.0, 0.0)).await.unwrap();
    let windows = v1::GetWindowsRequest {
        target: "team/chat".to_owned(),
        ..Default::default()
    };
    let windows = decider.ask().await.get_windows(windows).await.unwrap().into_inner();
    let requests = windows
        .counters
        .iter()
        .find(|counter| counter.name == "requests")
        .unwrap();
    assert_eq!((windows.window_s, requests.count), (900, 6));
    decider
        .until("the new limits", |shared| {
            let state = shared.state();
            let inputs = &state.targets["team/chat"].latest.as_ref().unwrap().inputs;
            (inputs.bounds.max, inputs.control) == (4, Control::Advisory)
        })
        .await;
}

#[tokio::test]
async fn a_target_that_goes_takes_no_word_of_people_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let decider = start(directory.path()).await;
    bind(&decider, "team/chat").await;
    let mut agent = Agent::connect(&decider).await;
    agent.send(hello_from("team", "team/chat-0", "boot")).await;
    assert!(matches!(agent.receive().await, Ok(Answer::Welcome(_))));
    let mut people = decider.ask().await;
    let pause = v1::PauseRequest {
        target: "team/chat".to_owned(),
        ..Default::default()
    };
    people.pause(pause.clone()).await.unwrap();
    assert!(decider.shared.unbind("team/chat"));
    assert!(!decider.shared.unbind("team/chat"));
    assert_eq!(agent.receive().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(people.pause(pause).await.unwrap_err().code(), Code::NotFound);
    bind(&decider, "team/chat").await;
    assert_eq!(decider.shared.state().targets["team/chat"].control(), Control::Paused);
}

/// Of one's own journal and what another left, the newer counts; and it counts as old.
#[tokio::test]
async fn a_new_owner_starts_with_the_newer_memory_and_the_present_count() {
    let directory = tempfile::tempdir().unwrap();
    let decider = start(directory.path()).await;
    let now = decider.shared.clock.now();
    let wish = |ago_s: f64, replicas| Recommendation {
        at: now.plus_s(-ago_s),
        replicas,
    };
    let mut memory = Memory::start(&spec("team/chat", Control::Auto).policy, 2, TimeMs(0));
    memory.recommendations = vec![wish(100.0, 9)];
    decider.shared.bind(
        spec("team/chat", Control::Auto),
        Inherited::Predecessor(Some(Box::new(memory))),
    );
    decider
        .until("a decision", |shared| {
            shared.state().targets["team/chat"].latest.is_some()
        })
        .await;
    let state = decider.shared.state();
    let entity = &state.targets["team/chat"];
    let wishes: Vec<u32> = entity
        .latest
        .as_ref()
        .unwrap()
        .memory
        .recommendations
        .iter()
        .map(|wish| wish.replicas)
        .collect();
    // What was wished for, and what there is.
    assert_eq!(wishes, [9, 2]);
}

/// Prefill and decode, at least one of the one per two of the other: what one needs, the other gets; and both go back.
#[tokio::test]
async fn a_role_brings_the_other_up_and_lets_it_down_again() {
    let directory = tempfile::tempdir().unwrap();
    let table = Arc::new(Table::default());
    let names = ["team/pd/decode", "team/pd/prefill"];
    names.iter().for_each(|name| table.set(name, 1));
    let coupling = Coupling {
        numerator: names[1].to_owned(),
        denominator: names[0].to_owned(),
        ratio: Ratio { min: 0.5, max: 1.0 },
    };
    let mut specs: Vec<_> = names.iter().map(|name| spec(name, Control::Auto)).collect();
    for spec in &mut specs {
        spec.coupling = Some(coupling.clone());
        let mut policy = (*spec.policy).clone();
        policy.scale_down.stabilization_window_s = 0.0;
        spec.policy = Arc::new(policy);
    }
    let decider = Decider::start_among(directory.path(), table, specs, Default::default()).await;
    let spec_of = |name: &str| decider.table.fleets.lock().unwrap()[name].view.spec;
    let mut people = decider.ask().await;
    let order = v1::OverrideRequest {
        target: names[0].to_owned(),
        replicas: 7,
        for_s: 600,
        reason: String::new(),
    };
    people.r#override(order).await.unwrap();
    decider.until("prefill at 4", |_| spec_of(names[1]) == 4).await;
    assert_eq!(spec_of(names[0]), 7);
    let bound_by = decider.shared.state().targets[names[1]]
        .latest
        .as_ref()
        .unwrap()
        .outcome
        .reason
        .clone();
    assert!(bound_by.contains("asks for at least 4"), "{bound_by}");
    for name in names {
        let order = v1::OverrideRequest {
            target: name.to_owned(),
            replicas: 1,
            for_s: 600,
            reason: String::new(),
        };
        people.r#override(order).await.unwrap();
    }
    decider
        .until("no more asked of either than there is", |shared| {
            let state = shared.state();
            let fewest = |name: &str| state.targets[name].latest.as_ref().unwrap().inputs.fewest;
            names.iter().all(|name| spec_of(name) == 1 && fewest(name) == 1)
        })
        .await;
}
