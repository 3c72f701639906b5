//! The log as the library sees it. The whole of it, 30,000 entries at most, is held in memory: reads never
//! touch the disk, and an entry can be read as soon as it is queued for writing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, entry::RaftEntry as _};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Entry, LogId, Types, Vote, convert};
use crate::planted::{Bug, planted};
use crate::store::writer::WriteQueue;
use crate::store::{LogWrite, StoredLog};

/// The library's log store.
#[derive(Debug)]
pub(super) struct Log {
    cache: LogReader,
    queue: WriteQueue,
}

/// The log in memory, shared with everybody who replicates from it.
#[derive(Clone, Debug)]
pub(super) struct LogReader(Arc<Mutex<Cache>>);

#[derive(Debug)]
struct Cache {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

// === impl Log ===

impl Log {
    pub(super) fn new(stored: StoredLog, queue: WriteQueue) -> Self {
        let cache = Cache {
            vote: stored.vote.map(convert::vote),
            committed: stored.committed.map(convert::log_id),
            purged: stored.purged.map(convert::log_id),
            entries: stored
                .entries
                .into_iter()
                .map(|record| (record.at.index, convert::entry(record)))
                .collect(),
        };
        Self { cache: LogReader(Arc::new(Mutex::new(cache))), queue }
    }

    /// Queues a write and waits until it is on disk.
    async fn write(&self, write: LogWrite) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        // A receiver that is gone no longer waits.
        let done = Box::new(move |result| drop(sender.send(result)));
        self.queue.write(write, done).await?;
        receiver
            .await
            .unwrap_or_else(|_dropped| Err(io::Error::other("the log's writer has ended")))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let cache = self.cache.0.lock();
        let last = cache.entries.last_key_value().map(|(_index, entry)| entry.log_id);
        Ok(LogState { last_purged_log_id: cache.purged, last_log_id: last.or(cache.purged) })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.cache.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write(LogWrite::Vote(convert::vote_record(vote))).await?;
        self.cache.0.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.cache.0.lock().committed = committed;
        let position = committed.as_ref().map(convert::position);
        self.queue.write_lazily(LogWrite::Committed(position)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.cache.0.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let records = entries.iter().map(convert::entry_record).collect();
        self.cache.0.lock().entries.extend(entries.into_iter().map(|entry| (entry.index(), entry)));
        if planted(Bug::AckBeforeSync) {
            callback.io_completed(Ok(()));
            return self.queue.write(LogWrite::Append(records), Box::new(|_result| {})).await;
        }
        let done = Box::new(move |result| callback.io_completed(result));
        self.queue.write(LogWrite::Append(records), done).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let first_dropped = last.map_or(0, |last| last.index + 1);
        drop(self.cache.0.lock().entries.split_off(&first_dropped));
        self.write(LogWrite::TruncateAfter(last.map(|last| last.index))).await
    }

    async fn purge(&mut self, last: LogId) -> Result<(), io::Error> {
        {
            let mut cache = self.cache.0.lock();
            cache.purged = Some(last);
            cache.entries = cache.entries.split_off(&(last.index + 1));
        }
        self.write(LogWrite::Purge(convert::position(&last))).await
    }
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let within = |index: &u64| range.contains(index);
        let cache = self.0.lock();
        // A range that ends before it begins would make `BTreeMap::range` panic.
        let entries =
            cache.entries.range((range.start_bound().cloned(), std::ops::Bound::Unbounded));
        let entries = entries.take_while(|(index, _entry)| within(index));
        Ok(entries.map(|(_index, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.lock().vote)
    }
}
