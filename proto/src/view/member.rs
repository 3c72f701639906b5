//! Processes that registered, and what they serve and offer.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, MemberId, ModelName, Revision};

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

/// What a worker offers to deployments. The default offers nothing: it serves what it was started with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// How many devices; a rank is placed on one, named by its number below this.
    pub devices: u32,
    /// Memory for weights and KV, of all devices together, in bytes.
    pub memory_bytes: u64,
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
    /// What it serves; empty for routers, and for a worker that waits to be placed.
    pub models: Vec<ServedModel>,
    /// What it offers to deployments.
    #[serde(default)]
    pub capacity: Capacity,
}
