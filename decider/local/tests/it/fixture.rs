use std::{
    collections::HashMap,
    fs,
    ops::RangeInclusive,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use infer_local::{
    Agent, Endpoint, FleetSpec, FleetState, Handle, Options, Phase, Shutdown, StateDir, Supervisor, Traffic,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

/// Longest wait for anything that should happen; generous, since a loaded machine is slow and waits end early.
pub(crate) const LONG: Duration = Duration::from_secs(30);

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A range of ports of its own for each test, below those the system hands out.
pub(crate) fn ports(count: u16) -> RangeInclusive<u16> {
    let base = 20_000 + u16::try_from(std::process::id() % 40).unwrap() * 300;
    let first = base + NEXT_PORT.fetch_add(count, Ordering::Relaxed);
    first..=first + count - 1
}

/// A program of `examples/`, built by `cargo test` along with the tests.
pub(crate) fn example(name: &str) -> String {
    let deps = std::env::current_exe().unwrap();
    let path = deps.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(
        path.exists(),
        "{} is not built; run the tests with `cargo test -p infer-local`",
        path.display()
    );
    path.to_string_lossy().into_owned()
}

/// A process that carries the environment of a state directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Carrier {
    pub(crate) pid: u32,
    pub(crate) group: u32,
    pub(crate) engine: bool,
}

/// A state directory and what runs from it; ends all of it when dropped, however the test went.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) fleet_id: String,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fleet_id = StateDir::lock(dir.path()).unwrap().fleet_id().to_owned();
        Self { dir, fleet_id }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Live processes of this state directory, by the environment they carry.
    pub(crate) fn carriers(&self) -> Vec<Carrier> {
        let wanted = format!("INFER_FLEET_ID={}", self.fleet_id);
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| e.unwrap().file_name().to_str()?.parse::<u32>().ok());
        let mut carriers: Vec<_> = pids
            .filter_map(|pid| {
                let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
                let has = |entry: &str| environment.split(|b| *b == 0).any(|e| e == entry.as_bytes());
                let group = group(pid)?;
                has(&wanted).then(|| Carrier {
                    pid,
                    group,
                    engine: has("INFER_LOCAL_ROLE=engine"),
                })
            })
            .collect();
        carriers.sort();
        carriers
    }

    /// The pids of engines proper: those that lead their group.
    pub(crate) fn engines(&self) -> Vec<u32> {
        self.carriers()
            .iter()
            .filter(|c| c.engine && c.pid == c.group)
            .map(|c| c.pid)
            .collect()
    }

    pub(crate) fn registry(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path("fleet-chat.json")).unwrap()).unwrap()
    }

    pub(crate) fn write_registry(&self, registry: &serde_json::Value) {
        fs::write(self.path("fleet-chat.json"), serde_json::to_vec(registry).unwrap()).unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for carrier in self.carriers() {
            let _ = kill(Pid::from_raw(i32::try_from(carrier.pid).unwrap()), Signal::SIGKILL);
        }
    }
}

/// The process group of a process that is no zombie.
pub(crate) fn group(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    (fields.next()? != "Z").then(|| fields.nth(1)?.parse().ok())?
}

pub(crate) fn alive(pid: u32) -> bool {
    group(pid).is_some()
}

/// The fleet "chat" of fake engines: quick, without agents.
pub(crate) fn spec(ports: RangeInclusive<u16>, engine_arguments: &[&str]) -> FleetSpec {
    let mut command = vec![example("fake_engine"), "{port}".to_owned()];
    command.extend(engine_arguments.iter().map(|&argument| argument.to_owned()));
    let mut spec = FleetSpec::new("chat", command, ports);
    spec.agent = Agent::Off;
    spec.startup_probe.interval = Duration::from_millis(20);
    spec.drain.settle = Duration::from_millis(20);
    spec.restart.initial_backoff = Duration::from_millis(50);
    spec.restart.max_backoff = Duration::from_millis(400);
    spec
}

/// An agent that writes a file when it is asked to end, as a real one sends its last samples.
pub(crate) fn flushing_agent(fixture: &Fixture) -> Agent {
    let flushed = fixture.path("flushed-{uid}");
    let script = format!(
        "trap 'echo {{replica}} {{engine_url}} > {}; exit 0' TERM; while :; do sleep 0.05; done",
        flushed.display()
    );
    Agent::Command(vec!["sh".into(), "-c".into(), script])
}

/// A supervisor that runs.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    shutdown: oneshot::Sender<Shutdown>,
    task: JoinHandle<Result<(), infer_local::Error>>,
}

impl Running {
    pub(crate) fn start(options: Options) -> Self {
        let supervisor = Supervisor::new(options).unwrap();
        let handle = supervisor.handle();
        let (shutdown, told) = oneshot::channel();
        let task = tokio::spawn(supervisor.run(async { told.await.unwrap() }));
        Self { handle, shutdown, task }
    }

    pub(crate) fn of(fixture: &Fixture, spec: FleetSpec) -> Self {
        Self::start(Options::new(
            spec,
            Arc::new(StateDir::lock(fixture.dir.path()).unwrap()),
        ))
    }

    pub(crate) fn scale(&self, replicas: u32) {
        self.handle.scale("chat", replicas, "plan").unwrap();
    }

    /// Waits until the state is as wanted.
    #[track_caller]
    pub(crate) fn until(
        &self,
        what: &'static str,
        condition: impl Fn(&FleetState) -> bool,
    ) -> impl Future<Output = FleetState> {
        let mut states = self.handle.subscribe();
        let place = std::panic::Location::caller();
        async move {
            if let Ok(state) = timeout(LONG, states.wait_for(|state| condition(state))).await {
                return state.unwrap().clone();
            }
            let state = states.borrow().clone();
            panic!("{place}: not within {LONG:?}: {what}; the fleet is {state:#?}");
        }
    }

    pub(crate) async fn until_ready(&self, count: usize) -> FleetState {
        self.until("all ready", move |state| {
            state.count(Phase::Ready) == count && state.replicas.len() == count
        })
        .await
    }

    /// Ends every process; then the state directory is free again.
    pub(crate) async fn stop(self) {
        self.shutdown.send(Shutdown::Stop).unwrap();
        timeout(LONG, self.task).await.unwrap().unwrap().unwrap();
    }

    pub(crate) async fn leave(self) {
        self.shutdown.send(Shutdown::Leave).unwrap();
        timeout(LONG, self.task).await.unwrap().unwrap().unwrap();
    }

    /// The nearest thing to a kill within one process: the task goes away at whatever it was waiting for.
    pub(crate) async fn vanish(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

/// Waits for something that no channel tells of.
#[track_caller]
pub(crate) fn eventually(what: &'static str, condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let looks = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(
            timeout(LONG, looks).await.is_ok(),
            "{place}: not within {LONG:?}: {what}"
        );
    }
}

pub(crate) fn pids(state: &FleetState) -> Vec<u32> {
    let mut pids: Vec<_> = state.replicas.iter().filter_map(|replica| replica.engine_pid).collect();
    pids.sort_unstable();
    pids
}

/// A front door whose requests the test makes up.
#[derive(Debug, Default)]
pub(crate) struct FakeTraffic {
    pub(crate) endpoints: Mutex<Vec<Endpoint>>,
    pub(crate) in_flight: Mutex<HashMap<String, usize>>,
}

impl FakeTraffic {
    pub(crate) fn set(&self, replica: &str, requests: usize) {
        self.in_flight.lock().unwrap().insert(replica.to_owned(), requests);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.endpoints
            .lock()
            .unwrap()
            .iter()
            .map(|endpoint| endpoint.replica.clone())
            .collect()
    }
}

impl Traffic for FakeTraffic {
    fn set_endpoints(&self, ready: Vec<Endpoint>) {
        *self.endpoints.lock().unwrap() = ready;
    }

    fn in_flight(&self, replica: &str) -> usize {
        self.in_flight.lock().unwrap().get(replica).copied().unwrap_or(0)
    }
}
