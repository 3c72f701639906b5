//! Messages of the control plane: members, models, aliases, the view.

use super::{WireError, required};
use crate::id::{Epoch, Lineage, MemberId, ModelName, Revision, ViewIndex};
use crate::pb;
use crate::view::{
    Alias, AliasTarget, ClusterView, Member, MemberRole, MemberState, Model, ServedModel,
    ViewDelta, ViewOp,
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
        }
    }
}

impl From<pb::Alias> for Alias {
    fn from(wire: pb::Alias) -> Self {
        Self {
            name: ModelName::from(wire.name),
            targets: wire.targets.into_iter().map(Into::into).collect(),
            shadow: wire.shadow.map(Into::into),
        }
    }
}

// === impl ClusterView ===

impl From<ClusterView> for pb::Snapshot {
    fn from(view: ClusterView) -> Self {
        Self {
            lineage: view.lineage.0,
            index: view.index.0,
            members: view.members.into_values().map(Into::into).collect(),
            models: view.models.into_iter().map(Into::into).collect(),
            aliases: view.aliases.into_values().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Snapshot> for ClusterView {
    type Error = WireError;

    fn try_from(wire: pb::Snapshot) -> Result<Self, WireError> {
        let mut view = Self {
            lineage: Lineage(wire.lineage),
            index: ViewIndex(wire.index),
            models: wire.models.into_iter().map(Into::into).collect(),
            ..Self::default()
        };
        for member in wire.members {
            view.apply_op(ViewOp::PutMember(member.try_into()?));
        }
        for alias in wire.aliases {
            view.apply_op(ViewOp::PutAlias(alias.into()));
        }
        Ok(view)
    }
}

impl From<ViewDelta> for pb::ViewDelta {
    fn from(delta: ViewDelta) -> Self {
        Self { index: delta.index.0, ops: delta.ops.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<pb::ViewDelta> for ViewDelta {
    type Error = WireError;

    fn try_from(wire: pb::ViewDelta) -> Result<Self, WireError> {
        Ok(Self {
            index: ViewIndex(wire.index),
            ops: wire.ops.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<ViewOp> for pb::ViewOp {
    fn from(op: ViewOp) -> Self {
        use pb::view_op::Op;
        let op = match op {
            ViewOp::PutMember(member) => Op::PutMember(member.into()),
            ViewOp::RemoveMember(id) => Op::RemoveMember(id.0),
            ViewOp::PutModel(model) => Op::PutModel(model.into()),
            ViewOp::RemoveModel(model) => Op::RemoveModel(model.into()),
            ViewOp::PutAlias(alias) => Op::PutAlias(alias.into()),
            ViewOp::RemoveAlias(name) => Op::RemoveAlias(name.to_string()),
        };
        Self { op: Some(op) }
    }
}

impl TryFrom<pb::ViewOp> for ViewOp {
    type Error = WireError;

    fn try_from(wire: pb::ViewOp) -> Result<Self, WireError> {
        use pb::view_op::Op;
        Ok(match required("op", wire.op)? {
            Op::PutMember(member) => Self::PutMember(member.try_into()?),
            Op::RemoveMember(id) => Self::RemoveMember(MemberId(id)),
            Op::PutModel(model) => Self::PutModel(model.into()),
            Op::RemoveModel(model) => Self::RemoveModel(model.into()),
            Op::PutAlias(alias) => Self::PutAlias(alias.into()),
            Op::RemoveAlias(name) => Self::RemoveAlias(ModelName::from(name)),
        })
    }
}
