//! What a node knows of its group, as of now and as it changes.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver as _;
use phalanx_proto::id::NodeId;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::contact::Contact;
use super::{Consensus, Types};
use crate::store::chain;

/// Silence makes no event: it is looked for this often, a small part of the one that matters.
const SILENCE_LOOK_EVERY: Duration = Duration::from_millis(100);

type MetricsReceiver = openraft::type_config::alias::WatchReceiverOf<Types, RaftMetrics<Types>>;

/// What a node knows of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeStatus {
    pub(crate) term: u64,
    /// None while the node does not hear its group: another may lead by then.
    pub(crate) leader: Option<NodeId>,
    pub(crate) last_applied: u64,
    /// Every node's URL, and whether it votes.
    pub(crate) nodes: BTreeMap<NodeId, (String, bool)>,
}

// === impl NodeStatus ===

impl NodeStatus {
    /// The leader and its URL, as far as known.
    pub(crate) fn leader_url(&self) -> Option<(NodeId, &str)> {
        let leader = self.leader?;
        let (url, _votes) = self.nodes.get(&leader)?;
        Some((leader, url))
    }
}

// === impl Consensus ===

impl Consensus {
    /// What this node knows of its group.
    pub(crate) fn status(&self) -> NodeStatus {
        status_of(&self.raft().metrics().borrow_watched(), self.contact())
    }

    /// Follows [`Consensus::status`] for as long as the node runs.
    pub(crate) fn statuses(&self) -> watch::Receiver<NodeStatus> {
        let mut metrics: MetricsReceiver = self.raft().metrics();
        let (sender, receiver) = watch::channel(self.status());
        let contact = self.contact().clone();
        self.runtime().spawn(async move {
            let mut look = interval(SILENCE_LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !sender.is_closed() {
                tokio::select! {
                    changed = metrics.changed() => if changed.is_err() { return },
                    _ = look.tick() => {}
                }
                let status = status_of(&metrics.borrow_watched(), &contact);
                sender.send_if_modified(|current| {
                    let changed = *current != status;
                    *current = status;
                    changed
                });
            }
        });
        receiver
    }
}

/// Waits until Raft reports that it cannot go on.
pub(super) async fn failure_in(mut metrics: MetricsReceiver) -> String {
    loop {
        if let Err(fatal) = &metrics.borrow_watched().running_state {
            return chain(fatal);
        }
        if metrics.changed().await.is_err() {
            return "Raft has ended".to_owned();
        }
    }
}

fn status_of(metrics: &RaftMetrics<Types>, contact: &Contact) -> NodeStatus {
    let membership = metrics.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    let nodes = membership.nodes();
    NodeStatus {
        term: metrics.current_term,
        leader: contact.leader(metrics),
        last_applied: metrics.last_applied.map_or(0, |applied| applied.index),
        nodes: nodes
            .map(|(id, node)| (NodeId(*id), (node.addr.clone(), voters.contains(id))))
            .collect(),
    }
}
