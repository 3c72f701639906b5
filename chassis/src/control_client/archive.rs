//! Backups, fetched and given back.

use std::time::Duration;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::pb;
use phalanx_proto::wire::from_status;
use phalanx_proto::wire::parts::{Assembly, split};
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;

use super::ControlClient;
use super::patience::{is_between_leaders, persist};

/// How long a file may be under way: the largest, over 10 Mbit/s, and then some to be written to a disk.
const TRANSFER_WAIT_MAX: Duration = Duration::from_secs(75);

/// Before a backup that broke off is begun again.
const BEGIN_AGAIN_AFTER: Duration = Duration::from_millis(500);

// === impl ControlClient ===

impl ControlClient {
    /// Everything the control group holds, as a file: with every write in it that was answered before. With
    /// `stale`, what the first node that answers has applied, which needs no leader and may lack the latest.
    ///
    /// # Errors
    /// As the last node that was tried answered; [`FaultCode::DeadlineExceeded`] when it stops sending.
    pub async fn backup(&self, stale: bool) -> Result<Vec<u8>, Fault> {
        receive(self.open_backup(stale).await?).await
    }

    /// As [`ControlClient::backup`] of the latest, begun again for up to `wait_max` while nobody leads, or when the
    /// node that sent it is gone.
    ///
    /// # Errors
    /// As for [`ControlClient::backup`].
    pub async fn backup_within(&self, wait_max: Duration) -> Result<Vec<u8>, Fault> {
        let deadline = Instant::now() + wait_max;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let parts =
                persist(left, self.jitter, || self.open_backup(false), is_between_leaders).await?;
            match receive(parts).await {
                Err(fault) if Instant::now() + BEGIN_AGAIN_AFTER < deadline => {
                    tracing::debug!(%fault, "a backup broke off, beginning it again");
                    sleep(BEGIN_AGAIN_AFTER).await;
                }
                received => return received,
            }
        }
    }

    async fn open_backup(&self, stale: bool) -> Result<Streaming<pb::BackupPart>, Fault> {
        let request = pb::BackupRequest { stale };
        self.call(|mut stub| async move { stub.backup(request).await }).await
    }

    /// Begins a new history from `file` at the node this client is for. To ask again after a lost answer is
    /// refused, because the node then has a state.
    ///
    /// # Errors
    /// [`FaultCode::InvalidRequest`] when the file is no backup, or the node has a state already; both change
    /// nothing.
    pub async fn restore(&self, file: Vec<u8>) -> Result<pb::RestoreResponse, Fault> {
        let parts: Vec<pb::BackupPart> = split(file).collect();
        let attempt = |mut stub: super::Stub| {
            let parts = parts.clone();
            async move { stub.restore(tokio_stream::iter(parts)).await }
        };
        self.call_within(TRANSFER_WAIT_MAX, attempt).await
    }
}

async fn receive(mut parts: Streaming<pb::BackupPart>) -> Result<Vec<u8>, Fault> {
    let receive = async {
        let mut assembly = Assembly::default();
        while let Some(part) = parts.message().await.map_err(|status| from_status(&status))? {
            assembly.take(&part)?;
        }
        Ok(assembly.finish()?)
    };
    timeout(TRANSFER_WAIT_MAX, receive).await.unwrap_or_else(|_elapsed| {
        let message = format!("the backup did not come within {TRANSFER_WAIT_MAX:?}");
        Err(Fault::new(FaultCode::DeadlineExceeded, message))
    })
}
