//! Moves the clock that silence is counted by, tells operators who fell silent or hangs and who is well again,
//! compares the pace of engines, and lets what is known of their caches grow old.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::fleet::Fleet;
use crate::engine::hearing::{Condition, TICK_EVERY};

/// How often engines are compared with their peers: often enough to eject a slow one within seconds.
const COMPARE_EVERY: Duration = Duration::from_millis(500);
/// Every so many ticks, once a second, engines' mirrors forget what is old.
const TICKS_TO_FORGET: u32 = 40;

/// Listens for as long as the router runs.
pub(crate) async fn listen(fleet: Arc<ArcSwap<Fleet>>) {
    let mut last = Instant::now();
    let mut compared = last;
    let mut ticks = 0_u32;
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
        ticks = ticks.wrapping_add(1);
        let forgets = ticks.is_multiple_of(TICKS_TO_FORGET);
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
            if forgets {
                engine.holding().forget_old(now);
            }
        }
    }
}
