//! Random logs, and what holds whatever they say.
//!
//! A log is drawn as dice: each throw becomes a command about what the state holds at that moment, so that
//! most commands meet something, and some come too late.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_proto::view::{
    ApiKey, CachePolicy, GroupRank, GroupRef, GroupState, KeyLimits, KeySecret, Rendezvous, Tenant,
    TenantLimits,
};
use proptest::array::uniform4;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{TestCaseError, TestRunner};

use super::*;

/// One throw: what to do, and to what.
type Dice = [u8; 4];

const INSTANCES: [&str; 3] = ["i", "j", "k"];
const MODELS: [&str; 3] = ["m", "n", "o"];
const ALIASES: [&str; 3] = ["a", "b", "m"];
const TENANTS: [&str; 2] = ["t", "u"];
const KEYS: [&str; 2] = ["k", "l"];
const CLIENTS: [&str; 2] = ["c", "d"];

fn pick<T>(from: &[T], die: u8) -> T
where
    T: Copy,
{
    from[usize::from(die) % from.len()]
}

/// A member that is there, mostly with its epoch; or one that never was.
fn some_member(view: &ClusterView, die: u8) -> (MemberId, Epoch) {
    let members: Vec<&Member> = view.members.values().collect();
    if members.is_empty() || die >= 240 {
        return (MemberId(1), Epoch(u64::from(die)));
    }
    let member = pick(&members, die);
    (member.id, if die >= 220 { Epoch(1) } else { member.epoch })
}

/// As [`some_member`].
fn some_group(view: &ClusterView, die: u8) -> GroupRef {
    let groups: Vec<GroupRef> = view.groups.values().map(|group| group.reference()).collect();
    if groups.is_empty() || die >= 240 {
        return GroupRef { id: GroupId(1), epoch: Epoch(u64::from(die)) };
    }
    let group = pick(&groups, die);
    if die >= 220 { GroupRef { epoch: Epoch(1), ..group } } else { group }
}

fn some_ranks(view: &ClusterView, dice: [u8; 2]) -> Vec<GroupRank> {
    let rank = |die: u8| {
        let (member_id, member_epoch) = some_member(view, die);
        GroupRank { member_id, member_epoch, device: u32::from(die / 16 % 2) }
    };
    let count = 1 + usize::from(dice[0] % 2);
    dice.iter().take(count).map(|die| rank(*die)).collect()
}

/// One that is there, if any is.
fn some_deployment(view: &ClusterView, die: u8) -> ModelName {
    let names: Vec<&ModelName> = view.deployments.keys().collect();
    if names.is_empty() { pick(&MODELS, die).into() } else { pick(&names, die).clone() }
}

/// Mostly one that is not ready yet.
fn some_rank(view: &ClusterView, group: GroupRef, die: u8) -> u32 {
    let ready = view.groups.get(&group.id).map(|group| &group.ready);
    let next = (0..).find(|rank| !ready.is_some_and(|ready| ready.contains(rank)));
    if die < 200 { next.unwrap_or_default() } else { u32::from(die % 3) }
}

fn some_registration([_, a, b, c]: Dice) -> Command {
    let models = match c % 4 {
        0 | 1 => Vec::new(),
        _ => vec![served(pick(&MODELS, c / 4))],
    };
    let role = if c >= 224 { MemberRole::Router } else { MemberRole::Worker };
    let capacity = Capacity { devices: u32::from(c % 4), memory_bytes: 0 };
    let registration = registration(pick(&INSTANCES, a), b % 3, "m");
    Command::Register(Registration { role, models, capacity, ..registration })
}

fn some_alias([_, a, b, c]: Dice) -> Alias {
    let target = |die: u8| AliasTarget {
        model: if die >= 240 { "a".into() } else { pick(&MODELS, die).into() },
        revision: None,
        weight: u32::from(die % 4),
    };
    let shadow = (c >= 128).then(|| target(c));
    Alias { name: pick(&ALIASES, a).into(), targets: vec![target(b)], shadow, previous: None }
}

fn some_key([_, a, b, c]: Dice) -> ApiKey {
    ApiKey {
        id: pick(&KEYS, a).into(),
        tenant: pick(&TENANTS, b).into(),
        scopes: BTreeSet::new(),
        limits: KeyLimits::default(),
        secrets: vec![some_secret(c)],
        expires_ms: None,
        revoked: false,
    }
}

fn some_secret(die: u8) -> KeySecret {
    KeySecret { hmac: [die % 4; 32].into(), pepper_version: 1, not_before_ms: 0, expires_ms: None }
}

fn some_change(view: &ClusterView, dice: Dice) -> Change {
    let [kind, a, b, c] = dice;
    let (member_id, epoch) = some_member(view, a);
    let group = some_group(view, a);
    let (name, revision) = (pick(&MODELS, a).into(), "r1".into());
    match kind % 35 {
        0 => Change::Fence { member_id, epoch },
        1 => Change::Drain { member_id, epoch },
        2 => Change::Deregister { member_id, epoch },
        3 | 4 => {
            let models = if b < 200 { vec![served(pick(&MODELS, b))] } else { Vec::new() };
            Change::Serve { member_id, epoch, models }
        }
        5 => Change::PutModel(Model { name, revision }),
        6 => Change::RemoveModel(Model { name, revision }),
        7 => Change::SetAlias(some_alias(dice)),
        8 => Change::RollbackAlias(pick(&ALIASES, a).into()),
        9 => Change::RemoveAlias(pick(&ALIASES, a).into()),
        10 | 11 => Change::SetDeployment { name, revision, replicas: u32::from(b % 3), tp: 1 },
        12 => Change::RemoveDeployment(name),
        13..=15 => {
            let group = (c < 60).then_some(group);
            let deployment = some_deployment(view, c);
            Change::FormGroup { group, deployment, revision, ranks: some_ranks(view, [a, b]) }
        }
        16 if c % 4 == 0 => {
            let rank = some_rank(view, group, b);
            Change::FailRank { group, rank, reason: "why".to_owned() }
        }
        16 => {
            let rendezvous = Rendezvous::try_from(vec![b % 4]).unwrap();
            Change::PublishRendezvous { group, rendezvous }
        }
        17..=19 | 27..=30 => Change::RankReady { group, rank: some_rank(view, group, b) },
        20 => Change::BreakGroup(group),
        21 => Change::RemoveGroup(group),
        22 => {
            let (name, limits) = (pick(&TENANTS, a).into(), TenantLimits::default());
            let (priority, cache) = (u32::from(b % 2), CachePolicy::Exact);
            Change::PutTenant(Tenant { name, limits, priority, cache })
        }
        23 => Change::RemoveTenant(pick(&TENANTS, a).into()),
        24 => Change::PutKey(some_key(dice)),
        25 => {
            let (id, secret) = (pick(&KEYS, a).into(), some_secret(b));
            Change::RotateKey { id, secret, old_expires_ms: u64::from(c) }
        }
        26 => Change::RevokeKey(pick(&KEYS, a).into()),
        34 => Change::Undrain { member_id, epoch },
        31 | 32 => Change::RemoveKey(pick(&KEYS, a).into()),
        _ if b < 200 => Change::PutSetting { key: "s".to_owned(), value: (c % 3).to_string() },
        _ => Change::RemoveSetting("s".to_owned()),
    }
}

fn some_command(view: &ClusterView, dice: Dice) -> Command {
    let [kind, a, b, c] = dice;
    match kind {
        0..=49 => some_registration(dice),
        50..=51 => Command::Found { cluster_id: "x".to_owned(), lineage: Lineage(3) },
        52..=91 => submit(pick(&CLIENTS, b), u64::from(c % 8), some_change(view, [c, a, b, kind])),
        _ => Command::Internal(some_change(view, [a, b, c, kind])),
    }
}

/// What must hold of any state.
fn check_view(view: &ClusterView) -> Result<(), TestCaseError> {
    let mut addresses = BTreeSet::new();
    for member in view.members.values() {
        let place = (member.role == MemberRole::Router, &member.address);
        prop_assert!(addresses.insert(place), "{} is held twice", member.address);
        for model in &member.models {
            let (name, revision) = (model.name.clone(), model.revision.clone());
            let is_known = view.models.contains(&Model { name, revision });
            prop_assert!(is_known, "{} is served but not known", model.name);
        }
    }
    let mut devices = BTreeSet::new();
    for group in view.groups.values() {
        prop_assert!(group.ready.len() <= group.ranks.len());
        prop_assert_eq!(
            group.state == GroupState::Ready,
            !group.ranks.is_empty() && group.ready.len() == group.ranks.len()
        );
        for rank in group.ranks.iter().filter(|_rank| group.is_live()) {
            let member = view.members.get(&rank.member_id);
            let epoch = member.map(|member| member.epoch);
            prop_assert_eq!(epoch, Some(rank.member_epoch), "a live group holds who left");
            prop_assert!(devices.insert((rank.member_id, rank.device)), "a device held twice");
        }
    }
    for alias in view.aliases.values() {
        let mut targets = alias.targets.iter().chain(&alias.shadow);
        prop_assert!(targets.all(|target| !view.aliases.contains_key(&target.model)));
        prop_assert!(!view.deployments.contains_key(&alias.name));
    }
    for key in view.keys.values() {
        prop_assert!(view.tenants.contains_key(&key.tenant));
        prop_assert!((1..=2).contains(&key.secrets.len()));
    }
    Ok(())
}

/// What a change is about, if that is one registration or one forming of a group: whether it is the one
/// that holds.
fn is_current(view: &ClusterView, change: &Change) -> Option<bool> {
    match change {
        Change::Fence { member_id, epoch }
        | Change::Drain { member_id, epoch }
        | Change::Undrain { member_id, epoch }
        | Change::Deregister { member_id, epoch }
        | Change::Serve { member_id, epoch, .. } => {
            Some(view.members.get(member_id).is_some_and(|member| member.epoch == *epoch))
        }
        Change::FormGroup { group: Some(group), .. }
        | Change::PublishRendezvous { group, .. }
        | Change::RankReady { group, .. }
        | Change::FailRank { group, .. }
        | Change::BreakGroup(group)
        | Change::RemoveGroup(group) => {
            Some(view.groups.get(&group.id).is_some_and(|known| known.epoch == group.epoch))
        }
        _ => None,
    }
}

/// The largest epoch or version there ever was, and the rendezvous of each forming of a group.
#[derive(Default)]
struct History {
    epoch_last: u64,
    rendezvous: BTreeMap<(GroupId, Epoch), Rendezvous>,
    revoked: BTreeSet<KeyId>,
}

impl History {
    fn check_ops(&mut self, before: &ClusterView, ops: &[ViewOp]) -> Result<(), TestCaseError> {
        let mut epochs = BTreeSet::new();
        for op in ops {
            match op {
                ViewOp::PutMember(member) => {
                    let kept = before.members.get(&member.id).map(|earlier| earlier.epoch);
                    epochs.extend((kept != Some(member.epoch)).then_some(member.epoch.0));
                }
                ViewOp::PutGroup(group) => {
                    let kept = before.groups.get(&group.id).map(|earlier| earlier.epoch);
                    epochs.extend((kept != Some(group.epoch)).then_some(group.epoch.0));
                    if let Some(rendezvous) = &group.rendezvous {
                        let epoch = (group.id, group.epoch);
                        let first = self.rendezvous.entry(epoch).or_insert(rendezvous.clone());
                        prop_assert_eq!(&*first, rendezvous, "published twice");
                    }
                }
                ViewOp::PutKey(key) => {
                    prop_assert!(key.revoked || !self.revoked.contains(&key.id), "came back");
                    self.revoked.extend(key.revoked.then(|| key.id.clone()));
                }
                ViewOp::RemoveKey(id) => drop(self.revoked.take(id)),
                _ => {}
            }
        }
        for epoch in epochs {
            prop_assert!(epoch > self.epoch_last, "epoch {} after {}", epoch, self.epoch_last);
            self.epoch_last = epoch;
        }
        Ok(())
    }
}

/// Plays the dice, checks every step, and gives the log.
fn play(state: &mut State, dice: &[Dice]) -> Result<Vec<Command>, TestCaseError> {
    let mut history = History::default();
    let mut folded = ClusterView::default();
    let mut log = Vec::new();
    for dice in dice {
        let before = state.clone();
        let command = some_command(&before.view, *dice);
        let outcome = apply_all(state, std::slice::from_ref(&command));
        history.check_ops(&before.view, &outcome.ops)?;
        check_view(&state.view)?;
        outcome.ops.iter().for_each(|op| folded.apply_op(op.clone()));
        (folded.lineage, folded.index) = (state.view.lineage, state.view.index);
        prop_assert_eq!(&folded, &state.view, "the operations do not lead to the view");
        prop_assert_eq!(state.view_bytes, weight::weight(&state.view));
        let members: Vec<_> = state.view.members.keys().collect();
        prop_assert_eq!(members, state.instances.keys().collect::<Vec<_>>());
        if let Reply::Refused(_) = outcome.reply {
            prop_assert!(outcome.ops.is_empty());
            let unchanged = ClusterView { index: before.view.index, ..state.view.clone() };
            prop_assert_eq!(&unchanged, &before.view, "a refused command changed the view");
            prop_assert_eq!(&state.instances, &before.instances);
        }
        if let Command::Internal(change) = &command {
            if is_current(&before.view, change) == Some(false) {
                prop_assert!(matches!(outcome.reply, Reply::Refused(_)), "stale: {change:?}");
            }
            if matches!((change, &outcome.reply), (Change::FormGroup { .. }, Reply::Applied { .. }))
            {
                let epoch = Epoch(state.view.index.0);
                let formed = state.view.groups.values().filter(|group| group.epoch == epoch);
                prop_assert_eq!(formed.count(), 1, "formed under an epoch that was there before");
            }
        }
        if let Command::Submit { .. } = command {
            let mut twice = state.clone();
            let again = apply_all(&mut twice, std::slice::from_ref(&command));
            prop_assert_eq!((again.reply, again.ops), (outcome.reply, Vec::new()));
            twice.view.index = state.view.index;
            prop_assert_eq!(&twice.view, &state.view, "a repeated command was applied twice");
        }
        log.push(command);
    }
    Ok(log)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_log_says_its_replicas_agree_and_the_invariants_hold(
        dice in vec(uniform4(0u8..), 1..40),
        cut in 0usize..40,
    ) {
        let mut state = State::default();
        let log = play(&mut state, &dice)?;
        // Another replica, which is restored from a snapshot on the way.
        let (head, tail) = log.split_at(cut % log.len());
        let mut replica = State::default();
        head.iter().for_each(|command| drop(apply_all(&mut replica, std::slice::from_ref(command))));
        let mut restored = serde_json::from_slice(&serde_json::to_vec(&replica).unwrap()).unwrap();
        prop_assert_eq!(&restored, &replica);
        tail.iter().for_each(|command| drop(apply_all(&mut restored, std::slice::from_ref(command))));
        prop_assert_eq!(restored.hash(), state.hash());
        prop_assert_eq!(restored, state);
    }
}

/// The name of the change and whether it did anything, or was refused.
fn seen(command: &Command, outcome: &Outcome) -> Option<(String, &'static str)> {
    // The answer to a repeated command may be that to another change.
    let Command::Internal(change) = command else { return None };
    let did = match outcome.reply {
        Reply::Refused(_) => "refused",
        _ if outcome.ops.is_empty() => return None,
        _ => "applied",
    };
    let value = serde_json::to_value(change).unwrap();
    Some((value.as_object().unwrap().keys().next().unwrap().clone(), did))
}

/// The property says nothing of what the dice never lead to.
#[test]
fn the_dice_lead_to_every_change_done_and_refused_and_to_groups_that_serve() {
    let mut found: BTreeSet<(String, &str)> = BTreeSet::new();
    let mut groups_ready = 0;
    // The same dice every time.
    let mut runner = TestRunner::deterministic();
    for _log in 0..2000 {
        let mut state = State::default();
        let dice = vec(uniform4(0u8..), 40).new_tree(&mut runner).unwrap().current();
        for dice in dice {
            let command = some_command(&state.view, dice);
            let outcome = apply_all(&mut state, std::slice::from_ref(&command));
            found.extend(seen(&command, &outcome));
            let is_ready = |op: &&ViewOp| matches!(op, ViewOp::PutGroup(group) if group.state == GroupState::Ready);
            groups_ready += outcome.ops.iter().filter(is_ready).count();
        }
    }
    let count = |of: &str| found.iter().filter(|(_name, did)| *did == of).count();
    // Nothing but a full state refuses to put a model, a tenant or a setting.
    assert_eq!((count("applied"), count("refused")), (26, 23), "{found:?}");
    assert!(groups_ready > 100, "only {groups_ready} groups were ready");
}
