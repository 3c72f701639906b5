//! Who is a member, under which epoch, and what it serves.

use std::collections::BTreeSet;

use phalanx_proto::change::Registration;
use phalanx_proto::id::{Epoch, MemberId};
use phalanx_proto::view::{
    ClusterView, Member, MemberRole, MemberState, Model, ServedModel, ViewOp,
};

use super::{NAMES_MAX, Ops, Refusal, check_room, groups};

/// The most members: ten times the largest cluster the design is measured at, and a view of some 5 MB.
const MEMBERS_MAX: usize = 10_000;

/// Whether the member is registered exactly so.
pub(super) fn is_same(member: &Member, registration: &Registration) -> bool {
    member.address == registration.address
        && member.zone == registration.zone
        && member.models == registration.models
        && member.capacity == registration.capacity
}

/// Whether the member is the one that listens there.
pub(super) fn holds(member: &Member, role: MemberRole, address: &str) -> bool {
    member.role == role && member.address == address
}

/// Fences whoever held the address (two processes cannot listen on one), breaks the groups of all whose
/// registration ends here, then puts the member and what it serves.
pub(super) fn register(
    view: &ClusterView,
    id: MemberId,
    epoch: Epoch,
    registration: &Registration,
) -> Ops {
    let Registration { role, address, zone, models, capacity, instance: _ } = registration;
    let holders = view.members.values();
    let replaced: BTreeSet<MemberId> = holders
        .filter(|other| other.id != id && holds(other, *role, address))
        .map(|other| other.id)
        .collect();
    let added = usize::from(!view.members.contains_key(&id));
    check_room("members", view.members.len() - replaced.len(), added, MEMBERS_MAX)?;

    let mut ended = replaced.clone();
    ended.insert(id);
    let mut ops = groups::break_groups_of(view, &ended);
    ops.extend(replaced.into_iter().map(ViewOp::RemoveMember));
    let (address, zone, models) = (address.clone(), zone.clone(), models.clone());
    let (role, state, capacity) = (*role, MemberState::Ready, *capacity);
    let unknown = unknown_models(view, &models)?;
    ops.push(ViewOp::PutMember(Member { id, role, address, zone, epoch, state, models, capacity }));
    ops.extend(unknown);
    Ok(ops)
}

/// Removes a member and breaks its groups.
pub(super) fn remove(view: &ClusterView, id: MemberId, epoch: Epoch) -> Ops {
    let member = current(view, id, epoch)?;
    let mut ops = groups::break_groups_of(view, &BTreeSet::from([member.id]));
    ops.push(ViewOp::RemoveMember(member.id));
    Ok(ops)
}

/// Says whether the member takes new work.
pub(super) fn stand(view: &ClusterView, id: MemberId, epoch: Epoch, state: MemberState) -> Ops {
    let member = current(view, id, epoch)?;
    if member.state == state {
        return Ok(Vec::new());
    }
    Ok(vec![ViewOp::PutMember(Member { state, ..member.clone() })])
}

pub(super) fn serve(view: &ClusterView, id: MemberId, epoch: Epoch, models: &[ServedModel]) -> Ops {
    let member = current(view, id, epoch)?;
    if member.models == models {
        return Ok(Vec::new());
    }
    let mut ops = vec![ViewOp::PutMember(Member { models: models.to_vec(), ..member.clone() })];
    ops.extend(unknown_models(view, models)?);
    Ok(ops)
}

/// The member, if the registration meant is the one that holds.
pub(super) fn current(
    view: &ClusterView,
    member_id: MemberId,
    epoch: Epoch,
) -> Result<&Member, Refusal> {
    let member = view.members.get(&member_id).ok_or(Refusal::NotRegistered { member_id })?;
    if member.epoch != epoch {
        return Err(Refusal::StaleEpoch { member_id, epoch, current: member.epoch });
    }
    Ok(member)
}

/// Makes known what is served and was not known.
fn unknown_models(view: &ClusterView, served: &[ServedModel]) -> Ops {
    let unknown: BTreeSet<Model> = served
        .iter()
        .map(|served| Model { name: served.name.clone(), revision: served.revision.clone() })
        .filter(|model| !view.models.contains(model))
        .collect();
    check_room("models", view.models.len(), unknown.len(), NAMES_MAX)?;
    Ok(unknown.into_iter().map(ViewOp::PutModel).collect())
}
