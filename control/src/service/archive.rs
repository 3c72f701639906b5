//! Backups on their way out and in.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use phalanx_chassis::drain::Phase;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::Lineage;
use phalanx_proto::pb;
use phalanx_proto::wire::parts::{Assembly, split};
use phalanx_proto::wire::{from_status, to_status};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::{ControlService, Place, Stub};
use crate::feed::WatchError;

/// How long a backup may take to come in: the largest, over 10 Mbit/s.
const RECEIVE_WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) type BackupParts = Pin<Box<dyn Stream<Item = Result<pb::BackupPart, Status>> + Send>>;

// === impl ControlService ===

impl ControlService {
    /// The leader's state as of now; or, stale, what this node has applied.
    pub(super) async fn do_backup(
        &self,
        request: Request<pb::BackupRequest>,
    ) -> Result<Response<BackupParts>, Status> {
        if !request.get_ref().stale {
            let (place, message) = self.place(request).await?;
            if let Place::Leader(id, url) = place {
                let call = |mut stub: Stub, request| async move { stub.backup(request).await };
                let response = self.forwarder.forward((id, &url), message, call).await?;
                return Ok(response.map(|parts| -> BackupParts { Box::pin(parts) }));
            }
            self.consensus.catch_up().await.map_err(|error| to_status(&error.into()))?;
        }
        if self.feed.end().lineage == Lineage(0) {
            return Err(to_status(&WatchError::NotFounded.into()));
        }
        let file = self.consensus.backup().await.map_err(|error| to_status(&error.into()))?;
        let drain = self.drain.clone();
        let until_drained = async move { drain.reached(Phase::Draining).await };
        let parts = futures::stream::iter(split(file).map(Ok)).take_until(until_drained);
        Ok(Response::new(Box::pin(parts)))
    }

    pub(super) async fn do_restore(
        &self,
        parts: Streaming<pb::BackupPart>,
    ) -> Result<pb::RestoreResponse, Fault> {
        let permit = self.consensus.begin_restore().await?;
        let received = timeout(RECEIVE_WAIT_MAX, receive(parts)).await.map_err(|_elapsed| {
            let message = format!("the backup did not come within {RECEIVE_WAIT_MAX:?}");
            Fault::new(FaultCode::DeadlineExceeded, message)
        })?;
        let restored = self.consensus.restore(permit, received?).await?;
        Ok(pb::RestoreResponse {
            node_id: self.node_id,
            cluster_id: restored.cluster_id,
            lineage: restored.lineage.0,
            index: restored.index.0,
        })
    }
}

async fn receive(mut parts: Streaming<pb::BackupPart>) -> Result<Vec<u8>, Fault> {
    let mut assembly = Assembly::default();
    while let Some(part) = parts.message().await.map_err(|status| from_status(&status))? {
        assembly.take(&part)?;
    }
    Ok(assembly.finish()?)
}
