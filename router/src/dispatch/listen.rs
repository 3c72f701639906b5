//! Moves the clock that silence is counted by, and tells operators who fell silent and who is heard again.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::fleet::Fleet;
use crate::engine::hearing::TICK_EVERY;

/// Listens for as long as the router runs.
pub(crate) async fn listen(fleet: Arc<ArcSwap<Fleet>>) {
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(TICK_EVERY).await;
        let now = Instant::now();
        let fleet = fleet.load();
        fleet.clock().tick(now - last);
        last = now;
        for engine in fleet.engines() {
            match engine.note_silence() {
                Some(true) => {
                    tracing::warn!(worker = %engine.identity, "worker is silent, avoiding it");
                }
                Some(false) => tracing::info!(worker = %engine.identity, "worker is heard again"),
                None => {}
            }
        }
    }
}
