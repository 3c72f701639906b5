//! Whether this node still hears its group. A leader hears it in the acknowledgements of a quorum, everybody
//! else in the calls of the leader; the library remembers a leader for as long as no other one calls.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Instant as _, RaftMetrics};
use parking_lot::Mutex;
use phalanx_proto::id::NodeId;
use tokio::time::Instant;

use super::{Types, config};

/// When the leader last called. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Contact(Arc<Mutex<Option<Instant>>>);

// === impl Contact ===

impl Contact {
    /// Remembers a call of the leader that this node follows.
    pub(super) fn heard(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// The leader, unless it may have been followed by another one that this node does not hear.
    pub(super) fn leader(&self, metrics: &RaftMetrics<Types>) -> Option<NodeId> {
        let leader = metrics.current_leader?;
        let silence = if leader == metrics.id {
            quorum_silence(metrics)
        } else {
            self.0.lock().map_or(Duration::MAX, |heard| heard.elapsed())
        };
        (silence < config::GROUP_SILENCE_MAX).then_some(NodeId(leader))
    }
}

/// Since a quorum last answered this node, which leads. One alone always hears itself, and one that has just
/// begun counts as heard.
fn quorum_silence(metrics: &RaftMetrics<Types>) -> Duration {
    let alone = metrics.membership_config.membership().voter_ids().count() <= 1;
    let acked = metrics.last_quorum_acked.as_ref().filter(|_acked| !alone);
    acked.map_or(Duration::ZERO, |acked| acked.elapsed())
}
