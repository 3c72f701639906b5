//! Leaving the leadership to another node before this one stops, so that nobody waits for an election.

use std::cmp::Reverse;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use phalanx_proto::id::NodeId;
use tokio::time::timeout;

use super::{Consensus, config};

/// How long one node may take to lead: what it lacks, a vote and a first entry, so milliseconds. An election
/// without a hand-over takes longer than this.
const TRY_WAIT_MAX: Duration = Duration::from_secs(1);

/// How many nodes are asked, one after the other. When two cannot lead, an election will have to find who can.
const TRIES_MAX: usize = 2;

/// The longest that [`Consensus::hand_over`] takes.
pub(crate) const HAND_OVER_WAIT_MAX: Duration = Duration::from_secs(2);

/// A voter that could lead instead, as the leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    node: NodeId,
    /// The last entry known to be on its disk.
    reached: u64,
    /// Since it last answered.
    silence: Duration,
}

// === impl Consensus ===

impl Consensus {
    /// Makes another voter lead, if this node does. Has to be called while this node still answers: its
    /// successor needs its vote when the group has lost another node.
    pub(crate) async fn hand_over(&self) {
        let own = self.identity().node();
        let mut statuses = self.statuses();
        for Candidate { node, reached, .. } in in_order(self.candidates()).take(TRIES_MAX) {
            tracing::info!(successor = %node, reached, "hands the leadership over");
            if self.raft().trigger().transfer_leader(node.0).await.is_err() {
                return; // Raft has stopped, and with it the leadership
            }
            let led = statuses.wait_for(|status| status.leader.is_some_and(|leader| leader != own));
            match timeout(TRY_WAIT_MAX, led).await {
                Ok(Ok(status)) => {
                    let leader = status.leader.map(|leader| leader.0);
                    tracing::info!(leader, term = status.term, "another node leads");
                    return;
                }
                Ok(Err(_closed)) => return,
                Err(_elapsed) => {
                    tracing::warn!(successor = %node, "it does not lead after {TRY_WAIT_MAX:?}");
                }
            }
        }
    }

    /// The other voters; none when this node does not lead.
    fn candidates(&self) -> Vec<Candidate> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let (Some(reached), Some(heard)) = (&metrics.replication, &metrics.heartbeat) else {
            return Vec::new();
        };
        let voters = metrics.membership_config.membership().voter_ids();
        let others = voters.filter(|id| *id != metrics.id);
        let candidates = others.filter_map(|id| {
            let reached = reached.get(&id)?.as_ref()?.index;
            let silence = heard.get(&id)?.as_ref()?.elapsed();
            Some(Candidate { node: NodeId(id), reached, silence })
        });
        candidates.collect()
    }
}

/// Who is asked first: of the nodes that still answer the one that lacks least, and of equals the one heard
/// last.
fn in_order(mut candidates: Vec<Candidate>) -> impl Iterator<Item = Candidate> {
    candidates.retain(|candidate| candidate.silence < config::GROUP_SILENCE_MAX);
    candidates.sort_by_key(|candidate| (Reverse(candidate.reached), candidate.silence));
    candidates.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(candidates: &[(u64, u64, u64)], expected: &[u64]) {
        let candidates = candidates.iter().map(|&(node, reached, silence_ms)| Candidate {
            node: NodeId(node),
            reached,
            silence: Duration::from_millis(silence_ms),
        });
        let order: Vec<u64> = in_order(candidates.collect()).map(|next| next.node.0).collect();
        assert_eq!(order, expected);
    }

    #[test]
    fn the_voter_that_lacks_least_is_asked_first() {
        check(&[(2, 90, 10), (3, 100, 150), (4, 95, 10)], &[3, 4, 2]);
    }

    #[test]
    fn of_equals_the_one_heard_last_is_asked_first() {
        check(&[(2, 100, 300), (3, 100, 20)], &[3, 2]);
    }

    #[test]
    fn a_voter_that_no_longer_answers_is_not_asked() {
        check(&[(2, 100, 2000), (3, 10, 20)], &[3]);
        check(&[(2, 100, 5000)], &[]);
        check(&[], &[]);
    }
}
