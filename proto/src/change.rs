//! What workers and operators ask the control plane to change, before it is a message or a log entry.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, MemberId, ModelName, NodeId, ViewIndex};
use crate::view::{Alias, ClusterView, MemberRole, Model, ServedModel, ViewDelta};

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
    /// What it serves; empty for routers.
    pub models: Vec<ServedModel>,
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
    /// Removes a member that leaves by itself.
    Deregister {
        /// Who.
        member_id: MemberId,
        /// The registration meant.
        epoch: Epoch,
    },
    /// Makes a model known.
    PutModel(Model),
    /// Forgets a model that no member serves.
    RemoveModel(Model),
    /// Creates or replaces an alias.
    SetAlias(Alias),
    /// Removes an alias.
    RemoveAlias(ModelName),
}

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
