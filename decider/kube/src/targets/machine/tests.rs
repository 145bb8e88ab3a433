use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::targets::{pod::Mark, replica::tests::replica};

const DRAIN: DrainSpec = DrainSpec {
    timeout_s: 20.0,
    quiet_s: 2.0,
};

/// An API server with a controller, as far as one part goes, around a machine.
struct World {
    machine: Machine,
    order: Order,
    now: TimeMs,
    spec: u32,
    replicas: Vec<Replica>,
    loads: BTreeMap<String, f64>,
    told: BTreeMap<String, bool>,
    stale_s: Option<f64>,
    /// Requests to lower the count fail like that.
    outcome: Scaled,
    writes: Vec<(u32, u32)>,
    plans: u32,
}

impl World {
    fn new(spec: u32, order: Order) -> World {
        let mut world = World {
            machine: Machine::new(1, DRAIN),
            order,
            now: TimeMs(1_000_000),
            spec,
            replicas: Vec::new(),
            loads: BTreeMap::new(),
            told: BTreeMap::new(),
            stale_s: None,
            outcome: Scaled::Done,
            writes: Vec::new(),
            plans: 0,
        };
        world.control();
        world.machine.observe_spec(0, spec, world.now);
        world
    }

    /// The controller's turn: makes and takes Pods, in the order that it has.
    fn control(&mut self) {
        self.replicas.retain(|replica| replica.stage != Stage::Deleting);
        let mut next = 0;
        while self.replicas.len() < self.spec as usize {
            let name = format!("pod-{next}");
            next += 1;
            if self.replicas.iter().all(|replica| replica.name != name) {
                let uid = format!("{name}@{}", self.now.0);
                self.loads.insert(name.clone(), 1.0);
                let mut new = replica(&name, Stage::Ready);
                new.members[0].uid.clone_from(&uid);
                new.uid = uid;
                new.ordinal = name[4..].parse().ok();
                self.replicas.push(new);
            }
        }
        let cost = |replica: &Replica| -> i64 {
            let text = replica.members[0].deletion_cost.as_deref();
            text.and_then(|cost| cost.parse().ok()).unwrap_or(0)
        };
        match self.order {
            Order::Ordinal => self.replicas.sort_by_key(|replica| replica.ordinal),
            Order::Cost => self
                .replicas
                .sort_by_key(|replica| (std::cmp::Reverse(replica.class), std::cmp::Reverse(cost(replica)))),
        }
        let gone = self.replicas.split_off((self.spec as usize).min(self.replicas.len()));
        for replica in gone {
            self.told.remove(&replica.name);
        }
    }

    fn plan(&mut self, to: u32) {
        if self.machine.desired(0) == Some(to) {
            return;
        }
        self.plans += 1;
        let loads = self.loads.clone();
        let load = |name: &str| loads.get(name).copied();
        let fleet = [self.replicas.clone()];
        let begun = self.machine.begin(
            &format!("p{}", self.plans),
            &[to],
            &fleet,
            &[self.order],
            &load,
            self.now,
        );
        for action in begun.marks.into_iter().chain(begun.tells) {
            self.perform(action);
        }
        self.machine.begun();
        for action in begun.ups {
            self.perform(action);
        }
        assert_eq!(self.machine.desired(0), Some(to));
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Mark { pod, mark, cost, .. } => {
                for member in self.members(&pod.uid) {
                    member.mark = Some(mark.clone());
                    member.deletion_cost = cost.map(|cost| cost.to_string());
                }
            }
            Action::Unmark { pod, .. } => {
                for member in self.members(&pod.uid) {
                    if member.mark == pod.mark {
                        member.deletion_cost = pod.mark.as_deref().and_then(Mark::cost_before);
                        member.mark = None;
                    }
                }
            }
            Action::Tell { replica, draining } => {
                self.told.insert(replica, draining);
            }
            Action::Scale { from, to, .. } => {
                assert_eq!(from, self.spec, "a count that nobody has looked at");
                let how = if to < from { self.outcome.clone() } else { Scaled::Done };
                if how == Scaled::Done {
                    self.spec = to;
                    self.writes.push((from, to));
                }
                let more = self.machine.scaled(0, to, how, 0.5, self.now);
                more.into_iter().for_each(|action| self.perform(action));
                self.control();
            }
        }
    }

    fn members(&mut self, uid: &str) -> Vec<&mut PodId> {
        let of = self.replicas.iter_mut().filter(|replica| replica.uid == uid);
        of.flat_map(|replica| &mut replica.members).collect()
    }

    fn tick(&mut self, seconds: f64) {
        self.now = self.now.plus_s(seconds);
        let loads = self.loads.clone();
        let load = |name: &str| loads.get(name).copied();
        let fleet = [self.replicas.clone()];
        let actions = self.machine.poll(&fleet, &load, self.stale_s, self.now);
        for action in actions {
            assert!(
                self.stale_s.is_none() || !matches!(action, Action::Scale { .. }),
                "{action:?} without knowing what there is"
            );
            self.perform(action);
        }
    }

    fn draining(&self) -> Vec<&str> {
        let told = self.told.iter().filter(|(_, draining)| **draining);
        told.map(|(name, _)| name.as_str()).collect()
    }

    fn marked(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.is_marked()).count()
    }

    fn idle(&mut self, name: &str) {
        self.loads.insert(name.to_owned(), 0.0);
    }
}

#[test]
fn a_drain_waits_for_quiet_and_lowers_once() {
    let mut world = World::new(4, Order::Cost);
    world.idle("pod-2");
    world.plan(2);
    assert_eq!(world.draining().len(), 2);
    assert!(world.draining().contains(&"pod-2"));
    assert_eq!((world.machine.desired(0), world.spec, world.marked()), (Some(2), 4, 2));
    world.tick(3.0);
    world.tick(3.0);
    assert_eq!(world.spec, 4, "one victim still works");
    let busy = world
        .draining()
        .into_iter()
        .find(|name| *name != "pod-2")
        .unwrap()
        .to_owned();
    world.idle(&busy);
    world.tick(0.1);
    world.tick(1.0);
    assert_eq!(world.spec, 4, "not quiet for long enough");
    world.tick(1.0);
    assert_eq!(world.writes, [(4, 2)]);
    assert!(
        world
            .replicas
            .iter()
            .all(|replica| replica.name != "pod-2" && replica.name != busy)
    );
    world.tick(1.0);
    assert!(!world.machine.is_busy());
}

#[test]
fn requests_that_arrive_late_are_waited_for() {
    let mut world = World::new(2, Order::Cost);
    world.idle("pod-0");
    world.plan(1);
    world.tick(0.1);
    world.tick(1.5);
    world.loads.insert("pod-0".into(), 3.0);
    world.tick(1.0);
    world.idle("pod-0");
    world.tick(0.5);
    world.tick(1.5);
    assert_eq!(world.spec, 2);
    world.tick(0.6);
    assert_eq!(world.spec, 1);
}

#[test]
fn a_drain_ends_with_its_time() {
    let mut world = World::new(3, Order::Cost);
    world.plan(2);
    world.tick(19.0);
    assert_eq!(world.spec, 3);
    world.tick(1.0);
    assert_eq!(world.writes, [(3, 2)]);
}

#[test]
fn a_burst_cancels_a_drain_and_asks_for_more() {
    let mut world = World::new(4, Order::Cost);
    world.plan(2);
    world.tick(5.0);
    world.plan(6);
    assert_eq!(world.writes, [(4, 6)]);
    assert!(world.draining().is_empty());
    world.tick(0.1);
    assert_eq!((world.marked(), world.machine.is_busy()), (0, true));
    world.tick(0.1);
    assert!(!world.machine.is_busy());
}

#[test]
fn half_a_step_back_lets_half_of_the_victims_go_and_writes_nothing() {
    let mut world = World::new(5, Order::Cost);
    world.plan(2);
    let victim = world.draining()[1].to_owned();
    world.loads.insert(victim.clone(), 50.0);
    world.plan(3);
    assert_eq!(world.draining().len(), 2);
    assert!(!world.draining().contains(&victim.as_str()), "the busiest comes back");
    assert!(world.writes.is_empty());
    world.tick(20.0);
    assert_eq!(world.writes, [(5, 3)]);
}

#[test]
fn further_down_during_a_drain() {
    let mut world = World::new(5, Order::Ordinal);
    world.plan(4);
    assert_eq!(world.draining(), ["pod-4"]);
    world.tick(15.0);
    world.plan(2);
    assert_eq!(world.draining(), ["pod-2", "pod-3", "pod-4"]);
    world.tick(5.0);
    assert_eq!(
        world.writes,
        [(5, 4)],
        "the first victim's time is over, the others have some left"
    );
    world.tick(15.0);
    assert_eq!(world.writes, [(5, 4), (4, 2)]);
}

#[test]
fn starting_replicas_go_at_once() {
    let mut world = World::new(3, Order::Cost);
    world.replicas[1].stage = Stage::Starting;
    world.replicas[1].class = super::super::pod::Class::Pending;
    world.loads.remove("pod-1");
    world.plan(2);
    assert_eq!(world.draining(), ["pod-1"]);
    world.tick(0.1);
    assert_eq!(world.writes, [(3, 2)]);
}

#[test]
fn somebody_else_ends_a_drain() {
    let mut world = World::new(4, Order::Cost);
    world.plan(2);
    world.spec = 7;
    let (from, released) = world.machine.observe_spec(0, 7, world.now);
    assert_eq!(from, Some(4));
    released.into_iter().for_each(|action| world.perform(action));
    world.tick(30.0);
    assert!(world.writes.is_empty());
    assert_eq!((world.machine.desired(0), world.marked()), (Some(7), 0));
}

#[test]
fn nothing_shrinks_on_stale_data_and_a_long_outage_cancels() {
    let mut world = World::new(4, Order::Cost);
    world.plan(2);
    world.stale_s = Some(1.0);
    world.tick(25.0);
    assert!(world.writes.is_empty());
    assert_eq!(world.draining().len(), 2);
    world.stale_s = Some(11.0);
    world.tick(1.0);
    assert!(world.draining().is_empty());
    world.stale_s = None;
    world.tick(60.0);
    assert!(world.writes.is_empty());
    assert_eq!((world.machine.desired(0), world.marked()), (Some(4), 0));
}

#[test]
fn a_refusal_frees_the_victims_and_is_remembered_for_longer_each_time() {
    let mut world = World::new(4, Order::Cost);
    world.outcome = Scaled::Refused("forbidden".into());
    world.plan(3);
    world.tick(20.0);
    assert!(world.draining().is_empty());
    assert_eq!(
        world.machine.refusal(world.now).as_deref(),
        Some("forbidden (shrinking is tried again in 15 s)")
    );
    assert_eq!(world.machine.refusal(world.now.plus_s(15.0)), None);
    world.now = world.now.plus_s(15.0);
    world.plan(3);
    world.tick(20.0);
    assert!(world.machine.refusal(world.now.plus_s(29.0)).is_some());
}

#[test]
fn what_a_predecessor_has_marked_is_set_free_until_it_is() {
    let mut world = World::new(3, Order::Cost);
    world.replicas[0].members[0].deletion_cost = Some("5".into());
    world.plan(1);
    world.machine = Machine::new(1, DRAIN);
    world.machine.observe_spec(0, 3, world.now);
    assert_eq!(world.marked(), 2);
    // The first try fails: the actions are lost.
    let fleet = [world.replicas.clone()];
    let lost = world.machine.poll(&fleet, &|_| None, None, world.now);
    assert_eq!(lost.len(), 4, "{lost:?}");
    world.tick(1.0);
    assert_eq!(world.marked(), 2);
    world.tick(5.0);
    assert_eq!(world.marked(), 0);
    assert!(world.draining().is_empty());
    let costs: Vec<_> = world
        .replicas
        .iter()
        .filter_map(|replica| replica.members[0].deletion_cost.clone())
        .collect();
    assert_eq!(costs, ["5"], "the cost from before is back");
    assert!(world.writes.is_empty());
}

#[test]
fn our_own_write_seen_before_its_answer_is_not_foreign() {
    let mut machine = Machine::new(1, DRAIN);
    machine.observe_spec(0, 2, TimeMs(0));
    let begun = machine.begin("p", &[5], &[Vec::new()], &[Order::Cost], &|_| None, TimeMs(0));
    assert_eq!(begun.ups.len(), 1);
    assert_eq!(machine.observe_spec(0, 5, TimeMs(1)).0, None);
    machine.scaled(0, 5, Scaled::Done, 0.0, TimeMs(2));
    assert_eq!(machine.spec(0), Some(5));
    assert_eq!(machine.observe_spec(0, 6, TimeMs(3)).0, Some(5));
}

#[derive(Debug, Clone)]
enum Step {
    Plan(u32),
    Tick(u32),
    Load(u8, Option<u8>),
    Ready(u8, bool),
    Foreign(u32),
    Stale(Option<u8>),
    Outcome(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u32..9).prop_map(Step::Plan),
        6 => (50_u32..8000).prop_map(Step::Tick),
        3 => (0_u8..9, proptest::option::of(0_u8..3)).prop_map(|(pod, load)| Step::Load(pod, load)),
        1 => (0_u8..9, any::<bool>()).prop_map(|(pod, ready)| Step::Ready(pod, ready)),
        1 => (0_u32..9).prop_map(Step::Foreign),
        1 => proptest::option::of(1_u8..20).prop_map(Step::Stale),
        1 => (0_u8..3).prop_map(Step::Outcome),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_only_what_was_planned_is_written_and_nothing_stays_marked(
        spec in 0_u32..8, ordinal in any::<bool>(), steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(spec, if ordinal { Order::Ordinal } else { Order::Cost });
        let mut wanted = spec;
        for step in steps {
            let writes = world.writes.len();
            match step {
                Step::Plan(to) => {
                    wanted = to;
                    world.plan(to);
                }
                Step::Tick(ms) => world.tick(f64::from(ms) / 1000.0),
                Step::Load(pod, load) => {
                    let name = format!("pod-{pod}");
                    match load {
                        Some(load) => { world.loads.insert(name, f64::from(load)); }
                        None => { world.loads.remove(&name); }
                    }
                }
                Step::Ready(pod, ready) => {
                    use super::super::pod::Class;
                    let name = format!("pod-{pod}");
                    for replica in world.replicas.iter_mut().filter(|replica| replica.name == name) {
                        (replica.stage, replica.class) = if ready { (Stage::Ready, Class::Ready) } else { (Stage::Starting, Class::NotReady) };
                    }
                }
                Step::Foreign(to) => {
                    // The same count again is no change that anyone could see.
                    if to != world.spec {
                        wanted = to;
                    }
                    world.spec = to;
                    world.control();
                    let (_, released) = world.machine.observe_spec(0, to, world.now);
                    released.into_iter().for_each(|action| world.perform(action));
                }
                Step::Stale(stale) => world.stale_s = stale.map(f64::from),
                Step::Outcome(which) => {
                    world.outcome = [Scaled::Done, Scaled::Again, Scaled::Refused("no".into())][which as usize].clone();
                }
                Step::Restart => {
                    world.machine = Machine::new(1, DRAIN);
                    world.machine.observe_spec(0, world.spec, world.now);
                    wanted = world.spec;
                }
            }
            for (from, to) in &world.writes[writes..] {
                prop_assert!(*to == wanted || (wanted < *to && to < from), "{from} to {to} where {wanted} is wanted");
            }
            let desired = world.machine.desired(0).unwrap();
            prop_assert!(desired == wanted || desired == world.spec);
            prop_assert!(desired <= world.spec);
        }
        // Afterwards, with all well: it comes to rest, at one of the two, and nothing is left of any drain.
        world.stale_s = None;
        world.outcome = Scaled::Done;
        for _ in 0..400 {
            world.tick(1.0);
        }
        prop_assert!(!world.machine.is_busy());
        prop_assert_eq!(world.marked(), 0);
        let draining: Vec<String> = world.draining().into_iter().map(str::to_owned).collect();
        for name in draining {
            prop_assert!(world.replicas.iter().all(|replica| replica.name != name), "{name} drains for ever");
        }
        prop_assert_eq!(world.machine.desired(0), Some(world.spec));
    }
}
