//! Messages that describe deployments and groups.

use super::WireError;
use crate::id::{Epoch, GroupId, MemberId, ModelName, Revision, ViewIndex};
use crate::pb;
use crate::view::{Deployment, Group, GroupFailure, GroupRank, GroupRef, GroupState};

impl From<Deployment> for pb::Deployment {
    fn from(deployment: Deployment) -> Self {
        Self {
            name: deployment.name.to_string(),
            revision: deployment.revision.to_string(),
            replicas: deployment.replicas,
            tp: deployment.tp,
            version: deployment.version.0,
        }
    }
}

impl From<pb::Deployment> for Deployment {
    fn from(wire: pb::Deployment) -> Self {
        Self {
            name: ModelName::from(wire.name),
            revision: Revision::from(wire.revision),
            replicas: wire.replicas,
            tp: wire.tp,
            version: ViewIndex(wire.version),
        }
    }
}

impl From<GroupRank> for pb::GroupRank {
    fn from(rank: GroupRank) -> Self {
        let GroupRank { member_id, member_epoch, device } = rank;
        Self { member_id: member_id.0, member_epoch: member_epoch.0, device }
    }
}

impl From<pb::GroupRank> for GroupRank {
    fn from(wire: pb::GroupRank) -> Self {
        Self {
            member_id: MemberId(wire.member_id),
            member_epoch: Epoch(wire.member_epoch),
            device: wire.device,
        }
    }
}

impl From<GroupRef> for pb::GroupRef {
    fn from(group: GroupRef) -> Self {
        Self { id: group.id.0, epoch: group.epoch.0 }
    }
}

impl From<pb::GroupRef> for GroupRef {
    fn from(wire: pb::GroupRef) -> Self {
        Self { id: GroupId(wire.id), epoch: Epoch(wire.epoch) }
    }
}

impl From<GroupState> for pb::GroupState {
    fn from(state: GroupState) -> Self {
        match state {
            GroupState::Forming => Self::Forming,
            GroupState::Ready => Self::Ready,
            GroupState::Broken => Self::Broken,
        }
    }
}

impl TryFrom<pb::GroupState> for GroupState {
    type Error = WireError;

    fn try_from(wire: pb::GroupState) -> Result<Self, WireError> {
        match wire {
            pb::GroupState::Forming => Ok(Self::Forming),
            pb::GroupState::Ready => Ok(Self::Ready),
            pb::GroupState::Broken => Ok(Self::Broken),
            pb::GroupState::Unspecified => Err(WireError { field: "state" }),
        }
    }
}

impl From<GroupFailure> for pb::GroupFailure {
    fn from(failure: GroupFailure) -> Self {
        let GroupFailure { member_id, reason } = failure;
        Self { member_id: member_id.0, reason }
    }
}

impl From<pb::GroupFailure> for GroupFailure {
    fn from(wire: pb::GroupFailure) -> Self {
        Self { member_id: MemberId(wire.member_id), reason: wire.reason }
    }
}

impl From<Group> for pb::Group {
    fn from(group: Group) -> Self {
        let rendezvous = group.rendezvous.map(|rendezvous| rendezvous.as_bytes().to_vec());
        Self {
            id: group.id.0,
            epoch: group.epoch.0,
            deployment: group.deployment.to_string(),
            revision: group.revision.to_string(),
            ranks: group.ranks.into_iter().map(Into::into).collect(),
            ready: group.ready.into_iter().collect(),
            rendezvous: rendezvous.unwrap_or_default(),
            state: pb::GroupState::from(group.state).into(),
            failure: group.failure.map(Into::into),
        }
    }
}

impl TryFrom<pb::Group> for Group {
    type Error = WireError;

    fn try_from(wire: pb::Group) -> Result<Self, WireError> {
        let published = (!wire.rendezvous.is_empty()).then_some(&wire.rendezvous);
        let rendezvous = published.map(|bytes| bytes.clone().try_into()).transpose();
        Ok(Self {
            id: GroupId(wire.id),
            epoch: Epoch(wire.epoch),
            state: wire.state().try_into()?,
            rendezvous: rendezvous.map_err(|_size| WireError { field: "rendezvous" })?,
            deployment: ModelName::from(wire.deployment),
            revision: Revision::from(wire.revision),
            ranks: wire.ranks.into_iter().map(Into::into).collect(),
            ready: wire.ready.into_iter().collect(),
            failure: wire.failure.map(Into::into),
        })
    }
}
