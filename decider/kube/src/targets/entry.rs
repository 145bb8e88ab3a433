//! One tracked target, and what others see of it.

use std::{collections::BTreeSet, sync::Arc};

use infer_core::target::{Phase, PodView};

use super::{
    Detail, DrainSpec, Fleet, Part, PartState, Problem,
    api::Gvk,
    machine::Machine,
    path::{Located, ReplicasPath},
    pod::Stage,
    pods::Pods,
    replica::{Replica, replicas},
    victims::Order,
};

/// One target.
pub(super) struct Entry {
    pub(super) parts: Vec<PartEntry>,
    pub(super) machine: Machine,
    /// One plan at a time.
    pub(super) gate: Arc<tokio::sync::Mutex<()>>,
    /// Whether a task is looking after drains.
    pub(super) driven: bool,
    /// Wakes that task.
    pub(super) wake: Arc<tokio::sync::Notify>,
    /// Built when it is asked for, until something changes.
    built: Option<Built>,
}

struct Built {
    fleet: Fleet,
    replicas: Vec<Vec<Replica>>,
}

/// One part.
pub(super) struct PartEntry {
    pub(super) part: Part,
    pub(super) gvk: Gvk,
    /// `Err`: it can not be read.
    pub(super) path: Option<Result<ReplicasPath, String>>,
    pub(super) order: Order,
    /// As text, where one is known.
    pub(super) selector: Option<String>,
    pub(super) pods: BTreeSet<String>,
    /// The object's uid, as far as the count below is known.
    pub(super) uid: String,
    /// Of the object when its count was read or written last.
    pub(super) version: String,
    /// Of the object when reading its count began; another one means that it has to be read again.
    pub(super) generation: Option<String>,
    /// Where the path leads in the object as it was read last.
    pub(super) located: Option<Located>,
    /// Writes so far: what was read before a write says nothing after it.
    pub(super) epoch: u64,
    /// Being read now.
    pub(super) reading: bool,
    /// To be read once more when that has ended.
    pub(super) again: bool,
    /// Failed readings in a row.
    pub(super) failures: u32,
    pub(super) read_problem: Option<Problem>,
    pub(super) write_problem: Option<Problem>,
}

impl PartEntry {
    pub(super) fn new(part: Part) -> PartEntry {
        PartEntry {
            gvk: Gvk::new(&part.target.api_version, &part.target.kind),
            path: part.target.replicas_path.as_deref().map(ReplicasPath::parse),
            order: Order::of_kind(&part.target.kind),
            selector: None,
            pods: BTreeSet::new(),
            uid: String::new(),
            version: String::new(),
            generation: None,
            located: None,
            epoch: 0,
            reading: false,
            again: false,
            failures: 0,
            read_problem: None,
            write_problem: None,
            part,
        }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.part.target.namespace
    }

    /// Everything that was read of the object is void.
    pub(super) fn forget(&mut self) {
        self.uid.clear();
        self.version.clear();
        self.generation = None;
        self.located = None;
        self.epoch += 1;
    }
}

impl Entry {
    pub(super) fn new(parts: Vec<Part>, drain: DrainSpec) -> Entry {
        Entry {
            machine: Machine::new(parts.len(), drain),
            parts: parts.into_iter().map(PartEntry::new).collect(),
            gate: Arc::default(),
            driven: false,
            wake: Arc::default(),
            built: None,
        }
    }

    /// The view has to be built anew.
    pub(super) fn touch(&mut self) {
        self.built = None;
    }

    /// Replicas that will be once drains have ended; `None` until all parts are known.
    pub(super) fn desired(&self) -> Option<Vec<u32>> {
        (0..self.parts.len()).map(|index| self.machine.desired(index)).collect()
    }

    /// The replicas of every part.
    pub(super) fn replicas(&mut self, pods: &Pods) -> &[Vec<Replica>] {
        let built = self.built.take().unwrap_or_else(|| self.build(pods));
        &self.built.insert(built).replicas
    }

    /// What others see; `None` until all parts are known.
    pub(super) fn fleet(&mut self, pods: &Pods) -> Option<Fleet> {
        self.desired()?;
        let built = self.built.take().unwrap_or_else(|| self.build(pods));
        Some(self.built.insert(built).fleet.clone())
    }

    fn build(&self, pods: &Pods) -> Built {
        let (mut fleet, mut all) = (Fleet::default(), Vec::new());
        for (index, part) in self.parts.iter().enumerate() {
            let known = || pods.named(part.namespace(), &part.pods);
            let found = replicas(known().map(|known| &known.pod), part.path.is_some());
            let spec = self.machine.spec(index).unwrap_or(0);
            let mut state = PartState {
                name: part.part.name.clone(),
                spec,
                desired: self.machine.desired(index).unwrap_or(spec),
                ..PartState::default()
            };
            let active = found.iter().filter(|replica| replica.is_active()).count();
            for replica in &found {
                let phase = match replica.stage {
                    // Its controller has made another one: what is left is history.
                    Stage::Dead if active >= spec as usize => continue,
                    Stage::Finished => continue,
                    Stage::Deleting => Phase::Draining,
                    Stage::Dead | Stage::Crashing => Phase::Failed,
                    _ if self.machine.is_victim(index, &replica.uid) => Phase::Draining,
                    Stage::Ready => Phase::Ready,
                    Stage::Starting => Phase::Starting,
                };
                match phase {
                    Phase::Ready => state.ready += 1,
                    Phase::Starting => state.starting += 1,
                    Phase::Draining => state.draining += 1,
                    Phase::Failed => state.failed += 1,
                }
                let startup = replica
                    .members
                    .iter()
                    .map(|member| pods.get(part.namespace(), &member.name)?.startup_ms);
                fleet.details.push(Detail {
                    name: replica.name.clone(),
                    part: part.part.name.clone(),
                    node: replica.node.clone(),
                    pod_ip: replica.ip.clone(),
                    pods: replica.members.len() as u32,
                    startup_ms: startup.max().flatten(),
                    problem: replica.problem.clone(),
                });
                fleet.view.pods.push(PodView {
                    name: replica.name.clone(),
                    uid: replica.uid.clone(),
                    phase,
                    ready_since: replica.ready_since,
                });
            }
            fleet.view.spec += state.desired;
            fleet.parts.push(state);
            all.push(found);
        }
        Built { fleet, replicas: all }
    }
}
