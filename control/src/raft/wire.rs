//! Between the messages of `raft.proto` and the library's types: the only parser of what peers send.

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use phalanx_proto::pb;

use super::{Entry, LogId, SnapshotMeta, Types, Vote, convert};
use crate::store::StoreError;
use crate::store::record::{
    EntryRecord, LogPosition, MembershipRecord, VoteRecord, decode, encode,
};

const ENTRY: &str = "log entry";
const MEMBERSHIP: &str = "membership";

/// A message of a peer that does not hold what it must.
#[derive(Debug, thiserror::Error)]
pub(super) enum MessageError {
    #[error("field {field} of a control node's message is missing")]
    Missing { field: &'static str },
    #[error("a record in a control node's message cannot be used")]
    Record(#[from] StoreError),
}

type Parsed<T> = Result<T, MessageError>;

fn required<T>(field: &'static str, value: Option<T>) -> Parsed<T> {
    value.ok_or(MessageError::Missing { field })
}

// === positions and votes ===

fn position(id: Option<LogId>) -> Option<pb::LogPosition> {
    let position = convert::position(&id?);
    Some(pb::LogPosition { term: position.term, index: position.index })
}

pub(super) fn log_id(wire: Option<pb::LogPosition>) -> Option<LogId> {
    let pb::LogPosition { term, index } = wire?;
    Some(convert::log_id(LogPosition { term, index }))
}

pub(super) fn vote(vote: &Vote) -> pb::RaftVote {
    let VoteRecord { term, node, committed } = convert::vote_record(vote);
    pb::RaftVote { term, node, committed }
}

pub(super) fn parse_vote(field: &'static str, wire: Option<pb::RaftVote>) -> Parsed<Vote> {
    let pb::RaftVote { term, node, committed } = required(field, wire)?;
    Ok(convert::vote(VoteRecord { term, node, committed }))
}

// === AppendEntries ===

pub(super) fn append_request(
    request: &AppendEntriesRequest<Types>,
) -> Result<pb::AppendEntriesRequest, StoreError> {
    let entries = request.entries.iter();
    let entries = entries.map(|entry| encode(ENTRY, &convert::entry_record(entry)));
    Ok(pb::AppendEntriesRequest {
        vote: Some(vote(&request.vote)),
        previous: position(request.prev_log_id),
        entries: entries.collect::<Result<_, _>>()?,
        committed: position(request.leader_commit),
    })
}

pub(super) fn parse_append_request(
    wire: &pb::AppendEntriesRequest,
) -> Parsed<AppendEntriesRequest<Types>> {
    let parse = |bytes: &Vec<u8>| -> Parsed<Entry> {
        Ok(convert::entry(decode::<EntryRecord>(ENTRY, bytes)?))
    };
    Ok(AppendEntriesRequest {
        vote: parse_vote("vote", wire.vote)?,
        prev_log_id: log_id(wire.previous),
        entries: wire.entries.iter().map(parse).collect::<Parsed<_>>()?,
        leader_commit: log_id(wire.committed),
    })
}

pub(super) fn append_response(
    response: &AppendEntriesResponse<Types>,
) -> pb::AppendEntriesResponse {
    use pb::append_entries_response::Outcome;
    let outcome = match response {
        AppendEntriesResponse::Success => Outcome::All(pb::AppendedAll {}),
        AppendEntriesResponse::PartialSuccess(last) => {
            Outcome::Until(pb::AppendedUntil { last: position(*last) })
        }
        AppendEntriesResponse::Conflict => Outcome::Conflict(pb::AppendConflict {}),
        AppendEntriesResponse::HigherVote(higher) => Outcome::HigherVote(vote(higher)),
    };
    pb::AppendEntriesResponse { outcome: Some(outcome) }
}

pub(super) fn parse_append_response(
    wire: pb::AppendEntriesResponse,
) -> Parsed<AppendEntriesResponse<Types>> {
    use pb::append_entries_response::Outcome;
    Ok(match required("outcome", wire.outcome)? {
        Outcome::All(pb::AppendedAll {}) => AppendEntriesResponse::Success,
        Outcome::Until(pb::AppendedUntil { last }) => {
            AppendEntriesResponse::PartialSuccess(log_id(last))
        }
        Outcome::Conflict(pb::AppendConflict {}) => AppendEntriesResponse::Conflict,
        Outcome::HigherVote(higher) => {
            AppendEntriesResponse::HigherVote(parse_vote("higher_vote", Some(higher))?)
        }
    })
}

// === Vote, PreVote ===

pub(super) fn vote_request(request: &VoteRequest<Types>) -> pb::VoteRequest {
    pb::VoteRequest {
        vote: Some(vote(&request.vote)),
        last: position(request.last_log_id),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn parse_vote_request(wire: pb::VoteRequest) -> Parsed<VoteRequest<Types>> {
    let mut request = VoteRequest::new(parse_vote("vote", wire.vote)?, log_id(wire.last));
    request.leadership_transfer = wire.leadership_transfer;
    Ok(request)
}

pub(super) fn vote_response(response: &VoteResponse<Types>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(vote(&response.vote)),
        granted: response.vote_granted,
        last: position(response.last_log_id),
    }
}

pub(super) fn parse_vote_response(wire: pb::VoteResponse) -> Parsed<VoteResponse<Types>> {
    let vote = parse_vote("vote", wire.vote)?;
    Ok(VoteResponse::new(vote, log_id(wire.last), wire.granted))
}

// === TransferLeader ===

pub(super) fn transfer_request(
    request: &TransferLeaderRequest<Types>,
) -> pb::TransferLeaderRequest {
    pb::TransferLeaderRequest {
        from_leader: Some(vote(request.from_leader())),
        to_node: *request.to_node_id(),
        last: position(request.last_log_id().copied()),
    }
}

pub(super) fn parse_transfer_request(
    wire: pb::TransferLeaderRequest,
) -> Parsed<TransferLeaderRequest<Types>> {
    let from = parse_vote("from_leader", wire.from_leader)?;
    Ok(TransferLeaderRequest::new(from, wire.to_node, log_id(wire.last)))
}

pub(super) fn transfer_response(
    response: &TransferLeaderResponse<Types>,
) -> pb::TransferLeaderResponse {
    use pb::transfer_leader_response::Outcome;
    let outcome = match response {
        Ok(()) => Outcome::Accepted(pb::TransferAccepted {}),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            let (expected, actual) = (Some(vote(expected)), Some(vote(actual)));
            Outcome::VoteChanged(pb::TransferVoteChanged { expected, actual })
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            let (expected, actual) = (position(*expected), position(*actual));
            Outcome::LogNotFlushed(pb::TransferLogNotFlushed { expected, actual })
        }
    };
    pb::TransferLeaderResponse { outcome: Some(outcome) }
}

pub(super) fn parse_transfer_response(
    wire: pb::TransferLeaderResponse,
) -> Parsed<TransferLeaderResponse<Types>> {
    use pb::transfer_leader_response::Outcome;
    Ok(match required("outcome", wire.outcome)? {
        Outcome::Accepted(pb::TransferAccepted {}) => Ok(()),
        Outcome::VoteChanged(pb::TransferVoteChanged { expected, actual }) => {
            Err(TransferLeaderError::VoteChanged {
                expected: parse_vote("expected", expected)?,
                actual: parse_vote("actual", actual)?,
            })
        }
        Outcome::LogNotFlushed(pb::TransferLogNotFlushed { expected, actual }) => {
            let (expected, actual) = (log_id(expected), log_id(actual));
            Err(TransferLeaderError::LogNotFlushed { expected, actual })
        }
    })
}

// === InstallSnapshot ===

/// The first message of a snapshot: all of it but the data.
pub(super) fn snapshot_chunk(
    sender: &Vote,
    meta: &SnapshotMeta,
    body: &[u8],
) -> Result<pb::SnapshotChunk, StoreError> {
    let membership = convert::membership_record(meta.last_membership.membership());
    Ok(pb::SnapshotChunk {
        vote: Some(vote(sender)),
        last: position(meta.last_log_id),
        membership: encode(MEMBERSHIP, &membership)?,
        membership_at: position(*meta.last_membership.log_id()),
        digest: blake3::hash(body).as_bytes().to_vec(),
        total_bytes: u64::try_from(body.len()).unwrap_or(u64::MAX),
        offset: 0,
        data: Vec::new(),
    })
}

pub(super) fn parse_snapshot_meta(wire: &pb::SnapshotChunk) -> Parsed<SnapshotMeta> {
    let membership: MembershipRecord = decode(MEMBERSHIP, &wire.membership)?;
    let at = wire.membership_at.map(|at| LogPosition { term: at.term, index: at.index });
    Ok(SnapshotMeta {
        last_log_id: log_id(wire.last),
        last_membership: convert::stored_membership(at, membership),
    })
}
