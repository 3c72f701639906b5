//! What an operator decides about a control node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use phalanx_proto::id::NodeId;

/// One control node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// Its id, above 0 and never given to another node.
    pub node_id: NodeId,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What it keeps. Belongs to this node alone.
    pub data_dir: PathBuf,
    /// Form a new cluster of all peers, unless the data directory already has a state. For exactly one of
    /// the nodes that form it; the others wait to be called by it.
    pub bootstrap: bool,
    /// The URLs of all nodes, this one included; empty for a node alone.
    pub peers: BTreeMap<NodeId, String>,
}

/// A configuration that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Id 0 stands for no node.
    #[error("node id is 0, must be at least 1")]
    NodeIdZero,
    /// The other nodes are listed, but not this one.
    #[error("peers do not list node {node_id} itself")]
    SelfMissing {
        /// This node.
        node_id: NodeId,
    },
}

// === impl ControlConfig ===

impl ControlConfig {
    /// Checks what can be told without touching the disk or the network.
    ///
    /// # Errors
    /// [`ConfigError`], for the first thing found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let node_id = self.node_id;
        if node_id == NodeId(0) {
            return Err(ConfigError::NodeIdZero);
        }
        if !self.peers.is_empty() && !self.peers.contains_key(&node_id) {
            return Err(ConfigError::SelfMissing { node_id });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(node_id: u64, peers: &[u64], expected: Option<&str>) {
        let config = ControlConfig {
            node_id: NodeId(node_id),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: PathBuf::from("data"),
            bootstrap: true,
            peers: peers.iter().map(|id| (NodeId(*id), format!("http://c{id}:7000"))).collect(),
        };
        let refusal = config.validate().err().map(|error| error.to_string());
        assert_eq!(refusal.as_deref(), expected);
    }

    #[test]
    fn a_node_has_an_id_and_is_among_its_peers() {
        check(1, &[], None);
        check(3, &[3], None);
        check(0, &[], Some("node id is 0, must be at least 1"));
        check(1, &[2], Some("peers do not list node 1 itself"));
        check(1, &[1, 2, 3], None);
    }
}
