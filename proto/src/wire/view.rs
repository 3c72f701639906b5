//! Messages that carry the cluster view and its changes.

use prost::Message as _;

use super::{WireError, required};
use crate::id::{GroupId, KeyId, Lineage, MemberId, ModelName, TenantName, ViewIndex};
use crate::pb;
use crate::view::{ClusterView, ViewDelta, ViewOp};

// === impl ClusterView ===

impl From<ClusterView> for pb::Snapshot {
    fn from(view: ClusterView) -> Self {
        Self {
            lineage: view.lineage.0,
            index: view.index.0,
            members: view.members.into_values().map(Into::into).collect(),
            models: view.models.into_iter().map(Into::into).collect(),
            aliases: view.aliases.into_values().map(Into::into).collect(),
            deployments: view.deployments.into_values().map(Into::into).collect(),
            groups: view.groups.into_values().map(Into::into).collect(),
            tenants: view.tenants.into_values().map(Into::into).collect(),
            keys: view.keys.into_values().map(Into::into).collect(),
            settings: view.settings.into_values().map(Into::into).collect(),
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
        for deployment in wire.deployments {
            view.apply_op(ViewOp::PutDeployment(deployment.into()));
        }
        for group in wire.groups {
            view.apply_op(ViewOp::PutGroup(group.try_into()?));
        }
        for tenant in wire.tenants {
            view.apply_op(ViewOp::PutTenant(tenant.try_into()?));
        }
        for key in wire.keys {
            view.apply_op(ViewOp::PutKey(key.try_into()?));
        }
        for setting in wire.settings {
            view.apply_op(ViewOp::PutSetting(setting.into()));
        }
        Ok(view)
    }
}

// === impl ViewDelta ===

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
            ViewOp::PutDeployment(deployment) => Op::PutDeployment(deployment.into()),
            ViewOp::RemoveDeployment(name) => Op::RemoveDeployment(name.to_string()),
            ViewOp::PutGroup(group) => Op::PutGroup(group.into()),
            ViewOp::RemoveGroup(id) => Op::RemoveGroup(id.0),
            ViewOp::PutTenant(tenant) => Op::PutTenant(tenant.into()),
            ViewOp::RemoveTenant(name) => Op::RemoveTenant(name.to_string()),
            ViewOp::PutKey(key) => Op::PutKey(key.into()),
            ViewOp::RemoveKey(id) => Op::RemoveKey(id.to_string()),
            ViewOp::PutSetting(setting) => Op::PutSetting(setting.into()),
            ViewOp::RemoveSetting(key) => Op::RemoveSetting(key),
        };
        Self { op: Some(op) }
    }
}

/// How long the message of one change is, in bytes; in a snapshot its entry is no longer.
pub fn view_op_bytes(op: &ViewOp) -> usize {
    pb::ViewOp::from(op.clone()).encoded_len()
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
            Op::PutDeployment(deployment) => Self::PutDeployment(deployment.into()),
            Op::RemoveDeployment(name) => Self::RemoveDeployment(ModelName::from(name)),
            Op::PutGroup(group) => Self::PutGroup(group.try_into()?),
            Op::RemoveGroup(id) => Self::RemoveGroup(GroupId(id)),
            Op::PutTenant(tenant) => Self::PutTenant(tenant.try_into()?),
            Op::RemoveTenant(name) => Self::RemoveTenant(TenantName::from(name)),
            Op::PutKey(key) => Self::PutKey(key.try_into()?),
            Op::RemoveKey(id) => Self::RemoveKey(KeyId::from(id)),
            Op::PutSetting(setting) => Self::PutSetting(setting.into()),
            Op::RemoveSetting(key) => Self::RemoveSetting(key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::samples;

    #[test]
    fn a_view_and_every_change_of_it_survive_the_wire_and_the_file() {
        let mut view =
            ClusterView { lineage: Lineage(7), index: ViewIndex(9), ..ClusterView::default() };
        for op in samples::puts() {
            assert_eq!(ViewOp::try_from(pb::ViewOp::from(op.clone())), Ok(op.clone()));
            view.apply_op(op);
        }
        assert_eq!(ClusterView::try_from(pb::Snapshot::from(view.clone())), Ok(view.clone()));
        let file = serde_json::to_vec(&view).unwrap();
        assert_eq!(serde_json::from_slice::<ClusterView>(&file).unwrap(), view);

        for op in samples::removes() {
            assert_eq!(ViewOp::try_from(pb::ViewOp::from(op.clone())), Ok(op.clone()));
            view.apply_op(op);
        }
        let nothing =
            ClusterView { lineage: Lineage(7), index: ViewIndex(9), ..Default::default() };
        assert_eq!(view, nothing);
    }

    #[test]
    fn a_view_saved_before_there_were_groups_and_tenants_can_be_read() {
        let saved = r#"{"lineage":7,"index":9,"members":{"4":{"id":4,"role":"worker","address":"http://w","zone":"","epoch":6,"state":"ready","models":[]}},"models":[{"name":"m","revision":"r"}],"aliases":{"a":{"name":"a","targets":[],"shadow":null}}}"#;
        let view: ClusterView = serde_json::from_str(saved).unwrap();
        assert_eq!((view.members.len(), view.aliases.len(), view.groups.len()), (1, 1, 0));
    }

    #[test]
    fn what_cannot_be_understood_names_the_field() {
        let put = |op| ViewOp::try_from(pb::ViewOp { op: Some(op) });
        use pb::view_op::Op;
        let refused = |field| Err(WireError { field });
        assert_eq!(put(Op::PutGroup(pb::Group::default())), refused("state"));
        assert_eq!(put(Op::PutTenant(pb::Tenant::default())), refused("cache"));
        let secrets = vec![pb::KeySecret { hmac: vec![0; 31], ..Default::default() }];
        let key = pb::ApiKey { secrets, ..Default::default() };
        assert_eq!(put(Op::PutKey(key)), refused("hmac"));
        let key = pb::ApiKey { scopes: vec!["root".to_owned()], ..Default::default() };
        assert_eq!(put(Op::PutKey(key)), refused("scopes"));
        let state = pb::GroupState::Forming.into();
        let group = pb::Group { rendezvous: vec![0; 129], state, ..Default::default() };
        assert_eq!(put(Op::PutGroup(group)), refused("rendezvous"));
    }
}
