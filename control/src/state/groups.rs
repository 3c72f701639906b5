//! What is to be served, and the groups of devices that serve it.
//!
//! ```text
//!          FormGroup (epoch = index)          last RankReady
//!   (new) ───────────────────────► Forming ─────────────────► Ready
//!                 ▲                   │                          │
//!                 └── Broken ◄────────┴── BreakGroup, FailRank, a rank's registration ended
//! ```
//!
//! A live group, one that is not broken, has its devices to itself. Whoever breaks a group also takes its
//! model off its members, in the same entry of the log, so that nobody is routed to half a model.

use std::collections::BTreeSet;

use phalanx_proto::id::{Epoch, GroupId, MemberId, ModelName, Revision, ViewIndex};
use phalanx_proto::view::{
    ClusterView, Deployment, Group, GroupFailure, GroupRank, GroupRef, GroupState, Member,
    MemberState, Rendezvous, ViewOp,
};

use super::{NAMES_MAX, Ops, Refusal, check_room, members};
use crate::planted::{Bug, planted};

/// The most groups: as many as there can be names, each with one replica.
const GROUPS_MAX: usize = 4096;

/// The version is the index of the change, so it only grows.
pub(super) fn set_deployment(view: &ClusterView, deployment: Deployment) -> Ops {
    let known = view.deployments.get(&deployment.name);
    let asked = |of: &Deployment| (of.revision.clone(), of.replicas, of.tp);
    if known.map(asked) == Some(asked(&deployment)) {
        return Ok(Vec::new());
    }
    if view.aliases.contains_key(&deployment.name) {
        return Err(Refusal::NameIsAlias { name: deployment.name });
    }
    check_room("deployments", view.deployments.len(), usize::from(known.is_none()), NAMES_MAX)?;
    Ok(vec![ViewOp::PutDeployment(deployment)])
}

/// Its groups stay until whoever placed them removes them.
pub(super) fn remove_deployment(view: &ClusterView, name: &ModelName) -> Ops {
    check_deployment(view, name)?;
    Ok(vec![ViewOp::RemoveDeployment(name.clone())])
}

/// What a group is to be formed of.
pub(super) struct Plan<'a> {
    /// The group to form anew; none for a new one.
    pub(super) group: Option<GroupRef>,
    pub(super) deployment: &'a ModelName,
    pub(super) revision: &'a Revision,
    pub(super) ranks: &'a [GroupRank],
}

pub(super) fn form(view: &ClusterView, index: ViewIndex, plan: &Plan<'_>) -> Ops {
    check_deployment(view, plan.deployment)?;
    let before = plan.group.map(|group| current(view, group)).transpose()?;
    if before.is_none() {
        check_room("groups", view.groups.len(), 1, GROUPS_MAX)?;
    }
    let id = before.map_or(GroupId(index.0), |before| before.id);
    check_ranks(view, id, plan.ranks)?;
    let mut ops =
        before.map(|before| release(view, &[before], &BTreeSet::new())).unwrap_or_default();
    ops.push(ViewOp::PutGroup(Group {
        id,
        epoch: Epoch(index.0),
        deployment: plan.deployment.clone(),
        revision: plan.revision.clone(),
        ranks: plan.ranks.to_vec(),
        ready: BTreeSet::new(),
        rendezvous: None,
        state: GroupState::Forming,
        failure: None,
    }));
    Ok(ops)
}

pub(super) fn publish(view: &ClusterView, group: GroupRef, rendezvous: &Rendezvous) -> Ops {
    let known = current(view, group)?;
    if known.rendezvous.as_ref() == Some(rendezvous) {
        return Ok(Vec::new());
    }
    if known.state != GroupState::Forming {
        return Err(Refusal::NotForming { id: group.id });
    }
    if known.rendezvous.is_some() && !planted(Bug::RendezvousReplaced) {
        return Err(Refusal::RendezvousKnown { group });
    }
    let rendezvous = Some(rendezvous.clone());
    Ok(vec![ViewOp::PutGroup(Group { rendezvous, ..known.clone() })])
}

pub(super) fn rank_ready(view: &ClusterView, group: GroupRef, rank: u32) -> Ops {
    let mut group = current(view, group)?.clone();
    if group.ready.contains(&rank) {
        return Ok(Vec::new());
    }
    if group.state != GroupState::Forming {
        return Err(Refusal::NotForming { id: group.id });
    }
    rank_of(&group, rank)?;
    group.ready.insert(rank);
    if group.ready.len() == group.ranks.len() {
        group.state = GroupState::Ready;
    }
    Ok(vec![ViewOp::PutGroup(group)])
}

/// The failure stays with the broken group until it is formed anew or removed.
pub(super) fn fail_rank(view: &ClusterView, group: GroupRef, rank: u32, reason: &str) -> Ops {
    let group = current(view, group)?;
    let member_id = rank_of(group, rank)?.member_id;
    if !group.is_live() {
        return Ok(Vec::new());
    }
    let failure = GroupFailure { member_id, reason: reason.to_owned() };
    let failed = Group { failure: Some(failure), ..group.clone() };
    Ok(break_all(view, &[&failed], &BTreeSet::new()))
}

pub(super) fn break_group(view: &ClusterView, group: GroupRef) -> Ops {
    let group = current(view, group)?;
    Ok(if group.is_live() { break_all(view, &[group], &BTreeSet::new()) } else { Vec::new() })
}

pub(super) fn remove(view: &ClusterView, group: GroupRef) -> Ops {
    let group = current(view, group)?;
    let mut ops = release(view, &[group], &BTreeSet::new());
    ops.push(ViewOp::RemoveGroup(group.id));
    Ok(ops)
}

/// Breaks every live group that holds one of the members whose registration ends.
pub(super) fn break_groups_of(view: &ClusterView, ended: &BTreeSet<MemberId>) -> Vec<ViewOp> {
    let is_hit = |group: &&Group| group.is_live() && ended.iter().any(|id| group.holds(*id));
    let hit: Vec<&Group> = view.groups.values().filter(is_hit).collect();
    break_all(view, &hit, ended)
}

fn break_all(view: &ClusterView, groups: &[&Group], ended: &BTreeSet<MemberId>) -> Vec<ViewOp> {
    let mut ops = release(view, groups, ended);
    ops.extend(groups.iter().map(|&group| {
        let (ready, rendezvous, state) = (BTreeSet::new(), None, GroupState::Broken);
        ViewOp::PutGroup(Group { ready, rendezvous, state, ..group.clone() })
    }));
    ops
}

/// Takes the groups' models off their members, but for those that other live groups keep there, and for the
/// members that end anyway.
fn release(view: &ClusterView, groups: &[&Group], ended: &BTreeSet<MemberId>) -> Vec<ViewOp> {
    let is_released = |id| groups.iter().any(|group| group.id == id);
    let kept = view.groups.values().filter(|group| group.is_live() && !is_released(group.id));
    let kept: Vec<&Group> = kept.collect();
    let holders: BTreeSet<MemberId> = groups
        .iter()
        .flat_map(|group| group.ranks.iter().map(|rank| rank.member_id))
        .filter(|id| !ended.contains(id))
        .collect();
    let mut ops = Vec::new();
    for member in holders.iter().filter_map(|id| view.members.get(id)) {
        let mut models = member.models.clone();
        models.retain(|model| {
            let is_of = |group: &&Group| {
                group.deployment == model.name
                    && group.revision == model.revision
                    && has_rank_on(group, member)
            };
            !groups.iter().any(is_of) || kept.iter().any(is_of)
        });
        if models.len() < member.models.len() {
            ops.push(ViewOp::PutMember(Member { models, ..member.clone() }));
        }
    }
    ops
}

/// Whether the group has a rank on the member as it is registered.
fn has_rank_on(group: &Group, member: &Member) -> bool {
    let is_on = |rank: &GroupRank| rank.member_id == member.id && rank.member_epoch == member.epoch;
    group.ranks.iter().any(is_on)
}

fn check_deployment(view: &ClusterView, name: &ModelName) -> Result<(), Refusal> {
    if view.deployments.contains_key(name) {
        return Ok(());
    }
    Err(Refusal::UnknownDeployment { name: name.clone() })
}

/// Each rank has a device of its own, on a member that takes work; `id` is the group that gives way.
fn check_ranks(view: &ClusterView, id: GroupId, ranks: &[GroupRank]) -> Result<(), Refusal> {
    let others = view.groups.values().filter(|group| group.is_live() && group.id != id);
    let mut taken: BTreeSet<(MemberId, u32)> = others
        .flat_map(|group| group.ranks.iter().map(|rank| (rank.member_id, rank.device)))
        .collect();
    for &GroupRank { member_id, member_epoch, device } in ranks {
        let member = members::current(view, member_id, member_epoch)?;
        match member.state {
            MemberState::Ready => {}
            MemberState::Draining => return Err(Refusal::MemberDraining { member_id }),
        }
        if device >= member.capacity.devices {
            return Err(Refusal::UnknownDevice { member_id, device });
        }
        if !taken.insert((member_id, device)) {
            return Err(Refusal::DeviceTaken { member_id, device });
        }
    }
    Ok(())
}

fn rank_of(group: &Group, rank: u32) -> Result<&GroupRank, Refusal> {
    let at = usize::try_from(rank).ok().and_then(|at| group.ranks.get(at));
    at.ok_or(Refusal::UnknownRank { id: group.id, rank })
}

/// The group, if the epoch meant is the one it has.
fn current(view: &ClusterView, GroupRef { id, epoch }: GroupRef) -> Result<&Group, Refusal> {
    let group = view.groups.get(&id).ok_or(Refusal::UnknownGroup { id })?;
    if group.epoch != epoch {
        return Err(Refusal::StaleGroup { id, epoch, current: group.epoch });
    }
    Ok(group)
}
