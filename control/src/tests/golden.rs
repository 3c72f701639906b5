//! Data directories as earlier builds wrote them, kept in `control/testdata`: each must load for ever. How to
//! add the next one is told there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use phalanx_proto::change::{Change, Registration};
use phalanx_proto::id::{Epoch, Lineage, MemberId, NodeId, ViewIndex};
use phalanx_proto::view::{
    Alias, AliasTarget, Capacity, MemberRole, MemberState, Model, ServedModel,
};

use super::{LONG, Node, any_port, once_led};
use crate::ControlConfig;
use crate::command::Command;
use crate::host::{Host as _, ThisMachine};
use crate::state::{Reply, State};
use crate::store::identity::IdentityFile;
use crate::store::record::{
    EntryContent, EntryRecord, LogPosition, MembershipRecord, STATE, VoteRecord, decode, encode,
};
use crate::store::snapshot::{Snapshot, SnapshotFolder, SnapshotHeader};
use crate::store::{LogStore as _, LogWrite, RedbStore, StoredLog};

/// Every data directory committed, the latest last.
const GOLDEN: [&str; 2] = ["data-v1", "data-v2"];

/// Where the directory that this build writes is kept, when set.
const KEEP_VARIABLE: &str = "PHALANX_GOLDEN_OUT";

const LOG: &str = "log.redb";
const TERM: u64 = 2;
/// The last entry that the snapshot covers.
const SNAPSHOT_AT: u64 = 5;
/// The last entry dropped from the log.
const PURGED_AT: u64 = 3;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn at(index: u64) -> LogPosition {
    LogPosition { term: TERM, index }
}

fn membership() -> MembershipRecord {
    let url = "http://control-1:7400".to_owned();
    MembershipRecord { voters: vec![BTreeSet::from([1])], urls: BTreeMap::from([(1, url)]) }
}

fn registration(instance: &str, role: MemberRole, address: &str) -> Registration {
    let model = ServedModel {
        name: "m".into(),
        revision: "r1".into(),
        context_tokens_max: 2048,
        kv_tokens_max: 4096,
    };
    let models = if role == MemberRole::Worker { vec![model] } else { Vec::new() };
    let (instance, address, zone) = (instance.to_owned(), address.to_owned(), "z".to_owned());
    Registration { instance, role, address, zone, models, capacity: Capacity::default() }
}

fn submit(client: &str, sequence: u64, change: Change) -> Command {
    Command::Submit { client: client.to_owned(), sequence, change }
}

fn alias(name: &str) -> Alias {
    let target = AliasTarget { model: "m".into(), revision: Some("r1".into()), weight: 95 };
    let shadow = AliasTarget { model: "m".into(), revision: None, weight: 1 };
    Alias { name: name.into(), targets: vec![target], shadow: Some(shadow), previous: None }
}

/// The history: a membership and a blank entry, then everything that a first build could do.
fn entries() -> Vec<EntryRecord> {
    let extra = Model { name: "extra".into(), revision: "r2".into() };
    let (member_id, epoch) = (MemberId(3), Epoch(3));
    let found = Command::Found { cluster_id: "golden".to_owned(), lineage: Lineage(5) };
    let commands = [
        found,
        Command::Register(registration("w", MemberRole::Worker, "http://worker:1")),
        Command::Register(registration("r", MemberRole::Router, "http://router:1")),
        submit("operator", 1, Change::SetAlias(alias("a"))),
        submit("operator", 2, Change::PutModel(extra)),
        submit("operator", 3, Change::Drain { member_id, epoch }),
        submit("operator", 4, Change::SetAlias(alias("b"))),
        submit("operator", 5, Change::RemoveAlias("b".into())),
    ];
    let first = [EntryContent::Membership(membership()), EntryContent::Blank];
    let contents = first.into_iter().chain(commands.map(EntryContent::Command));
    (0..).zip(contents).map(|(index, content)| EntryRecord { at: at(index), content }).collect()
}

/// What the log held after all of it.
fn stored() -> StoredLog {
    StoredLog {
        vote: Some(VoteRecord { term: TERM, node: 1, committed: true }),
        committed: Some(at(8)),
        purged: Some(at(PURGED_AT)),
        entries: entries().into_iter().filter(|entry| entry.at.index > PURGED_AT).collect(),
    }
}

fn header() -> SnapshotHeader {
    SnapshotHeader {
        cluster_id: "golden".to_owned(),
        lineage: 5,
        last: Some(at(SNAPSHOT_AT)),
        membership: membership(),
        membership_at: Some(at(0)),
    }
}

/// Writes the history as this build does.
pub(super) fn write(folder: &Path) {
    let mut state = State::default();
    for entry in entries().iter().take_while(|entry| entry.at.index <= SNAPSHOT_AT) {
        let index = ViewIndex(entry.at.index);
        match &entry.content {
            EntryContent::Command(command) => drop(state.apply(index, command)),
            EntryContent::Blank | EntryContent::Membership(_) => state.skip(index),
        }
    }
    let snapshot = Snapshot { header: header(), body: encode(STATE, &state).unwrap() };
    SnapshotFolder::open(folder.join("snapshots"), ThisMachine.files())
        .unwrap()
        .write(&snapshot)
        .unwrap();
    IdentityFile::new(folder, ThisMachine.files()).write("golden").unwrap();
    let StoredLog { vote, committed, .. } = stored();
    let writes = [
        LogWrite::Vote(vote.unwrap()),
        LogWrite::Append(entries()),
        LogWrite::Purge(at(PURGED_AT)),
        LogWrite::Committed(committed),
    ];
    RedbStore::open(folder, NodeId(1)).unwrap().commit(&writes).unwrap();
}

/// Copies a directory; its log is packed, because most of it is zeros.
fn unpack(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("snapshots")).unwrap();
    std::fs::copy(from.join("cluster.json"), to.join("cluster.json")).unwrap();
    for file in std::fs::read_dir(from.join("snapshots")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join("snapshots").join(file.file_name())).unwrap();
    }
    let packed = std::fs::read(from.join(LOG).with_extension("redb.zst")).unwrap();
    std::fs::write(to.join(LOG), zstd::decode_all(packed.as_slice()).unwrap()).unwrap();
}

fn pack(folder: &Path) {
    let log = std::fs::read(folder.join(LOG)).unwrap();
    let packed = zstd::encode_all(log.as_slice(), 19).unwrap();
    std::fs::write(folder.join(LOG).with_extension("redb.zst"), packed).unwrap();
    std::fs::remove_file(folder.join(LOG)).unwrap();
}

/// The parts of a directory, each as this build reads it.
fn check_parts(folder: &Path) {
    let log = RedbStore::open(folder, NodeId(1)).unwrap().load().unwrap();
    assert_eq!(log, stored());
    assert_eq!(
        IdentityFile::new(folder, ThisMachine.files()).read().unwrap().as_deref(),
        Some("golden")
    );
    let snapshots = SnapshotFolder::open(folder.join("snapshots"), ThisMachine.files()).unwrap();
    let snapshot = snapshots.latest().unwrap().unwrap();
    assert_eq!(snapshot.header, header());
    let mut state: State = decode(STATE, &snapshot.body).unwrap();
    assert_eq!((state.view().lineage, state.view().index), (Lineage(5), ViewIndex(SNAPSHOT_AT)));
    // What a client was told is part of it.
    let again = submit("operator", 1, Change::SetAlias(alias("a")));
    let answer = state.apply(ViewIndex(SNAPSHOT_AT + 1), &again).reply;
    assert_eq!(answer, Reply::Applied { index: ViewIndex(SNAPSHOT_AT) });
}

/// A node that starts on the directory serves what its history led to, and goes on.
async fn check_node(folder: &Path) {
    let config = ControlConfig {
        node_id: NodeId(1),
        listen: any_port(),
        data_dir: folder.to_owned(),
        bootstrap: false,
        peers: BTreeMap::new(),
    };
    let node = Node::start_with(config, LONG).await.unwrap();
    let client = node.client();
    let worker = once_led(|| client.heartbeat(MemberId(3), Epoch(3))).await;
    assert_eq!(worker, Ok(MemberState::Draining));
    assert_eq!(client.heartbeat(MemberId(4), Epoch(4)).await, Ok(MemberState::Ready));
    let removed = client.submit("operator", 5, Change::RemoveAlias("b".into())).await;
    assert_eq!(removed, Ok(ViewIndex(9)), "answered as it was the first time");
    let written = client.submit("operator", 6, Change::SetAlias(alias("c"))).await.unwrap();
    assert!(written > ViewIndex(9));
    let status = client.status().await.unwrap();
    assert_eq!((status.cluster_id.as_str(), status.lineage), ("golden", 5));
    node.stop().await;
}

#[tokio::test]
async fn data_directories_of_every_earlier_build_load() {
    for name in GOLDEN {
        let folder = tempfile::tempdir().unwrap();
        unpack(&testdata().join(name), folder.path());
        check_parts(folder.path());
        check_node(folder.path()).await;
    }
}

#[tokio::test]
async fn this_build_reads_what_it_writes_and_can_keep_it_as_the_next_golden_directory() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    if let Some(kept) = std::env::var_os(KEEP_VARIABLE).map(PathBuf::from) {
        write(&kept);
        pack(&kept);
    }
    check_parts(folder.path());
    check_node(folder.path()).await;
}
