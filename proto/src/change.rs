//! What workers and operators ask the control plane to change, before it is a message or a log entry.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, KeyId, MemberId, ModelName, NodeId, Revision, TenantName, ViewIndex};
use crate::view::{
    Alias, ApiKey, Capacity, ClusterView, GroupRank, GroupRef, KeySecret, MemberRole, Model,
    Rendezvous, ServedModel, Tenant, ViewDelta,
};

/// The longest reason of a failure, in bytes: a chain of causes with a path or two.
pub const FAILURE_BYTES_MAX: usize = 1024;

/// The most replicas of one deployment.
pub const REPLICAS_MAX: u32 = 1024;

/// The most ranks of one group: the devices of eight machines of eight.
pub const GROUP_RANKS_MAX: u32 = 64;

/// A process that wants to be a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Drawn once per process start: a retried registration is the same registration.
    pub instance: String,
    /// What it is.
    pub role: MemberRole,
    /// URL that peers dial.
    pub address: String,
    /// Failure domain, free text.
    pub zone: String,
    /// What it serves; empty for routers, and for a worker that waits to be placed.
    pub models: Vec<ServedModel>,
    /// What it offers to deployments.
    #[serde(default)]
    pub capacity: Capacity,
}

/// A change of the cluster that is applied exactly once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Removes a member that is taken for dead.
    Fence {
        /// Who.
        member_id: MemberId,
        /// The registration meant; a newer one is left alone.
        epoch: Epoch,
    },
    /// Stops new work for a member.
    Drain {
        /// Who.
        member_id: MemberId,
        /// The registration meant.
        epoch: Epoch,
    },
    /// Lets a member take new work again.
    Undrain {
        /// Who.
        member_id: MemberId,
        /// The registration meant.
        epoch: Epoch,
    },
    /// Removes a member that leaves by itself.
    Deregister {
        /// Who.
        member_id: MemberId,
        /// The registration meant.
        epoch: Epoch,
    },
    /// Replaces what a member serves, under the epoch it has: for ranks that have loaded what they were
    /// placed for. To register anew would change the epoch, and so break the group.
    Serve {
        /// Who.
        member_id: MemberId,
        /// The registration meant.
        epoch: Epoch,
        /// All that it serves from now on.
        models: Vec<ServedModel>,
    },
    /// Makes a model known.
    PutModel(Model),
    /// Forgets a model that no member serves.
    RemoveModel(Model),
    /// Creates or replaces an alias.
    SetAlias(Alias),
    /// Exchanges an alias' targets with those before them.
    RollbackAlias(ModelName),
    /// Removes an alias.
    RemoveAlias(ModelName),
    /// Says what is to be served under a model's name.
    SetDeployment {
        /// The model's public name.
        name: ModelName,
        /// Which revision of it.
        revision: Revision,
        /// How many groups serve it.
        replicas: u32,
        /// Over how many devices each of them shards it.
        tp: u32,
    },
    /// Says that nothing is to be placed under a model's name any more.
    RemoveDeployment(ModelName),
    /// Places a group's ranks. The log index of the command is the group's epoch, and the id of a new group.
    FormGroup {
        /// The group to form anew, as it is; none for a new one.
        group: Option<GroupRef>,
        /// The deployment it is part of.
        deployment: ModelName,
        /// What it is to serve.
        revision: Revision,
        /// Rank 0 first.
        ranks: Vec<GroupRank>,
    },
    /// Says where the ranks of a forming group meet; once for an epoch.
    PublishRendezvous {
        /// Which, and at which epoch.
        group: GroupRef,
        /// Where.
        rendezvous: Rendezvous,
    },
    /// Says that one rank of a group is ready; with the last of them the group is.
    RankReady {
        /// Which, and at which epoch.
        group: GroupRef,
        /// Its place in the group's ranks.
        rank: u32,
    },
    /// Says that one rank of a group cannot serve what it was placed for, and why. Breaks the group.
    FailRank {
        /// Which, and at which epoch.
        group: GroupRef,
        /// Its place in the group's ranks.
        rank: u32,
        /// For operators; at most [`FAILURE_BYTES_MAX`].
        reason: String,
    },
    /// Says that a group can no longer serve; its members no longer serve its model.
    BreakGroup(GroupRef),
    /// Forgets a group, and frees its devices.
    RemoveGroup(GroupRef),
    /// Creates or replaces a tenant.
    PutTenant(Tenant),
    /// Removes a tenant that has no key but revoked ones, and those with it.
    RemoveTenant(TenantName),
    /// Creates a key under an id that is not in use.
    PutKey(ApiKey),
    /// Gives a key another secret; the one before it holds for a while yet.
    RotateKey {
        /// Which.
        id: KeyId,
        /// What the other secret is verified with.
        secret: KeySecret,
        /// When the secret before it ends, at the latest, in milliseconds since 1970.
        old_expires_ms: u64,
    },
    /// Withdraws a key for good.
    RevokeKey(KeyId),
    /// Forgets a revoked key.
    RemoveKey(KeyId),
    /// Sets a setting of the whole cluster.
    PutSetting {
        /// Its name.
        key: String,
        /// As text.
        value: String,
    },
    /// Removes a setting: its reader's default holds again.
    RemoveSetting(String),
}

/// What a refused [`GroupChange`] names when its URL is the fault.
pub const GROUP_URL: &str = "url";

/// What a refused [`GroupChange`] names when its node is not in the group.
pub const GROUP_NODE: &str = "node";

/// A change of the control group itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupChange {
    /// A new node at a URL, which learns without a vote. It is given an id.
    Add {
        /// Where its peers will reach it.
        url: String,
    },
    /// Gives a node a vote.
    Promote(NodeId),
    /// Takes a node out. Its id is never given again.
    Remove(NodeId),
    /// Makes a voter lead.
    Transfer(NodeId),
}

/// What a follower of the view receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The whole view: the follower had nothing, another lineage, or fell too far behind.
    Snapshot(ClusterView),
    /// The next change.
    Delta(ViewDelta),
    /// Nothing changed up to here.
    Bookmark(ViewIndex),
}
