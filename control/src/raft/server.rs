//! What peers ask of this node: each call is checked, parsed, and handed to the library.

use std::sync::Arc;

use openraft::Raft;
use openraft::errors::Fatal;
use openraft::raft::AppendEntriesResponse;
use openraft::type_config::alias::SnapshotOf;
use parking_lot::Mutex;
use phalanx_proto::pb;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::contact::Contact;
use super::machine::Machine;
use super::transfer::{Incoming, Part, Taken};
use super::wire::MessageError;
use super::{Consensus, Types, wire};
use crate::identity::{Identity, IdentityError};
use crate::store::chain;

/// The Raft service of one node. It holds nothing that owns the runtime it is served on.
#[derive(Clone, Debug)]
pub(crate) struct RaftService {
    raft: Raft<Types, Machine>,
    contact: Contact,
    identity: Identity,
    incoming: Arc<Mutex<Incoming>>,
}

// === impl RaftService ===

impl RaftService {
    pub(crate) fn new(consensus: &Consensus) -> Self {
        Self {
            raft: consensus.raft().clone(),
            contact: consensus.contact().clone(),
            identity: consensus.identity().clone(),
            incoming: Arc::default(),
        }
    }

    async fn accept<T>(&self, request: Request<T>) -> Result<T, Status> {
        let (metadata, _extensions, message) = request.into_parts();
        check(&self.identity, &metadata).await?;
        Ok(message)
    }

    async fn take(&self, chunk: pb::SnapshotChunk) -> Result<pb::SnapshotProgress, Status> {
        let part = Part {
            digest: &chunk.digest,
            total_bytes: chunk.total_bytes,
            offset: chunk.offset,
            data: &chunk.data,
        };
        let taken = self.incoming.lock().take(part).map_err(|error| refused(&error))?;
        let body = match taken {
            Taken::Until(received_bytes) => {
                return Ok(pb::SnapshotProgress { received_bytes, vote: None });
            }
            Taken::Whole(body) => body,
        };
        let meta = wire::parse_snapshot_meta(&chunk).map_err(malformed)?;
        let vote = wire::parse_vote("vote", chunk.vote).map_err(malformed)?;
        let snapshot = SnapshotOf::<Types, Vec<u8>> { meta, snapshot: body };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        let vote = wire::vote(&installed.map_err(|error| stopped(&error))?.vote);
        Ok(pb::SnapshotProgress { received_bytes: chunk.total_bytes, vote: Some(vote) })
    }
}

#[tonic::async_trait]
impl pb::raft_server::Raft for RaftService {
    async fn append_entries(
        &self,
        request: Request<pb::AppendEntriesRequest>,
    ) -> Result<Response<pb::AppendEntriesResponse>, Status> {
        let request = self.accept(request).await?;
        let request = wire::parse_append_request(&request).map_err(malformed)?;
        let response = self.raft.append_entries(request).await;
        let response = response.map_err(|error| stopped(&error))?;
        // Anything but a refusal is for the leader that this node follows.
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.contact.heard();
        }
        Ok(Response::new(wire::append_response(&response)))
    }

    async fn vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request = self.accept(request).await?;
        let request = wire::parse_vote_request(request).map_err(malformed)?;
        let response = self.raft.vote(request).await;
        Ok(Response::new(wire::vote_response(&response.map_err(|error| stopped(&error))?)))
    }

    async fn pre_vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request = self.accept(request).await?;
        let request = wire::parse_vote_request(request).map_err(malformed)?;
        let response = self.raft.pre_vote(request).await;
        Ok(Response::new(wire::vote_response(&response.map_err(|error| stopped(&error))?)))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let request = self.accept(request).await?;
        let request = wire::parse_transfer_request(request).map_err(malformed)?;
        let response = self.raft.handle_transfer_leader(request).await;
        let response = response.map_err(|error: Fatal<Types>| stopped(&error))?;
        Ok(Response::new(wire::transfer_response(&response)))
    }

    async fn install_snapshot(
        &self,
        request: Request<pb::SnapshotChunk>,
    ) -> Result<Response<pb::SnapshotProgress>, Status> {
        let chunk = self.accept(request).await?;
        self.take(chunk).await.map(Response::new)
    }
}

/// Lets calls of this cluster's nodes to this node pass.
pub(crate) async fn check(identity: &Identity, metadata: &MetadataMap) -> Result<(), Status> {
    match identity.check(metadata).await {
        Ok(_sender) => Ok(()),
        Err(error @ IdentityError::Store(_)) => Err(Status::internal(chain(&error))),
        Err(error) => Err(Status::failed_precondition(error.to_string())),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it ends a chain of results")]
fn malformed(error: MessageError) -> Status {
    refused(&error)
}

fn refused(error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(chain(error))
}

fn stopped(error: &dyn std::error::Error) -> Status {
    Status::unavailable(chain(error))
}
