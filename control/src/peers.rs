//! The connections to the other nodes: one lazily connected, kept-alive channel for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_proto::id::NodeId;
use tonic::transport::{Channel, Endpoint};

use crate::host::Host;
use crate::identity::Identity;

/// A peer that does not complete a connection in this time is taken for gone. Above a retransmitted SYN's
/// second it would only hold up campaigns.
const CONNECT_WAIT_MAX: Duration = Duration::from_millis(500);

/// Pings find a peer that vanished without closing its connection.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);

/// A ping unanswered for this long ends the connection.
const KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(2);

/// What channels are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Raft's calls, which the other end serves on Raft's runtime.
    Raft,
    /// Calls that are passed on to the leader.
    Service,
}

/// The channels of one purpose: Raft has its own, so that forwarded calls never queue before a heartbeat.
/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Peers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    identity: Identity,
    host: Arc<dyn Host>,
    line: Line,
    /// At most one per node that was ever a member; a changed URL replaces the channel.
    channels: Mutex<BTreeMap<NodeId, (String, Channel)>>,
}

// === impl Peers ===

impl Peers {
    pub(crate) fn new(identity: Identity, host: Arc<dyn Host>, line: Line) -> Self {
        Self(Arc::new(Shared { identity, host, line, channels: Mutex::default() }))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The channel to a node. Its tasks run on the runtime that asks first.
    ///
    /// # Errors
    /// The reason why no channel leads to that URL.
    pub(crate) fn channel(
        &self,
        node: NodeId,
        url: &str,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut channels = self.0.channels.lock();
        if let Some((_url, channel)) = channels.get(&node).filter(|(known, _)| known == url) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(CONNECT_WAIT_MAX)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_WAIT_MAX)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = self.0.host.connect(&endpoint, self.0.line);
        channels.insert(node, (url.to_owned(), channel.clone()));
        Ok(channel)
    }
}
