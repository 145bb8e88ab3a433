//! What survives a decider, and who may touch it.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use infer_local::{Error, Phase, Role, StateDir, cleanup, end_fleet};

use crate::fixture::*;

/// A process the supervisor has nothing to do with.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }
}

/// Start times come in steps of 10 ms: without this, an engine and a stranger of the same step would be one.
fn make_older(registry: &mut serde_json::Value) {
    let ticks = &mut registry["replicas"][0]["engine"]["start_ticks"];
    *ticks = (ticks.as_u64().unwrap() - 1).into();
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_next_supervisor_adopts_the_same_processes() {
    let fixture = Fixture::new();
    let mut spec = spec(ports(6), &[]);
    spec.agent = flushing_agent(&fixture);
    let fleet = Running::of(&fixture, spec.clone());
    fleet.scale(3);
    let ready = fleet.until_ready(3).await;
    let before = fixture.carriers();
    fleet.vanish().await;

    let fleet = Running::of(&fixture, spec.clone());
    let adopted = fleet.until_ready(3).await;
    assert_eq!(pids(&ready), pids(&adopted));
    let kept = |state: &infer_local::FleetState| {
        state
            .replicas
            .iter()
            .map(|r| (r.uid.clone(), r.agent_pid, r.startup_ms, r.port))
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(&ready), kept(&adopted));
    assert_eq!(
        (adopted.wanted, adopted.counters.adopted, adopted.counters.starts),
        (Some(3), 3, 0)
    );
    let leaders = |carriers: &[Carrier]| {
        carriers
            .iter()
            .filter(|c| c.pid == c.group)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(leaders(&before), leaders(&fixture.carriers()));

    // An adopted engine is watched like a child …
    let victim = adopted.replicas[1].engine_pid.unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(victim).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    fleet.until("crash seen", |state| state.counters.crashes == 1).await;
    fleet.until_ready(3).await;
    // … and ended like one, also after a restart that leaves the engines running.
    fleet.leave().await;
    let fleet = Running::of(&fixture, spec);
    fleet.until_ready(3).await;
    fleet.scale(0);
    fleet
        .until("none", |state| state.replicas.is_empty() && state.leaving == 0)
        .await;
    eventually("no process is left", || fixture.carriers().is_empty()).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_drain_and_a_start_go_on_after_a_take_over() {
    let fixture = Fixture::new();
    let slow = fixture.path("never");
    let mut spec = spec(
        ports(6),
        &["--ready-after-ms", "400", "--exit-if-file", slow.to_str().unwrap()],
    );
    spec.drain.settle = Duration::from_secs(3600);
    let fleet = Running::of(&fixture, spec.clone());
    fleet.scale(1);
    fleet.until_ready(1).await;
    fleet.scale(0);
    fleet.until("draining", |state| state.count(Phase::Draining) == 1).await;
    fleet.vanish().await;

    let fleet = Running::of(&fixture, spec.clone());
    let state = fleet
        .until("still draining", |state| state.count(Phase::Draining) == 1)
        .await;
    assert_eq!(pids(&state), fixture.engines());
    fleet.scale(2);
    let starting = |state: &infer_local::FleetState| {
        state.count(Phase::Ready) == 1 && state.replicas.iter().filter(|r| r.engine_pid.is_some()).count() == 2
    };
    let state = fleet.until("taken back, another started", starting).await;
    fleet.vanish().await;

    let fleet = Running::of(&fixture, spec);
    let after = fleet.until_ready(2).await;
    assert_eq!(pids(&state), pids(&after));
    assert!(
        after.replica("chat-1").unwrap().startup_ms.unwrap() >= 300,
        "measured from the start of the process"
    );
    fleet.stop().await;
    assert_eq!(fixture.carriers(), []);
}

#[tokio::test]
async fn what_died_meanwhile_is_started_again_and_another_s_pid_is_left_alone() {
    let fixture = Fixture::new();
    let spec = spec(ports(6), &[]);
    let fleet = Running::of(&fixture, spec.clone());
    fleet.scale(1);
    let before = fleet.until_ready(1).await;
    fleet.vanish().await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pids(&before)[0]).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    // The pid now belongs to someone else: same pid, same boot, another start time.
    let stranger = Stranger::new();
    let mut registry = fixture.registry();
    registry["replicas"][0]["engine"]["pid"] = stranger.0.id().into();
    make_older(&mut registry);
    fixture.write_registry(&registry);

    let fleet = Running::of(&fixture, spec);
    let after = fleet.until_ready(1).await;
    assert_ne!(pids(&after), [stranger.0.id()]);
    assert_eq!(
        (after.counters.adopted, after.counters.starts, after.counters.crashes),
        (0, 1, 1)
    );
    assert_eq!(after.replicas[0].crashes, 1);
    fleet.stop().await;
    assert!(alive(stranger.0.id()));
}

#[tokio::test]
async fn a_process_started_and_not_recorded_is_found_by_its_environment() {
    let fixture = Fixture::new();
    let spec = spec(ports(6), &["--child"]);
    for lost in ["engine", "replicas", "file", "half a file"] {
        let fleet = Running::of(&fixture, spec.clone());
        fleet.scale(2);
        let before = fleet.until_ready(2).await;
        fleet.vanish().await;
        let mut registry = fixture.registry();
        match lost {
            // Killed between the start and the record: only the intent is there.
            "engine" => {
                registry["replicas"][1]["engine"] = serde_json::Value::Null;
                registry["replicas"][1]["stage"] = "starting".into();
                fixture.write_registry(&registry);
            }
            "replicas" => {
                registry["replicas"] = serde_json::json!([]);
                fixture.write_registry(&registry);
            }
            "file" => fs::remove_file(fixture.path("fleet-chat.json")).unwrap(),
            _ => fs::write(fixture.path("fleet-chat.json"), "{\"fleet\": ").unwrap(),
        }
        let fleet = Running::of(&fixture, spec.clone());
        let after = fleet.until_ready(2).await;
        assert_eq!(pids(&before), pids(&after), "lost: {lost}");
        assert_eq!((after.counters.starts, after.counters.adopted), (0, 2), "lost: {lost}");
        fleet.stop().await;
        eventually("nothing is left", || fixture.carriers().is_empty()).await;
    }
}

#[tokio::test]
async fn a_process_of_ours_that_fits_no_slot_is_ended() {
    let fixture = Fixture::new();
    let mut spec = spec(ports(6), &[]);
    let fleet = Running::of(&fixture, spec.clone());
    fleet.scale(1);
    fleet.until_ready(1).await;
    fleet.vanish().await;
    fs::remove_file(fixture.path("fleet-chat.json")).unwrap();
    // The port it runs on is no longer this fleet's.
    spec.ports = ports(6);
    let fleet = Running::of(&fixture, spec);
    eventually("the orphan is ended", || fixture.carriers().is_empty()).await;
    fleet.until("and forgotten", |state| state.leaving == 0).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_decider_killed_at_any_moment_loses_no_engine() {
    let fixture = Fixture::new();
    let ports = ports(8);
    let decider = |replicas: u32| {
        let numbers = [*ports.start(), *ports.end()].map(|port| port.to_string());
        Command::new(example("fake_decider"))
            .arg(fixture.dir.path())
            .args(numbers)
            .arg(replicas.to_string())
            .args([&example("fake_engine"), "{port}"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // From before the first line of the registry to after the last start, in steps of some milliseconds.
    for (replicas, wait_ms) in [
        (1, 1_u64),
        (1, 4),
        (2, 7),
        (2, 10),
        (3, 13),
        (4, 16),
        (5, 20),
        (6, 25),
        (7, 30),
        (8, 40),
    ] {
        let mut process = decider(replicas);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        process.kill().unwrap();
        process.wait().unwrap();
    }
    let mut spec = spec(ports.clone(), &[]);
    spec.agent = infer_local::Agent::Command(vec!["sleep".into(), "1000".into()]);
    let fleet = Running::of(&fixture, spec);
    fleet.scale(3);
    let state = fleet.until_ready(3).await;
    eprintln!("after ten kills: {:?}", state.counters);
    fleet
        .until("agents", |state| {
            state.leaving == 0 && state.replicas.iter().all(|r| r.agent_pid.is_some())
        })
        .await;
    eventually("every engine there is belongs to the fleet", || {
        fixture.engines() == pids(&state)
    })
    .await;
    eventually("and one agent each", || fixture.carriers().len() == 6).await;
    fleet.stop().await;
    assert_eq!(fixture.carriers(), []);
}

#[tokio::test]
async fn cleanup_ends_leftovers_and_no_strangers() {
    let fixture = Fixture::new();
    let mut spec = spec(ports(6), &["--ignore-sigterm", "--child"]);
    spec.agent = flushing_agent(&fixture);
    let fleet = Running::of(&fixture, spec);
    fleet.scale(2);
    let state = fleet.until_ready(2).await;
    let short = Duration::from_millis(300);
    let held = cleanup(fixture.dir.path(), short).await;
    assert!(matches!(held, Err(Error::Held { .. })), "{held:?}");
    assert_eq!(
        pids(&state),
        fixture.engines(),
        "a live decider's engines are not touched"
    );
    fleet.vanish().await;

    let stranger = Stranger::new();
    let mut registry = fixture.registry();
    let lost = registry["replicas"][0]["engine"]["pid"].as_u64().unwrap();
    registry["replicas"][0]["engine"]["pid"] = stranger.0.id().into();
    make_older(&mut registry);
    fixture.write_registry(&registry);

    let report = cleanup(fixture.dir.path(), short).await.unwrap();
    assert_eq!((report.gone, report.remaining.as_slice()), (1, [].as_slice()));
    for pid in pids(&state) {
        let ended = report.ended.iter().find(|ended| ended.pid == pid).unwrap();
        assert_eq!(
            (ended.role, ended.killed, ended.fleet.as_str()),
            (Role::Engine, true, "chat")
        );
    }
    assert!(
        report.ended.iter().any(|ended| u64::from(ended.pid) == lost),
        "found by its environment"
    );
    assert!(
        report
            .ended
            .iter()
            .any(|ended| ended.role == Role::Agent && !ended.killed)
    );
    assert_eq!(fixture.carriers(), []);
    assert!(alive(stranger.0.id()));
    assert!(!fixture.path("fleet-chat.json").exists());
    assert_eq!(
        cleanup(fixture.dir.path(), short).await.unwrap(),
        infer_local::Report::default()
    );
    let nowhere = cleanup(fixture.path("nowhere"), short).await;
    assert!(matches!(nowhere, Err(Error::NoStateDir { .. })), "{nowhere:?}");
    assert!(!fixture.path("nowhere").exists());
}

#[tokio::test]
async fn a_fleet_that_is_no_longer_configured_can_be_ended() {
    let fixture = Fixture::new();
    let fleet = Running::of(&fixture, spec(ports(4), &[]));
    fleet.scale(2);
    fleet.until_ready(2).await;
    fleet.leave().await;
    let state_dir = StateDir::lock(fixture.dir.path()).unwrap();
    assert_eq!(state_dir.fleets().unwrap(), ["chat"]);
    let grace = Duration::from_secs(5);
    assert_eq!(end_fleet(&state_dir, "other", grace).await.unwrap().ended, []);
    assert_eq!(fixture.engines().len(), 2);
    assert_eq!(end_fleet(&state_dir, "chat", grace).await.unwrap().ended.len(), 2);
    assert_eq!(fixture.carriers(), []);
    assert_eq!(state_dir.fleets().unwrap(), Vec::<String>::new());
}

#[test]
fn a_held_directory_is_refused_with_the_holder_s_pid() {
    let fixture = Fixture::new();
    let held = StateDir::lock(fixture.dir.path()).unwrap();
    let error = StateDir::lock(fixture.dir.path()).unwrap_err();
    let said = error.to_string();
    assert!(said.contains(&format!("pid {}", std::process::id())), "{said}");
    drop(held);
    assert!(StateDir::lock(fixture.dir.path()).is_ok());
}
