//! Moves the clock that silence is counted by, tells operators who fell silent or hangs and who is well again, and
//! compares the pace of engines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::fleet::Fleet;
use crate::engine::hearing::{Condition, TICK_EVERY};

/// How often engines are compared with their peers: often enough to eject a slow one within seconds.
const COMPARE_EVERY: Duration = Duration::from_millis(500);

/// Listens for as long as the router runs.
pub(crate) async fn listen(fleet: Arc<ArcSwap<Fleet>>) {
    let mut last = Instant::now();
    let mut compared = last;
    loop {
        tokio::time::sleep(TICK_EVERY).await;
        let now = Instant::now();
        let fleet = fleet.load();
        fleet.clock().tick(now - last);
        last = now;
        if now.saturating_duration_since(compared) >= COMPARE_EVERY {
            compared = now;
            fleet.eject_slow(now);
        }
        for engine in fleet.engines() {
            let worker = &engine.identity;
            match engine.note_condition() {
                Some(Condition::Silent) => tracing::warn!(%worker, "worker is silent, avoiding it"),
                Some(Condition::Stuck) => {
                    tracing::warn!(%worker, "worker reports but does not compute, avoiding it");
                }
                Some(Condition::Well) => tracing::info!(%worker, "worker is well again"),
                None => {}
            }
        }
    }
}
