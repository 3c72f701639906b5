//! The log in one redb file. A transaction keeps the order of vote, append, truncate and purge.

use std::path::Path;

use phalanx_chassis::whole_file;
use phalanx_proto::id::NodeId;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable, Table, TableDefinition,
};

use super::record::{EntryRecord, decode, encode};
use super::{LogStore, LogWrite, StoreError, StoredLog};

const LOG: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

const NODE: &str = "node";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

pub(crate) const FILE_NAME: &str = "log.redb";

/// Pages that redb may hold in memory. The log is read once, at start; writes touch the newest pages alone.
const CACHE_BYTES_MAX: usize = 4 << 20;

/// A log in a redb file.
#[derive(Debug)]
pub(crate) struct RedbStore {
    database: Database,
}

// === impl RedbStore ===

impl RedbStore {
    /// Opens or creates the log of `node` in `folder`, and locks it against other processes.
    pub(crate) fn open(folder: &Path, node: NodeId) -> Result<Self, StoreError> {
        let path = folder.join(FILE_NAME);
        let database =
            Builder::new().set_cache_size(CACHE_BYTES_MAX).create(&path).map_err(|error| {
                match error {
                    DatabaseError::DatabaseAlreadyOpen => StoreError::Locked { path: path.clone() },
                    other => failed(other),
                }
            })?;
        whole_file::sync_folder(folder)?;
        let store = Self { database };
        store.claim(node)?;
        Ok(store)
    }

    /// Creates what is missing, and refuses the folder of another node: an id names one log for ever.
    fn claim(&self, node: NodeId) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(failed)?;
        {
            let _log = transaction.open_table(LOG).map_err(failed)?;
            let mut meta = transaction.open_table(META).map_err(failed)?;
            let found: Option<u64> = get(&meta, NODE)?;
            match found {
                Some(found) if found != node.0 => {
                    return Err(StoreError::OtherNode { found, expected: node.0 });
                }
                Some(_same) => {}
                None => put(&mut meta, NODE, &node.0)?,
            }
        }
        transaction.commit().map_err(failed)
    }
}

impl LogStore for RedbStore {
    fn load(&mut self) -> Result<StoredLog, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let meta = transaction.open_table(META).map_err(failed)?;
        let log = transaction.open_table(LOG).map_err(failed)?;
        let mut stored = StoredLog {
            vote: get(&meta, VOTE)?,
            committed: get(&meta, COMMITTED)?,
            purged: get(&meta, PURGED)?,
            entries: Vec::new(),
        };
        for row in log.range::<u64>(..).map_err(failed)? {
            let (index, bytes) = row.map_err(failed)?;
            let entry: EntryRecord = decode("log entry", bytes.value())?;
            let follows =
                stored.entries.last().is_none_or(|last| last.at.index + 1 == entry.at.index);
            if entry.at.index != index.value() || !follows {
                let reason = format!("entry {} is stored at {}", entry.at.index, index.value());
                return Err(StoreError::Damaged { what: "log", reason });
            }
            stored.entries.push(entry);
        }
        Ok(stored)
    }

    fn commit(&mut self, writes: &[LogWrite]) -> Result<(), StoreError> {
        // Immediate durability is redb's default: commit returns after the sync.
        let transaction = self.database.begin_write().map_err(failed)?;
        {
            let mut log = transaction.open_table(LOG).map_err(failed)?;
            let mut meta = transaction.open_table(META).map_err(failed)?;
            for write in writes {
                apply(&mut log, &mut meta, write)?;
            }
        }
        transaction.commit().map_err(failed)
    }
}

fn apply(
    log: &mut Table<'_, u64, &[u8]>,
    meta: &mut Table<'_, &str, &[u8]>,
    write: &LogWrite,
) -> Result<(), StoreError> {
    match write {
        LogWrite::Vote(vote) => put(meta, VOTE, vote),
        LogWrite::Committed(Some(committed)) => put(meta, COMMITTED, committed),
        LogWrite::Committed(None) => meta.remove(COMMITTED).map(|_old| ()).map_err(failed),
        LogWrite::Append(entries) => entries.iter().try_for_each(|entry| {
            let bytes = encode("log entry", entry)?;
            log.insert(entry.at.index, bytes.as_slice()).map(|_old| ()).map_err(failed)
        }),
        LogWrite::TruncateAfter(None) => log.retain(|_index, _entry| false).map_err(failed),
        LogWrite::TruncateAfter(Some(last)) => {
            log.retain_in(last + 1.., |_index, _entry| false).map_err(failed)
        }
        LogWrite::Purge(last) => {
            log.retain_in(..=last.index, |_index, _entry| false).map_err(failed)?;
            put(meta, PURGED, last)
        }
    }
}

fn put<T>(
    meta: &mut Table<'_, &str, &[u8]>,
    key: &'static str,
    record: &T,
) -> Result<(), StoreError>
where
    T: serde::Serialize,
{
    let bytes = encode(key, record)?;
    meta.insert(key, bytes.as_slice()).map(|_old| ()).map_err(failed)
}

fn get<T>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &'static str,
) -> Result<Option<T>, StoreError>
where
    T: serde::de::DeserializeOwned,
{
    let bytes = meta.get(key).map_err(failed)?;
    bytes.map(|bytes| decode(key, bytes.value())).transpose()
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Log(Box::new(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::{EntryContent, LogPosition, VoteRecord};

    fn at(index: u64) -> LogPosition {
        LogPosition { term: 1, index }
    }

    fn entries(indexes: std::ops::RangeInclusive<u64>) -> LogWrite {
        let entry = |index| EntryRecord { at: at(index), content: EntryContent::Blank };
        LogWrite::Append(indexes.map(entry).collect())
    }

    #[test]
    fn writes_survive_the_process_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let vote = VoteRecord { term: 1, node: 1, committed: true };
        let mut store = RedbStore::open(folder.path(), NodeId(1)).unwrap();
        assert_eq!(store.load().unwrap(), StoredLog::default());
        store
            .commit(&[
                LogWrite::Vote(vote),
                entries(0..=9),
                LogWrite::TruncateAfter(Some(5)),
                entries(6..=7),
                LogWrite::Purge(at(2)),
                LogWrite::Committed(Some(at(6))),
            ])
            .unwrap();
        drop(store);

        let stored = RedbStore::open(folder.path(), NodeId(1)).unwrap().load().unwrap();
        assert_eq!(
            (stored.vote, stored.committed, stored.purged),
            (Some(vote), Some(at(6)), Some(at(2)))
        );
        let indexes: Vec<u64> = stored.entries.iter().map(|entry| entry.at.index).collect();
        assert_eq!(indexes, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_second_opener_and_another_node_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(folder.path(), NodeId(1)).unwrap();
        let second = RedbStore::open(folder.path(), NodeId(1)).unwrap_err();
        assert!(second.to_string().starts_with("data directory is in use by another process"));
        drop(store);
        let other = RedbStore::open(folder.path(), NodeId(2)).unwrap_err();
        assert_eq!(other.to_string(), "data directory belongs to control node 1, not to 2");
    }
}
