//! The local backend: one supervisor and, where asked for, one front door per fleet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use infer_api::LocalFleet;
use infer_core::{
    TimeMs,
    decision::Plan,
    target::{FleetView, Phase, PodView},
};
use infer_local::{Agent, FleetSpec, Running, Shutdown, StateDir, Supervisor, Traffic};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::actuate::{self, Actuator, BoxFuture, Fleet, PodDetail};

/// Why the local backend could not be started or ended badly.
#[derive(Debug, Error)]
pub enum Error {
    /// A fleet's document asks for what cannot be.
    #[error("fleet {fleet}: {problem}")]
    Fleet {
        /// Which.
        fleet: String,
        /// What.
        problem: String,
    },
    /// From a supervisor.
    #[error(transparent)]
    Supervisor(#[from] infer_local::Error),
    /// From a front door.
    #[error("front door of fleet {fleet}: {source}")]
    FrontDoor {
        /// Whose.
        fleet: String,
        /// What.
        source: infer_frontdoor::Error,
    },
}

/// What a fleet's parts look like from here.
struct Member {
    supervisor: infer_local::Handle,
    door: Option<infer_frontdoor::Handle>,
    /// What was last asked for. The supervisor says so itself a moment later; a tick in between must not ask twice.
    asked: Mutex<Option<u32>>,
}

impl Member {
    fn asked(&self) -> Option<u32> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, replicas: u32, plan_id: &str) -> Result<(), infer_local::Error> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        self.supervisor.scale(self.supervisor.fleet(), replicas, plan_id)?;
        *asked = Some(replicas);
        Ok(())
    }
}

/// The running backend.
pub struct LocalBackend {
    members: BTreeMap<String, Arc<Member>>,
    changed: Arc<Changed>,
}

/// Fleets that have changed and not been looked at since; at most all of them.
#[derive(Default)]
struct Changed {
    names: Mutex<BTreeSet<String>>,
    some: Notify,
}

impl Changed {
    fn add(&self, name: &str) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_owned());
        self.some.notify_one();
    }

    async fn take(&self) -> Vec<String> {
        loop {
            let names = std::mem::take(&mut *self.names.lock().unwrap_or_else(PoisonError::into_inner));
            if !names.is_empty() {
                return names.into_iter().collect();
            }
            self.some.notified().await;
        }
    }
}

/// The front door as the supervisor wants to see it.
struct Door(infer_frontdoor::Handle);

impl Traffic for Door {
    fn set_endpoints(&self, ready: Vec<infer_local::Endpoint>) {
        let endpoints = ready.into_iter();
        self.0.set_endpoints(
            endpoints
                .map(|endpoint| infer_frontdoor::Endpoint {
                    replica: endpoint.replica,
                    address: endpoint.address,
                })
                .collect(),
        );
    }

    fn in_flight(&self, replica: &str) -> usize {
        self.0.in_flight(replica)
    }
}

/// A fleet bound to its port and not yet running.
pub struct Prepared {
    name: String,
    initial: u32,
    supervisor: Supervisor,
    member: Arc<Member>,
    door: Option<infer_frontdoor::FrontDoor>,
}

/// What fleets are prepared with.
pub struct Surroundings<'a> {
    /// The locked state directory.
    pub state_dir: &'a Arc<StateDir>,
    /// Where agents reach this decider.
    pub decider: SocketAddr,
    /// The engines' own word on their requests.
    pub running: RunningLookup,
}

/// An engine's requests as its agent last said, by target and replica; `None` when nothing fresh is known.
pub type RunningLookup = Arc<dyn Fn(&str, &str) -> Option<f64> + Send + Sync>;

/// Checks a fleet's document and binds its front door. Nothing is started yet.
///
/// # Errors
/// [`Error`] naming the fleet.
pub async fn prepare(fleet: &LocalFleet, surroundings: &Surroundings<'_>) -> Result<Prepared, Error> {
    let name = fleet.metadata.name.clone();
    let door = match &fleet.spec.front_door {
        None => None,
        Some(spec) => {
            let wrong = |problem| Error::Fleet {
                fleet: name.clone(),
                problem,
            };
            let listen = spec
                .listen
                .parse()
                .map_err(|error| wrong(format!("spec.frontDoor.listen: {error}")))?;
            let options = infer_frontdoor::Options {
                listen,
                model: (!fleet.spec.model.is_empty()).then(|| fleet.spec.model.clone()),
                max_held_requests: spec.queue_limit(),
                queue_timeout: spec.queue_timeout(),
                ..infer_frontdoor::Options::default()
            };
            let bound = infer_frontdoor::FrontDoor::bind(options).await;
            Some(bound.map_err(|source| Error::FrontDoor {
                fleet: name.clone(),
                source,
            })?)
        }
    };
    let (door, door_handle) = door.unzip();
    let mut options = infer_local::Options::new(fleet_spec(fleet)?, Arc::clone(surroundings.state_dir));
    if let Some(handle) = &door_handle {
        options.traffic = Arc::new(Door(handle.clone()));
    }
    let (running, target) = (Arc::clone(&surroundings.running), name.clone());
    options.running = Some(Running::new(move |replica| running(&target, replica)));
    options.target = name.clone();
    options.decider = format!("http://{}", surroundings.decider);
    let supervisor = Supervisor::new(options)?;
    let member = Member {
        supervisor: supervisor.handle(),
        door: door_handle,
        asked: Mutex::new(None),
    };
    Ok(Prepared {
        name,
        initial: fleet.spec.initial_replicas(),
        supervisor,
        member: Arc::new(member),
        door,
    })
}

/// The supervisor's terms for a fleet's document.
fn fleet_spec(fleet: &LocalFleet) -> Result<FleetSpec, Error> {
    let spec = &fleet.spec;
    let wrong = |problem| Error::Fleet {
        fleet: fleet.metadata.name.clone(),
        problem,
    };
    let port = |field: &str, port: i32| {
        u16::try_from(port).map_err(|_| wrong(format!("spec.engine.ports.{field}: {port} is not a port")))
    };
    let ports = port("from", spec.engine.ports.from)?..=port("to", spec.engine.ports.to)?;
    let mut local = FleetSpec::new(&fleet.metadata.name, spec.engine.command.clone(), ports);
    local.model = spec.model.clone();
    local.engine.env = spec.engine.env.clone();
    local.engine.working_dir = match spec.engine.working_directory.as_str() {
        "" | "." => None,
        directory => Some(PathBuf::from(directory)),
    };
    local.host = spec
        .engine
        .host
        .parse()
        .map_err(|error| wrong(format!("spec.engine.host: {error}")))?;
    local.startup_probe.path = spec.startup_probe.path.clone();
    local.startup_probe.interval = spec.startup_probe.interval();
    local.startup_probe.timeout = spec.startup_probe.timeout();
    local.drain.timeout = spec.drain.timeout();
    local.drain.termination_grace = spec.drain.termination_grace();
    local.restart.initial_backoff = spec.restart.initial_backoff();
    local.restart.max_backoff = spec.restart.max_backoff();
    local.restart.reset_after = spec.restart.reset_after();
    local.agent = match &spec.agent.command {
        Some(command) => Agent::Command(command.clone()),
        None => Agent::Beside,
    };
    local.agent_env = spec.agent.env.clone();
    if spec.engine.metrics_path != "/metrics" {
        local
            .agent_env
            .entry("INFER_AGENT_METRICS_PATH".to_owned())
            .or_insert(spec.engine.metrics_path.clone());
    }
    Ok(local)
}

impl LocalBackend {
    /// Starts the prepared fleets, or takes over what an earlier decider has left of them. Returns when every fleet
    /// knows what it has. `tasks` end when `shutdown` says how.
    pub async fn start(
        fleets: Vec<Prepared>,
        tasks: &mut JoinSet<Result<(), Error>>,
        shutdown: &watch::Receiver<Option<Shutdown>>,
    ) -> LocalBackend {
        let changed = Arc::new(Changed::default());
        let mut members = BTreeMap::new();
        for fleet in fleets {
            let Prepared {
                name,
                initial,
                supervisor,
                member,
                door,
            } = fleet;
            let mut state = member.supervisor.subscribe();
            let mut stop = shutdown.clone();
            tasks.spawn(async move {
                let how = async move {
                    let how = stop.wait_for(Option::is_some).await;
                    how.ok().and_then(|how| *how).unwrap_or(Shutdown::Leave)
                };
                Ok(supervisor.run(how).await?)
            });
            if let Some(door) = door {
                let (fleet, mut stop) = (name.clone(), shutdown.clone());
                tracing::info!(fleet, address = %door.local_addr(), "front door open");
                tasks.spawn(async move {
                    let stopped = async move {
                        let _ = stop.wait_for(Option::is_some).await;
                    };
                    door.run(stopped)
                        .await
                        .map_err(|source| Error::FrontDoor { fleet, source })
                });
            }
            // The registry knows what was asked for before; only a new fleet begins with its initial count.
            let wanted = state
                .wait_for(|state| state.taken_over)
                .await
                .ok()
                .and_then(|state| state.wanted);
            if let Err(error) = member.ask(wanted.unwrap_or(initial), "start") {
                tracing::error!(fleet = name, %error, "cannot ask for the initial replicas");
            }
            watch_member(&name, &member, Arc::clone(&changed));
            members.insert(name, member);
        }
        LocalBackend { members, changed }
    }
}

/// Tells of every change of a fleet and every rise of its held requests; ends with the supervisor.
fn watch_member(name: &str, member: &Arc<Member>, changed: Arc<Changed>) {
    let name = name.to_owned();
    let mut state = member.supervisor.subscribe();
    let mut demand = member.door.as_ref().map(infer_frontdoor::Handle::demand_changed);
    tokio::spawn(async move {
        loop {
            let held = async {
                match &mut demand {
                    Some(demand) => demand.changed().await,
                    None => std::future::pending().await,
                }
            };
            let seen = tokio::select! {
                seen = state.changed() => seen,
                seen = held => seen,
            };
            if seen.is_err() {
                return;
            }
            changed.add(&name);
        }
    });
}

fn phase(phase: infer_local::Phase) -> Phase {
    match phase {
        infer_local::Phase::Starting => Phase::Starting,
        infer_local::Phase::Ready => Phase::Ready,
        infer_local::Phase::Draining => Phase::Draining,
        infer_local::Phase::Failed => Phase::Failed,
    }
}

fn unix_time(unix_ms: u64) -> TimeMs {
    TimeMs(i64::try_from(unix_ms).unwrap_or(i64::MAX))
}

impl Actuator for LocalBackend {
    fn fleet(&self, target: &str) -> Option<Fleet> {
        let member = self.members.get(target)?;
        let state = member.supervisor.snapshot();
        let spec = member.asked().or(state.wanted).unwrap_or(state.replicas.len() as u32);
        let pods = state.replicas.iter().map(|replica| PodView {
            name: replica.name.clone(),
            uid: replica.uid.clone(),
            phase: phase(replica.phase),
            ready_since: replica.ready_unix_ms.map(unix_time),
        });
        let details = state.replicas.iter().map(|replica| PodDetail {
            name: replica.name.clone(),
            endpoint: replica.endpoint.map(|address| format!("http://{address}")),
            startup_ms: replica.startup_ms,
            problem: replica
                .last_problem
                .clone()
                .filter(|_| replica.phase == infer_local::Phase::Failed),
        });
        Some(Fleet {
            view: FleetView {
                spec,
                pods: pods.collect(),
            },
            details: details.collect(),
            gateway_waiting: member.door.as_ref().map(|door| door.waiting() as f64),
        })
    }

    fn apply(&self, plan: Plan, plan_id: String) -> BoxFuture<Result<(), actuate::Error>> {
        let member = self.members.get(&plan.target).map(Arc::clone);
        Box::pin(async move {
            let member = member.ok_or_else(|| actuate::Error::UnknownTarget(plan.target.clone()))?;
            match member.asked() {
                Some(spec) if spec == plan.to => return Ok(()),
                Some(spec) if spec != plan.from => return Err(actuate::Error::Stale { from: plan.from, spec }),
                _ => {}
            }
            member
                .ask(plan.to, &plan_id)
                .map_err(|error| actuate::Error::Backend(error.to_string()))
        })
    }

    fn changed(&self) -> BoxFuture<Vec<String>> {
        let changed = Arc::clone(&self.changed);
        Box::pin(async move { changed.take().await })
    }
}

/// How long fleets are given to end before the process goes anyway.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(60);
