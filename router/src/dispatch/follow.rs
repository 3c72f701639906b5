//! Follows the cluster view and the foreign engines: one link per registration, one probe per foreign engine, and a
//! fleet snapshot for dispatch to read.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use phalanx_proto::id::{Epoch, MemberId};
use phalanx_proto::view::ClusterView;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::fleet::Fleet;
use crate::engine::foreign::{Foreign, probe};
use crate::engine::{Engine, Kind, link};

/// The links in operation. Dropping them disconnects everything.
#[derive(Debug, Default)]
struct Links {
    tasks: JoinSet<()>,
    by_engine: HashMap<(MemberId, Epoch), AbortHandle>,
}

/// Keeps `fleet` at the newest view, or at the last one when the view's source is gone, and at what the `foreign`
/// engines serve.
pub(crate) async fn follow(
    mut view: watch::Receiver<Arc<ClusterView>>,
    foreign: Vec<Arc<Foreign>>,
    fleet: Arc<ArcSwap<Fleet>>,
) {
    let mut links = Links::default();
    let mut probes = JoinSet::new();
    let (changed, mut changes_of_foreign) = watch::channel(0);
    for engine in &foreign {
        probes.spawn(probe::keep(Arc::clone(engine), changed.clone()));
    }
    loop {
        let newest = Arc::clone(&view.borrow_and_update());
        changes_of_foreign.mark_unchanged();
        let (next, changes) = fleet.load().next(newest, &foreign);
        for engine in &changes.closed {
            links.close(engine);
        }
        for engine in changes.opened {
            links.open(engine);
        }
        fleet.store(Arc::new(next));
        // Control's follower may have ended, or there never was one: the last view is still the best there is.
        let viewed = async {
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = viewed => {}
            // Its sender lives as long as this loop.
            _ = changes_of_foreign.changed() => {}
        }
    }
}

// === impl Links ===

impl Links {
    fn open(&mut self, engine: Arc<Engine>) {
        let Kind::Native(worker) = &engine.kind else { return };
        let (key, worker) = ((engine.id(), worker.epoch), Arc::clone(worker));
        let task = self.tasks.spawn(link::keep(engine, worker));
        self.by_engine.insert(key, task);
    }

    fn close(&mut self, engine: &Engine) {
        let Kind::Native(worker) = &engine.kind else { return };
        if let Some(task) = self.by_engine.remove(&(engine.id(), worker.epoch)) {
            task.abort();
        }
        // Reap what was aborted before, so that the set does not grow with every change.
        while self.tasks.try_join_next().is_some() {}
    }
}
