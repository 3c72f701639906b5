//! The library's own suite for storage, on the real one.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use phalanx_proto::id::NodeId;
use tempfile::TempDir;

use super::Types;
use super::log::Log;
use super::machine::Machine;
use crate::feed::Feed;
use crate::store::snapshot::SnapshotFolder;
use crate::store::{LogStore as _, RedbStore, writer};

struct Builder;

impl StoreBuilder<Types, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<Types>> {
        let folder = tempfile::tempdir().unwrap();
        let mut store = RedbStore::open(folder.path(), NodeId(0)).unwrap();
        let stored = store.load().unwrap();
        let (queue, _thread) = writer::start(store).unwrap();
        let snapshots = SnapshotFolder::open(folder.path().join("snapshots")).unwrap();
        let machine = Machine::new(snapshots, Feed::new());
        Ok((folder, Log::new(stored, queue), machine))
    }
}

#[tokio::test]
async fn the_store_keeps_every_promise_that_raft_relies_on() {
    Suite::test_all(Builder).await.unwrap();
}
