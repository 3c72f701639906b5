//! A disk that fails under a whole node.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use phalanx_chassis::control_client::ControlClient;
use phalanx_chassis::drain;
use phalanx_chassis::metrics::Metrics;
use phalanx_chassis::whole_file::{FileError, Files};
use phalanx_proto::change::Change;
use phalanx_proto::id::NodeId;
use phalanx_proto::view::Model;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};

use super::{LONG, Node, WAIT_MAX, any_port, config, folder, once_led};
use crate::RunError;
use crate::host::{Host, OpenedLog, ThisMachine};
use crate::liveness::Timings;
use crate::peers::Line;
use crate::raft::ConsensusOptions;
use crate::store::{LogStore, LogWrite, RedbStore, StoreError, StoredLog, writer};

/// A log whose syncs fail once it is told so.
struct FailingLog {
    store: RedbStore,
    fails: Arc<AtomicBool>,
}

impl LogStore for FailingLog {
    fn load(&mut self) -> Result<StoredLog, StoreError> {
        self.store.load()
    }

    fn commit(&mut self, writes: &[LogWrite]) -> Result<(), StoreError> {
        // Written, perhaps, but nobody can tell.
        self.store.commit(writes)?;
        if self.fails.load(Ordering::Relaxed) {
            let source = io::Error::other("input/output error");
            return Err(FileError { action: "sync", path: "log".into(), source }.into());
        }
        Ok(())
    }
}

/// This machine, with such a disk.
#[derive(Debug)]
struct FailingDisk(Arc<AtomicBool>);

impl Host for FailingDisk {
    fn raft_runtime(&self) -> io::Result<Option<Runtime>> {
        ThisMachine.raft_runtime()
    }

    fn has_blocking_threads(&self) -> bool {
        ThisMachine.has_blocking_threads()
    }

    fn files(&self) -> Arc<dyn Files> {
        ThisMachine.files()
    }

    fn open_log(&self, folder: &Path, node: NodeId) -> Result<OpenedLog, StoreError> {
        let mut store = RedbStore::open(folder, node)?;
        let stored = store.load()?;
        let (queue, writer) = writer::start(FailingLog { store, fails: Arc::clone(&self.0) })?;
        Ok(OpenedLog { stored, queue, writer: Some(writer) })
    }

    fn connect(&self, endpoint: &Endpoint, line: Line) -> Channel {
        ThisMachine.connect(endpoint, line)
    }

    fn wall_clock(&self) -> Duration {
        ThisMachine.wall_clock()
    }

    fn unique_name(&self) -> String {
        ThisMachine.unique_name()
    }
}

fn put(name: &str) -> Change {
    Change::PutModel(Model { name: name.into(), revision: "r".into() })
}

#[tokio::test]
async fn a_node_whose_disk_fails_to_sync_tells_nobody_of_success_and_ends() {
    let folder = folder();
    let fails = Arc::<AtomicBool>::default();
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = ControlClient::new(&[&url]).unwrap();
    let options = ConsensusOptions {
        node_id: NodeId(1),
        url,
        data_dir: config(folder.path(), any_port(), true).data_dir,
        bootstrap: true,
        peers: BTreeMap::new(),
        host: Arc::new(FailingDisk(Arc::clone(&fails))),
    };
    let (_trigger, drain) = drain::channel();
    let timings = Timings { heartbeat_every: LONG / 3, ttl: LONG };
    let metrics = Metrics::default();
    let node = crate::node::Node::start(options, timings, &metrics, drain);
    let running = tokio::spawn(node.await.unwrap().run(TcpListenerStream::new(listener)));
    once_led(|| client.submit("before", 1, put("before"))).await.unwrap();

    fails.store(true, Ordering::Relaxed);
    let names = ["after 1", "after 2", "after 3"];
    let answers = names.map(|name| client.submit(name, 1, put(name)));
    for answer in futures::future::join_all(answers).await {
        assert!(answer.is_err(), "answered {answer:?}, which nobody can know");
    }
    let ended = timeout(WAIT_MAX, running).await.expect("the node ends").unwrap();
    let Err(RunError::Raft(reason)) = ended else { panic!("{ended:?} is no failure") };
    assert!(reason.contains("cannot sync log: input/output error"), "{reason}");

    // What was answered before is there, on a disk that works.
    let node = Node::start(folder.path(), any_port(), LONG).await;
    let read = node.client().read_view(WAIT_MAX).await.unwrap();
    assert!(read.view.models.iter().any(|model| model.name.as_str() == "before"));
    node.stop().await;
}
