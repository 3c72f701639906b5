//! How this node reaches its peers. A group of one has none: whatever is sent to another node is answered
//! as unreachable, so that the library backs off, and a pre-vote is never granted by nobody.

use std::future::Future;

use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};

use super::{Types, Vote};

/// Makes a [`NoTransport`] for each peer.
#[derive(Debug)]
pub(super) struct SingleNode;

/// A peer that cannot be reached.
#[derive(Debug)]
pub(super) struct NoTransport {
    target: u64,
}

impl RaftNetworkFactory<Types> for SingleNode {
    type Network = NoTransport;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> NoTransport {
        NoTransport { target }
    }
}

impl NoTransport {
    fn unreachable(&self) -> Unreachable<Types> {
        let target = self.target;
        Unreachable::from_string(format!(
            "control node {target} is a peer, and this build runs a single control node"
        ))
    }
}

impl RaftNetworkV2<Types> for NoTransport {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(self.unreachable().into())
    }

    async fn vote(
        &mut self,
        _request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(self.unreachable().into())
    }

    /// Spelt out because the trait's own version grants every pre-vote.
    async fn pre_vote(
        &mut self,
        _request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(self.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: openraft::type_config::alias::SnapshotOf<Types, Vec<u8>>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(self.unreachable().into())
    }
}
