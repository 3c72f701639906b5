//! The machine under a simulated control node: a disk that forgets what was not synced, a wall clock that is
//! wrong, and names that follow from the seed.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_chassis::whole_file::Files;
use phalanx_proto::id::NodeId;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::transport::{Channel, Endpoint};

use super::files::{Folder, HostFiles};
use super::history::History;
use super::network::{HostId, Network};
use crate::host::{Host, OpenedLog};
use crate::peers::Line;
use crate::store::record::EntryRecord;
use crate::store::writer::{self, Job, Writer};
use crate::store::{LogStore, LogWrite, StoreError, StoredLog};

/// How long a sync of a good disk takes.
pub(super) const SYNC_MS: (u64, u64) = (0, 4);

/// When the simulations begin, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// One machine.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) host: HostId,
    pub(super) node: NodeId,
    pub(super) network: Network,
    pub(super) disks: Disks,
    pub(super) history: History,
    /// How wrong its wall clock is.
    pub(super) skew_ms: i64,
}

/// The disks of all nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Disks(Arc<Mutex<Shelf>>);

#[derive(Debug)]
struct Shelf {
    rng: SmallRng,
    platters: BTreeMap<HostId, Platter>,
    names: u64,
}

#[derive(Debug)]
struct Platter {
    /// What a crash leaves.
    durable: StoredLog,
    files: Folder,
    /// All that was ever written and not taken back, purged entries too.
    entries: BTreeMap<u64, EntryRecord>,
    sync_ms: (u64, u64),
    fails: bool,
    /// A sync failed, and nobody asked about it yet.
    failed: bool,
    /// A sync failed since the log was opened: nothing more may be written.
    broken: bool,
}

/// The log of one node.
#[derive(Debug)]
struct Store {
    disks: Disks,
    history: History,
    host: HostId,
}

/// The writer of one node's log, as a task.
struct Syncing {
    disks: Disks,
    history: History,
    host: HostId,
    writer: Writer<Store>,
    /// Being synced: after a crash, all of it or none is there.
    syncing: Vec<Job>,
    waiting: Vec<Job>,
}

// === impl Machine ===

impl Host for Machine {
    fn raft_runtime(&self) -> io::Result<Option<Runtime>> {
        Ok(None)
    }

    fn has_blocking_threads(&self) -> bool {
        false
    }

    fn files(&self) -> Arc<dyn Files> {
        Arc::new(HostFiles { disks: self.disks.clone(), host: self.host })
    }

    fn open_log(&self, _folder: &Path, _node: NodeId) -> Result<OpenedLog, StoreError> {
        let (queue, jobs) = writer::queue();
        let (disks, history) = (self.disks.clone(), self.history.clone());
        let host = self.host;
        let mut store = Store { disks: disks.clone(), history: history.clone(), host };
        let stored = store.load()?;
        let writer = Writer::new(store);
        let syncing =
            Syncing { disks, history, host, writer, syncing: Vec::new(), waiting: Vec::new() };
        tokio::spawn(syncing.run(jobs));
        Ok(OpenedLog { stored, queue, writer: None })
    }

    fn connect(&self, endpoint: &Endpoint, line: Line) -> Channel {
        self.network.channel(self.host, endpoint, line)
    }

    fn wall_clock(&self) -> Duration {
        Duration::from_millis((EPOCH_MS + self.history.now()).saturating_add_signed(self.skew_ms))
    }

    fn unique_name(&self) -> String {
        let mut shelf = self.disks.0.lock();
        shelf.names += 1;
        format!("cluster {}", shelf.names)
    }
}

// === impl Disks ===

impl Disks {
    pub(super) fn new(seed: u64) -> Self {
        let (rng, platters) = (SmallRng::seed_from_u64(seed), BTreeMap::new());
        Self(Arc::new(Mutex::new(Shelf { rng, platters, names: 0 })))
    }

    fn with<T>(&self, host: HostId, act: impl FnOnce(&mut Platter) -> T) -> T {
        act(self.0.lock().platters.entry(host).or_default())
    }

    pub(super) fn set_sync(&self, host: HostId, sync_ms: (u64, u64)) {
        self.with(host, |platter| platter.sync_ms = sync_ms);
    }

    pub(super) fn set_failing(&self, host: HostId, fails: bool) {
        self.with(host, |platter| platter.fails = fails);
    }

    /// The power of `host` fails while it writes a file, after so many steps; or it does not.
    pub(super) fn set_dark_after(&self, host: HostId, steps: Option<u32>) {
        self.with(host, |platter| platter.files.fail_after(steps));
    }

    /// Whether the power failed so since this was asked last.
    pub(super) fn take_dark(&self, host: HostId) -> bool {
        self.with(host, |platter| platter.files.take_dark())
    }

    pub(super) fn is_dark(&self, host: HostId) -> bool {
        self.with(host, |platter| platter.files.is_dark())
    }

    pub(super) fn with_files<T>(&self, host: HostId, act: impl FnOnce(&mut Folder) -> T) -> T {
        self.with(host, |platter| act(&mut platter.files))
    }

    /// What lies in files and was not synced is there or not.
    pub(super) fn lose_power(&self, host: HostId) {
        let mut shelf = self.0.lock();
        let Shelf { rng, platters, .. } = &mut *shelf;
        platters.entry(host).or_default().files.lose_power(|| rng.random_bool(0.5));
    }

    /// Whether a sync failed since this was asked last.
    pub(super) fn take_failed(&self, host: HostId) -> bool {
        self.with(host, |platter| std::mem::take(&mut platter.failed))
    }

    /// The entry at `index` in the log on `host`.
    pub(super) fn entry(&self, host: HostId, index: u64) -> Option<EntryRecord> {
        self.with(host, |platter| platter.entries.get(&index).cloned())
    }

    pub(super) fn wipe(&self, host: HostId) {
        self.0.lock().platters.remove(&host);
    }

    fn sync_time(&self, host: HostId) -> Duration {
        let mut shelf = self.0.lock();
        let (min, max) = shelf.platters.entry(host).or_default().sync_ms;
        Duration::from_millis(shelf.rng.random_range(min..=max))
    }

    fn coin(&self) -> bool {
        self.0.lock().rng.random_bool(0.5)
    }
}

impl Default for Platter {
    fn default() -> Self {
        Self {
            durable: StoredLog::default(),
            files: Folder::default(),
            entries: BTreeMap::new(),
            sync_ms: SYNC_MS,
            fails: false,
            failed: false,
            broken: false,
        }
    }
}

// === impl Store ===

impl LogStore for Store {
    fn load(&mut self) -> Result<StoredLog, StoreError> {
        Ok(self.disks.with(self.host, |platter| {
            let durable = platter.durable.clone();
            platter.broken = false;
            let first = durable.entries.first().map_or(u64::MAX, |entry| entry.at.index);
            let purged = durable.purged.map_or(0, |purged| purged.index);
            platter.entries.retain(|index, _entry| *index < first && *index <= purged);
            let entries = durable.entries.iter();
            platter.entries.extend(entries.map(|entry| (entry.at.index, entry.clone())));
            durable
        }))
    }

    fn commit(&mut self, writes: &[LogWrite]) -> Result<(), StoreError> {
        for write in writes {
            if let LogWrite::Vote(vote) = write
                && vote.committed
            {
                self.history.leads(vote.term, vote.node);
            }
        }
        self.disks.with(self.host, |platter| {
            if platter.fails {
                (platter.failed, platter.broken) = (true, true);
                return Err(StoreError::Damaged { what: "disk", reason: "sync failed".to_owned() });
            }
            writes.iter().for_each(|write| apply(&mut platter.durable, write));
            Ok(())
        })
    }
}

fn apply(log: &mut StoredLog, write: &LogWrite) {
    match write {
        LogWrite::Vote(vote) => log.vote = Some(*vote),
        LogWrite::Committed(committed) => log.committed = *committed,
        LogWrite::Append(entries) => {
            let first = entries.first().map_or(u64::MAX, |entry| entry.at.index);
            log.entries.retain(|entry| entry.at.index < first);
            log.entries.extend(entries.iter().cloned());
        }
        LogWrite::TruncateAfter(last) => {
            log.entries.retain(|entry| last.is_some_and(|last| entry.at.index <= last));
        }
        LogWrite::Purge(last) => {
            log.purged = Some(*last);
            log.entries.retain(|entry| entry.at.index > last.index);
        }
    }
}

// === impl Syncing ===

impl Syncing {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut done = Instant::now();
        loop {
            tokio::select! {
                biased;
                job = jobs.recv() => {
                    let Some(job) = job else { return };
                    self.queued(&job);
                    self.waiting.push(job);
                }
                () = sleep_until(done), if !self.syncing.is_empty() => {
                    self.writer.write(std::mem::take(&mut self.syncing));
                }
            }
            if self.syncing.is_empty() && !self.waiting.is_empty() {
                self.syncing = std::mem::take(&mut self.waiting);
                done = Instant::now() + self.disks.sync_time(self.host);
            }
        }
    }

    /// What a node may read at once, before it is on disk.
    fn queued(&self, job: &Job) {
        self.history.trace(&(self.host, &job.write));
        self.disks.with(self.host, |platter| match &job.write {
            LogWrite::Append(entries) => {
                for entry in entries {
                    self.history.proposed(entry.at);
                    platter.entries.insert(entry.at.index, entry.clone());
                }
            }
            LogWrite::TruncateAfter(last) => {
                platter.entries.retain(|index, _entry| last.is_some_and(|last| *index <= last));
            }
            // Kept for whoever looks later; but a snapshot that came in place of another log shows that what
            // lay there was never applied.
            LogWrite::Purge(last) => {
                let is_own =
                    platter.entries.get(&last.index).is_some_and(|entry| entry.at == *last);
                platter.entries.retain(|index, _entry| is_own || *index > last.index);
            }
            LogWrite::Vote(_) | LogWrite::Committed(_) => {}
        });
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        let syncing = std::mem::take(&mut self.syncing);
        let reached_the_disk = !syncing.is_empty() && self.disks.coin();
        if reached_the_disk {
            self.disks.with(self.host, |platter| {
                let jobs = syncing.iter().filter(|_job| !platter.broken);
                jobs.for_each(|job| apply(&mut platter.durable, &job.write));
            });
        }
    }
}

impl fmt::Debug for Syncing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Syncing").field("host", &self.host).finish_non_exhaustive()
    }
}
