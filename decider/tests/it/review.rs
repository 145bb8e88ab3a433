//! Laws that a hostile reading of the service found broken once, or nearly so.

use infer_core::{
    TimeMs,
    behavior::ScaleEvent,
    decision::{Control, Memory},
};
use infer_decider::{
    clock::Clock,
    journal::{Decision, Entry, Journal, Recovered},
    state::{Shared, Told},
};
use infer_proto::v1::{self, agent_message::Body};
use tonic::Code;

use crate::support::{Agent, Decider, sample, spec};

/// A number that would overflow a sum or a date closes its stream; what is decided goes on.
#[tokio::test]
async fn absurd_numbers_close_their_own_stream() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let (mut agent, _) = Agent::greet(&decider, "chat", "chat-0", "boot-1", 1).await;
    let mut absurd = sample(&agent, 1, 0, 1.0, 0.0);
    absurd.counters = Some(v1::Counters {
        requests: Some(1),
        generation_tokens: Some(u64::MAX),
        ..Default::default()
    });
    agent.send(Body::Sample(absurd)).await;
    let status = agent.receive().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status
            .message()
            .contains("counters.generation_tokens is 18446744073709551615"),
        "{status:?}"
    );

    let (mut agent, _) = Agent::greet(&decider, "chat", "chat-0", "boot-2", 2).await;
    let body = Some(Body::Sample(v1::Sample {
        end_ms: 0,
        ..sample(&agent, 1, 0, 1.0, 0.0)
    }));
    agent.send_at(i64::MAX as u64, body).await;
    let status = agent.receive().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("sent_ms"), "{status:?}");

    let ticks = |shared: &Shared| shared.counters.ticks.load(std::sync::atomic::Ordering::Relaxed);
    let before = ticks(&decider.shared);
    decider.until("more ticks", |shared| ticks(shared) >= before + 2).await;
}

#[tokio::test]
async fn a_question_for_thousands_of_quantiles_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let decider = Decider::start(directory.path()).await;
    let windows = v1::GetWindowsRequest {
        target: "chat".to_owned(),
        quantiles: vec![0.5; 1000],
        ..Default::default()
    };
    let status = decider.ask().await.get_windows(windows).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message().contains("1000 quantiles")),
        (Code::InvalidArgument, true)
    );
}

fn shared(entries: Vec<Entry>, directory: &std::path::Path) -> std::sync::Arc<Shared> {
    let (journal, _) = Journal::open(directory).unwrap();
    Shared::new(
        Clock::start(),
        "table",
        vec![spec("chat", Control::Auto)],
        journal,
        Recovered { entries, torn: 0 },
    )
}

/// Checkpoints of many quiet targets push decisions out of a bounded journal; their numbers are used up all the same.
#[test]
fn numbers_of_decisions_ascend_over_a_journal_that_has_lost_them() {
    let directory = tempfile::tempdir().unwrap();
    let memory = Box::new(Memory::start(&spec("chat", Control::Auto).policy, 1, TimeMs(0)));
    let checkpoint = Entry::Checkpoint {
        target: "chat".to_owned(),
        unix_ms: 0,
        memory,
        next_decision_id: 77,
    };
    assert_eq!(
        shared(vec![checkpoint], directory.path()).state().next_decision_id(),
        77
    );
    // What an earlier version has written says nothing of it.
    let old: Entry = serde_json::from_str(
        r#"{"checkpoint":{"target":"chat","unix_ms":0,"memory":{"kpa":{"panic_since":null,"max_panic_replicas":1,"delay":null},
            "recommendations":[],"events":{"up":[],"down":[]},"last_busy":0}}}"#,
    )
    .unwrap();
    assert_eq!(shared(vec![old], directory.path()).state().next_decision_id(), 1);
}

/// A restart does not take a plan that the backend refused for a change that was made.
#[test]
fn a_refused_plan_uses_up_no_rate_after_a_restart_either() {
    let directory = tempfile::tempdir().unwrap();
    let decided = |applied: bool| {
        let shared = shared(vec![], directory.path());
        let mut state = shared.state();
        let now = shared.clock.now();
        let target = &mut state.targets.get_mut("chat").unwrap().target;
        let (mut record, _) = target.decide(now);
        record.memory_after.events.up = vec![ScaleEvent {
            at: now,
            change: 4,
            outdated: false,
        }];
        let not_applied = (!applied).then(|| "refused".to_owned());
        Entry::Decision(Box::new(Decision {
            id: 5,
            unix_ms: now.0,
            applied,
            not_applied,
            record,
        }))
    };
    for (applied, events) in [(true, 1), (false, 0)] {
        let shared = shared(vec![decided(applied)], directory.path());
        let mut state = shared.state();
        let (record, _) = state.targets.get_mut("chat").unwrap().target.decide(shared.clock.now());
        assert_eq!(record.memory.events.up.len(), events);
    }
}

#[test]
fn a_change_that_was_made_is_always_told() {
    let told = |applied, at| Told {
        from: 1,
        to: 2,
        applied,
        at: TimeMs(at),
    };
    assert!(!told(true, 5_000).repeats(Some(&told(true, 0))));
    assert!(told(false, 5_000).repeats(Some(&told(false, 0))));
    assert!(!told(false, 61_000).repeats(Some(&told(false, 0))));
}
