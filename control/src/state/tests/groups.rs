//! Deployments and groups: who may hold which device, under which epoch, and when a group is broken.

use phalanx_proto::view::{Group, GroupRank, GroupRef, GroupState, Rendezvous};

use super::*;

/// A worker with two devices that serves nothing yet.
fn offer(instance: &str, port: u8) -> Command {
    let capacity = Capacity { devices: 2, memory_bytes: 1 << 30 };
    let registration = registration(instance, port, "m");
    Command::Register(Registration { models: Vec::new(), capacity, ..registration })
}

fn deploy(name: &str) -> Command {
    let (name, revision) = (name.into(), "r1".into());
    Command::Internal(Change::SetDeployment { name, revision, replicas: 1, tp: 2 })
}

fn rank(member: u64, device: u32) -> GroupRank {
    GroupRank { member_id: MemberId(member), member_epoch: Epoch(member), device }
}

fn group(id: u64, epoch: u64) -> GroupRef {
    GroupRef { id: GroupId(id), epoch: Epoch(epoch) }
}

fn form(group: Option<GroupRef>, ranks: &[GroupRank]) -> Command {
    let (deployment, revision, ranks) = ("m".into(), "r1".into(), ranks.to_vec());
    Command::Internal(Change::FormGroup { group, deployment, revision, ranks })
}

fn publish(group: GroupRef, byte: u8) -> Command {
    let rendezvous = Rendezvous::try_from(vec![byte]).unwrap();
    Command::Internal(Change::PublishRendezvous { group, rendezvous })
}

fn ready(group: GroupRef, rank: u32) -> Command {
    Command::Internal(Change::RankReady { group, rank })
}

fn serve(member: u64) -> Command {
    let (member_id, epoch) = (MemberId(member), Epoch(member));
    Command::Internal(Change::Serve { member_id, epoch, models: vec![served("m")] })
}

/// Members 1 and 2 with two devices each, deployment m, and group 4 of both members' first devices.
fn formed() -> Vec<Command> {
    vec![offer("i", 1), offer("j", 2), deploy("m"), form(None, &[rank(1, 0), rank(2, 0)])]
}

/// As [`formed`], with both ranks ready and rank 0's member serving the model.
pub(super) fn serving() -> Vec<Command> {
    let meet = [publish(group(4, 4), 1), ready(group(4, 4), 0), ready(group(4, 4), 1), serve(1)];
    [formed(), meet.to_vec()].concat()
}

#[track_caller]
fn check_after(before: &[Command], command: Command, expected: &Reply) -> State {
    check(&[before, &[command]].concat(), expected)
}

#[track_caller]
fn check_refused_after(before: &[Command], command: Command, expected: &str) {
    check_refused(&[before, &[command]].concat(), expected);
}

fn only_group(state: &State) -> &Group {
    assert_eq!(state.view.groups.len(), 1);
    state.view.groups.values().next().unwrap()
}

#[test]
fn a_group_is_ready_once_all_its_ranks_are() {
    let state = check(&formed(), &applied(4));
    assert_eq!(only_group(&state).reference(), group(4, 4));
    assert_eq!(only_group(&state).state, GroupState::Forming);
    let once = [formed(), vec![ready(group(4, 4), 1)]].concat();
    let again = check_after(&once, ready(group(4, 4), 1), &applied(6));
    assert_eq!(only_group(&again).state, GroupState::Forming);
    let state = check_after(&once, ready(group(4, 4), 0), &applied(6));
    assert_eq!(only_group(&state).state, GroupState::Ready);
    check_refused_after(&once, ready(group(4, 4), 2), "group 4 has no rank 2");
    check_refused_after(&once, ready(group(4, 3), 0), "group 4 is at epoch 4, not at 3");
    check_refused_after(&once, ready(group(3, 4), 0), "group 3 is not known");
}

#[test]
fn a_rendezvous_is_published_once_for_an_epoch() {
    let once = [formed(), vec![publish(group(4, 4), 1)]].concat();
    check_after(&once, publish(group(4, 4), 1), &applied(6));
    let taken = "group 4 at epoch 4 has a rendezvous already";
    check_refused_after(&once, publish(group(4, 4), 2), taken);
    let anew = [once, vec![form(Some(group(4, 4)), &[rank(1, 0), rank(2, 0)])]].concat();
    check_refused_after(&anew, publish(group(4, 4), 2), "group 4 is at epoch 6, not at 4");
    let state = check_after(&anew, publish(group(4, 6), 2), &applied(7));
    assert_eq!(only_group(&state).rendezvous.as_ref().unwrap().as_bytes(), [2]);
    let ready = [formed(), vec![ready(group(4, 4), 0), ready(group(4, 4), 1)]].concat();
    check_refused_after(&ready, publish(group(4, 4), 1), "group 4 is not forming");
}

#[test]
fn when_a_members_registration_ends_its_group_breaks_and_serves_nothing() {
    let (member_id, epoch) = (MemberId(2), Epoch(2));
    let changed = Command::Register(registration("j", 2, "other"));
    let usurper = register("k", 2);
    for end in [
        Command::Internal(fence(2, 2)),
        Command::Internal(Change::Deregister { member_id, epoch }),
        changed,
        usurper,
    ] {
        let mut state = State::default();
        apply_all(&mut state, &serving());
        assert_eq!(state.view.members[&MemberId(1)].models, [served("m")]);
        apply_all(&mut state, &[end]);
        let broken = only_group(&state);
        assert_eq!((broken.state, broken.reference()), (GroupState::Broken, group(4, 4)));
        assert_eq!((broken.rendezvous.as_ref(), broken.ready.len()), (None, 0));
        assert_eq!(state.view.members[&MemberId(1)].models, []);
    }
}

#[test]
fn a_retried_registration_breaks_nothing_and_neither_does_a_drain() {
    let drain = Change::Drain { member_id: MemberId(2), epoch: Epoch(2) };
    for harmless in [offer("j", 2), Command::Internal(drain), serve(2)] {
        let mut state = State::default();
        apply_all(&mut state, &serving());
        apply_all(&mut state, &[harmless]);
        assert_eq!(only_group(&state).state, GroupState::Ready);
    }
}

#[test]
fn a_broken_group_is_formed_anew_under_a_larger_epoch_or_removed() {
    let broken = [serving(), vec![Command::Internal(Change::BreakGroup(group(4, 4)))]].concat();
    let twice = Command::Internal(Change::BreakGroup(group(4, 4)));
    let state = check_after(&broken, twice, &applied(10));
    assert_eq!(only_group(&state).state, GroupState::Broken);
    assert_eq!(state.view.members[&MemberId(1)].models, []);
    check_refused_after(&broken, ready(group(4, 4), 0), "group 4 is not forming");
    let state = check_after(&broken, form(Some(group(4, 4)), &[rank(1, 1)]), &applied(10));
    assert_eq!(only_group(&state).reference(), group(4, 10));
    let remove = Command::Internal(Change::RemoveGroup(group(4, 4)));
    assert!(check_after(&broken, remove.clone(), &applied(10)).view.groups.is_empty());
    let state = check_after(&serving(), remove, &applied(9));
    assert_eq!(state.view.members[&MemberId(1)].models, []);
}

#[test]
fn breaking_one_group_leaves_what_another_serves_on_the_same_member() {
    // Two groups of one device each on member 1; both serve m there.
    let before = [
        offer("i", 1),
        deploy("m"),
        form(None, &[rank(1, 0)]),
        form(None, &[rank(1, 1)]),
        serve(1),
    ];
    let first = Command::Internal(Change::BreakGroup(group(3, 3)));
    let second = Command::Internal(Change::BreakGroup(group(4, 4)));
    let state = check_after(&before, first.clone(), &applied(6));
    assert_eq!(state.view.members[&MemberId(1)].models, [served("m")]);
    let state = check_after(&[before.as_slice(), &[first]].concat(), second, &applied(7));
    assert_eq!(state.view.members[&MemberId(1)].models, []);
}

#[test]
fn a_rank_needs_a_free_device_of_a_member_that_takes_work() {
    let before = formed();
    check_refused_after(
        &before,
        form(None, &[rank(1, 0)]),
        "device 0 of member 1 already holds a rank",
    );
    let twice = [rank(1, 1), rank(1, 1)];
    check_refused_after(&before, form(None, &twice), "device 1 of member 1 already holds a rank");
    check_refused_after(&before, form(None, &[rank(1, 2)]), "member 1 has no device 2");
    check_refused_after(&before, form(None, &[rank(9, 0)]), "member 9 is not registered");
    let stale = GroupRank { member_epoch: Epoch(9), ..rank(1, 1) };
    let refusal = "member 1 is registered at epoch 1, not at 9";
    check_refused_after(&before, form(None, &[stale]), refusal);
    check_refused_after(&before[..2], form(None, &[rank(1, 1)]), "deployment m is not known");
    let drain = Change::Drain { member_id: MemberId(1), epoch: Epoch(1) };
    let drained = [before.as_slice(), &[Command::Internal(drain)]].concat();
    let refusal = "member 1 is draining, no rank can be placed on it";
    check_refused_after(&drained, form(None, &[rank(1, 1)]), refusal);
    // The devices of the group that is formed anew are its own.
    check_after(&before, form(Some(group(4, 4)), &[rank(1, 0), rank(1, 1)]), &applied(5));
    check_refused_after(&before, form(Some(group(4, 3)), &[]), "group 4 is at epoch 4, not at 3");
}

#[test]
fn what_a_member_serves_changes_under_its_epoch() {
    let before = [offer("i", 1)];
    let state = check_after(&before, serve(1), &applied(2));
    let member = &state.view.members[&MemberId(1)];
    assert_eq!((member.epoch, &member.models), (Epoch(1), &vec![served("m")]));
    assert!(state.view.models.contains(&Model { name: "m".into(), revision: "r1".into() }));
    check_refused_after(&before, serve(2), "member 2 is not registered");
}

#[test]
fn a_deployment_has_the_version_of_its_last_change() {
    let state = check(&[deploy("m"), deploy("m")], &applied(2));
    assert_eq!(state.view.deployments[&"m".into()].version, ViewIndex(1));
    let (name, revision): (ModelName, _) = ("m".into(), "r2".into());
    let change = Change::SetDeployment { name: name.clone(), revision, replicas: 1, tp: 2 };
    let state = check(&[deploy("m"), Command::Internal(change)], &applied(2));
    assert_eq!(state.view.deployments[&name].version, ViewIndex(2));
    let remove = Command::Internal(Change::RemoveDeployment(name));
    assert!(check(&[deploy("m"), remove.clone()], &applied(2)).view.deployments.is_empty());
    check_refused_after(&[], remove, "deployment m is not known");
    let alias = Command::Internal(Change::SetAlias(alias("d")));
    check_refused_after(&[alias], deploy("d"), "d is an alias, so it cannot be a deployment");
}
