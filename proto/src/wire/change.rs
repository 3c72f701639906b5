//! Messages that change the cluster, and the events of its watch.

use super::{WireError, required};
use crate::change::{Change, GroupChange, Registration, WatchEvent};
use crate::id::{Epoch, KeyId, MemberId, ModelName, NodeId, Revision, TenantName, ViewIndex};
use crate::pb;
use crate::view::{GroupRef, Model, Rendezvous};

// === impl Registration ===

impl From<Registration> for pb::RegisterRequest {
    fn from(registration: Registration) -> Self {
        Self {
            instance: registration.instance,
            role: pb::Role::from(registration.role).into(),
            address: registration.address,
            zone: registration.zone,
            models: registration.models.into_iter().map(Into::into).collect(),
            capacity: Some(registration.capacity.into()),
        }
    }
}

impl TryFrom<pb::RegisterRequest> for Registration {
    type Error = WireError;

    fn try_from(wire: pb::RegisterRequest) -> Result<Self, WireError> {
        Ok(Self {
            role: wire.role().try_into()?,
            instance: wire.instance,
            address: wire.address,
            zone: wire.zone,
            models: wire.models.into_iter().map(Into::into).collect(),
            capacity: wire.capacity.map(Into::into).unwrap_or_default(),
        })
    }
}

// === impl GroupChange ===

impl From<GroupChange> for pb::ChangeGroupRequest {
    fn from(change: GroupChange) -> Self {
        use pb::change_group_request::Change;
        let change = match change {
            GroupChange::Add { url } => Change::Add(url),
            GroupChange::Promote(node) => Change::Promote(node.0),
            GroupChange::Remove(node) => Change::Remove(node.0),
            GroupChange::Transfer(node) => Change::Transfer(node.0),
        };
        Self { change: Some(change) }
    }
}

impl TryFrom<pb::ChangeGroupRequest> for GroupChange {
    type Error = WireError;

    fn try_from(wire: pb::ChangeGroupRequest) -> Result<Self, WireError> {
        use pb::change_group_request::Change;
        Ok(match required("change", wire.change)? {
            Change::Add(url) => Self::Add { url },
            Change::Promote(node) => Self::Promote(NodeId(node)),
            Change::Remove(node) => Self::Remove(NodeId(node)),
            Change::Transfer(node) => Self::Transfer(NodeId(node)),
        })
    }
}

// === impl Change ===

impl From<Change> for pb::Command {
    fn from(change: Change) -> Self {
        use pb::command::Command;
        let command = match change {
            Change::Fence { member_id, epoch } => {
                Command::Fence(pb::Fence { member_id: member_id.0, epoch: epoch.0 })
            }
            Change::Drain { member_id, epoch } => {
                Command::Drain(pb::Drain { member_id: member_id.0, epoch: epoch.0 })
            }
            Change::Undrain { member_id, epoch } => {
                Command::Undrain(pb::Undrain { member_id: member_id.0, epoch: epoch.0 })
            }
            Change::Deregister { member_id, epoch } => {
                Command::Deregister(pb::Deregister { member_id: member_id.0, epoch: epoch.0 })
            }
            Change::PutModel(model) => {
                Command::PutModel(pb::PutModel { model: Some(model.into()) })
            }
            Change::RemoveModel(model) => Command::RemoveModel(pb::RemoveModel {
                name: model.name.to_string(),
                revision: model.revision.to_string(),
            }),
            Change::SetAlias(alias) => {
                Command::SetAlias(pb::SetAlias { alias: Some(alias.into()) })
            }
            Change::RollbackAlias(name) => {
                Command::RollbackAlias(pb::RollbackAlias { name: name.to_string() })
            }
            Change::RemoveAlias(name) => {
                Command::RemoveAlias(pb::RemoveAlias { name: name.to_string() })
            }
            Change::Serve { member_id, epoch, models } => Command::Serve(pb::Serve {
                member_id: member_id.0,
                epoch: epoch.0,
                models: models.into_iter().map(Into::into).collect(),
            }),
            Change::SetDeployment { name, revision, replicas, tp } => {
                let (name, revision) = (name.to_string(), revision.to_string());
                Command::SetDeployment(pb::SetDeployment { name, revision, replicas, tp })
            }
            Change::RemoveDeployment(name) => Command::RemoveDeployment(name.to_string()),
            Change::FormGroup { group, deployment, revision, ranks } => {
                Command::FormGroup(pb::FormGroup {
                    group: group.map(Into::into),
                    deployment: deployment.to_string(),
                    revision: revision.to_string(),
                    ranks: ranks.into_iter().map(Into::into).collect(),
                })
            }
            Change::PublishRendezvous { group, rendezvous } => publish(group, &rendezvous),
            Change::RankReady { group, rank } => {
                Command::RankReady(pb::RankReady { group: Some(group.into()), rank })
            }
            Change::FailRank { group, rank, reason } => fail_rank(group, rank, reason),
            Change::BreakGroup(group) => Command::BreakGroup(group.into()),
            Change::RemoveGroup(group) => Command::RemoveGroup(group.into()),
            Change::PutTenant(tenant) => Command::PutTenant(tenant.into()),
            Change::RemoveTenant(name) => Command::RemoveTenant(name.to_string()),
            Change::PutKey(key) => Command::PutKey(key.into()),
            Change::RotateKey { id, secret, old_expires_ms } => {
                let (id, secret) = (id.to_string(), Some(secret.into()));
                Command::RotateKey(pb::RotateKey { id, secret, old_expires_ms })
            }
            Change::RevokeKey(id) => Command::RevokeKey(id.to_string()),
            Change::RemoveKey(id) => Command::RemoveKey(id.to_string()),
            Change::PutSetting { key, value } => Command::PutSetting(pb::PutSetting { key, value }),
            Change::RemoveSetting(key) => Command::RemoveSetting(key),
        };
        Self { command: Some(command) }
    }
}

fn publish(group: GroupRef, rendezvous: &Rendezvous) -> pb::command::Command {
    let (group, rendezvous) = (Some(group.into()), rendezvous.as_bytes().to_vec());
    pb::command::Command::PublishRendezvous(pb::PublishRendezvous { group, rendezvous })
}

fn fail_rank(group: GroupRef, rank: u32, reason: String) -> pb::command::Command {
    pb::command::Command::FailRank(pb::FailRank { group: Some(group.into()), rank, reason })
}

impl TryFrom<pb::Command> for Change {
    type Error = WireError;

    fn try_from(wire: pb::Command) -> Result<Self, WireError> {
        use pb::command::Command;
        Ok(match required("command", wire.command)? {
            Command::Fence(pb::Fence { member_id, epoch }) => {
                Self::Fence { member_id: MemberId(member_id), epoch: Epoch(epoch) }
            }
            Command::Drain(pb::Drain { member_id, epoch }) => {
                Self::Drain { member_id: MemberId(member_id), epoch: Epoch(epoch) }
            }
            Command::Undrain(pb::Undrain { member_id, epoch }) => {
                Self::Undrain { member_id: MemberId(member_id), epoch: Epoch(epoch) }
            }
            Command::Deregister(pb::Deregister { member_id, epoch }) => {
                Self::Deregister { member_id: MemberId(member_id), epoch: Epoch(epoch) }
            }
            Command::PutModel(put) => Self::PutModel(required("model", put.model)?.into()),
            Command::RemoveModel(remove) => Self::RemoveModel(Model {
                name: ModelName::from(remove.name),
                revision: Revision::from(remove.revision),
            }),
            Command::SetAlias(set) => Self::SetAlias(required("alias", set.alias)?.into()),
            Command::RollbackAlias(rollback) => Self::RollbackAlias(ModelName::from(rollback.name)),
            Command::RemoveAlias(remove) => Self::RemoveAlias(ModelName::from(remove.name)),
            Command::Serve(pb::Serve { member_id, epoch, models }) => Self::Serve {
                member_id: MemberId(member_id),
                epoch: Epoch(epoch),
                models: models.into_iter().map(Into::into).collect(),
            },
            Command::SetDeployment(pb::SetDeployment { name, revision, replicas, tp }) => {
                let (name, revision) = (ModelName::from(name), Revision::from(revision));
                Self::SetDeployment { name, revision, replicas, tp }
            }
            Command::RemoveDeployment(name) => Self::RemoveDeployment(ModelName::from(name)),
            Command::FormGroup(form) => Self::FormGroup {
                group: form.group.map(Into::into),
                deployment: ModelName::from(form.deployment),
                revision: Revision::from(form.revision),
                ranks: form.ranks.into_iter().map(Into::into).collect(),
            },
            Command::PublishRendezvous(publish) => Self::PublishRendezvous {
                group: required("group", publish.group)?.into(),
                rendezvous: publish
                    .rendezvous
                    .try_into()
                    .map_err(|_size| WireError { field: "rendezvous" })?,
            },
            Command::RankReady(ready) => {
                Self::RankReady { group: required("group", ready.group)?.into(), rank: ready.rank }
            }
            Command::FailRank(failed) => Self::FailRank {
                group: required("group", failed.group)?.into(),
                rank: failed.rank,
                reason: failed.reason,
            },
            Command::BreakGroup(group) => Self::BreakGroup(group.into()),
            Command::RemoveGroup(group) => Self::RemoveGroup(group.into()),
            Command::PutTenant(tenant) => Self::PutTenant(tenant.try_into()?),
            Command::RemoveTenant(name) => Self::RemoveTenant(TenantName::from(name)),
            Command::PutKey(key) => Self::PutKey(key.try_into()?),
            Command::RotateKey(pb::RotateKey { id, secret, old_expires_ms }) => {
                let (id, secret) = (KeyId::from(id), required("secret", secret)?.try_into()?);
                Self::RotateKey { id, secret, old_expires_ms }
            }
            Command::RevokeKey(id) => Self::RevokeKey(KeyId::from(id)),
            Command::RemoveKey(id) => Self::RemoveKey(KeyId::from(id)),
            Command::PutSetting(pb::PutSetting { key, value }) => Self::PutSetting { key, value },
            Command::RemoveSetting(key) => Self::RemoveSetting(key),
        })
    }
}

// === impl WatchEvent ===

impl From<WatchEvent> for pb::WatchEvent {
    fn from(event: WatchEvent) -> Self {
        use pb::watch_event::Event;
        let event = match event {
            WatchEvent::Snapshot(view) => Event::Snapshot(view.into()),
            WatchEvent::Delta(delta) => Event::Delta(delta.into()),
            WatchEvent::Bookmark(index) => Event::Bookmark(pb::Bookmark { index: index.0 }),
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<pb::WatchEvent> for WatchEvent {
    type Error = WireError;

    fn try_from(wire: pb::WatchEvent) -> Result<Self, WireError> {
        use pb::watch_event::Event;
        Ok(match required("event", wire.event)? {
            Event::Snapshot(snapshot) => Self::Snapshot(snapshot.try_into()?),
            Event::Delta(delta) => Self::Delta(delta.try_into()?),
            Event::Bookmark(bookmark) => Self::Bookmark(ViewIndex(bookmark.index)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GroupId;
    use crate::view::{GroupRef, MemberRole};
    use crate::wire::samples;

    #[test]
    fn every_change_survives_the_wire() {
        let (member_id, epoch) = (MemberId(3), Epoch(9));
        let group = GroupRef { id: GroupId(5), epoch };
        let (deployment, revision, ranks) = ("m".into(), "r".into(), vec![samples::rank()]);
        let (name, id, secret) = ("m".into(), KeyId::from("k"), samples::secret());
        let (key, value) = ("s".to_owned(), "v".to_owned());
        for change in [
            Change::Fence { member_id, epoch },
            Change::Drain { member_id, epoch },
            Change::Undrain { member_id, epoch },
            Change::Deregister { member_id, epoch },
            Change::Serve { member_id, epoch, models: vec![samples::served()] },
            Change::PutModel(samples::model()),
            Change::RemoveModel(samples::model()),
            Change::SetAlias(samples::alias()),
            Change::RollbackAlias("a".into()),
            Change::RemoveAlias("a".into()),
            Change::SetDeployment { name, revision: "r".into(), replicas: 2, tp: 4 },
            Change::RemoveDeployment("m".into()),
            Change::FormGroup { group: Some(group), deployment, revision, ranks },
            Change::PublishRendezvous { group, rendezvous: samples::rendezvous() },
            Change::RankReady { group, rank: 1 },
            Change::FailRank { group, rank: 1, reason: "why".to_owned() },
            Change::BreakGroup(group),
            Change::RemoveGroup(group),
            Change::PutTenant(samples::tenant()),
            Change::RemoveTenant("t".into()),
            Change::PutKey(samples::key()),
            Change::RotateKey { id: id.clone(), secret, old_expires_ms: 7 },
            Change::RevokeKey(id.clone()),
            Change::RemoveKey(id),
            Change::PutSetting { key: key.clone(), value },
            Change::RemoveSetting(key),
        ] {
            assert_eq!(Change::try_from(pb::Command::from(change.clone())), Ok(change));
        }
    }

    #[test]
    fn a_registration_survives_the_wire() {
        let registration = Registration {
            instance: "i".to_owned(),
            role: MemberRole::Router,
            address: "http://r".to_owned(),
            zone: "z".to_owned(),
            models: vec![samples::served()],
            capacity: samples::capacity(),
        };
        let wire = pb::RegisterRequest::from(registration.clone());
        assert_eq!(Registration::try_from(wire), Ok(registration));
    }

    #[test]
    fn a_command_without_content_names_the_field() {
        use pb::command::Command;
        let refused = |command, field| {
            assert_eq!(Change::try_from(pb::Command { command }), Err(WireError { field }));
        };
        refused(None, "command");
        refused(Some(Command::RankReady(pb::RankReady::default())), "group");
        refused(Some(Command::RotateKey(pb::RotateKey::default())), "secret");
        let publish = pb::PublishRendezvous { group: Some(Default::default()), rendezvous: vec![] };
        refused(Some(Command::PublishRendezvous(publish)), "rendezvous");
    }
}
