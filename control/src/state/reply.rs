//! What comes of a command: its answer, or why it was refused.

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{Epoch, GroupId, KeyId, MemberId, ModelName, TenantName, ViewIndex};
use phalanx_proto::view::GroupRef;
use serde::{Deserialize, Serialize};

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done, at this index.
    Applied {
        /// The log index.
        index: ViewIndex,
    },
    /// The process is a member.
    Registered {
        /// As whom.
        member_id: MemberId,
        /// Its fencing token.
        epoch: Epoch,
    },
    /// Not done; nothing changed.
    Refused(Refusal),
}

/// Why a command was not applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The command names a registration that was replaced.
    #[error("member {member_id} is registered at epoch {current}, not at {epoch}")]
    StaleEpoch {
        /// Who.
        member_id: MemberId,
        /// The epoch named.
        epoch: Epoch,
        /// The epoch that holds.
        current: Epoch,
    },
    /// The command names a member that left, was fenced, or never was.
    #[error("member {member_id} is not registered")]
    NotRegistered {
        /// Who.
        member_id: MemberId,
    },
    /// There is no such model.
    #[error("model {name} is not known at the revision given")]
    UnknownModel {
        /// Which.
        name: ModelName,
    },
    /// The model is in use.
    #[error("model {name} is served by member {member_id}, so it cannot be removed")]
    ModelServed {
        /// Which.
        name: ModelName,
        /// By whom.
        member_id: MemberId,
    },
    /// There is no such alias.
    #[error("alias {name} is not known")]
    UnknownAlias {
        /// Which.
        name: ModelName,
    },
    /// A bound of the state is reached.
    #[error("the cluster holds {count_max} {what}, the most it can")]
    Full {
        /// Of what.
        what: String,
        /// The bound.
        count_max: u64,
    },
    /// The name is that of a model: clients could no longer tell which is meant.
    #[error("{name} is a model that member {member_id} serves, so it cannot be an alias")]
    NameServed {
        /// Which.
        name: ModelName,
        /// By whom.
        member_id: MemberId,
    },
    /// The name is that of a deployment, whose model will be served under it.
    #[error("{name} is a deployment, so it cannot be an alias")]
    NameDeployed {
        /// Which.
        name: ModelName,
    },
    /// The name is that of an alias.
    #[error("{name} is an alias, so it cannot be a deployment")]
    NameIsAlias {
        /// Which.
        name: ModelName,
    },
    /// An alias would stand for another: a name must lead to models in one step.
    #[error("alias {name} cannot point to {target}, which is an alias")]
    AliasOfAlias {
        /// Which.
        name: ModelName,
        /// What it would point to.
        target: ModelName,
    },
    /// There are no earlier targets.
    #[error("alias {name} has no targets before these, so it cannot be rolled back")]
    NothingBefore {
        /// Which.
        name: ModelName,
    },
    /// There is no such deployment.
    #[error("deployment {name} is not known")]
    UnknownDeployment {
        /// Which.
        name: ModelName,
    },
    /// There is no such group.
    #[error("group {id} is not known")]
    UnknownGroup {
        /// Which.
        id: GroupId,
    },
    /// The command names an earlier forming of the group.
    #[error("group {id} is at epoch {current}, not at {epoch}")]
    StaleGroup {
        /// Which.
        id: GroupId,
        /// The epoch named.
        epoch: Epoch,
        /// The epoch that holds.
        current: Epoch,
    },
    /// The group is past forming, or broken.
    #[error("group {id} is not forming")]
    NotForming {
        /// Which.
        id: GroupId,
    },
    /// The ranks of this epoch meet elsewhere.
    #[error("group {group} has a rendezvous already")]
    RendezvousKnown {
        /// Which.
        group: GroupRef,
    },
    /// There is no such rank.
    #[error("group {id} has no rank {rank}")]
    UnknownRank {
        /// Which.
        id: GroupId,
        /// The rank named.
        rank: u32,
    },
    /// A rank needs a member that takes work.
    #[error("member {member_id} is draining, no rank can be placed on it")]
    MemberDraining {
        /// Who.
        member_id: MemberId,
    },
    /// A rank needs a device that exists.
    #[error("member {member_id} has no device {device}")]
    UnknownDevice {
        /// Whose.
        member_id: MemberId,
        /// Which.
        device: u32,
    },
    /// A rank needs a device of its own.
    #[error("device {device} of member {member_id} already holds a rank")]
    DeviceTaken {
        /// Whose.
        member_id: MemberId,
        /// Which.
        device: u32,
    },
    /// There is no such tenant.
    #[error("tenant {name} is not known")]
    UnknownTenant {
        /// Which.
        name: TenantName,
    },
    /// The tenant still has a key.
    #[error("tenant {name} has key {id}, which is not revoked, so it cannot be removed")]
    TenantHasKey {
        /// Which.
        name: TenantName,
        /// One of its keys.
        id: KeyId,
    },
    /// There is no such key.
    #[error("key {id} is not known")]
    UnknownKey {
        /// Which.
        id: KeyId,
    },
    /// The id is that of another key.
    #[error("there is a key {id} already")]
    KeyExists {
        /// Which.
        id: KeyId,
    },
    /// The key was withdrawn.
    #[error("key {id} is revoked")]
    KeyRevoked {
        /// Which.
        id: KeyId,
    },
    /// The key may still be in use.
    #[error("key {id} is not revoked, so it cannot be removed")]
    KeyNotRevoked {
        /// Which.
        id: KeyId,
    },
    /// There is no such setting.
    #[error("setting {key} is not known")]
    UnknownSetting {
        /// Which.
        key: String,
    },
    /// The client already sent a later command.
    #[error("command {sequence} of client {client} was superseded by {last}")]
    Superseded {
        /// Who.
        client: String,
        /// The command refused.
        sequence: u64,
        /// The client's latest.
        last: u64,
    },
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::StaleEpoch { .. }
            | Refusal::NotRegistered { .. }
            | Refusal::StaleGroup { .. }
            | Refusal::UnknownGroup { .. } => FaultCode::StaleEpoch,
            Refusal::UnknownModel { .. } => FaultCode::ModelNotFound,
            Refusal::Full { .. } => FaultCode::Overloaded,
            _ => FaultCode::InvalidRequest,
        };
        Self::new(code, refusal.to_string())
    }
}
