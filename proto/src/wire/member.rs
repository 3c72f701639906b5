//! Messages that describe members, models and aliases.

use super::WireError;
use crate::id::{Epoch, MemberId, ModelName, Revision};
use crate::pb;
use crate::view::{
    Alias, AliasTarget, Capacity, Member, MemberRole, MemberState, Model, ServedModel,
};

// === impl Member ===

impl From<MemberRole> for pb::Role {
    fn from(role: MemberRole) -> Self {
        match role {
            MemberRole::Worker => Self::Worker,
            MemberRole::Router => Self::Router,
        }
    }
}

impl TryFrom<pb::Role> for MemberRole {
    type Error = WireError;

    fn try_from(wire: pb::Role) -> Result<Self, WireError> {
        match wire {
            pb::Role::Worker => Ok(Self::Worker),
            pb::Role::Router => Ok(Self::Router),
            pb::Role::Unspecified => Err(WireError { field: "role" }),
        }
    }
}

impl From<MemberState> for pb::MemberState {
    fn from(state: MemberState) -> Self {
        match state {
            MemberState::Ready => Self::Ready,
            MemberState::Draining => Self::Draining,
        }
    }
}

impl TryFrom<pb::MemberState> for MemberState {
    type Error = WireError;

    fn try_from(wire: pb::MemberState) -> Result<Self, WireError> {
        match wire {
            pb::MemberState::Ready => Ok(Self::Ready),
            pb::MemberState::Draining => Ok(Self::Draining),
            pb::MemberState::Unspecified => Err(WireError { field: "state" }),
        }
    }
}

impl From<ServedModel> for pb::ServedModel {
    fn from(model: ServedModel) -> Self {
        Self {
            name: model.name.to_string(),
            revision: model.revision.to_string(),
            context_tokens_max: model.context_tokens_max,
            kv_tokens_max: model.kv_tokens_max,
        }
    }
}

impl From<pb::ServedModel> for ServedModel {
    fn from(wire: pb::ServedModel) -> Self {
        Self {
            name: ModelName::from(wire.name),
            revision: Revision::from(wire.revision),
            context_tokens_max: wire.context_tokens_max,
            kv_tokens_max: wire.kv_tokens_max,
        }
    }
}

impl From<Capacity> for pb::Capacity {
    fn from(capacity: Capacity) -> Self {
        Self { devices: capacity.devices, memory_bytes: capacity.memory_bytes }
    }
}

impl From<pb::Capacity> for Capacity {
    fn from(wire: pb::Capacity) -> Self {
        Self { devices: wire.devices, memory_bytes: wire.memory_bytes }
    }
}

impl From<Member> for pb::Member {
    fn from(member: Member) -> Self {
        Self {
            id: member.id.0,
            role: pb::Role::from(member.role).into(),
            address: member.address,
            zone: member.zone,
            epoch: member.epoch.0,
            state: pb::MemberState::from(member.state).into(),
            models: member.models.into_iter().map(Into::into).collect(),
            capacity: Some(member.capacity.into()),
        }
    }
}

impl TryFrom<pb::Member> for Member {
    type Error = WireError;

    fn try_from(wire: pb::Member) -> Result<Self, WireError> {
        Ok(Self {
            id: MemberId(wire.id),
            role: wire.role().try_into()?,
            epoch: Epoch(wire.epoch),
            state: wire.state().try_into()?,
            address: wire.address,
            zone: wire.zone,
            models: wire.models.into_iter().map(Into::into).collect(),
            capacity: wire.capacity.map(Into::into).unwrap_or_default(),
        })
    }
}

// === impl Model, Alias ===

impl From<Model> for pb::Model {
    fn from(model: Model) -> Self {
        Self { name: model.name.to_string(), revision: model.revision.to_string() }
    }
}

impl From<pb::Model> for Model {
    fn from(wire: pb::Model) -> Self {
        Self { name: ModelName::from(wire.name), revision: Revision::from(wire.revision) }
    }
}

impl From<AliasTarget> for pb::AliasTarget {
    fn from(target: AliasTarget) -> Self {
        Self {
            model: target.model.to_string(),
            revision: target.revision.map(|revision| revision.to_string()).unwrap_or_default(),
            weight: target.weight,
        }
    }
}

impl From<pb::AliasTarget> for AliasTarget {
    fn from(wire: pb::AliasTarget) -> Self {
        Self {
            model: ModelName::from(wire.model),
            revision: (!wire.revision.is_empty()).then(|| Revision::from(wire.revision)),
            weight: wire.weight,
        }
    }
}

impl From<Alias> for pb::Alias {
    fn from(alias: Alias) -> Self {
        Self {
            name: alias.name.to_string(),
            targets: alias.targets.into_iter().map(Into::into).collect(),
            shadow: alias.shadow.map(Into::into),
            previous: alias.previous.unwrap_or_default().into_iter().map(Into::into).collect(),
        }
    }
}

impl From<pb::Alias> for Alias {
    fn from(wire: pb::Alias) -> Self {
        let previous: Vec<AliasTarget> = wire.previous.into_iter().map(Into::into).collect();
        Self {
            name: ModelName::from(wire.name),
            targets: wire.targets.into_iter().map(Into::into).collect(),
            shadow: wire.shadow.map(Into::into),
            previous: (!previous.is_empty()).then_some(previous),
        }
    }
}
