//! Follows the cluster view: one link per registration, and a fleet snapshot for dispatch to read.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use phalanx_proto::id::{Epoch, MemberId};
use phalanx_proto::view::ClusterView;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::fleet::Fleet;
use crate::engine::{Engine, Kind, link};

/// The links in operation. Dropping them disconnects everything.
#[derive(Debug, Default)]
struct Links {
    tasks: JoinSet<()>,
    by_engine: HashMap<(MemberId, Epoch), AbortHandle>,
}

/// Keeps `fleet` at the newest view until the view's source is gone, and then at the last one.
pub(crate) async fn follow(
    mut view: watch::Receiver<Arc<ClusterView>>,
    fleet: Arc<ArcSwap<Fleet>>,
) {
    let mut links = Links::default();
    loop {
        let newest = Arc::clone(&view.borrow_and_update());
        let (next, changes) = fleet.load().next(newest);
        for engine in &changes.closed {
            links.close(engine);
        }
        for engine in changes.opened {
            links.open(engine);
        }
        fleet.store(Arc::new(next));
        if view.changed().await.is_err() {
            // Control's follower ended: the last view is still the best there is.
            return std::future::pending().await;
        }
    }
}

// === impl Links ===

impl Links {
    fn open(&mut self, engine: Arc<Engine>) {
        let Kind::Native(worker) = &engine.kind;
        let (key, worker) = ((engine.id(), worker.epoch), Arc::clone(worker));
        let task = self.tasks.spawn(link::keep(engine, worker));
        self.by_engine.insert(key, task);
    }

    fn close(&mut self, engine: &Engine) {
        let Kind::Native(worker) = &engine.kind;
        if let Some(task) = self.by_engine.remove(&(engine.id(), worker.epoch)) {
            task.abort();
        }
        // Reap what was aborted before, so that the set does not grow with every change.
        while self.tasks.try_join_next().is_some() {}
    }
}
