//! Plans carried out by the state machine itself: what it refuses, a plan must not ask for.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_proto::change::Registration;
use phalanx_proto::id::{Epoch, GroupId, Lineage, MemberId, ModelName, Revision, ViewIndex};
use phalanx_proto::view::{Capacity, Group, GroupRef, MemberRole, Model, ServedModel};
use proptest::prelude::*;

use super::*;
use crate::command::Command;
use crate::state::{Reply, State};

/// More plans than any of the scenes here needs to come to rest.
const PLANS_MAX: usize = 200;

/// A cluster without processes.
struct World {
    state: State,
    index: u64,
    instances: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self { state: State::default(), index: 0, instances: 0 };
        world.apply(&Command::Found { cluster_id: "c".to_owned(), lineage: Lineage(1) });
        world
    }

    fn apply(&mut self, command: &Command) -> Reply {
        self.index += 1;
        self.state.apply(ViewIndex(self.index), command).reply
    }

    #[track_caller]
    fn change(&mut self, change: Change) {
        let command = Command::Internal(change);
        let reply = self.apply(&command);
        assert!(matches!(reply, Reply::Applied { .. }), "{command:?} was answered with {reply:?}");
    }

    fn register(&mut self, zone: &str, devices: u32, models: Vec<ServedModel>) -> MemberId {
        self.instances += 1;
        let registration = Registration {
            instance: self.instances.to_string(),
            role: MemberRole::Worker,
            address: format!("http://{}", self.instances),
            zone: zone.to_owned(),
            models,
            capacity: Capacity { devices, memory_bytes: 0 },
        };
        match self.apply(&Command::Register(registration)) {
            Reply::Registered { member_id, .. } => member_id,
            reply => panic!("{reply:?}"),
        }
    }

    fn offer(&mut self, zone: &str, devices: u32) -> MemberId {
        self.register(zone, devices, Vec::new())
    }

    fn deploy(&mut self, name: &str, revision: &str, (replicas, tp): (u32, u32)) {
        let (name, revision) = (ModelName::from(name), Revision::from(revision));
        self.change(Change::SetDeployment { name, revision, replicas, tp });
    }

    fn fence(&mut self, member_id: MemberId) {
        let epoch = self.epoch(member_id);
        self.change(Change::Fence { member_id, epoch });
    }

    fn epoch(&self, member_id: MemberId) -> Epoch {
        self.state.view().members[&member_id].epoch
    }

    /// Carries out one plan; how many changes it had.
    fn step(&mut self) -> usize {
        let changes = plan(self.state.view());
        assert!(changes.len() <= CHANGES_MAX);
        for change in &changes {
            self.change(change.clone());
            self.check_devices();
        }
        changes.len()
    }

    /// Carries out plans until there is nothing left to do.
    fn settle(&mut self) {
        for _plan in 0..PLANS_MAX {
            if self.step() == 0 {
                return;
            }
        }
        panic!("still planning: {:?}", plan(self.state.view()));
    }

    /// Every forming group of one rank comes to serve.
    fn load(&mut self) {
        for group in self.groups(GroupState::Forming) {
            if group.ranks.len() == 1 {
                self.serve(&group);
            }
        }
    }

    fn serve(&mut self, group: &Group) {
        for (rank, at) in (0..).zip(&group.ranks) {
            let models = vec![served(&group.deployment, &group.revision)];
            let (member_id, epoch) = (at.member_id, at.member_epoch);
            self.change(Change::Serve { member_id, epoch, models });
            self.change(Change::RankReady { group: group.reference(), rank });
        }
    }

    fn fail(&mut self, group: GroupRef) {
        self.change(Change::FailRank { group, rank: 0, reason: "no such folder".to_owned() });
    }

    /// Plans and loads until nothing moves any more.
    fn rest(&mut self) {
        for _round in 0..PLANS_MAX {
            self.settle();
            if self.groups(GroupState::Forming).iter().all(|group| group.ranks.len() > 1) {
                return;
            }
            self.load();
        }
        panic!("never at rest");
    }

    fn groups(&self, state: GroupState) -> Vec<Group> {
        let groups = self.state.view().groups.values();
        groups.filter(|group| group.state == state).cloned().collect()
    }

    fn group(&self, id: GroupId) -> &Group {
        &self.state.view().groups[&id]
    }

    /// Members of the groups in `state`, by rank.
    fn members(&self, state: GroupState) -> Vec<MemberId> {
        let groups = self.groups(state).into_iter();
        groups.flat_map(|group| group.ranks).map(|rank| rank.member_id).collect()
    }

    /// How many groups are forming, ready and broken.
    fn counts(&self) -> [usize; 3] {
        [GroupState::Forming, GroupState::Ready, GroupState::Broken]
            .map(|state| self.groups(state).len())
    }

    /// How many ready groups serve each revision.
    fn serving(&self) -> BTreeMap<String, usize> {
        let mut serving = BTreeMap::new();
        for group in self.groups(GroupState::Ready) {
            *serving.entry(group.revision.to_string()).or_default() += 1;
        }
        serving
    }

    fn check_devices(&self) {
        let view = self.state.view();
        let mut taken = BTreeSet::new();
        for rank in view.groups.values().filter(|group| group.is_live()).flat_map(|g| &g.ranks) {
            let member = &view.members[&rank.member_id];
            assert!(rank.device < member.capacity.devices, "{rank:?} is not offered");
            assert!(taken.insert((rank.member_id, rank.device)), "{rank:?} is taken twice");
        }
    }
}

fn served(name: &ModelName, revision: &Revision) -> ServedModel {
    let (name, revision) = (name.clone(), revision.clone());
    ServedModel { name, revision, context_tokens_max: 1, kv_tokens_max: 1 }
}

#[test]
fn replicas_are_spread_over_zones_and_then_over_members() {
    let mut world = World::new();
    let (a1, a2) = (world.offer("a", 2), world.offer("a", 2));
    let (b1, b2) = (world.offer("b", 2), world.offer("b", 2));
    for (replicas, members) in
        [(1, vec![a1]), (2, vec![a1, b1]), (4, vec![a1, b1, a2, b2]), (5, vec![a1, b1, a2, b2, a1])]
    {
        world.deploy("m", "r", (replicas, 1));
        world.rest();
        assert_eq!(world.members(GroupState::Ready), members);
    }
}

#[test]
fn every_deployment_gets_a_replica_before_one_gets_another() {
    let mut world = World::new();
    for _worker in 0..3 {
        world.offer("", 1);
    }
    world.deploy("big", "r", (3, 1));
    world.deploy("small", "r", (1, 1));
    world.deploy("tiny", "r", (1, 1));
    world.rest();
    let names: BTreeSet<String> =
        world.groups(GroupState::Ready).iter().map(|g| g.deployment.to_string()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn scaling_down_takes_what_does_not_serve_and_then_the_newest() {
    let mut world = World::new();
    for _worker in 0..3 {
        world.offer("", 1);
    }
    world.deploy("m", "r", (2, 1));
    world.rest();
    let kept = world.members(GroupState::Ready);
    world.deploy("m", "r", (3, 1));
    world.settle();
    assert_eq!(world.counts(), [1, 2, 0]);
    world.deploy("m", "r", (2, 1));
    world.settle();
    assert_eq!(world.members(GroupState::Ready), kept);
    world.deploy("m", "r", (1, 1));
    world.settle();
    assert_eq!(world.members(GroupState::Ready), kept[..1]);
    world.change(Change::RemoveDeployment(ModelName::from("m")));
    world.settle();
    assert_eq!(world.counts(), [0, 0, 0]);
}

/// Replaces revision `a` by `b` and returns how many groups served after each step, by revision.
fn replace(workers: u32, replicas: u32) -> Vec<(usize, usize)> {
    let mut world = World::new();
    for _worker in 0..workers {
        world.offer("", 1);
    }
    world.deploy("m", "a", (replicas, 1));
    world.rest();
    let (name, revision) = ("m".into(), "b".into());
    world.change(Change::PutModel(Model { name, revision }));
    world.deploy("m", "b", (replicas, 1));
    let mut seen = Vec::new();
    for _round in 0..PLANS_MAX {
        let planned = world.step();
        let serving = world.serving();
        let of = |revision: &str| serving.get(revision).copied().unwrap_or_default();
        seen.push((of("a"), of("b")));
        if planned == 0 && world.groups(GroupState::Forming).is_empty() {
            return seen;
        }
        assert!(world.groups(GroupState::Forming).len() <= 1, "more than one at a time");
        world.load();
    }
    panic!("never replaced: {seen:?}");
}

#[test]
fn another_revision_comes_in_one_at_a_time_and_nothing_is_missing_meanwhile() {
    assert_eq!(replace(3, 2), [(2, 0), (1, 1), (0, 2), (0, 2)]);
}

#[test]
fn where_there_is_no_room_one_replica_gives_way_at_a_time() {
    assert_eq!(replace(2, 2), [(1, 0), (0, 1), (0, 2)]);
    assert_eq!(replace(1, 1), [(0, 0), (0, 1)]);
}

/// Wants a revision that no worker can load, where `workers` serve three replicas of another one.
fn mistype(workers: u32) -> World {
    let mut world = World::new();
    for _worker in 0..workers {
        world.offer("", 1);
    }
    world.deploy("m", "a", (3, 1));
    world.rest();
    world.deploy("m", "bad", (3, 1));
    for _attempt in 0..10 {
        world.settle();
        for group in world.groups(GroupState::Forming) {
            world.fail(group.reference());
        }
        assert_eq!(world.serving(), BTreeMap::from([("a".to_owned(), 3)]));
    }
    world
}

#[test]
fn a_revision_that_cannot_be_loaded_takes_no_replica() {
    // With a device to spare it is tried there, and nowhere else.
    for (workers, failed) in [(3, 0), (4, 1)] {
        let mut world = mistype(workers);
        assert_eq!(world.counts(), [0, 3, failed]);
        world.deploy("m", "a", (3, 1));
        world.rest();
        assert_eq!(world.counts(), [0, 3, 0]);
    }
}

#[test]
fn a_revision_that_nobody_has_served_comes_in_where_an_operator_makes_room() {
    let mut world = mistype(3);
    world.deploy("m", "b", (3, 1));
    world.rest();
    assert_eq!(
        world.serving(),
        BTreeMap::from([("a".to_owned(), 3)]),
        "there is no room to try it"
    );
    world.deploy("m", "b", (2, 1));
    world.rest();
    assert_eq!(world.serving(), BTreeMap::from([("b".to_owned(), 2)]));
    world.deploy("m", "b", (3, 1));
    world.rest();
    assert_eq!(world.serving(), BTreeMap::from([("b".to_owned(), 3)]));
}

#[test]
fn a_member_that_failed_is_not_asked_again_until_it_registers_anew() {
    let mut world = World::new();
    let first = world.offer("", 1);
    world.deploy("m", "r", (1, 1));
    world.settle();
    let group = world.groups(GroupState::Forming)[0].clone();
    world.fail(group.reference());
    world.settle();
    assert_eq!(world.counts(), [0, 0, 1]);
    let failure = world.group(group.id).failure.clone().unwrap();
    assert_eq!((failure.member_id, failure.reason.as_str()), (first, "no such folder"));

    let second = world.offer("", 1);
    world.rest();
    assert_eq!(world.members(GroupState::Ready), [second]);
    assert_eq!(world.counts(), [0, 1, 1], "the failure is still seen");

    world.fence(first);
    world.deploy("m", "r", (2, 1));
    world.settle();
    assert_eq!(world.counts(), [0, 1, 1], "nobody is left to ask");
    let again = world.offer("", 1);
    world.rest();
    assert_eq!(world.members(GroupState::Ready), [again, second]);
    assert_eq!(world.group(group.id).failure, None);
}

#[test]
fn a_group_whose_member_was_fenced_is_formed_again_at_a_later_epoch() {
    let mut world = World::new();
    let member = world.offer("", 1);
    world.deploy("m", "r", (1, 1));
    world.rest();
    let before = world.groups(GroupState::Ready)[0].clone();
    world.fence(member);
    world.settle();
    assert_eq!(world.counts(), [0, 0, 1]);
    // Of two that could, the one that kept the model loaded.
    world.offer("", 1);
    let back = world.register("", 1, vec![served(&before.deployment, &before.revision)]);
    world.rest();
    let after = world.group(before.id);
    assert!(after.epoch > before.epoch);
    assert_eq!(world.members(GroupState::Ready), [back]);
}

#[test]
fn a_member_that_drains_gives_its_place_to_another() {
    let mut world = World::new();
    let member_id = world.offer("", 1);
    world.deploy("m", "r", (1, 1));
    world.rest();
    let epoch = world.epoch(member_id);
    world.change(Change::Drain { member_id, epoch });
    let other = world.offer("", 1);
    world.rest();
    assert_eq!(world.members(GroupState::Ready), [other]);
    assert_eq!(world.counts(), [0, 1, 0]);
}

#[test]
fn the_ranks_of_a_group_are_kept_together() {
    let mut world = World::new();
    let (a, b1) = (world.offer("a", 1), world.offer("b", 1));
    world.deploy("m", "r", (1, 2));
    world.settle();
    assert_eq!(world.members(GroupState::Forming), [a, b1], "there is no better place");
    world.change(Change::RemoveDeployment(ModelName::from("m")));
    world.settle();

    let b2 = world.offer("b", 1);
    world.deploy("m", "r", (1, 2));
    world.settle();
    assert_eq!(world.members(GroupState::Forming), [b1, b2], "one zone is better than two");
    world.change(Change::RemoveDeployment(ModelName::from("m")));
    world.settle();

    let whole = world.offer("c", 2);
    world.deploy("m", "r", (2, 2));
    world.settle();
    assert_eq!(world.members(GroupState::Forming), [whole, whole, b1, b2]);

    // A rank that is lost breaks its group, and the others of it wait for another.
    world.fence(b2);
    world.settle();
    assert_eq!(world.counts(), [2, 0, 0], "the rank in zone a completes it");
    assert_eq!(world.members(GroupState::Forming), [whole, whole, b1, a]);
    world.fence(a);
    world.settle();
    assert_eq!(world.counts(), [1, 0, 1]);
}

#[test]
fn a_large_cluster_is_planned_in_parts() {
    let mut world = World::new();
    for worker in 0..300 {
        world.offer(["a", "b", "c"][worker % 3], 1);
    }
    world.deploy("m", "r", (300, 1));
    assert_eq!(world.step(), CHANGES_MAX);
    world.rest();
    assert_eq!(world.counts(), [0, 300, 0]);
}

/// What may happen to a cluster.
#[derive(Clone, Debug)]
enum Event {
    Offer {
        zone: u8,
        devices: u32,
    },
    Fence(usize),
    Drain(usize),
    Deploy {
        name: u8,
        revision: u8,
        replicas: u32,
        tp: u32,
    },
    Undeploy(u8),
    /// So many of the forming groups come to serve.
    Load(usize),
    Fail(usize),
    Plan,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..3u8, 1..4u32).prop_map(|(zone, devices)| Event::Offer { zone, devices }),
        2 => any::<usize>().prop_map(Event::Fence),
        1 => any::<usize>().prop_map(Event::Drain),
        3 => (0..3u8, 0..3u8, 0..5u32, 1..4u32).prop_map(|(name, revision, replicas, tp)| {
            Event::Deploy { name, revision, replicas, tp }
        }),
        1 => (0..3u8).prop_map(Event::Undeploy),
        4 => (0..4usize).prop_map(Event::Load),
        1 => any::<usize>().prop_map(Event::Fail),
        6 => Just(Event::Plan),
    ]
}

fn pick<T: Clone>(of: &[T], at: usize) -> Option<T> {
    (!of.is_empty()).then(|| of[at % of.len()].clone())
}

impl World {
    fn happen(&mut self, event: &Event) {
        let members: Vec<MemberId> = self.state.view().members.keys().copied().collect();
        match *event {
            Event::Offer { zone, devices } => _ = self.offer(&zone.to_string(), devices),
            Event::Fence(at) => pick(&members, at).into_iter().for_each(|id| self.fence(id)),
            Event::Drain(at) => {
                if let Some(member_id) = pick(&members, at) {
                    let epoch = self.epoch(member_id);
                    self.change(Change::Drain { member_id, epoch });
                }
            }
            Event::Deploy { name, revision, replicas, tp } => {
                self.deploy(&name.to_string(), &revision.to_string(), (replicas, tp));
            }
            Event::Undeploy(name) => {
                let name = ModelName::from(name.to_string());
                if self.state.view().deployments.contains_key(&name) {
                    self.change(Change::RemoveDeployment(name));
                }
            }
            Event::Load(count) => {
                for group in self.groups(GroupState::Forming).iter().take(count) {
                    self.serve(group);
                }
            }
            Event::Fail(at) => {
                if let Some(group) = pick(&self.groups(GroupState::Forming), at) {
                    self.fail(group.reference());
                }
            }
            Event::Plan => self.plan_and_check(),
        }
    }

    /// One plan: what serves and is wanted stays.
    fn plan_and_check(&mut self) {
        let before = self.state.view().clone();
        let gone: BTreeSet<GroupId> = plan(&before)
            .iter()
            .filter_map(|change| match change {
                Change::BreakGroup(group) | Change::RemoveGroup(group) => Some(group.id),
                _ => None,
            })
            .collect();
        let ledger = Ledger::new(&before);
        for deployment in before.deployments.values() {
            let of_it = |group: &&Group| group.deployment == deployment.name;
            let serves = |group: &&Group| {
                of_it(group) && group.state == GroupState::Ready && !ledger.is_lost(group)
            };
            let serving: Vec<&Group> = before.groups.values().filter(serves).collect();
            let stay = |group: &&&Group| !gone.contains(&group.id);
            let kept = serving.iter().filter(stay).count();
            let current = serving.iter().filter(|group| deployment.is_as_wanted(group));
            let kept_current = current.clone().filter(stay).count();
            let replicas = deployment.replicas as usize;
            assert_eq!(
                kept_current,
                current.count().min(replicas),
                "a replica that serves was moved: {before:?}"
            );
            let exchanged = usize::from(kept < serving.len().min(replicas));
            let most = if deployment.tp == 1 && serving.iter().all(|g| g.ranks.len() == 1) {
                exchanged
            } else {
                serving.len()
            };
            assert!(kept + most >= serving.len().min(replicas), "too many gave way: {before:?}");
        }
        self.step();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_plans_are_carried_out_whole_and_come_to_rest(
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            world.check_devices();
        }
        for _round in 0..PLANS_MAX {
            world.settle();
            for group in world.groups(GroupState::Forming) {
                world.serve(&group);
            }
            if plan(world.state.view()).is_empty() {
                break;
            }
        }
        prop_assert_eq!(plan(world.state.view()), Vec::new());
        prop_assert_eq!(plan(world.state.view()), plan(&world.state.view().clone()));
        let view = world.state.view();
        let ledger = Ledger::new(view);
        for deployment in view.deployments.values() {
            let ready = view.groups.values().filter(|group| {
                group.deployment == deployment.name && group.state == GroupState::Ready
            });
            let ready = ready.count();
            prop_assert!(ready <= deployment.replicas as usize);
            if ready < deployment.replicas as usize {
                let mut wanted = Wanted::new(deployment);
                for group in view.groups.values().filter(|g| g.deployment == deployment.name) {
                    wanted.failed.extend(ledger.failed_member(group));
                }
                prop_assert_eq!(ledger.place(&wanted), None, "there is room for another");
            }
        }
    }
}
