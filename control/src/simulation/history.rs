//! What happened in one run, as seen from outside the nodes and from their disks, with a running digest of all
//! of it: the same seed gives the same digest.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use parking_lot::Mutex;
use phalanx_proto::change::{Change, WatchEvent};
use phalanx_proto::id::{Epoch, GroupId, Lineage, MemberId, ViewIndex};
use phalanx_proto::view::{ClusterView, GroupRef, Rendezvous};

use crate::store::record::{EntryRecord, LogPosition};

/// The recorder. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct History(Arc<Mutex<Records>>);

/// Milliseconds since the run began, by the clock on the wall of the simulation.
pub(super) type Ms = u64;

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Register { address: String, instance: String },
    Heartbeat { member_id: MemberId, epoch: Epoch },
    Submit { client: String, sequence: u64, change: Change },
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Registered {
        member_id: MemberId,
        epoch: Epoch,
    },
    Alive,
    Applied {
        index: ViewIndex,
    },
    /// For good: nothing was changed.
    Refused,
}

/// One call; without an answer it may have taken effect, or may yet.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) began: Ms,
    pub(super) asked: Asked,
    pub(super) answer: Option<(Ms, Told)>,
}

/// What a watcher got.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    Event(Box<WatchEvent>),
    /// A view of the router's own follower.
    View(Arc<ClusterView>),
}

/// A look at a node's state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) at: Ms,
    pub(super) node: u64,
    pub(super) index: ViewIndex,
    pub(super) digest: blake3::Hash,
}

#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) now: Ms,
    trace: blake3::Hasher,
    /// What went wrong already while the run went on.
    pub(super) violations: Vec<String>,
    pub(super) era: Era,
    /// Those that ended when all control nodes lost their disks.
    pub(super) earlier: Vec<Era>,
}

/// From the founding of a cluster to the loss of all its data.
#[derive(Debug, Default)]
pub(super) struct Era {
    /// The committed log, as far as any node applied it.
    pub(super) committed: BTreeMap<u64, EntryRecord>,
    /// When an entry was first written anywhere: when it was proposed.
    pub(super) proposed: BTreeMap<LogPosition, Ms>,
    pub(super) leaders: BTreeMap<u64, u64>,
    pub(super) looks: Vec<Look>,
    pub(super) calls: BTreeMap<u64, Call>,
    /// Where the ranks of each group met.
    meetings: BTreeMap<(Lineage, GroupId, Epoch), Rendezvous>,
    pub(super) watches: BTreeMap<String, Vec<(Ms, Seen)>>,
    /// The state of each node at the end.
    pub(super) ends: BTreeMap<u64, ViewIndex>,
}

// === impl History ===

impl History {
    pub(super) fn now(&self) -> Ms {
        self.0.lock().now
    }

    pub(super) fn tick(&self, now: Ms) {
        self.0.lock().now = now;
    }

    /// Takes part in the digest of the run.
    pub(super) fn trace(&self, event: &impl Debug) {
        let mut records = self.0.lock();
        let line = format!("{} {event:?}\n", records.now);
        records.trace.update(line.as_bytes());
        if let Some(path) = std::env::var_os("PHALANX_SIMULATION_TRACE") {
            use std::io::Write as _;
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
        }
    }

    pub(super) fn digest(&self) -> blake3::Hash {
        self.0.lock().trace.finalize()
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&Records) -> T) -> T {
        look(&self.0.lock())
    }

    pub(super) fn violated(&self, what: &str) {
        self.trace(&what);
        let mut records = self.0.lock();
        let line = format!("at {} ms: {what}", records.now);
        records.violations.push(line);
    }

    /// Notes the beginning of a call, and gives its number.
    pub(super) fn began(&self, asked: Asked) -> u64 {
        self.trace(&asked);
        let mut records = self.0.lock();
        let began = records.now;
        let calls = records.earlier.iter().map(|era| era.calls.len()).sum::<usize>();
        let number = u64::try_from(calls + records.era.calls.len()).unwrap();
        records.era.calls.insert(number, Call { began, asked, answer: None });
        number
    }

    pub(super) fn ended(&self, number: u64, told: Told) {
        self.trace(&(number, told));
        let mut records = self.0.lock();
        let now = records.now;
        if let Some(call) = records.era.calls.get_mut(&number) {
            call.answer = Some((now, told));
        }
    }

    pub(super) fn saw(&self, watcher: &str, seen: Seen) {
        self.trace(&(watcher, &seen));
        let mut records = self.0.lock();
        let now = records.now;
        records.era.watches.entry(watcher.to_owned()).or_default().push((now, seen));
    }

    pub(super) fn proposed(&self, at: LogPosition) {
        let mut records = self.0.lock();
        let now = records.now;
        records.era.proposed.entry(at).or_insert(now);
    }

    /// A quorum voted for `node` in `term`.
    pub(super) fn leads(&self, term: u64, node: u64) {
        let known = *self.0.lock().era.leaders.entry(term).or_insert(node);
        if known != node {
            self.violated(&format!("nodes {known} and {node} both lead in term {term}"));
        }
    }

    /// A rank goes where `group` meets.
    pub(super) fn met(&self, lineage: Lineage, group: GroupRef, rendezvous: &Rendezvous) {
        let mut records = self.0.lock();
        let meetings = &mut records.era.meetings;
        let first = meetings.entry((lineage, group.id, group.epoch));
        let is_first = *first.or_insert_with(|| rendezvous.clone()) == *rendezvous;
        drop(records);
        if !is_first {
            self.violated(&format!("ranks of group {group} meet at two places"));
        }
    }

    /// `node` has applied `entry`.
    pub(super) fn applied(&self, node: u64, entry: &EntryRecord) {
        let index = entry.at.index;
        let known =
            self.0.lock().era.committed.entry(index).or_insert_with(|| entry.clone()).clone();
        if known != *entry {
            self.violated(&format!("node {node} applied {entry:?} where {known:?} was committed"));
        }
    }

    pub(super) fn looked(&self, node: u64, index: ViewIndex, digest: blake3::Hash) {
        self.trace(&(node, index, digest));
        let mut records = self.0.lock();
        let at = records.now;
        records.era.looks.push(Look { at, node, index, digest });
        records.era.ends.insert(node, index);
    }

    /// All control nodes lose their disks. A call under way may still take effect, after it.
    pub(super) fn new_era(&self) {
        let mut records = self.0.lock();
        let ended = std::mem::take(&mut records.era);
        let open = ended.calls.iter().filter(|(_number, call)| call.answer.is_none());
        records.era.calls = open.map(|(number, call)| (*number, call.clone())).collect();
        records.earlier.push(ended);
    }
}

/// The lineage of a committed log.
pub(super) fn lineage_of(era: &Era) -> Lineage {
    use crate::command::Command;
    use crate::store::record::EntryContent;
    let found = era.committed.values().find_map(|entry| match &entry.content {
        EntryContent::Command(Command::Found { lineage, .. }) => Some(*lineage),
        _ => None,
    });
    found.unwrap_or_default()
}
