//! How this node calls its peers. A peer that cannot be reached, or refuses this node, is answered for as
//! unreachable, so that the library backs off; a pre-vote is never granted by nobody.

use std::future::Future;
use std::time::Duration;

use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use phalanx_proto::id::NodeId;
use phalanx_proto::wire::parts::PART_BYTES_MAX;
use phalanx_proto::{MESSAGE_BYTES_MAX, pb};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::{Types, Vote, wire};
use crate::peers::Peers;
use crate::store::chain;

/// How long a peer may take to write entries to its disk. The library allows a heartbeat's interval, which a
/// slow sync exceeds, and what was cut off is only sent once more.
const APPEND_WAIT_MAX: Duration = Duration::from_secs(1);

type Stub = pb::raft_client::RaftClient<Channel>;
type Snapshot = openraft::type_config::alias::SnapshotOf<Types, Vec<u8>>;

/// Makes a [`PeerClient`] for each peer.
#[derive(Debug)]
pub(super) struct Network(pub(super) Peers);

/// Calls one peer.
#[derive(Debug)]
pub(super) struct PeerClient {
    peers: Peers,
    target: NodeId,
    url: String,
}

/// What a call is for, and how long it may take.
#[derive(Clone, Copy)]
struct Call {
    action: RPCTypes,
    wait_max: Duration,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> PeerClient {
        PeerClient { peers: self.0.clone(), target: NodeId(target), url: node.addr.clone() }
    }
}

// === impl PeerClient ===

impl PeerClient {
    async fn call<M, R, F>(
        &self,
        Call { action, wait_max }: Call,
        message: M,
        attempt: impl FnOnce(Stub, Request<M>) -> F,
    ) -> Result<R, RPCError<Types>>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let request = self.peers.identity().stamp(self.target, message).ok_or_else(|| {
            Unreachable::from_string("this node does not belong to a cluster yet")
        })?;
        let channel = self.peers.channel(self.target, &self.url);
        let channel = channel.map_err(|error| Unreachable::from_string(chain(&error)))?;
        let stub = Stub::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        match timeout(wait_max, attempt(stub, request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(rpc_error(&status)),
            Err(_elapsed) => {
                let (id, target) = (self.peers.identity().node().0, self.target.0);
                Err(Timeout { action, id, target, timeout: wait_max }.into())
            }
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        Snapshot { meta, snapshot: body }: Snapshot,
        wait_max: Duration,
    ) -> Result<SnapshotResponse<Types>, RPCError<Types>> {
        let call = Call { action: RPCTypes::InstallSnapshot, wait_max };
        let mut chunk =
            wire::snapshot_chunk(&vote, &meta, &body).map_err(|error| damaged(&error))?;
        // Enough for a receiver that loses everything once on the way; the library starts over then.
        let calls_max = 2 * (body.len() / PART_BYTES_MAX + 2);
        for _call in 0..calls_max {
            let progress = self.call(call, chunk.clone(), |mut stub, request| async move {
                stub.install_snapshot(request).await
            });
            let pb::SnapshotProgress { received_bytes, vote } = progress.await?;
            if vote.is_some() {
                let vote = wire::parse_vote("vote", vote).map_err(|error| damaged(&error))?;
                return Ok(SnapshotResponse::new(vote));
            }
            let rest = usize::try_from(received_bytes).ok().and_then(|from| body.get(from..));
            let rest = rest.ok_or_else(|| {
                NetworkError::from_string(format!(
                    "peer has {received_bytes} bytes of a snapshot of {}",
                    body.len()
                ))
            })?;
            chunk.offset = received_bytes;
            chunk.data = rest[..rest.len().min(PART_BYTES_MAX)].to_vec();
        }
        let reason = format!("peer did not take the snapshot in {calls_max} calls");
        Err(NetworkError::from_string(reason).into())
    }
}

impl RaftNetworkV2<Types> for PeerClient {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let ttl = option.hard_ttl();
        let wait_max = if request.entries.is_empty() { ttl } else { ttl.max(APPEND_WAIT_MAX) };
        let call = Call { action: RPCTypes::AppendEntries, wait_max };
        let message = wire::append_request(&request).map_err(|error| damaged(&error))?;
        let response = self.call(call, message, |mut stub, request| async move {
            stub.append_entries(request).await
        });
        wire::parse_append_response(response.await?).map_err(|error| damaged(&error))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let call = Call { action: RPCTypes::Vote, wait_max: option.hard_ttl() };
        let response =
            self.call(call, wire::vote_request(&request), |mut stub, request| async move {
                stub.vote(request).await
            });
        wire::parse_vote_response(response.await?).map_err(|error| damaged(&error))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let call = Call { action: RPCTypes::Vote, wait_max: option.hard_ttl() };
        let response =
            self.call(call, wire::vote_request(&request), |mut stub, request| async move {
                stub.pre_vote(request).await
            });
        wire::parse_vote_response(response.await?).map_err(|error| damaged(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            sent = self.send_snapshot(vote, snapshot, option.hard_ttl()) => Ok(sent?),
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let call = Call { action: RPCTypes::TransferLeader, wait_max: option.hard_ttl() };
        let message = wire::transfer_request(&request);
        let response = self.call(call, message, |mut stub, request| async move {
            stub.transfer_leader(request).await
        });
        wire::parse_transfer_response(response.await?).map_err(|error| damaged(&error))
    }
}

/// A connection that failed and a peer that refuses this node call for backing off; so does nothing else.
fn rpc_error(status: &Status) -> RPCError<Types> {
    let reason = status.message();
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition => Unreachable::from_string(reason).into(),
        _ => NetworkError::from_string(reason).into(),
    }
}

fn damaged(error: &dyn std::error::Error) -> RPCError<Types> {
    NetworkError::from_string(chain(error)).into()
}
