//! The cluster as the data plane sees it: a snapshot moved forward by deltas, never backward.
//!
//! The control plane's state machine produces [`ViewOp`]s; routers fold them into a [`ClusterView`]. Fields are
//! added with a default, so that views saved by earlier builds can be read.

mod access;
mod member;
mod naming;
mod placement;
mod shortage;
mod status;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use self::access::{
    ApiKey, CachePolicy, KeyLimits, KeySecret, Scope, Setting, Tenant, TenantLimits,
    UnknownScopeError,
};
pub use self::member::{Capacity, Member, MemberRole, MemberState, ServedModel};
pub use self::naming::{Alias, AliasTarget, Model, given_twice};
pub use self::placement::{
    Deployment, Group, GroupFailure, GroupRank, GroupRef, GroupState, Rendezvous,
    RendezvousSizeError,
};
pub use self::shortage::Shortage;
pub use self::status::{GroupStatus, RankStatus};
use crate::id::{GroupId, KeyId, Lineage, MemberId, ModelName, Revision, TenantName, ViewIndex};

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
    PutDeployment(Deployment),
    RemoveDeployment(ModelName),
    PutGroup(Group),
    RemoveGroup(GroupId),
    PutTenant(Tenant),
    RemoveTenant(TenantName),
    PutKey(ApiKey),
    RemoveKey(KeyId),
    PutSetting(Setting),
    RemoveSetting(String),
}

impl ViewOp {
    /// Whether it is about who may use the cluster, which routers alone need to know.
    pub const fn is_access(&self) -> bool {
        matches!(
            self,
            Self::PutTenant(_) | Self::RemoveTenant(_) | Self::PutKey(_) | Self::RemoveKey(_)
        )
    }
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
    pub models: BTreeSet<Model>,
    /// Aliases by name.
    pub aliases: BTreeMap<ModelName, Alias>,
    /// What operators want served, by model.
    #[serde(default)]
    pub deployments: BTreeMap<ModelName, Deployment>,
    /// Members that serve a model together.
    #[serde(default)]
    pub groups: BTreeMap<GroupId, Group>,
    /// Who pays for requests, by name.
    #[serde(default)]
    pub tenants: BTreeMap<TenantName, Tenant>,
    /// What clients identify themselves by; no secrets, only what they are verified with.
    #[serde(default)]
    pub keys: BTreeMap<KeyId, ApiKey>,
    /// Settings of the whole cluster, by key.
    #[serde(default)]
    pub settings: BTreeMap<String, Setting>,
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
            ViewOp::PutMember(member) => drop(self.members.insert(member.id, member)),
            ViewOp::RemoveMember(id) => drop(self.members.remove(&id)),
            ViewOp::PutModel(model) => _ = self.models.insert(model),
            ViewOp::RemoveModel(model) => _ = self.models.remove(&model),
            ViewOp::PutAlias(alias) => drop(self.aliases.insert(alias.name.clone(), alias)),
            ViewOp::RemoveAlias(name) => drop(self.aliases.remove(&name)),
            ViewOp::PutDeployment(deployment) => {
                drop(self.deployments.insert(deployment.name.clone(), deployment));
            }
            ViewOp::RemoveDeployment(name) => drop(self.deployments.remove(&name)),
            ViewOp::PutGroup(group) => drop(self.groups.insert(group.id, group)),
            ViewOp::RemoveGroup(id) => drop(self.groups.remove(&id)),
            ViewOp::PutTenant(tenant) => drop(self.tenants.insert(tenant.name.clone(), tenant)),
            ViewOp::RemoveTenant(name) => drop(self.tenants.remove(&name)),
            ViewOp::PutKey(key) => drop(self.keys.insert(key.id.clone(), key)),
            ViewOp::RemoveKey(id) => drop(self.keys.remove(&id)),
            ViewOp::PutSetting(setting) => drop(self.settings.insert(setting.key.clone(), setting)),
            ViewOp::RemoveSetting(key) => drop(self.settings.remove(&key)),
        }
    }

    /// The view without what [`ViewOp::is_access`] tells of.
    #[must_use]
    pub fn without_access(mut self) -> Self {
        self.tenants.clear();
        self.keys.clear();
        self
    }

    /// Whether some worker serves the model at this revision, or has: what is merely wanted may not exist.
    pub fn knows(&self, name: &ModelName, revision: &Revision) -> bool {
        self.models.contains(&Model { name: name.clone(), revision: revision.clone() })
    }

    /// Whether `other` is later in time: a larger lineage, or the same one further on.
    pub fn is_older_than(&self, other: &Self) -> bool {
        (self.lineage, self.index) < (other.lineage, other.index)
    }
}
