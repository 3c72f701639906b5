//! Between the library's types and the records on disk.

use openraft::{BasicNode, EntryPayload};

use super::{Entry, LogId, Membership, Vote};
use crate::store::record::{EntryContent, EntryRecord, LogPosition, MembershipRecord, VoteRecord};

pub(super) fn position(id: &LogId) -> LogPosition {
    LogPosition { term: id.leader_id.term, index: id.index }
}

pub(super) fn log_id(position: LogPosition) -> LogId {
    LogId::new_term_index(position.term, position.index)
}

pub(super) const fn vote_record(vote: &Vote) -> VoteRecord {
    VoteRecord {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(super) fn vote(record: VoteRecord) -> Vote {
    if record.committed {
        Vote::new_committed(record.term, record.node)
    } else {
        Vote::new(record.term, record.node)
    }
}

pub(super) fn entry_record(entry: &Entry) -> EntryRecord {
    let content = match &entry.payload {
        EntryPayload::Blank => EntryContent::Blank,
        EntryPayload::Normal(command) => EntryContent::Command(command.clone()),
        EntryPayload::Membership(membership) => {
            EntryContent::Membership(membership_record(membership))
        }
    };
    EntryRecord { at: position(&entry.log_id), content }
}

pub(super) fn entry(record: EntryRecord) -> Entry {
    let payload = match record.content {
        EntryContent::Blank => EntryPayload::Blank,
        EntryContent::Command(command) => EntryPayload::Normal(command),
        EntryContent::Membership(record) => EntryPayload::Membership(membership(record)),
    };
    Entry { log_id: log_id(record.at), payload }
}

pub(super) fn membership_record(
    membership: &openraft::Membership<u64, BasicNode>,
) -> MembershipRecord {
    MembershipRecord {
        voters: membership.get_joint_config().clone(),
        urls: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
    }
}

/// A record that no node could have written yields the empty membership: such a node votes for nobody.
fn membership(record: MembershipRecord) -> openraft::Membership<u64, BasicNode> {
    let nodes: std::collections::BTreeMap<u64, BasicNode> =
        record.urls.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
    openraft::Membership::new(record.voters, nodes).unwrap_or_default()
}

pub(super) fn stored_membership(at: Option<LogPosition>, record: MembershipRecord) -> Membership {
    Membership::new(at.map(log_id), membership(record))
}
