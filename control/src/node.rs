//! One control node: everything it runs, started in order and stopped in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use phalanx_chassis::drain::{Drain, Phase};
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::MESSAGE_BYTES_MAX;
use phalanx_proto::pb::control_server::ControlServer;
use phalanx_proto::pb::raft_server::RaftServer;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::config::{ConfigError, ControlConfig};
use crate::entrance::{Connection, Entrance, Sorted};
use crate::feed::Feed;
use crate::forward::Forwarder;
use crate::host::ThisMachine;
use crate::leader::Leadership;
use crate::liveness::Timings;
use crate::raft::{
    Consensus, ConsensusOptions, HAND_OVER_WAIT_MAX, NodeStatus, RaftService, StartConsensusError,
};
use crate::readiness::ControlReadiness;
use crate::service::ControlService;
use crate::store::chain;

/// The longest a draining node waits for calls in flight; the longest call waits for one commit.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Pings find clients that vanished without closing their connections.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);

/// A ping unanswered for this long ends the connection.
const KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Calls one connection may have open. A client has one watch, one heartbeat and a few commands; a follower
/// passes on what the members that call it want of the leader.
const CONNECTION_STREAMS_MAX: u32 = 1024;

/// A control node that listens, and serves once it is [run](Control::run).
#[derive(Debug)]
pub struct Control {
    /// Of no runtime yet.
    listener: std::net::TcpListener,
    local_addr: SocketAddr,
    node: Node,
}

/// A control node apart from the address it listens on.
#[derive(Debug)]
pub(crate) struct Node {
    service: ControlService,
    gauges: RaftGauges,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The data directory cannot be used, or Raft refused it.
    #[error("cannot start control node {node_id}: {reason}")]
    Raft {
        /// Which.
        node_id: u64,
        /// Why, with its causes.
        reason: String,
    },
}

/// Why a node stopped without being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Raft or its disk failed. The process must end: what is on disk is known only after a new start.
    #[error("control node failed: {0}")]
    Raft(String),
    /// The server failed.
    #[error("control server failed: {0}")]
    Serve(String),
}

// === impl Control ===

impl Control {
    /// Opens the data directory, recovers the state, and listens.
    ///
    /// # Errors
    /// [`StartError`] when the configuration, the address or the data directory cannot be used.
    pub async fn bind(
        config: ControlConfig,
        metrics: &Metrics,
        drain: Drain,
    ) -> Result<Self, StartError> {
        Self::bind_with(config, Timings::default(), metrics, drain).await
    }

    /// As [`Control::bind`], with other leases than a cluster has.
    pub(crate) async fn bind_with(
        config: ControlConfig,
        timings: Timings,
        metrics: &Metrics,
        drain: Drain,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let ControlConfig { node_id, listen: address, data_dir, bootstrap, peers } = config;
        let listen_error = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        let local_addr = listener.local_addr().map_err(listen_error)?;
        let listener = listener.into_std().map_err(listen_error)?;

        let url = peers.get(&node_id).cloned().unwrap_or_else(|| format!("http://{local_addr}"));
        let host = Arc::new(ThisMachine);
        let options = ConsensusOptions { node_id, url, data_dir, bootstrap, peers, host };
        let node = Node::start(options, timings, metrics, drain).await?;
        Ok(Self { listener, local_addr, node })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// For probes.
    pub fn readiness(&self) -> ControlReadiness {
        ControlReadiness(self.node.service.consensus.statuses())
    }

    /// For tests that look behind the service.
    #[cfg(test)]
    pub(crate) fn consensus(&self) -> Arc<Consensus> {
        self.node.consensus()
    }

    /// Serves until it is drained, and leaves the leadership to another node if it has it. When this returns,
    /// the data directory is closed and free.
    ///
    /// # Errors
    /// [`RunError`] when Raft, its disk or the server failed; the process should then end.
    pub async fn run(self) -> Result<(), RunError> {
        let Self { listener, local_addr: _, node } = self;
        let listener = {
            let _raft = node.runtime().enter();
            TcpListener::from_std(listener).map_err(|error| RunError::Serve(error.to_string()))?
        };
        // Replies are small, and nobody should wait for them to be gathered.
        node.run(TcpIncoming::from(listener).with_nodelay(Some(true))).await
    }
}

// === impl Node ===

impl Node {
    /// Opens the data directory and recovers the state.
    pub(crate) async fn start(
        options: ConsensusOptions,
        timings: Timings,
        metrics: &Metrics,
        drain: Drain,
    ) -> Result<Self, StartError> {
        let (node_id, host, feed) = (options.node_id, Arc::clone(&options.host), Feed::new());
        let start = Consensus::start(options, feed.clone());
        let consensus = start.await.map_err(|error: StartConsensusError| StartError::Raft {
            node_id: node_id.0,
            reason: chain(&error),
        })?;
        let service = ControlService {
            node_id: node_id.0,
            forwarder: Forwarder::new(consensus.identity().clone(), Arc::clone(&host)),
            consensus: Arc::new(consensus),
            leadership: Leadership::new(node_id, timings, host),
            feed,
            drain,
            group_changes: Arc::default(),
        };
        Ok(Self { service, gauges: RaftGauges::register(metrics) })
    }

    #[cfg(test)]
    pub(crate) fn consensus(&self) -> Arc<Consensus> {
        Arc::clone(&self.service.consensus)
    }

    /// Raft's runtime, which accepts the connections.
    pub(crate) fn runtime(&self) -> &Handle {
        self.service.consensus.runtime()
    }

    /// Serves the connections that come in, until it is drained. When this returns, the data directory is
    /// closed and free.
    pub(crate) async fn run<I, C>(self, incoming: I) -> Result<(), RunError>
    where
        I: Stream<Item = io::Result<C>> + Send + 'static,
        C: Connection,
    {
        let Self { service, gauges } = self;
        let ControlService { consensus, leadership, feed, drain, .. } = service.clone();

        let mut duties = JoinSet::new();
        duties.spawn(vouch(consensus.statuses(), feed.clone()));
        duties.spawn(leadership.run(Arc::clone(&consensus), feed));
        duties.spawn(gauges.clone().follow(consensus.statuses()));
        let (entrance, peers, callers) = Entrance::new();
        duties.spawn_on(entrance.run(incoming), consensus.runtime());
        duties.spawn_on(serve_peers(peers, RaftService::new(&consensus)), consensus.runtime());

        let result = tokio::select! {
            served = serve(callers, service, drain) => served,
            reason = consensus.failed() => {
                gauges.state_mismatch.set(u64::from(consensus.has_drifted()));
                Err(RunError::Raft(reason))
            }
        };
        duties.shutdown().await;
        consensus.stop().await;
        result
    }
}

/// Tells the feed whether the node hears its group.
async fn vouch(mut statuses: watch::Receiver<NodeStatus>, feed: Feed) {
    loop {
        feed.vouch(statuses.borrow_and_update().leader.is_some());
        if statuses.changed().await.is_err() {
            return feed.vouch(false);
        }
    }
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WAIT_MAX))
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
}

/// Serves Raft's calls for as long as the node runs: a leader that leaves needs its peers' answers, and they its.
async fn serve_peers<C>(incoming: Sorted<C>, service: RaftService)
where
    C: Connection,
{
    let raft = RaftServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    if let Err(error) = server().add_service(raft).serve_with_incoming(incoming).await {
        tracing::error!(error = chain(&error), "cannot serve the calls of Raft");
    }
}

/// Serves until drained, and then for as long as calls in flight may take.
async fn serve<C>(
    incoming: Sorted<C>,
    service: ControlService,
    drain: Drain,
) -> Result<(), RunError>
where
    C: Connection,
{
    let consensus = Arc::clone(&service.consensus);
    let control = ControlServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let draining = drain.clone();
    let incoming = incoming.map(|accepted| accepted.and_then(Connection::driven_here));
    let serving =
        server().add_service(control).serve_with_incoming_shutdown(incoming, async move {
            draining.reached(Phase::Draining).await;
            consensus.hand_over().await;
        });
    let cut_off = async {
        drain.reached(Phase::Draining).await;
        let stopping = drain.reached(Phase::Stopping);
        if timeout(HAND_OVER_WAIT_MAX + DRAIN_WAIT_MAX, stopping).await.is_err() {
            tracing::warn!("calls were still open after {DRAIN_WAIT_MAX:?}, cutting them off");
        }
    };
    tokio::select! {
        served = serving => served.map_err(|error| RunError::Serve(chain(&error))),
        () = cut_off => Ok(()),
    }
}

/// What the node knows of its group, as metrics.
#[derive(Clone, Debug, Default)]
struct RaftGauges {
    term: Gauge<u64, AtomicU64>,
    leader: Gauge<u64, AtomicU64>,
    last_applied: Gauge<u64, AtomicU64>,
    voters: Gauge<u64, AtomicU64>,
    /// 1 once the state differs from the leader's; the node is then about to end.
    state_mismatch: Gauge<u64, AtomicU64>,
}

impl RaftGauges {
    fn register(metrics: &Metrics) -> Self {
        let gauges = Self::default();
        metrics.register(|registry| {
            let Self { term, leader, last_applied, voters, state_mismatch } = gauges.clone();
            registry.register("raft_term", "Term of the Raft group", term);
            registry.register("raft_leader", "Node that leads the Raft group, 0 for none", leader);
            registry.register("raft_last_applied", "Index of the last entry applied", last_applied);
            registry.register("raft_voters", "Voters in the Raft group", voters);
            let help = "1 once this node's state differs from the leader's at the same index";
            registry.register("raft_state_mismatch", help, state_mismatch);
        });
        gauges
    }

    async fn follow(self, mut statuses: watch::Receiver<NodeStatus>) {
        loop {
            self.show(&statuses.borrow_and_update());
            if statuses.changed().await.is_err() {
                return;
            }
        }
    }

    fn show(&self, status: &NodeStatus) {
        let voters = status.nodes.values().filter(|(_url, votes)| *votes).count();
        self.term.set(status.term);
        self.leader.set(status.leader.map_or(0, |leader| leader.0));
        self.last_applied.set(status.last_applied);
        self.voters.set(u64::try_from(voters).unwrap_or(u64::MAX));
    }
}
