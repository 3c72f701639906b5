//! What a node takes from the machine it runs on, apart from tokio's time: threads, the log's disk, the way to
//! other nodes, the wall clock and random names. The tests' simulation brings its own.

use std::error::Error;
use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use phalanx_chassis::whole_file::{Files, ThisDisk};
use phalanx_proto::id::NodeId;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{Service as _, service_fn};

use crate::entrance::GREETING;
use crate::peers::Line;
use crate::store::writer::{self, WriteQueue, WriterThread};
use crate::store::{LOG_FILE, LogStore as _, RedbStore, StoreError, StoredLog};

/// Raft needs little: one thread runs its core, one its replication and snapshots.
const RAFT_THREADS: usize = 2;

/// The machine under a node.
pub(crate) trait Host: Debug + Send + Sync {
    /// Threads of Raft's own, so that a flood of requests cannot starve its heartbeats; none where everything
    /// shares the caller's runtime.
    fn raft_runtime(&self) -> io::Result<Option<Runtime>>;

    /// Whether work that blocks may have a thread of its own.
    fn has_blocking_threads(&self) -> bool;

    /// What snapshots and the cluster's id are kept with.
    fn files(&self) -> Arc<dyn Files>;

    /// Opens the log of `node` in `folder`.
    fn open_log(&self, folder: &Path, node: NodeId) -> Result<OpenedLog, StoreError>;

    /// A channel that connects when first used, and then says what it is for.
    fn connect(&self, endpoint: &Endpoint, line: Line) -> Channel;

    /// The wall clock, as the time since 1970; zero before that.
    fn wall_clock(&self) -> Duration;

    /// A name that nobody else draws.
    fn unique_name(&self) -> String;
}

/// A log, ready to be written.
#[derive(Debug)]
pub(crate) struct OpenedLog {
    pub(crate) stored: StoredLog,
    pub(crate) queue: WriteQueue,
    /// To be joined when the node stops, where the writer is a thread.
    pub(crate) writer: Option<WriterThread>,
}

/// The machine that this process runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThisMachine;

impl Host for ThisMachine {
    fn raft_runtime(&self) -> io::Result<Option<Runtime>> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(RAFT_THREADS).thread_name("raft").enable_all().build().map(Some)
    }

    fn has_blocking_threads(&self) -> bool {
        true
    }

    fn files(&self) -> Arc<dyn Files> {
        Arc::new(ThisDisk)
    }

    fn open_log(&self, folder: &Path, node: NodeId) -> Result<OpenedLog, StoreError> {
        let in_log = |error: StoreError| error.in_file(&folder.join(LOG_FILE));
        let mut store = RedbStore::open(folder, node).map_err(in_log)?;
        let stored = store.load().map_err(in_log)?;
        let (queue, writer) = writer::start(store)?;
        Ok(OpenedLog { stored, queue, writer: Some(writer) })
    }

    fn connect(&self, endpoint: &Endpoint, line: Line) -> Channel {
        match line {
            Line::Service => endpoint.connect_lazy(),
            Line::Raft => endpoint.connect_with_connector_lazy(service_fn(greet)),
        }
    }

    fn wall_clock(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
    }

    fn unique_name(&self) -> String {
        uuid::Uuid::new_v4().to_string()
    }
}

/// Connects to a peer's Raft.
async fn greet(url: Uri) -> Result<TokioIo<TcpStream>, Box<dyn Error + Send + Sync>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let mut connection = connector.call(url).await?;
    connection.inner_mut().write_u8(GREETING).await?;
    Ok(connection)
}

/// Does work that blocks where it does not hold up heartbeats.
pub(crate) async fn off_the_runtime<T>(
    host: &dyn Host,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError>
where
    T: Send + 'static,
{
    if !host.has_blocking_threads() {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError::Interrupted { reason: error.to_string() }))
}
