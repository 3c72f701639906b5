//! The cluster as the data plane sees it: a snapshot moved forward by deltas, never backward.
//!
//! The control plane's state machine produces [`ViewOp`]s; routers fold them into a [`ClusterView`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Lineage, MemberId, ModelName, Revision, ViewIndex};

/// What kind of process a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Serves models.
    Worker,
    /// Serves clients.
    Router,
}

/// Whether a member takes new work. A fenced member is removed from the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Takes work.
    Ready,
    /// Finishes what it has.
    Draining,
}

/// One model a worker serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel {
    /// Public name.
    pub name: ModelName,
    /// Digest of the folder.
    pub revision: Revision,
    /// Longest prompt and output together, in tokens.
    pub context_tokens_max: u32,
    /// KV capacity, in tokens.
    pub kv_tokens_max: u64,
}

/// A registered process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub id: MemberId,
    /// What.
    pub role: MemberRole,
    /// URL that peers dial.
    pub address: String,
    /// Failure domain, free text.
    pub zone: String,
    /// Fencing token, carried on every call to it.
    pub epoch: Epoch,
    /// Whether it takes new work.
    pub state: MemberState,
    /// What it serves; empty for routers.
    pub models: Vec<ServedModel>,
}

/// A model the cluster knows of, whether or not a worker serves it now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Model {
    /// Public name.
    pub name: ModelName,
    /// Digest.
    pub revision: Revision,
}

/// Where part of an alias' traffic goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasTarget {
    /// The model.
    pub model: ModelName,
    /// A fixed revision, or any.
    pub revision: Option<Revision>,
    /// Share of traffic, relative to the other targets.
    pub weight: u32,
}

/// A public name that stands for models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The public name.
    pub name: ModelName,
    /// Never empty; weights sum above 0.
    pub targets: Vec<AliasTarget>,
    /// Gets a copy of the traffic; its answers are thrown away.
    pub shadow: Option<AliasTarget>,
}

/// One change of the view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each variant is a verb and its object")]
pub enum ViewOp {
    PutMember(Member),
    RemoveMember(MemberId),
    PutModel(Model),
    RemoveModel(Model),
    PutAlias(Alias),
    RemoveAlias(ModelName),
}

/// All changes made at one log index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewDelta {
    /// The index.
    pub index: ViewIndex,
    /// In order.
    pub ops: Vec<ViewOp>,
}

/// The cluster at one log index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Which history.
    pub lineage: Lineage,
    /// How far.
    pub index: ViewIndex,
    /// Registered processes.
    pub members: BTreeMap<MemberId, Member>,
    /// Known models.
    pub models: std::collections::BTreeSet<Model>,
    /// Aliases by name.
    pub aliases: BTreeMap<ModelName, Alias>,
}

/// A delta or snapshot that would take the view back in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("view is at index {have}, was offered {offered}")]
pub struct StaleViewError {
    /// What the view holds.
    pub have: ViewIndex,
    /// What was offered.
    pub offered: ViewIndex,
}

impl ClusterView {
    /// Moves the view forward.
    ///
    /// # Errors
    /// [`StaleViewError`] when `delta` is not newer than the view; nothing is changed.
    pub fn apply(&mut self, delta: ViewDelta) -> Result<(), StaleViewError> {
        if delta.index <= self.index {
            return Err(StaleViewError { have: self.index, offered: delta.index });
        }
        self.index = delta.index;
        for op in delta.ops {
            self.apply_op(op);
        }
        Ok(())
    }

    /// Applies one change without moving the index: for the state machine that owns the history.
    pub fn apply_op(&mut self, op: ViewOp) {
        match op {
            ViewOp::PutMember(member) => {
                self.members.insert(member.id, member);
            }
            ViewOp::RemoveMember(id) => {
                self.members.remove(&id);
            }
            ViewOp::PutModel(model) => {
                self.models.insert(model);
            }
            ViewOp::RemoveModel(model) => {
                self.models.remove(&model);
            }
            ViewOp::PutAlias(alias) => {
                self.aliases.insert(alias.name.clone(), alias);
            }
            ViewOp::RemoveAlias(name) => {
                self.aliases.remove(&name);
            }
        }
    }

    /// Whether `other` is later in time: a larger lineage, or the same one further on.
    pub fn is_older_than(&self, other: &Self) -> bool {
        (self.lineage, self.index) < (other.lineage, other.index)
    }
}
