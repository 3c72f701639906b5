//! Whether a control node can be of use: what probes ask. It outlives the node, and then says no.

use tokio::sync::watch;

use crate::raft::NodeStatus;

/// A look at a control node from outside.
#[derive(Clone, Debug)]
pub struct ControlReadiness(pub(crate) watch::Receiver<NodeStatus>);

// === impl ControlReadiness ===

impl ControlReadiness {
    /// Whether the node runs and knows a leader, itself or another: without one it can answer nobody.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), &'static str> {
        // The node owns the other end, and drops it when it ends.
        if self.0.has_changed().is_err() {
            return Err("node stopped");
        }
        if self.0.borrow().leader.is_none() {
            return Err("no leader known");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::id::NodeId;

    use super::*;

    #[test]
    fn a_node_is_ready_while_it_runs_and_knows_a_leader() {
        let status = watch::Sender::new(NodeStatus::default());
        let readiness = ControlReadiness(status.subscribe());
        assert_eq!(readiness.check(), Err("no leader known"));
        status.send_replace(NodeStatus { leader: Some(NodeId(2)), ..NodeStatus::default() });
        assert_eq!(readiness.check(), Ok(()));
        drop(status);
        assert_eq!(readiness.check(), Err("node stopped"));
    }
}
