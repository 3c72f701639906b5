//! The records on disk: a version byte, then JSON. Fields and variants are added, never renamed; the golden
//! records in the tests must stay readable for ever.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::command::Command;

/// What the body of a snapshot is a record of.
pub(crate) const STATE: &str = "cluster state";

/// The version written.
const VERSION: u8 = 1;

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct LogPosition {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// Whom this node voted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteRecord {
    pub(crate) term: u64,
    pub(crate) node: u64,
    /// A quorum agreed.
    pub(crate) committed: bool,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryRecord {
    pub(crate) at: LogPosition,
    pub(crate) content: EntryContent,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EntryContent {
    Blank,
    Command(Command),
    Membership(MembershipRecord),
}

/// The nodes of the Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MembershipRecord {
    /// Voters; two sets while they change.
    pub(crate) voters: Vec<BTreeSet<u64>>,
    /// Every node, learners too, and its URL.
    pub(crate) urls: BTreeMap<u64, String>,
}

/// The bytes that [`decode`] reads back.
pub(crate) fn encode<T>(what: &'static str, record: &T) -> Result<Vec<u8>, StoreError>
where
    T: Serialize,
{
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, record).map_err(|error| damaged(what, &error))?;
    Ok(bytes)
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode<T>(what: &'static str, bytes: &[u8]) -> Result<T, StoreError>
where
    T: DeserializeOwned,
{
    let Some((version, json)) = bytes.split_first() else {
        return Err(StoreError::Damaged { what, reason: "it is empty".to_owned() });
    };
    if *version != VERSION {
        let (found, latest) = (u32::from(*version), u32::from(VERSION));
        return Err(StoreError::Version { what, found, latest });
    }
    serde_json::from_slice(json).map_err(|error| damaged(what, &error))
}

fn damaged(what: &'static str, error: &serde_json::Error) -> StoreError {
    StoreError::Damaged { what, reason: error.to_string() }
}

#[cfg(test)]
mod tests;
