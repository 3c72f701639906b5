//! What a node keeps on disk, in formats of its own: the log with the vote, and snapshots.
//!
//! ```text
//! raft::log ── LogWrite ──► writer (one thread, one transaction for all that waits) ──► LogStore: redb
//! raft::machine ──────────► snapshot (files: written whole, synced, renamed)
//! crate::identity ────────► identity (one file, likewise)
//! ```
//!
//! No type of the Raft library is stored: see [`record`] for what is. Everything here blocks.

pub(crate) mod identity;
pub(crate) mod record;
mod redb;
pub(crate) mod snapshot;
pub(crate) mod writer;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use phalanx_chassis::error_chain::chain;
use phalanx_chassis::whole_file::FileError;

use self::record::{EntryRecord, LogPosition, VoteRecord};
pub(crate) use self::redb::{FILE_NAME as LOG_FILE, RedbStore};

/// A durable log. Writes happen in the order given, all of them or none.
pub(crate) trait LogStore: Send + 'static {
    /// Everything stored.
    fn load(&mut self) -> Result<StoredLog, StoreError>;

    /// Applies `writes` in one transaction that is on disk when this returns.
    fn commit(&mut self, writes: &[LogWrite]) -> Result<(), StoreError>;
}

/// One change of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogWrite {
    Vote(VoteRecord),
    /// A hint that saves a restarted node from showing older state; see [`writer`] for when it is written.
    Committed(Option<LogPosition>),
    Append(Vec<EntryRecord>),
    /// Keeps entries up to this index; none of them when there is no index.
    TruncateAfter(Option<u64>),
    /// Drops entries up to here.
    Purge(LogPosition),
}

/// The log as it was stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredLog {
    pub(crate) vote: Option<VoteRecord>,
    pub(crate) committed: Option<LogPosition>,
    pub(crate) purged: Option<LogPosition>,
    /// By index, without holes.
    pub(crate) entries: Vec<EntryRecord>,
}

/// What can go wrong with the disk. None of it is retried: after a failed sync nobody knows what is on disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("data directory is in use by another process: {path} is locked")]
    Locked { path: PathBuf },
    #[error("data directory belongs to control node {found}, not to {expected}")]
    OtherNode { found: u64, expected: u64 },
    #[error("{what} is of format version {found}, this build reads up to {latest}")]
    Version { what: &'static str, found: u32, latest: u32 },
    #[error("{what} is over {bytes_max} bytes, the most that is taken")]
    TooLarge { what: &'static str, bytes_max: u64 },
    #[error("{what} is damaged: {reason}")]
    Damaged { what: &'static str, reason: String },
    /// A file that can be read by another build, or once whatever hinders it is gone.
    #[error("{}", path.display())]
    At { path: PathBuf, source: Box<Self> },
    /// A file without which the node cannot go on.
    #[error(
        "{}: {problem}. This node cannot go on from its data directory. While others of its group lead: \
         phalanx cluster remove this node, then add a new one with an empty data directory. If none is left: \
         phalanx cluster restore a backup at a node with an empty data directory",
        path.display()
    )]
    Lost { path: PathBuf, problem: String },
    #[error("writing was interrupted: {reason}")]
    Interrupted { reason: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("log store failed")]
    Log(#[source] Box<::redb::Error>),
    #[error("log store failed before: {first}")]
    Latched { first: String },
}

// === impl StoreError ===

impl StoreError {
    /// As the fault of the file at `path`: which one it is, and what to do if it is lost.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        let path = path.to_owned();
        match self {
            damaged @ Self::Damaged { .. } => Self::Lost { path, problem: damaged.to_string() },
            Self::Log(error) if is_damage(&error) => {
                Self::Lost { path, problem: format!("log is damaged: {}", chain(&*error)) }
            }
            other @ (Self::Version { .. } | Self::TooLarge { .. } | Self::Log(_)) => {
                Self::At { path, source: Box::new(other) }
            }
            other => other,
        }
    }
}

/// Whether the log's file is there and holds something else.
fn is_damage(error: &::redb::Error) -> bool {
    match error {
        ::redb::Error::Corrupted(_) => true,
        ::redb::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::other(chain(&error))
    }
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    FileError { action, path: path.to_owned(), source }.into()
}

#[cfg(test)]
mod tests;
