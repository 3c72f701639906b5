//! Which models are wanted, and the groups of devices that are to serve them.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base64_text::Base64Text;
use crate::id::{Epoch, GroupId, MemberId, ModelName, Revision, ViewIndex};

/// What an operator wants served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The model's public name.
    pub name: ModelName,
    /// Which revision of it.
    pub revision: Revision,
    /// How many groups serve it.
    pub replicas: u32,
    /// Over how many devices each of them shards it.
    pub tp: u32,
    /// The log index that set it.
    pub version: ViewIndex,
}

/// Devices that serve one model together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Which; the same however often it is formed anew.
    pub id: GroupId,
    /// The log index that formed it: its fencing token.
    pub epoch: Epoch,
    /// The deployment it is part of.
    pub deployment: ModelName,
    /// What it serves; the deployment may have moved on.
    pub revision: Revision,
    /// Who computes which part, rank 0 first. Rank 0 answers for the group.
    pub ranks: Vec<GroupRank>,
    /// The ranks that are ready at this epoch.
    pub ready: BTreeSet<u32>,
    /// Where the ranks meet: published once for an epoch, gone when the group breaks.
    pub rendezvous: Option<Rendezvous>,
    /// How far it is.
    pub state: GroupState,
    /// Why it broke, if a member gave it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<GroupFailure>,
}

/// A rank that could not serve what it was placed for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFailure {
    /// Whose.
    pub member_id: MemberId,
    /// Why, for operators.
    pub reason: String,
}

/// One device's place in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRank {
    /// On which member.
    pub member_id: MemberId,
    /// The registration meant.
    pub member_epoch: Epoch,
    /// Which of the member's devices.
    pub device: u32,
}

/// One forming of a group: what names an older epoch is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRef {
    /// Which group.
    pub id: GroupId,
    /// At which epoch.
    pub epoch: Epoch,
}

/// How far a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupState {
    /// Its ranks load the model and look for each other.
    Forming,
    /// Every rank is ready.
    Ready,
    /// A rank is gone or gave up: it serves nothing until it is formed anew.
    Broken,
}

/// What the ranks of a group need to meet: an NCCL id or an address. Whoever knows it can join, so it is not
/// printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Base64Text", into = "Base64Text")]
pub struct Rendezvous(Vec<u8>);

/// A rendezvous of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rendezvous has {bytes} bytes, it must have 1 to {}", Rendezvous::BYTES_MAX)]
pub struct RendezvousSizeError {
    /// How many were given.
    pub bytes: usize,
}

// === impl Deployment ===

impl Deployment {
    /// Whether the group is what is wanted now, rather than what was before.
    pub fn is_as_wanted(&self, group: &Group) -> bool {
        group.revision == self.revision && u32::try_from(group.ranks.len()) == Ok(self.tp)
    }
}

// === impl Group ===

impl Group {
    /// What commands name it by, at this epoch.
    pub const fn reference(&self) -> GroupRef {
        GroupRef { id: self.id, epoch: self.epoch }
    }

    /// Whether it holds its devices: it serves, or is about to.
    pub const fn is_live(&self) -> bool {
        !matches!(self.state, GroupState::Broken)
    }

    /// Whether `member_id` has a rank in it.
    pub fn holds(&self, member_id: MemberId) -> bool {
        self.ranks.iter().any(|rank| rank.member_id == member_id)
    }
}

impl fmt::Display for GroupRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at epoch {}", self.id, self.epoch)
    }
}

// === impl Rendezvous ===

impl Rendezvous {
    /// The longest taken, in bytes: an NCCL id.
    pub const BYTES_MAX: usize = 128;

    /// The bytes, for the ranks.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Rendezvous {
    type Error = RendezvousSizeError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, RendezvousSizeError> {
        if !(1..=Self::BYTES_MAX).contains(&bytes.len()) {
            return Err(RendezvousSizeError { bytes: bytes.len() });
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<Base64Text> for Rendezvous {
    type Error = RendezvousSizeError;

    fn try_from(text: Base64Text) -> Result<Self, RendezvousSizeError> {
        text.0.try_into()
    }
}

impl From<Rendezvous> for Base64Text {
    fn from(rendezvous: Rendezvous) -> Self {
        Self(rendezvous.0)
    }
}

impl fmt::Debug for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rendezvous({} bytes)", self.as_bytes().len())
    }
}
