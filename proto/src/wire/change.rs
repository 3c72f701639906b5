//! Messages that change the cluster, and the events of its watch.

use super::{WireError, required};
use crate::change::{Change, GroupChange, Registration, WatchEvent};
use crate::id::{Epoch, MemberId, ModelName, NodeId, Revision, ViewIndex};
use crate::pb;
use crate::view::Model;

// === impl Registration ===

impl From<Registration> for pb::RegisterRequest {
    fn from(registration: Registration) -> Self {
        Self {
            instance: registration.instance,
            role: pb::Role::from(registration.role).into(),
            address: registration.address,
            zone: registration.zone,
            models: registration.models.into_iter().map(Into::into).collect(),
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
            Change::RemoveAlias(name) => {
                Command::RemoveAlias(pb::RemoveAlias { name: name.to_string() })
            }
        };
        Self { command: Some(command) }
    }
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
            Command::Deregister(pb::Deregister { member_id, epoch }) => {
                Self::Deregister { member_id: MemberId(member_id), epoch: Epoch(epoch) }
            }
            Command::PutModel(put) => Self::PutModel(required("model", put.model)?.into()),
            Command::RemoveModel(remove) => Self::RemoveModel(Model {
                name: ModelName::from(remove.name),
                revision: Revision::from(remove.revision),
            }),
            Command::SetAlias(set) => Self::SetAlias(required("alias", set.alias)?.into()),
            Command::RemoveAlias(remove) => Self::RemoveAlias(ModelName::from(remove.name)),
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

    #[test]
    fn every_change_survives_the_wire() {
        let model = Model { name: "m".into(), revision: "r".into() };
        let alias = crate::view::Alias { name: "a".into(), targets: Vec::new(), shadow: None };
        let (member_id, epoch) = (MemberId(3), Epoch(9));
        for change in [
            Change::Fence { member_id, epoch },
            Change::Drain { member_id, epoch },
            Change::Deregister { member_id, epoch },
            Change::PutModel(model.clone()),
            Change::RemoveModel(model),
            Change::SetAlias(alias),
            Change::RemoveAlias("a".into()),
        ] {
            assert_eq!(Change::try_from(pb::Command::from(change.clone())), Ok(change));
        }
    }

    #[test]
    fn a_command_without_content_names_the_field() {
        assert_eq!(
            Change::try_from(pb::Command { command: None }),
            Err(WireError { field: "command" })
        );
    }
}
