//! The running Raft node, on threads of its own so that a flood of requests cannot starve its heartbeats.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{ClientWriteError, ForwardToLeader, InitializeError, RaftError};
use openraft::{BasicNode, Raft, ReadPolicy};
use parking_lot::Mutex;
use phalanx_proto::id::NodeId;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::archive::ARCHIVES_MAX;
use super::contact::Contact;
use super::log::Log;
use super::machine::Machine;
use super::network::Network;
use super::status::failure_in;
use super::{Types, config};
use crate::checkpoint::Checkpoints;
use crate::command::Command;
use crate::feed::Feed;
use crate::host::{Host, OpenedLog, off_the_runtime};
use crate::identity::Identity;
use crate::peers::{Line, Peers};
use crate::state::Reply;
use crate::store::identity::IdentityFile;
use crate::store::snapshot::SnapshotFolder;
use crate::store::writer::WriterThread;
use crate::store::{StoreError, chain};

/// The longest a proposal may take: one election and one commit on a disk that is slow.
pub(super) const PROPOSE_WAIT_MAX: Duration = Duration::from_secs(4);

/// The longest a stopping node waits for the disk.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a node is started from.
#[derive(Clone, Debug)]
pub(crate) struct ConsensusOptions {
    pub(crate) node_id: NodeId,
    /// How peers reach this node.
    pub(crate) url: String,
    pub(crate) data_dir: PathBuf,
    /// Form a group of all peers, unless this node already has a state.
    pub(crate) bootstrap: bool,
    /// The URLs of all nodes, this one included; empty for a node alone.
    pub(crate) peers: BTreeMap<NodeId, String>,
    pub(crate) host: Arc<dyn Host>,
}

/// A running node. To be stopped with [`Consensus::stop`]; dropping it leaves its threads to end by
/// themselves.
#[derive(Debug)]
pub(crate) struct Consensus {
    raft: Raft<Types, Machine>,
    identity: Identity,
    contact: Contact,
    /// Where this replica's state is compared with the leader's.
    pub(super) checkpoints: Arc<Mutex<Checkpoints>>,
    /// How peers reach this node.
    url: String,
    host: Arc<dyn Host>,
    archives: Semaphore,
    handle: Handle,
    /// Taken when the node stops.
    threads: Mutex<Option<Threads>>,
}

/// What the data directory holds.
struct Opened {
    log: Log,
    folder: SnapshotFolder,
    writer: Option<WriterThread>,
    identity: Identity,
}

#[derive(Debug)]
struct Threads {
    writer: Option<WriterThread>,
    runtime: OwnRuntime,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartConsensusError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start the Raft threads")]
    Threads(#[source] std::io::Error),
    #[error("Raft refused to start: {0}")]
    Raft(String),
}

/// Why a command was not applied, or perhaps was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProposeError {
    #[error("this control node does not lead, {}", leader_text(*.leader))]
    NotLeader { leader: Option<NodeId> },
    #[error("no commit within {PROPOSE_WAIT_MAX:?}")]
    Timeout,
    #[error("Raft has stopped: {0}")]
    Stopped(String),
}

fn leader_text(leader: Option<NodeId>) -> String {
    leader.map_or_else(|| "and no leader is known".to_owned(), |id| format!("node {id} does"))
}

/// Raft's runtime, if it has one of its own, which may be dropped from async code.
#[derive(Debug)]
struct OwnRuntime(Option<Runtime>);

// === impl Consensus ===

impl Consensus {
    /// Opens the data directory, recovers the state into `feed` and starts to take part.
    pub(crate) async fn start(
        options: ConsensusOptions,
        feed: Feed,
    ) -> Result<Self, StartConsensusError> {
        let ConsensusOptions { node_id, url, bootstrap, mut peers, host, .. } = options.clone();
        let opened = off_the_runtime(&*host, move || open(&options)).await?;
        let Opened { log, folder, writer, identity } = opened;

        let runtime = OwnRuntime(host.raft_runtime().map_err(StartConsensusError::Threads)?);
        let config = Arc::new(config::config().map_err(|error| raft_error(&error))?);
        let machine = Machine::new(folder, feed, Arc::clone(&host));
        let checkpoints = machine.checkpoints();
        // Raft spawns its tasks on the runtime that starts it.
        let network = Network(Peers::new(identity.clone(), Arc::clone(&host), Line::Raft));
        let start = Raft::new(node_id.0, config, network, log, machine);
        let handle = runtime.handle();
        let started = handle.spawn(start).await.map_err(|error| raft_error(&error))?;
        let raft = started.map_err(|error| raft_error(&error))?;
        let threads = Mutex::new(Some(Threads { writer, runtime }));
        let consensus = Self {
            raft,
            identity,
            contact: Contact::default(),
            checkpoints,
            url: url.clone(),
            host,
            archives: Semaphore::new(ARCHIVES_MAX),
            handle,
            threads,
        };
        if let Some(recovered) = consensus.cluster_id().await {
            // Directories from before the id had a file of its own.
            consensus.identity.cluster_id_or(&recovered).await?;
        }
        peers.entry(node_id).or_insert(url);
        // Forming a group makes its first node stand by itself.
        if !(bootstrap && consensus.initialize(peers).await?) {
            consensus.stand_when_alone(node_id).await?;
        }
        Ok(consensus)
    }

    /// Forms a group of `voters`, and says whether it did: a node that already has a state keeps it.
    async fn initialize(
        &self,
        voters: BTreeMap<NodeId, String>,
    ) -> Result<bool, StartConsensusError> {
        if self.raft.is_initialized().await.map_err(|error| raft_error(&error))? {
            return Ok(false);
        }
        // The group's first call already names its cluster.
        self.identity.cluster_id_or_new().await?;
        let nodes: BTreeMap<u64, BasicNode> =
            voters.into_iter().map(|(id, addr)| (id.0, BasicNode { addr })).collect();
        match self.raft.initialize(nodes).await {
            Ok(()) => Ok(true),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
            Err(error) => Err(raft_error(&error)),
        }
    }

    /// The only voter has nobody to wait for, so it need not sit out an election timeout.
    async fn stand_when_alone(&self, node_id: NodeId) -> Result<(), StartConsensusError> {
        if self.raft.voter_ids().eq([node_id.0]) {
            self.raft.trigger().elect(false).await.map_err(|error| raft_error(&error))?;
        }
        Ok(())
    }

    /// Puts `command` into the log and waits for its outcome. After [`ProposeError::Timeout`] it may still
    /// be applied.
    pub(crate) async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        let written = timeout(PROPOSE_WAIT_MAX, self.raft.client_write(command)).await;
        match written.map_err(|_elapsed| ProposeError::Timeout)? {
            Ok(response) => Ok(response.data),
            Err(error) => Err(propose_error(error)),
        }
    }

    /// Waits until this node, as the leader, has applied everything committed before the call.
    pub(crate) async fn catch_up(&self) -> Result<(), ProposeError> {
        let read = timeout(PROPOSE_WAIT_MAX, self.raft.ensure_linearizable(ReadPolicy::ReadIndex));
        match read.await.map_err(|_elapsed| ProposeError::Timeout)? {
            Ok(_read_log_id) => Ok(()),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Stopped(chain(&fatal))),
            Err(RaftError::APIError(_error)) => {
                Err(ProposeError::NotLeader { leader: self.status().leader })
            }
        }
    }

    /// The history's name, once the cluster is founded.
    pub(crate) async fn cluster_id(&self) -> Option<String> {
        let read = self.raft.with_state_machine(|machine| {
            let id = machine.state().cluster_id().map(ToOwned::to_owned);
            Box::pin(async move { id })
        });
        timeout(PROPOSE_WAIT_MAX, read).await.ok()?.ok()?
    }

    /// Who this node is among its peers.
    pub(crate) const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The id that a new cluster is founded with: the one its nodes already call each other by.
    pub(crate) async fn founding_id(&self) -> Result<String, StoreError> {
        let id = self.identity.cluster_id_or_new().await?;
        Ok(id.to_string())
    }

    /// To be told of the leader's calls.
    pub(super) const fn contact(&self) -> &Contact {
        &self.contact
    }

    /// Where this node tells others to reach it.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Where Raft runs, and with it whatever must not wait for anything else.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.handle
    }

    pub(super) const fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    /// One permit for each state that may be packed or unpacked.
    pub(super) const fn archives(&self) -> &Semaphore {
        &self.archives
    }

    /// For the calls of peers.
    pub(super) const fn raft(&self) -> &Raft<Types, Machine> {
        &self.raft
    }

    /// What this node, as the leader, should put into the log for its replicas to compare.
    pub(crate) fn checkpoint_due(&self) -> Option<Command> {
        self.checkpoints.lock().due()
    }

    /// Whether this node's state turned out to differ from the leader's.
    pub(crate) fn has_drifted(&self) -> bool {
        self.checkpoints.lock().has_drifted()
    }

    /// Resolves, with the reason, when the node can no longer take part: the process has to end.
    pub(crate) async fn failed(&self) -> String {
        failure_in(self.raft.metrics()).await
    }

    /// Stops the node; when this returns, the data directory is closed and free.
    pub(crate) async fn stop(&self) {
        match timeout(STOP_WAIT_MAX, self.raft.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "Raft did not stop in order"),
            Err(_elapsed) => tracing::warn!("Raft did not stop within {STOP_WAIT_MAX:?}"),
        }
        let Some(Threads { writer, mut runtime }) = self.threads.lock().take() else { return };
        let Some(runtime) = runtime.0.take() else { return };
        let closed = tokio::task::spawn_blocking(move || {
            // The log's queue goes with the runtime's last task, and with the queue the writer.
            runtime.shutdown_timeout(STOP_WAIT_MAX);
            if let Some(writer) = writer {
                writer.join();
            }
        });
        if timeout(STOP_WAIT_MAX * 2, closed).await.is_err() {
            tracing::warn!("the log was not closed within {:?}", STOP_WAIT_MAX * 2);
        }
    }
}

// === impl OwnRuntime ===

impl OwnRuntime {
    fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn open(options: &ConsensusOptions) -> Result<Opened, StoreError> {
    let ConsensusOptions { node_id, data_dir, peers, host, .. } = options;
    let files = host.files();
    files.create_folder(data_dir)?;
    let OpenedLog { stored, queue, writer } = host.open_log(data_dir, *node_id)?;
    let folder = SnapshotFolder::open(data_dir.join("snapshots"), Arc::clone(&files))?;
    folder.check_reaches(stored.purged)?;
    let configured = peers.keys().copied().collect();
    let file = IdentityFile::new(data_dir, files);
    let identity = Identity::open(file, *node_id, configured, Arc::clone(host))?;
    Ok(Opened { log: Log::new(stored, queue), folder, writer, identity })
}

/// What the library refused a write with.
pub(super) fn propose_error(error: RaftError<Types, ClientWriteError<Types>>) -> ProposeError {
    match error {
        RaftError::Fatal(fatal) => ProposeError::Stopped(chain(&fatal)),
        RaftError::APIError(
            ClientWriteError::ForwardToLeader(forward)
            | ClientWriteError::LogEntryDiscarded(forward),
        ) => not_leader(&forward),
        RaftError::APIError(
            error @ (ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_)),
        ) => ProposeError::Stopped(error.to_string()),
    }
}

fn not_leader(forward: &ForwardToLeader<Types>) -> ProposeError {
    ProposeError::NotLeader { leader: forward.leader_id.map(NodeId) }
}

fn raft_error(error: &dyn std::error::Error) -> StartConsensusError {
    StartConsensusError::Raft(chain(error))
}
