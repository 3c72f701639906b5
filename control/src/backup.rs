//! Backups: a snapshot in the form of its file, and the beginning of a new history made from one. Pure.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_proto::id::{Lineage, NodeId, ViewIndex};

use crate::state::State;
use crate::store::record::{LogPosition, MembershipRecord, STATE, decode, encode};
use crate::store::snapshot::{Snapshot, SnapshotHeader, format};
use crate::store::{StoreError, chain};

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The cluster it is of.
    pub cluster_id: String,
    /// The history it is of.
    pub lineage: Lineage,
    /// The last log entry in it.
    pub index: ViewIndex,
    /// How many members the cluster had.
    pub members: usize,
    /// How many models it knew.
    pub models: usize,
    /// How many aliases it had.
    pub aliases: usize,
    /// blake3 of the file, in hex.
    pub file_digest: String,
    /// The hash of the state, as every replica had it at that index.
    pub state_hash: String,
}

/// A file that no history can begin from.
#[derive(Debug, thiserror::Error)]
#[error("not a backup that can be used: {0}")]
pub struct BackupError(String);

/// What a restored history begins with.
#[derive(Clone, Debug)]
pub(crate) struct Beginning {
    pub(crate) cluster_id: String,
    /// The wall clock, in milliseconds since 1970.
    pub(crate) now_ms: u64,
    /// The only node of the group.
    pub(crate) node: NodeId,
    pub(crate) url: String,
}

/// A backup, checked.
#[derive(Debug)]
pub(crate) struct Backup {
    header: SnapshotHeader,
    last: LogPosition,
    state: State,
}

/// Checks the bytes of a backup and says what it holds.
///
/// # Errors
/// [`BackupError`], with what is wrong with them.
pub fn inspect(bytes: &[u8]) -> Result<Contents, BackupError> {
    let Backup { state, .. } = Backup::read(bytes)?;
    let view = state.view();
    Ok(Contents {
        cluster_id: state.cluster_id().unwrap_or_default().to_owned(),
        lineage: view.lineage,
        index: view.index,
        members: view.members.len(),
        models: view.models.len(),
        aliases: view.aliases.len(),
        file_digest: blake3::hash(bytes).to_string(),
        state_hash: state.hash().to_string(),
    })
}

// === impl Backup ===

impl Backup {
    /// Reads a file of this build or an earlier one.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, BackupError> {
        let Snapshot { header, body } = format::decode(bytes)?;
        let state: State = decode(STATE, &body)?;
        let last = header.last.filter(|_last| state.cluster_id().is_some());
        let last = last.ok_or_else(|| BackupError("its cluster was never founded".to_owned()))?;
        Ok(Self { header, last, state })
    }

    /// The snapshot that a new history begins with: the same state under another name, at an index and in a
    /// lineage beyond everything that the old history ever reached.
    ///
    /// The old history went on after the backup, and gave out indexes as epochs and ids. No counter in the file
    /// says how many, but a clock in milliseconds runs ahead of any log; so both lineage and index are taken from
    /// it, and stay ahead of another restore of the same file. The index is above every node's id, too, for ids
    /// of nodes come from the log.
    pub(crate) fn begin_anew(
        self,
        beginning: Beginning,
    ) -> Result<(Snapshot, LogPosition), StoreError> {
        let Self { header, last, mut state } = self;
        let Beginning { cluster_id, now_ms, node, url } = beginning;
        let lineage = now_ms.max(state.view().lineage.0.saturating_add(1));
        let highest_id = header.membership.urls.keys().copied().max().unwrap_or(0).max(node.0);
        let index = lineage.max(last.index.max(highest_id).saturating_add(1));
        state.begin_anew(&cluster_id, Lineage(lineage), ViewIndex(index));
        let first = LogPosition { term: last.term, index };
        let membership = MembershipRecord {
            voters: vec![BTreeSet::from([node.0])],
            urls: BTreeMap::from([(node.0, url)]),
        };
        let (last, membership_at) = (Some(first), Some(first));
        let header = SnapshotHeader { cluster_id, lineage, last, membership, membership_at };
        Ok((Snapshot { header, body: encode(STATE, &state)? }, first))
    }
}

// === impl BackupError ===

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        Self(chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;

    const FOUNDED_AT: u64 = 5_000;

    fn file(index: u64, nodes: &[u64]) -> Vec<u8> {
        let mut state = State::default();
        let (cluster_id, lineage) = ("old".to_owned(), Lineage(FOUNDED_AT));
        state.apply(ViewIndex(1), &Command::Found { cluster_id, lineage });
        state.skip(ViewIndex(index));
        let membership = MembershipRecord {
            voters: vec![nodes.iter().copied().collect()],
            urls: nodes.iter().map(|id| (*id, format!("http://c{id}:1"))).collect(),
        };
        let header = SnapshotHeader {
            cluster_id: "old".to_owned(),
            lineage: FOUNDED_AT,
            last: Some(LogPosition { term: 3, index }),
            membership,
            membership_at: Some(LogPosition { term: 0, index: 0 }),
        };
        format::encode(&Snapshot { header, body: encode(STATE, &state).unwrap() }).unwrap()
    }

    fn begin(file: &[u8], now_ms: u64) -> Snapshot {
        let (cluster_id, url) = ("new".to_owned(), "http://c2:1".to_owned());
        let beginning = Beginning { cluster_id, now_ms, node: NodeId(2), url };
        Backup::read(file).unwrap().begin_anew(beginning).unwrap().0
    }

    /// A history restored at `now_ms` begins at `expected`: lineage and index.
    #[track_caller]
    fn check(index: u64, nodes: &[u64], now_ms: u64, expected: (u64, u64)) {
        let Snapshot { header, body } = begin(&file(index, nodes), now_ms);
        let state: State = decode(STATE, &body).unwrap();
        let last = header.last.unwrap();
        assert_eq!((header.lineage, last.index), expected);
        assert_eq!((state.view().lineage.0, state.view().index.0), expected);
        assert_eq!((last.term, header.membership_at), (3, header.last));
        assert_eq!((state.cluster_id(), header.cluster_id.as_str()), (Some("new"), "new"));
        assert_eq!(header.membership.voters, [BTreeSet::from([2])]);
        assert_eq!(header.membership.urls, BTreeMap::from([(2, "http://c2:1".to_owned())]));
    }

    #[test]
    fn a_restored_history_is_beyond_all_that_the_old_one_reached() {
        check(70, &[1, 2, 57], 9_000, (9_000, 9_000));
        // A clock behind the founding's.
        check(70, &[1, 2, 57], 0, (5_001, 5_001));
        // A log ahead of the clock, and an id ahead of the log.
        check(80_000, &[1], 9_000, (9_000, 80_001));
        check(70, &[1, 90_000], 9_000, (9_000, 90_001));
    }

    #[test]
    fn the_same_backup_restored_again_outranks_the_first_time() {
        let file = file(70, &[1]);
        let [first, second] = [9_000, 9_001].map(|now| begin(&file, now).header);
        assert!(second.lineage > first.lineage && second.last > first.last);
    }

    #[test]
    fn a_backup_tells_what_it_holds_and_anything_else_is_refused() {
        let bytes = file(70, &[1]);
        let contents = inspect(&bytes).unwrap();
        assert_eq!((contents.cluster_id.as_str(), contents.index), ("old", ViewIndex(70)));
        assert_eq!(contents.file_digest, blake3::hash(&bytes).to_string());
        let refusal = |bytes: &[u8]| inspect(bytes).unwrap_err().to_string();
        assert_eq!(
            refusal(&bytes[1..]),
            "not a backup that can be used: snapshot is damaged: it does not begin as a snapshot does"
        );
        let Snapshot { mut header, .. } = format::decode(&bytes).unwrap();
        header.cluster_id.clear();
        let body = encode(STATE, &State::default()).unwrap();
        let unfounded = format::encode(&Snapshot { header, body }).unwrap();
        let expected = "not a backup that can be used: its cluster was never founded";
        assert_eq!(refusal(&unfounded), expected);
    }
}
