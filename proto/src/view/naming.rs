//! Models, and the public names that stand for them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ModelName, Revision};

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
    /// The targets before these, for a rollback. Kept by the control plane: what a command says of it is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Vec<AliasTarget>>,
}

/// The first target that is among `targets` twice, whatever the weights.
pub fn given_twice(targets: &[AliasTarget]) -> Option<&AliasTarget> {
    let earlier = |(at, target): &(usize, &AliasTarget)| {
        targets[..*at].iter().any(|other| other.is_same_model(target))
    };
    targets.iter().enumerate().find(earlier).map(|(_at, target)| target)
}

// === impl AliasTarget ===

/// As it is typed, without its weight.
impl fmt::Display for AliasTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.model),
            None => self.model.fmt(f),
        }
    }
}

impl AliasTarget {
    /// Whether both are the same model at the same revision, whatever their weights.
    pub fn is_same_model(&self, other: &Self) -> bool {
        self.model == other.model && self.revision == other.revision
    }
}
