//! Who is in the group and who leads it, changed by an operator: at the leader, one change at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;
use openraft::{BasicNode, ChangeMembers, RaftMetrics};
use phalanx_chassis::config::Kind;
use phalanx_proto::change::GroupChange;
use phalanx_proto::id::NodeId;
use tokio::time::timeout;

use super::consensus::{PROPOSE_WAIT_MAX, propose_error};
use super::{Consensus, NodeStatus, ProposeError, Types};
use crate::command::ADDRESS_BYTES_MAX;

/// How many entries a node may lack when it is given a vote: it must not slow the commits that it counts for.
const PROMOTE_LAG_MAX: u64 = 1000;

/// How long a node to promote may take to be heard: a leader that was just elected has heard nobody yet, and calls
/// everybody many times within this.
const HEARD_WAIT_MAX: Duration = Duration::from_secs(2);

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
    /// The URL given is the fault.
    #[error("{0}")]
    Url(String),
    /// The node is not there, or not any more.
    #[error("node {0} is not in the group")]
    NotInGroup(NodeId),
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
        let url = url.trim_end_matches('/').to_owned();
        let expected = Kind::Url.parse(&url).err();
        let too_long = (url.len() > ADDRESS_BYTES_MAX)
            .then(|| format!("has {} bytes, at most {ADDRESS_BYTES_MAX} are allowed", url.len()));
        if let Some(problem) = expected.or(too_long) {
            return Err(GroupError::Url(format!("url {url:?} {problem}")));
        }
        let nodes = self.status().nodes;
        let known = nodes.iter().find(|(_id, (known, _votes))| known.trim_end_matches('/') == url);
        match known {
            Some((node, (_url, true))) => {
                return Err(GroupError::Url(format!("url {url} is that of node {node}, a voter")));
            }
            // Its addition was asked for before.
            Some((node, _learns)) => return Ok(*node),
            None => {}
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
        let Some(lag) = self.lag_of(node).await else {
            return refuse(format!(
                "node {node} was not heard within {HEARD_WAIT_MAX:?}: is it started, and reached where it was added?"
            ));
        };
        if lag > PROMOTE_LAG_MAX {
            return refuse(format!(
                "node {node} lacks {lag} entries, at most {PROMOTE_LAG_MAX} may be lacking for a vote: wait until it has caught up"
            ));
        }
        let voters = ChangeMembers::AddVoterIds(BTreeSet::from([node.0]));
        let promoting = self.raft().change_membership(voters, true);
        changed(timeout(PROPOSE_WAIT_MAX, promoting).await, node)
    }

    /// How many entries the node lacks; none when this leader does not hear it.
    async fn lag_of(&self, node: NodeId) -> Option<u64> {
        let reached = |metrics: &RaftMetrics<Types>| {
            let progress = metrics.replication.as_ref()?.get(&node.0)?.as_ref()?;
            Some(metrics.last_log_index.unwrap_or(0).saturating_sub(progress.index))
        };
        let wait = self.raft().wait(Some(HEARD_WAIT_MAX));
        let heard = wait.metrics(|metrics| reached(metrics).is_some(), "the node is heard").await;
        heard.ok().as_ref().and_then(reached)
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
        votes.ok_or(GroupError::NotInGroup(node))
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
