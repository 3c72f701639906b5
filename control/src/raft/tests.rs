//! The adapters under the library's own suite for storage, and across a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::entry::RaftEntry as _;
use openraft::storage::{
    RaftLogStorage as _, RaftLogStorageExt as _, RaftSnapshotBuilder as _, RaftStateMachine as _,
    StorageHelper,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{BasicNode, EntryPayload, Membership, Raft, StorageError};
use phalanx_chassis::whole_file::FileError;
use phalanx_proto::change::Change;
use phalanx_proto::id::NodeId;
use phalanx_proto::view::Model;
use tempfile::TempDir;
use tokio::time::timeout;

use super::log::Log;
use super::machine::Machine;
use super::network::Network;
use super::status::failure_in;
use super::{Entry, LogId, Types, config};
use crate::command::Command;
use crate::feed::Feed;
use crate::host::{Host, ThisMachine};
use crate::identity::Identity;
use crate::peers::{Line, Peers};
use crate::store::identity::IdentityFile;
use crate::store::snapshot::SnapshotFolder;
use crate::store::writer::WriterThread;
use crate::store::{LogStore, LogWrite, RedbStore, StoreError, StoredLog, writer};

struct Builder;

fn open(folder: &Path) -> (Log, Machine, WriterThread) {
    let mut store = RedbStore::open(folder, NodeId(0)).unwrap();
    let stored = store.load().unwrap();
    let (queue, thread) = writer::start(store).unwrap();
    let snapshots = SnapshotFolder::open(folder.join("snapshots"), ThisMachine.files()).unwrap();
    let machine = Machine::new(snapshots, Feed::new(), Arc::new(ThisMachine));
    (Log::new(stored, queue), machine, thread)
}

impl StoreBuilder<Types, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<Types>> {
        let folder = tempfile::tempdir().unwrap();
        let (log, machine, _thread) = open(folder.path());
        Ok((folder, log, machine))
    }
}

#[tokio::test]
async fn the_store_keeps_every_promise_that_raft_relies_on() {
    Suite::test_all(Builder).await.unwrap();
}

fn at(index: u64) -> LogId {
    LogId::new_term_index(1, index)
}

/// A membership at 0, then one model per entry.
fn entries() -> Vec<Entry> {
    let voters = Membership::new_with_defaults(vec![BTreeSet::from([0])], []);
    let put = |index: u64| {
        let model = Model { name: format!("m{index}").into(), revision: "r".into() };
        let command = Command::Submit {
            client: "c".to_owned(),
            sequence: index,
            change: Change::PutModel(model),
        };
        Entry::new(at(index), EntryPayload::Normal(command))
    };
    let first = Entry::new(at(0), EntryPayload::Membership(voters));
    std::iter::once(first).chain((1..=9).map(put)).collect()
}

async fn apply(machine: &mut Machine, entries: &[Entry]) {
    let entries = entries.iter().map(|entry| Ok((entry.clone(), None)));
    machine.apply(futures::stream::iter(entries)).await.unwrap();
}

#[tokio::test]
async fn a_restart_recovers_the_state_from_a_snapshot_and_the_log_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let before = {
        let (mut log, mut machine, thread) = open(folder.path());
        log.blocking_append(entries()).await.unwrap();
        apply(&mut machine, &entries()[..6]).await;
        machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        apply(&mut machine, &entries()[6..]).await;
        log.purge(at(3)).await.unwrap();
        log.save_committed(Some(at(9))).await.unwrap();
        drop(log);
        thread.join();
        machine.state().clone()
    };

    let (mut log, mut machine, _thread) = open(folder.path());
    let helper = StorageHelper::new(&mut log, &mut machine).with_id(0);
    { helper }.get_initial_state().await.unwrap();
    assert_eq!(machine.state(), &before);
    assert_eq!(machine.state().view().models.len(), 9);
    let (applied, membership) = machine.applied_state().await.unwrap();
    assert_eq!(applied, Some(at(9)));
    assert!(membership.voter_ids().eq([0]));
}

/// A disk that takes the vote and nothing after it.
struct FullDisk;

impl LogStore for FullDisk {
    fn load(&mut self) -> Result<StoredLog, StoreError> {
        Ok(StoredLog::default())
    }

    fn commit(&mut self, writes: &[LogWrite]) -> Result<(), StoreError> {
        if writes.iter().all(|write| matches!(write, LogWrite::Vote(_))) {
            return Ok(());
        }
        let source = std::io::Error::other("no space left");
        Err(FileError { action: "sync", path: "log".into(), source }.into())
    }
}

#[tokio::test]
async fn a_disk_that_fails_stops_the_node_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (queue, _thread) = writer::start(FullDisk).unwrap();
    let log = Log::new(StoredLog::default(), queue);
    let host: Arc<dyn Host> = Arc::new(ThisMachine);
    let snapshots = SnapshotFolder::open(folder.path().into(), ThisMachine.files()).unwrap();
    let machine = Machine::new(snapshots, Feed::new(), Arc::clone(&host));
    let config = Arc::new(config::config().unwrap());
    let identity = IdentityFile::new(folder.path(), ThisMachine.files());
    let identity = Identity::open(identity, NodeId(0), BTreeSet::new(), Arc::clone(&host)).unwrap();
    let network = Network(Peers::new(identity, host, Line::Raft));
    let raft = Raft::new(0, config, network, log, machine).await.unwrap();
    // Forming the group is the first write; whether it is answered before the node stops does not matter.
    let _answer = raft.initialize(BTreeMap::from([(0, BasicNode::new("http://c:1"))])).await;
    let failure = timeout(Duration::from_secs(30), failure_in(raft.metrics())).await.unwrap();
    assert!(failure.contains("cannot sync log: no space left"), "{failure}");
}
