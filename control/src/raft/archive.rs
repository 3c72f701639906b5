//! The state as a backup file, and a node that begins from one, with no leader anywhere.

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{Lineage, ViewIndex};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::consensus::PROPOSE_WAIT_MAX;
use super::machine::library_snapshot;
use super::{Consensus, ProposeError, Vote};
use crate::backup::{Backup, BackupError, Beginning};
use crate::host::off_the_runtime;
use crate::store::snapshot::format;
use crate::store::{StoreError, chain};

/// How many states may be packed or unpacked at a time: each takes its size in memory several times over.
pub(super) const ARCHIVES_MAX: usize = 1;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(
        "this control node already belongs to {0}; to restore, start one with an empty --data-dir and without --bootstrap"
    )]
    NotPristine(String),
    #[error("another backup or restore is under way at this control node")]
    Busy,
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The history that a restore began.
#[derive(Clone, Debug)]
pub(crate) struct Restored {
    pub(crate) cluster_id: String,
    pub(crate) lineage: Lineage,
    pub(crate) index: ViewIndex,
}

/// Held while a backup comes in, so that only one does.
pub(crate) type RestorePermit<'a> = SemaphorePermit<'a>;

// === impl Consensus ===

impl Consensus {
    /// Everything that this node has applied, as a file.
    pub(crate) async fn backup(&self) -> Result<Vec<u8>, ArchiveError> {
        let permit = timeout(PROPOSE_WAIT_MAX, self.archives().acquire()).await;
        let _permit = permit.map_err(|_elapsed| ArchiveError::Busy)?.map_err(stopped)?;
        let copied = self.raft().with_state_machine(|machine| {
            let copy = machine.copy();
            Box::pin(async move { copy })
        });
        let copied = timeout(PROPOSE_WAIT_MAX, copied).await;
        let copied = copied.map_err(|_elapsed| ProposeError::Timeout)?.map_err(stopped)?;
        let pack = move || format::encode(&copied.snapshot()?);
        Ok(off_the_runtime(&**self.host(), pack).await?)
    }

    /// Lets a backup come in, at a node that has nothing to lose.
    pub(crate) async fn begin_restore(&self) -> Result<RestorePermit<'_>, ArchiveError> {
        let permit = self.archives().try_acquire().map_err(|_taken| ArchiveError::Busy)?;
        if let Some(cluster_id) = self.identity().cluster_id() {
            return Err(ArchiveError::NotPristine(format!("cluster {cluster_id}")));
        }
        if self.raft().is_initialized().await.map_err(stopped)? {
            return Err(ArchiveError::NotPristine("a group".to_owned()));
        }
        Ok(permit)
    }

    /// Begins a new history from `file`, with this node as its only voter, and leads it.
    ///
    /// The cluster gets a new id before anything else: nodes of the old group, which may still run, are
    /// strangers to it from then on, so their log can never meet this one.
    pub(crate) async fn restore(
        &self,
        _permit: RestorePermit<'_>,
        file: Vec<u8>,
    ) -> Result<Restored, ArchiveError> {
        let unpacked = off_the_runtime(&**self.host(), move || Ok(Backup::read(&file))).await?;
        let backup = unpacked?;
        let cluster_id = self.host().unique_name();
        let now_ms = u64::try_from(self.host().wall_clock().as_millis()).unwrap_or(u64::MAX);
        let (node, url) = (self.identity().node(), self.url().to_owned());
        let beginning = Beginning { cluster_id: cluster_id.clone(), now_ms, node, url };
        let begin = move || backup.begin_anew(beginning);
        let (snapshot, last) = off_the_runtime(&**self.host(), begin).await?;
        // From here on the node is not as it was.
        let known = self.identity().cluster_id_or(&cluster_id).await?;
        if *known != *cluster_id {
            return Err(ArchiveError::NotPristine(format!("cluster {known}")));
        }
        let restored = Restored {
            cluster_id,
            lineage: Lineage(snapshot.header.lineage),
            index: ViewIndex(last.index),
        };

        // As if the leader that wrote the last entry had sent this: it won an election in that term.
        let vote = Vote::new_committed(last.term, node.0);
        let installed = self.raft().install_full_snapshot(vote, library_snapshot(snapshot)).await;
        installed.map_err(stopped)?;
        self.raft().trigger().elect(false).await.map_err(stopped)?;
        let mut statuses = self.statuses();
        let led = statuses.wait_for(|status| status.leader == Some(node));
        let led = timeout(PROPOSE_WAIT_MAX, led).await.map_err(|_elapsed| ProposeError::Timeout)?;
        led.map_err(stopped)?;
        tracing::warn!(cluster_id = restored.cluster_id, lineage = %restored.lineage.0, "restored from a backup");
        Ok(restored)
    }
}

fn stopped(error: impl std::error::Error) -> ProposeError {
    ProposeError::Stopped(chain(&error))
}

impl From<ArchiveError> for Fault {
    fn from(error: ArchiveError) -> Self {
        let code = match error {
            ArchiveError::Propose(error) => return error.into(),
            ArchiveError::NotPristine(_) | ArchiveError::Backup(_) => FaultCode::InvalidRequest,
            ArchiveError::Busy => FaultCode::Overloaded,
            ArchiveError::Store(_) => FaultCode::Internal,
        };
        Self::new(code, chain(&error))
    }
}
