//! The records on disk: a version byte, then JSON. Fields and variants are added, never renamed; the golden
//! records in the tests must stay readable for ever.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::command::Command;

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
        let (found, expected) = (u32::from(*version), u32::from(VERSION));
        return Err(StoreError::Version { what, found, expected });
    }
    serde_json::from_slice(json).map_err(|error| damaged(what, &error))
}

fn damaged(what: &'static str, error: &serde_json::Error) -> StoreError {
    StoreError::Damaged { what, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::change::{Change, Registration};
    use phalanx_proto::id::{Epoch, Lineage, MemberId};
    use phalanx_proto::view::{Alias, AliasTarget, Capacity, MemberRole, Model, ServedModel};

    use super::*;

    #[track_caller]
    fn check(content: EntryContent, golden: &str) {
        let entry = EntryRecord { at: LogPosition { term: 2, index: 9 }, content };
        let bytes = encode("entry", &entry).unwrap();
        let golden = format!("\u{1}{{\"at\":{{\"term\":2,\"index\":9}},\"content\":{golden}}}");
        assert_eq!(String::from_utf8(bytes).unwrap(), golden);
        assert_eq!(decode::<EntryRecord>("entry", golden.as_bytes()).unwrap(), entry);
    }

    #[track_caller]
    fn check_change(change: Change, golden: &str) {
        check(
            EntryContent::Command(Command::Internal(change)),
            &format!(r#"{{"command":{{"internal":{golden}}}}}"#),
        );
    }

    #[test]
    fn entries_keep_their_golden_form() {
        check(EntryContent::Blank, r#""blank""#);
        let voters = vec![BTreeSet::from([1, 2])];
        let urls = BTreeMap::from([(1, "http://a".to_owned()), (2, "http://b".to_owned())]);
        check(
            EntryContent::Membership(MembershipRecord { voters, urls }),
            r#"{"membership":{"voters":[[1,2]],"urls":{"1":"http://a","2":"http://b"}}}"#,
        );
        let found = Command::Found { cluster_id: "x".to_owned(), lineage: Lineage(5) };
        check(
            EntryContent::Command(found),
            r#"{"command":{"found":{"cluster_id":"x","lineage":5}}}"#,
        );
    }

    #[test]
    fn commands_keep_their_golden_form() {
        let registration = Registration {
            instance: "i".to_owned(),
            role: MemberRole::Worker,
            address: "http://w".to_owned(),
            zone: "z".to_owned(),
            models: vec![ServedModel {
                name: "m".into(),
                revision: "r".into(),
                context_tokens_max: 8,
                kv_tokens_max: 16,
            }],
            capacity: Capacity { devices: 2, memory_bytes: 99 },
        };
        check(
            EntryContent::Command(Command::Register(registration)),
            r#"{"command":{"register":{"instance":"i","role":"worker","address":"http://w","zone":"z","models":[{"name":"m","revision":"r","context_tokens_max":8,"kv_tokens_max":16}],"capacity":{"devices":2,"memory_bytes":99}}}}"#,
        );
        let change = Change::RemoveAlias("a".into());
        let submit = Command::Submit { client: "c".to_owned(), sequence: 3, change };
        check(
            EntryContent::Command(submit),
            r#"{"command":{"submit":{"client":"c","sequence":3,"change":{"remove_alias":"a"}}}}"#,
        );
    }

    #[test]
    fn changes_keep_their_golden_form() {
        let (member_id, epoch) = (MemberId(4), Epoch(6));
        let model = || Model { name: "m".into(), revision: "r".into() };
        let target = AliasTarget { model: "m".into(), revision: Some("r".into()), weight: 95 };
        let alias = Alias { name: "a".into(), targets: vec![target], shadow: None, previous: None };
        check_change(Change::Fence { member_id, epoch }, r#"{"fence":{"member_id":4,"epoch":6}}"#);
        check_change(Change::Drain { member_id, epoch }, r#"{"drain":{"member_id":4,"epoch":6}}"#);
        check_change(
            Change::Deregister { member_id, epoch },
            r#"{"deregister":{"member_id":4,"epoch":6}}"#,
        );
        check_change(Change::PutModel(model()), r#"{"put_model":{"name":"m","revision":"r"}}"#);
        check_change(
            Change::RemoveModel(model()),
            r#"{"remove_model":{"name":"m","revision":"r"}}"#,
        );
        check_change(
            Change::SetAlias(alias),
            r#"{"set_alias":{"name":"a","targets":[{"model":"m","revision":"r","weight":95}],"shadow":null}}"#,
        );
    }

    #[test]
    fn a_record_of_another_version_or_cut_short_is_refused() {
        let refusal = |bytes: &[u8]| decode::<VoteRecord>("vote", bytes).unwrap_err().to_string();
        assert_eq!(refusal(b"\x02{}"), "vote is of format version 2, this build reads 1");
        assert_eq!(refusal(b""), "vote is damaged: it is empty");
        assert!(refusal(b"\x01{\"term\":1").starts_with("vote is damaged: EOF"));
    }
}
