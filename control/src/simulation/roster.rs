//! Which control node runs on which host, as operators have it: hosts take nodes up and give them back.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use phalanx_proto::id::NodeId;

use super::network::{HostId, Network};

/// The hosts that may run control nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Roster(Arc<Mutex<Seats>>);

#[derive(Debug)]
struct Seats {
    nodes: BTreeMap<HostId, Option<NodeId>>,
    /// Hosts that took a node up or gave it back since anybody asked.
    changed: Vec<HostId>,
}

// === impl Roster ===

impl Roster {
    /// The founding nodes have the ids of their hosts.
    pub(super) fn new(founders: &[HostId], spares: &[HostId]) -> Self {
        let founders = founders.iter().map(|host| (*host, Some(NodeId(*host))));
        let nodes = founders.chain(spares.iter().map(|host| (*host, None))).collect();
        Self(Arc::new(Mutex::new(Seats { nodes, changed: Vec::new() })))
    }

    pub(super) fn node(&self, host: HostId) -> Option<NodeId> {
        self.0.lock().nodes.get(&host).copied().flatten()
    }

    pub(super) fn is_of_control(&self, host: HostId) -> bool {
        self.0.lock().nodes.contains_key(&host)
    }

    /// Every node that has a host, and where.
    pub(super) fn urls(&self) -> BTreeMap<NodeId, String> {
        let seats = self.0.lock();
        let taken = seats.nodes.iter().filter_map(|(host, node)| Some((*host, (*node)?)));
        taken.map(|(host, node)| (node, Network::url(host))).collect()
    }

    pub(super) fn host(&self, node: NodeId) -> Option<HostId> {
        let seats = self.0.lock();
        seats.nodes.iter().find_map(|(host, taken)| (*taken == Some(node)).then_some(*host))
    }

    pub(super) fn vacant(&self) -> Vec<HostId> {
        let seats = self.0.lock();
        let vacant = seats.nodes.iter().filter(|(_host, node)| node.is_none());
        vacant.map(|(host, _none)| *host).collect()
    }

    pub(super) fn seat(&self, host: HostId, node: Option<NodeId>) {
        let mut seats = self.0.lock();
        if seats.nodes.insert(host, node) != Some(node) {
            seats.changed.push(host);
        }
    }

    pub(super) fn take_changed(&self) -> Vec<HostId> {
        std::mem::take(&mut self.0.lock().changed)
    }
}
