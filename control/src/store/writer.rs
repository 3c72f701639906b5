//! The thread that writes the log: everything that waits goes into one transaction, and only then does
//! anybody hear of it (group commit).
//!
//! The first failure is the last write: after a failed sync the pages may be gone from the cache and not
//! on the disk, so every later write is refused and the process has to end.

use std::io;
use std::path::Path;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::{LogStore, LogWrite, StoreError, chain, file_error};

/// How many writes may wait. Raft has at most a few appends in flight; more waiting than this means that the
/// disk stands still, and the proposers must feel it.
const QUEUE_MAX: usize = 1024;

/// How many writes go into one transaction.
const BATCH_MAX: usize = 256;

/// Told once a write is on disk, or never will be.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Where writes are queued. The thread ends when the last of these is gone.
#[derive(Clone, Debug)]
pub(crate) struct WriteQueue(mpsc::Sender<Job>);

/// The thread, to be joined after the queue is gone.
#[derive(Debug)]
pub(crate) struct WriterThread(JoinHandle<()>);

pub(crate) struct Job {
    pub(crate) write: LogWrite,
    /// None: the write may wait for the next one that somebody waits for.
    done: Option<Done>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("write", &self.write).finish_non_exhaustive()
    }
}

/// Starts the thread over `store`.
pub(crate) fn start<S>(store: S) -> Result<(WriteQueue, WriterThread), StoreError>
where
    S: LogStore,
{
    let (queue, receiver) = queue();
    let thread = thread::Builder::new()
        .name("log-writer".to_owned())
        .spawn(move || Writer::new(store).run(receiver))
        .map_err(|source| {
            file_error("start the thread that writes", Path::new("the log"), source)
        })?;
    Ok((queue, WriterThread(thread)))
}

/// A queue, and where its writes come out.
pub(crate) fn queue() -> (WriteQueue, mpsc::Receiver<Job>) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (WriteQueue(sender), receiver)
}

// === impl WriteQueue ===

impl WriteQueue {
    /// Queues a write whose completion is reported to `done`.
    pub(crate) async fn write(&self, write: LogWrite, done: Done) -> io::Result<()> {
        self.send(Job { write, done: Some(done) }).await
    }

    /// Queues a write that need not be on disk before the next one.
    pub(crate) async fn write_lazily(&self, write: LogWrite) -> io::Result<()> {
        self.send(Job { write, done: None }).await
    }

    async fn send(&self, job: Job) -> io::Result<()> {
        self.0.send(job).await.map_err(|_closed| io::Error::other("the log's writer has ended"))
    }
}

// === impl WriterThread ===

impl WriterThread {
    /// Waits until everything queued is written and the store is closed.
    pub(crate) fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the log's writer panicked");
        }
    }
}

/// Writes batches, until one fails.
#[derive(Debug)]
pub(crate) struct Writer<S> {
    store: S,
    failure: Option<String>,
    /// The latest write that nobody waits for, to go along with the next one.
    lazy: Option<LogWrite>,
}

impl<S> Writer<S>
where
    S: LogStore,
{
    pub(crate) const fn new(store: S) -> Self {
        Self { store, failure: None, lazy: None }
    }

    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut jobs = vec![first];
            while jobs.len() < BATCH_MAX {
                match queue.try_recv() {
                    Ok(job) => jobs.push(job),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            self.write(jobs);
        }
        if let Some(write) = self.lazy.take()
            && let Err(error) = self.commit(&[write])
        {
            tracing::warn!(error = chain(&error), "cannot write the last commit position");
        }
    }

    /// Writes the batch in order. The latest lazy write goes along, or waits when there is nothing else.
    pub(crate) fn write(&mut self, jobs: Vec<Job>) {
        let mut writes = Vec::with_capacity(jobs.len() + 1);
        let mut waiting = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job.done {
                Some(done) => {
                    writes.push(job.write);
                    waiting.push(done);
                }
                None => self.lazy = Some(job.write),
            }
        }
        if waiting.is_empty() {
            return;
        }
        writes.extend(self.lazy.take());
        let failure = self.commit(&writes).err().map(|error| chain(&error));
        for done in waiting {
            done(failure.as_ref().map_or(Ok(()), |text| Err(io::Error::other(text.clone()))));
        }
    }

    fn commit(&mut self, writes: &[LogWrite]) -> Result<(), StoreError> {
        if let Some(first) = self.failure.clone() {
            return Err(StoreError::Latched { first });
        }
        let result = self.store.commit(writes);
        if let Err(error) = &result {
            let text = chain(error);
            tracing::error!(error = text, "cannot write the log, no further write will be tried");
            self.failure = Some(text);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::oneshot;

    use super::*;
    use crate::store::StoredLog;
    use crate::store::record::{LogPosition, VoteRecord};

    /// Remembers what was committed, and fails one commit.
    struct FailingStore {
        committed: Arc<Mutex<Vec<Vec<LogWrite>>>>,
        fails_at: usize,
        commits: usize,
    }

    impl LogStore for FailingStore {
        fn load(&mut self) -> Result<StoredLog, StoreError> {
            Ok(StoredLog::default())
        }

        fn commit(&mut self, writes: &[LogWrite]) -> Result<(), StoreError> {
            self.commits += 1;
            if self.commits == self.fails_at {
                let reason = "disk is full".to_owned();
                return Err(StoreError::Damaged { what: "test disk", reason });
            }
            self.committed.lock().unwrap().push(writes.to_vec());
            Ok(())
        }
    }

    fn vote(term: u64) -> LogWrite {
        LogWrite::Vote(VoteRecord { term, node: 1, committed: false })
    }

    async fn write(queue: &WriteQueue, write: LogWrite) -> Result<(), String> {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        queue.write(write, done).await.unwrap();
        receiver.await.unwrap().map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn after_one_failed_commit_no_write_is_tried_again() {
        let committed = Arc::new(Mutex::new(Vec::new()));
        let store = FailingStore { committed: Arc::clone(&committed), fails_at: 2, commits: 0 };
        let (queue, thread) = start(store).unwrap();
        assert_eq!(write(&queue, vote(1)).await, Ok(()));
        assert_eq!(write(&queue, vote(2)).await, Err("test disk is damaged: disk is full".into()));
        let latched = "log store failed before: test disk is damaged: disk is full";
        assert_eq!(write(&queue, vote(3)).await, Err(latched.into()));
        drop(queue);
        thread.join();
        assert_eq!(*committed.lock().unwrap(), [vec![vote(1)]]);
    }

    /// A disk that stands still until told, and then fails.
    struct StuckStore(std::sync::mpsc::Receiver<()>);

    impl LogStore for StuckStore {
        fn load(&mut self) -> Result<StoredLog, StoreError> {
            Ok(StoredLog::default())
        }

        fn commit(&mut self, _writes: &[LogWrite]) -> Result<(), StoreError> {
            self.0.recv().unwrap();
            Err(StoreError::Damaged { what: "test disk", reason: "its sync failed".to_owned() })
        }
    }

    #[tokio::test]
    async fn nobody_who_waited_for_a_failed_sync_hears_of_success() {
        let (fail, stuck) = std::sync::mpsc::channel();
        let (queue, thread) = start(StuckStore(stuck)).unwrap();
        let mut answers = Vec::new();
        // The first is under way when the others come, which wait for the next transaction.
        for term in 1..=10 {
            let (sender, receiver) = oneshot::channel();
            let done = Box::new(move |result: io::Result<()>| sender.send(result).unwrap());
            queue.write(vote(term), done).await.unwrap();
            answers.push(receiver);
        }
        fail.send(()).unwrap();
        for answer in answers {
            let error = answer.await.unwrap().unwrap_err().to_string();
            assert!(error.ends_with("test disk is damaged: its sync failed"), "{error}");
        }
        drop((queue, fail));
        thread.join();
    }

    #[tokio::test]
    async fn a_lazy_write_goes_with_the_next_one_or_at_the_end() {
        let committed = Arc::new(Mutex::new(Vec::new()));
        let store = FailingStore { committed: Arc::clone(&committed), fails_at: 0, commits: 0 };
        let (queue, thread) = start(store).unwrap();
        let position = |index| LogWrite::Committed(Some(LogPosition { term: 1, index }));
        queue.write_lazily(position(1)).await.unwrap();
        queue.write_lazily(position(2)).await.unwrap();
        assert_eq!(write(&queue, vote(1)).await, Ok(()));
        queue.write_lazily(position(3)).await.unwrap();
        drop(queue);
        thread.join();
        assert_eq!(*committed.lock().unwrap(), [vec![vote(1), position(2)], vec![position(3)]]);
    }
}
