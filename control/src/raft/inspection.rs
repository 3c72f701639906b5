//! What tests look at and do behind a node's service.

use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver as _;

use super::consensus::PROPOSE_WAIT_MAX;
use super::{Consensus, LogId, Types};
use crate::state::State;

// === impl Consensus ===

impl Consensus {
    /// Gives this replica a state that no log led to.
    pub(crate) async fn drift(&self) {
        let drift = self.raft().with_state_machine(|machine| {
            machine.drift();
            Box::pin(async {})
        });
        drift.await.unwrap();
    }

    /// The last index at which the replicas were compared.
    pub(crate) fn compared(&self) -> u64 {
        self.checkpoints.lock().compared().0
    }

    /// The state as it is applied, for tests; none once Raft has ended.
    pub(crate) async fn state(&self) -> Option<State> {
        let read = self.raft().with_state_machine(|machine| {
            let state = machine.state().clone();
            Box::pin(async move { state })
        });
        read.await.ok()
    }

    /// Begins to snapshot the state and drop the log, if Raft runs.
    pub(crate) async fn try_compact(&self) {
        let snapshot = |metrics: &RaftMetrics<Types>| metrics.snapshot.map(|id| id.index);
        let before = snapshot(&self.raft().metrics().borrow_watched());
        let wait = self.raft().wait(Some(PROPOSE_WAIT_MAX));
        if self.raft().trigger().snapshot().await.is_ok()
            && let Ok(metrics) = wait.metrics(|it| snapshot(it) > before, "snapshot").await
            && let Some(index) = snapshot(&metrics)
        {
            let _ended = self.raft().trigger().purge_log(index).await;
        }
    }

    /// Snapshots the state and drops the log up to there; gives that index.
    pub(crate) async fn compact(&self) -> u64 {
        let applied = self.status().last_applied;
        let wait = self.raft().wait(Some(PROPOSE_WAIT_MAX));
        self.raft().trigger().snapshot().await.unwrap();
        let at = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let snapshot = wait.metrics(|m| at(m.snapshot) >= applied, "snapshot");
        let snapshot = at(snapshot.await.unwrap().snapshot);
        self.raft().trigger().purge_log(snapshot).await.unwrap();
        let purged = wait.metrics(|m| at(m.purged) >= snapshot, "purged");
        purged.await.unwrap();
        snapshot
    }
}
