//! Starting, draining, crashing, ending.

use std::{
    fs,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use infer_local::{Error, FleetSpec, FleetState, Options, Phase, StateDir, Supervisor};

use crate::fixture::*;

fn phases(state: &FleetState) -> Vec<(&str, Phase)> {
    state
        .replicas
        .iter()
        .map(|replica| (replica.name.as_str(), replica.phase))
        .collect()
}

fn with_traffic(fixture: &Fixture, spec: FleetSpec) -> (Running, Arc<FakeTraffic>) {
    let traffic = Arc::new(FakeTraffic::default());
    let mut options = Options::new(spec, Arc::new(StateDir::lock(fixture.dir.path()).unwrap()));
    options.traffic = traffic.clone();
    (Running::start(options), traffic)
}

#[tokio::test]
async fn up_to_three_down_to_one_and_to_none_leaves_nothing() {
    let fixture = Fixture::new();
    let mut spec = spec(ports(8), &["--ready-after-ms", "100"]);
    spec.agent = flushing_agent(&fixture);
    let (fleet, traffic) = with_traffic(&fixture, spec);
    let told = Instant::now();
    fleet.scale(3);
    let spawned = |state: &FleetState| state.replicas.iter().filter(|r| r.spawned_unix_ms.is_some()).count();
    let state = fleet.until("three spawned", |state| spawned(state) == 3).await;
    let took = told.elapsed();
    assert!(
        took < Duration::from_secs(1),
        "{took:?} from the count to the processes"
    );
    eprintln!("three processes {took:?} after the count");
    assert!(
        state.replicas.iter().all(|replica| replica.phase == Phase::Starting),
        "{:?}",
        phases(&state)
    );
    assert_eq!(traffic.names(), Vec::<String>::new());

    let state = fleet.until_ready(3).await;
    assert_eq!(
        state.replicas.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["chat-0", "chat-1", "chat-2"]
    );
    assert_eq!(traffic.names(), ["chat-0", "chat-1", "chat-2"]);
    assert!(
        state
            .replicas
            .iter()
            .all(|r| r.startup_ms.is_some_and(|ms| (100..30_000).contains(&ms)))
    );
    assert_eq!(state.counters.starts, 3);
    let mut uids: Vec<_> = state.replicas.iter().map(|r| r.uid.clone()).collect();
    uids.dedup();
    assert_eq!(uids.len(), 3);
    for replica in &state.replicas {
        for pid in [replica.engine_pid.unwrap(), replica.agent_pid.unwrap()] {
            assert_eq!(group(pid), Some(pid), "each process leads a group of its own");
        }
        let log = fs::read_to_string(fixture.path(&format!("logs/{}.engine.log", replica.name))).unwrap();
        assert_eq!(log, format!("listening on {}\n", replica.port.unwrap()));
    }

    fleet.scale(1);
    let one = fleet.until_ready(1).await;
    assert_eq!(phases(&one), [("chat-0", Phase::Ready)], "the newest go first");
    assert_eq!(
        pids(&one),
        [state.replicas[0].engine_pid.unwrap()],
        "and the oldest is left as it was"
    );
    fleet.until("agents gone", |state| state.leaving == 0).await;
    for gone in &state.replicas[1..] {
        let flushed = fs::read_to_string(fixture.path(&format!("flushed-{}", gone.uid))).unwrap();
        assert_eq!(
            flushed,
            format!("{} http://{}\n", gone.name, gone.endpoint.unwrap()),
            "the agent was let finish"
        );
    }

    fleet.scale(0);
    fleet
        .until("none", |state| state.replicas.is_empty() && state.leaving == 0)
        .await;
    eventually("no process is left", || fixture.carriers().is_empty()).await;
    assert_eq!(fleet.handle.snapshot().counters.kills, 0);

    fleet.scale(2);
    fleet.until_ready(2).await;
    fleet.stop().await;
    assert_eq!(fixture.carriers(), []);
    assert!(!fixture.path("fleet-chat.json").exists());
}

#[tokio::test]
async fn a_drain_waits_for_both_counts_of_requests() {
    let fixture = Fixture::new();
    let traffic = Arc::new(FakeTraffic::default());
    let running = Arc::new(AtomicU32::new(2));
    let mut options = Options::new(
        spec(ports(4), &[]),
        Arc::new(StateDir::lock(fixture.dir.path()).unwrap()),
    );
    options.traffic = traffic.clone();
    let engine_says = running.clone();
    options.running = Some(infer_local::Running::new(move |_| {
        Some(f64::from(engine_says.load(Ordering::Relaxed)))
    }));
    let fleet = Running::start(options);
    fleet.scale(1);
    let pid = pids(&fleet.until_ready(1).await)[0];
    traffic.set("chat-0", 3);
    fleet.scale(0);
    fleet.until("draining", |state| state.count(Phase::Draining) == 1).await;
    assert_eq!(traffic.names(), Vec::<String>::new(), "no more requests are sent");
    let unharmed = async || {
        let looked = fleet.until("ended too early", |state| state.replicas.is_empty());
        assert!(tokio::time::timeout(Duration::from_millis(300), looked).await.is_err());
        assert!(alive(pid));
    };
    unharmed().await;
    traffic.set("chat-0", 0);
    unharmed().await;
    running.store(0, Ordering::Relaxed);
    let state = fleet.until("ended", |state| state.replicas.is_empty()).await;
    assert!(!alive(pid));
    assert_eq!(
        (
            state.counters.drains,
            state.counters.drain_timeouts,
            state.counters.kills
        ),
        (1, 0, 0)
    );
    fleet.stop().await;
}

#[tokio::test]
async fn a_drain_out_of_time_is_said_and_the_least_busy_goes_first() {
    let fixture = Fixture::new();
    let mut spec = spec(ports(4), &[]);
    spec.drain.timeout = Duration::from_millis(200);
    let (fleet, traffic) = with_traffic(&fixture, spec);
    fleet.scale(3);
    fleet.until_ready(3).await;
    for (replica, requests) in [("chat-0", 1), ("chat-1", 4), ("chat-2", 4)] {
        traffic.set(replica, requests);
    }
    fleet.scale(2);
    let state = fleet.until_ready(2).await;
    assert_eq!(phases(&state), [("chat-1", Phase::Ready), ("chat-2", Phase::Ready)]);
    assert_eq!(state.counters.drain_timeouts, 1);
    assert_eq!(fleet.handle.snapshot().replica("chat-1").unwrap().in_flight, 4);
    fleet.stop().await;
}

#[tokio::test]
async fn a_scale_up_takes_a_drain_back() {
    let fixture = Fixture::new();
    let (fleet, traffic) = with_traffic(&fixture, spec(ports(4), &[]));
    fleet.scale(2);
    let before = fleet.until_ready(2).await;
    for replica in ["chat-0", "chat-1"] {
        traffic.set(replica, 1);
    }
    fleet.scale(0);
    fleet
        .until("both draining", |state| state.count(Phase::Draining) == 2)
        .await;
    fleet.scale(3);
    let after = fleet.until_ready(3).await;
    assert_eq!(
        after.replicas[..2].iter().map(|r| &r.uid).collect::<Vec<_>>(),
        [&before.replicas[0].uid, &before.replicas[1].uid]
    );
    assert_eq!((after.counters.starts, after.counters.drains_cancelled), (3, 2));
    assert_eq!(traffic.names(), ["chat-0", "chat-1", "chat-2"]);
    for replica in ["chat-0", "chat-1"] {
        traffic.set(replica, 0);
    }
    fleet.stop().await;
}

#[tokio::test]
async fn an_engine_that_ignores_sigterm_is_killed_with_its_group() {
    let fixture = Fixture::new();
    let mut spec = spec(ports(4), &["--ignore-sigterm", "--child"]);
    spec.drain.termination_grace = Duration::from_millis(200);
    let fleet = Running::of(&fixture, spec);
    fleet.scale(1);
    fleet.until_ready(1).await;
    let carriers = fixture.carriers();
    assert!(carriers.len() >= 2, "an engine and its child: {carriers:?}");
    assert!(carriers.iter().all(|carrier| carrier.group == carriers[0].group));
    fleet.scale(0);
    let state = fleet.until("ended", |state| state.replicas.is_empty()).await;
    assert_eq!(state.counters.kills, 1);
    eventually("the whole group is gone", || fixture.carriers().is_empty()).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_child_that_outlives_its_crashed_engine_is_ended() {
    let fixture = Fixture::new();
    let crash = fixture.path("crash");
    let fleet = Running::of(
        &fixture,
        spec(ports(4), &["--child", "--exit-if-file", crash.to_str().unwrap()]),
    );
    fleet.scale(1);
    fleet.until_ready(1).await;
    let before: Vec<_> = fixture.carriers().iter().map(|carrier| carrier.pid).collect();
    fs::write(&crash, "").unwrap();
    fleet.until("crashed", |state| state.counters.crashes >= 1).await;
    fs::remove_file(&crash).unwrap();
    fleet.until_ready(1).await;
    eventually("nothing of the crashed engine is left", || {
        !before.iter().any(|pid| alive(*pid))
    })
    .await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_crash_is_counted_explained_and_restarted_after_a_wait() {
    let fixture = Fixture::new();
    let crash = fixture.path("crash-{replica}");
    let arguments = ["--exit-code", "7", "--exit-if-file", crash.to_str().unwrap()];
    let (fleet, traffic) = with_traffic(&fixture, spec(ports(4), &arguments));
    fleet.scale(2);
    let before = fleet.until_ready(2).await;
    let file = fixture.path("crash-chat-1");
    fs::write(&file, "").unwrap();
    let failed = |state: &FleetState| state.replica("chat-1").is_some_and(|r| r.phase == Phase::Failed);
    let state = fleet.until("failed", failed).await;
    let replica = state.replica("chat-1").unwrap();
    assert_eq!(
        replica.last_problem.as_deref(),
        Some("engine ended by itself: exit code 7")
    );
    assert_eq!((replica.engine_pid, replica.port), (None, None));
    assert_eq!(traffic.names(), ["chat-0"]);
    // Crashes again and again: each wait about twice the one before.
    let state = fleet.until("a crash loop", |state| state.counters.crashes >= 4).await;
    let starts = state.counters.starts;
    assert!(starts <= 6, "{starts} starts for four crashes of one of two replicas");
    fs::remove_file(&file).unwrap();
    let after = fleet.until_ready(2).await;
    let (old, new) = (before.replica("chat-1").unwrap(), after.replica("chat-1").unwrap());
    assert_ne!(old.uid, new.uid);
    assert!(new.crashes >= 4);
    assert!(new.last_problem.is_some(), "kept after recovery");
    assert_eq!(
        before.replica("chat-0").unwrap().uid,
        after.replica("chat-0").unwrap().uid
    );
    // No longer wanted: not started again.
    fs::write(&file, "").unwrap();
    fleet.until("failed", failed).await;
    fleet.scale(1);
    let state = fleet.until_ready(1).await;
    assert_eq!(phases(&state), [("chat-0", Phase::Ready)]);
    fleet.stop().await;
}

#[tokio::test]
async fn an_engine_that_does_not_become_ready_is_ended_and_tried_again() {
    let fixture = Fixture::new();
    let mut spec = spec(ports(4), &["--never-ready"]);
    spec.startup_probe.timeout = Duration::from_millis(300);
    let fleet = Running::of(&fixture, spec);
    fleet.scale(1);
    let state = fleet
        .until("tried twice", |state| state.counters.startup_timeouts >= 2)
        .await;
    assert_eq!(state.counters.crashes, 0);
    let problem = state.replicas[0].last_problem.clone().unwrap();
    assert_eq!(
        problem,
        "not ready within 300ms: GET /health answered 503 Service Unavailable"
    );
    assert!(fixture.engines().len() <= 1);
    fleet.stop().await;
    assert_eq!(fixture.carriers(), []);
}

#[tokio::test]
async fn a_taken_port_is_skipped_and_a_full_range_is_said() {
    let fixture = Fixture::new();
    let ports = ports(3);
    let stranger = TcpListener::bind(("127.0.0.1", *ports.start())).unwrap();
    let fleet = Running::of(&fixture, spec(ports.clone(), &[]));
    fleet.scale(3);
    let failed = |state: &FleetState| state.count(Phase::Ready) == 2 && state.count(Phase::Failed) == 1;
    let state = fleet.until("two ready, one without a port", failed).await;
    let used: Vec<_> = state.replicas.iter().filter_map(|replica| replica.port).collect();
    assert_eq!(used, [ports.start() + 1, ports.start() + 2]);
    let problem = state.replicas[2].last_problem.clone().unwrap();
    assert!(
        problem.contains(&format!("{}-{}", ports.start(), ports.end())),
        "{problem}"
    );
    drop(stranger);
    fleet.until_ready(3).await;
    // Down and up at once in a full range: the new ones wait for the ports and are not failures.
    let failures = fleet.handle.snapshot().counters.start_failures;
    fleet.scale(0);
    fleet.until("ending", |state| state.count(Phase::Ready) == 0).await;
    fleet.scale(3);
    assert_eq!(fleet.until_ready(3).await.counters.start_failures, failures);
    fleet.stop().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_said_once() {
    let fixture = Fixture::new();
    let mut spec = spec(ports(4), &[]);
    spec.engine.command = vec!["no-such-engine".into(), "{port}".into()];
    let fleet = Running::of(&fixture, spec);
    let mut events = fleet.handle.events();
    fleet.scale(1);
    let state = fleet
        .until("tried three times", |state| state.counters.start_failures >= 3)
        .await;
    assert_eq!(state.replicas[0].phase, Phase::Failed);
    let problem = state.replicas[0].last_problem.clone().unwrap();
    assert!(
        problem.contains("no-such-engine") && problem.contains("not found"),
        "{problem}"
    );
    fleet.stop().await;
    let mut said = 0;
    while let Ok(event) = events.try_recv() {
        said += usize::from(event.text == problem);
    }
    // The port is part of the command, and a retry takes the next one: one line per port at most.
    assert!((1..=3).contains(&said), "said {said} times");
}

#[tokio::test]
async fn an_agent_that_ends_is_started_again_and_the_engine_is_left_alone() {
    let fixture = Fixture::new();
    let mut spec = spec(ports(4), &[]);
    spec.agent = flushing_agent(&fixture);
    let fleet = Running::of(&fixture, spec);
    fleet.scale(1);
    let has_agent = |state: &FleetState| state.count(Phase::Ready) == 1 && state.replicas[0].agent_pid.is_some();
    let before = fleet.until("an agent", has_agent).await;
    let agent = before.replicas[0].agent_pid.unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let again = move |state: &FleetState| state.replicas[0].agent_pid.is_some_and(|pid| pid != agent);
    let after = fleet.until("another agent", again).await;
    assert_eq!(pids(&before), pids(&after));
    assert_eq!((after.counters.agent_exits, after.counters.crashes), (1, 0));
    fleet.stop().await;
    assert_eq!(fixture.carriers(), []);
}

#[tokio::test]
async fn counts_that_cannot_be_are_refused() {
    let fixture = Fixture::new();
    let state_dir = Arc::new(StateDir::lock(fixture.dir.path()).unwrap());
    let supervisor = Supervisor::new(Options::new(spec(ports(2), &[]), state_dir)).unwrap();
    let handle = supervisor.handle();
    assert!(matches!(
        handle.scale("chat", 3, "p"),
        Err(Error::TooManyReplicas { asked: 3, ports: 2, .. })
    ));
    assert!(matches!(handle.scale("other", 1, "p"), Err(Error::OtherFleet { .. })));
    assert!(handle.scale("chat", 2, "p").is_ok());
    drop(supervisor);
    assert!(matches!(handle.scale("chat", 1, "p"), Err(Error::Stopped { .. })));
}
