//! Who is in the group and who leads it, changed by an operator: at the leader, one change at a time.

use std::collections::BTreeSet;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;
use openraft::{BasicNode, ChangeMembers};
use phalanx_proto::change::GroupChange;
use phalanx_proto::id::NodeId;
use tokio::time::timeout;

use super::consensus::{PROPOSE_WAIT_MAX, propose_error};
use super::{Consensus, NodeStatus, ProposeError, Types};
use crate::command::ADDRESS_BYTES_MAX;

/// How many entries a node may lack when it is given a vote: it must not slow the commits that it counts for.
const PROMOTE_LAG_MAX: u64 = 1000;

/// Ids come from the log, above every id in use: entries are written until one is.
const ID_ENTRIES_MAX: u64 = 1000;

type Written = Result<ClientWriteResponse<Types>, RaftError<Types, ClientWriteError<Types>>>;

/// Why the group stayed as it was, or perhaps did not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("the group cannot change now: {0}")]
    Busy(String),
    #[error("{0}")]
    Refused(String),
}

type Changed = Result<NodeId, GroupError>;

// === impl Consensus ===

impl Consensus {
    /// Makes a change, and says which node it was about. To repeat one is harmless.
    pub(crate) async fn change_group(&self, change: GroupChange) -> Changed {
        match change {
            GroupChange::Add { url } => self.add(url).await,
            GroupChange::Promote(node) => self.promote(node).await,
            GroupChange::Remove(node) => self.remove(node).await,
            GroupChange::Transfer(node) => self.transfer(node).await,
        }
    }

    async fn add(&self, url: String) -> Changed {
        if !url.starts_with("http://") || url.len() > ADDRESS_BYTES_MAX {
            return refuse(format!("url {url:?} is not of the form http://HOST:PORT"));
        }
        let nodes = self.status().nodes;
        if let Some((node, _known)) = nodes.iter().find(|(_id, (known, _votes))| *known == url) {
            return Ok(*node);
        }
        let highest = nodes.last_key_value().map_or(0, |(id, _node)| id.0);
        let node = self.fresh_id(highest).await?;
        let adding = self.raft().add_learner(node.0, BasicNode { addr: url }, false);
        changed(timeout(PROPOSE_WAIT_MAX, adding).await, node)
    }

    /// The index of a committed entry: no other node can ever be given it.
    async fn fresh_id(&self, above: u64) -> Changed {
        let missing = above.saturating_sub(self.status().last_applied);
        if missing > ID_ENTRIES_MAX {
            return refuse(format!(
                "node ids come from the log, which has to grow by {missing} entries to pass {above}"
            ));
        }
        for _entry in 0..=missing {
            let written = timeout(PROPOSE_WAIT_MAX, self.raft().write_blank()).await;
            let index = written
                .map_err(|_elapsed| ProposeError::Timeout)?
                .map_err(group_error)?
                .log_id
                .index;
            if index > above {
                return Ok(NodeId(index));
            }
        }
        Err(GroupError::Busy(format!("no log index is above {above} yet")))
    }

    async fn promote(&self, node: NodeId) -> Changed {
        if self.votes(node)? {
            return Ok(node);
        }
        let metrics = self.raft().metrics().borrow_watched().clone();
        let reached = metrics.replication.as_ref().and_then(|all| all.get(&node.0).copied());
        let reached = reached.flatten().map_or(0, |reached| reached.index);
        let lag = metrics.last_log_index.unwrap_or(0).saturating_sub(reached);
        if lag > PROMOTE_LAG_MAX || reached == 0 {
            return refuse(format!(
                "node {node} lacks {lag} entries, at most {PROMOTE_LAG_MAX} may be lacking for a vote"
            ));
        }
        let voters = ChangeMembers::AddVoterIds(BTreeSet::from([node.0]));
        let promoting = self.raft().change_membership(voters, true);
        changed(timeout(PROPOSE_WAIT_MAX, promoting).await, node)
    }

    async fn remove(&self, node: NodeId) -> Changed {
        let status = self.status();
        let ids = BTreeSet::from([node.0]);
        let members = if self.votes(node)? {
            if voters(&status) == 1 {
                return refuse(format!("node {node} is the last voter, it cannot be removed"));
            }
            if status.leader == Some(node) {
                return refuse(format!("node {node} leads, transfer the leadership first"));
            }
            ChangeMembers::RemoveVoters(ids)
        } else {
            ChangeMembers::RemoveNodes(ids)
        };
        let removing = self.raft().change_membership(members, false);
        changed(timeout(PROPOSE_WAIT_MAX, removing).await, node)
    }

    async fn transfer(&self, node: NodeId) -> Changed {
        if !self.votes(node)? {
            return refuse(format!("node {node} has no vote, so it cannot lead"));
        }
        if self.status().leader == Some(node) {
            return Ok(node);
        }
        let mut statuses = self.statuses();
        let asked = self.raft().trigger().transfer_leader(node.0).await;
        asked.map_err(|fatal| ProposeError::Stopped(fatal.to_string()))?;
        let led = statuses.wait_for(|status| status.leader == Some(node));
        match timeout(PROPOSE_WAIT_MAX, led).await {
            Ok(Ok(_status)) => Ok(node),
            Ok(Err(_closed)) => Err(ProposeError::Stopped("it was shut down".to_owned()).into()),
            Err(_elapsed) => {
                let text = format!("node {node} did not lead within {PROPOSE_WAIT_MAX:?}");
                Err(GroupError::Busy(text))
            }
        }
    }

    /// Whether a node of the group has a vote.
    fn votes(&self, node: NodeId) -> Result<bool, GroupError> {
        let votes = self.status().nodes.get(&node).map(|(_url, votes)| *votes);
        votes.ok_or_else(|| GroupError::Refused(format!("node {node} is not in the group")))
    }
}

fn voters(status: &NodeStatus) -> usize {
    status.nodes.values().filter(|(_url, votes)| *votes).count()
}

fn refuse(reason: String) -> Changed {
    Err(GroupError::Refused(reason))
}

fn changed(written: Result<Written, tokio::time::error::Elapsed>, node: NodeId) -> Changed {
    written.map_err(|_elapsed| ProposeError::Timeout)?.map_err(group_error)?;
    Ok(node)
}

fn group_error(error: RaftError<Types, ClientWriteError<Types>>) -> GroupError {
    match error {
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            GroupError::Busy(error.to_string())
        }
        other => propose_error(other).into(),
    }
}
