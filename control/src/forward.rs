//! Passes what only the leader can answer on to it, so that any node answers. One hop: a call that was
//! passed on is answered where it arrives.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::NodeId;
use phalanx_proto::wire::to_status;
use phalanx_proto::{MESSAGE_BYTES_MAX, pb};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::host::Host;
use crate::identity::Identity;
use crate::peers::{Line, Peers};
use crate::store::chain;

/// Calls under way to the leader. Members send a call every 2 s, so this is thousands of them.
const FORWARDS_MAX: usize = 1024;

/// How long the leader may take: above its own wait for a commit, below what clients wait for a node.
const FORWARD_WAIT_MAX: Duration = Duration::from_millis(4500);

/// When a caller should try again after the leader did not answer.
const RETRY_AFTER: Duration = Duration::from_secs(1);

type Stub = pb::control_client::ControlClient<Channel>;

/// The way to the leader. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder {
    peers: Peers,
    permits: Arc<Semaphore>,
}

// === impl Forwarder ===

impl Forwarder {
    pub(crate) fn new(identity: Identity, host: Arc<dyn Host>) -> Self {
        let permits = Arc::new(Semaphore::new(FORWARDS_MAX));
        Self { peers: Peers::new(identity, host, Line::Service), permits }
    }

    /// Calls `leader` and gives its answer as it is.
    pub(crate) async fn forward<M, R, F>(
        &self,
        (leader, url): (NodeId, &str),
        message: M,
        attempt: impl FnOnce(Stub, Request<M>) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let Ok(_permit) = self.permits.try_acquire() else {
            let message = format!("{FORWARDS_MAX} calls are under way to the leader already");
            return Err(refusal(FaultCode::Overloaded, message));
        };
        let request = self.peers.identity().stamp(leader, message).ok_or_else(|| {
            refusal(FaultCode::Unavailable, "this control node has no cluster yet".to_owned())
        })?;
        let channel = self.peers.channel(leader, url);
        let channel = channel.map_err(|error| refusal(FaultCode::Unavailable, chain(&error)))?;
        let stub = Stub::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        match timeout(FORWARD_WAIT_MAX, attempt(stub, request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) if status.details().is_empty() => {
                // Not the leader's word: the connection failed, or the node is another one.
                let reason = status.message();
                let message = format!("cannot call node {leader}, which leads: {reason}");
                Err(refusal(FaultCode::Unavailable, message))
            }
            Ok(Err(status)) => Err(status),
            Err(_elapsed) => {
                let message = format!(
                    "node {leader}, which leads, did not answer within {FORWARD_WAIT_MAX:?}"
                );
                Err(refusal(FaultCode::Unavailable, message))
            }
        }
    }
}

fn refusal(code: FaultCode, message: String) -> Status {
    to_status(&Fault::new(code, message).with_retry_after(RETRY_AFTER))
}
