//! The adapters between the Raft library and this crate: no logic of the cluster is here, and no type of
//! the library leaves this module.
//!
//! ```text
//! service, leader ──► consensus ──► openraft ──► log ──► store        (on a runtime of its own)
//!                                      │ └─────► machine ──► state, feed
//!                                      ├───────► network ──gRPC──► peers
//!                                      └◄────── server ◄───gRPC─── peers        (both through wire)
//! ```

mod archive;
mod config;
mod consensus;
mod contact;
mod convert;
mod group;
mod handover;
#[cfg(test)]
mod inspection;
mod log;
mod machine;
mod network;
mod server;
mod status;
mod transfer;
mod wire;

pub(crate) use self::consensus::{Consensus, ConsensusOptions, ProposeError, StartConsensusError};
pub(crate) use self::group::GroupError;
pub(crate) use self::handover::HAND_OVER_WAIT_MAX;
pub(crate) use self::server::{RaftService, check};
pub(crate) use self::status::NodeStatus;

use crate::command::Command;
use crate::state::Reply;

#[cfg(test)]
use crate::simulation::runtime::SeededRuntime as Runtime;
#[cfg(not(test))]
use openraft::impls::TokioRuntime as Runtime;

openraft::declare_raft_types!(
    /// The library's parameters. One leader per term, so that a term names its leader.
    pub(crate) Types:
        D = Command,
        R = Reply,
        NodeId = u64,
        Node = openraft::BasicNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

type LogId = openraft::type_config::alias::LogIdOf<Types>;
type Vote = openraft::type_config::alias::VoteOf<Types>;
type Entry = openraft::type_config::alias::EntryOf<Types>;
type Membership = openraft::type_config::alias::StoredMembershipOf<Types>;
type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

#[cfg(test)]
mod tests;
