//! A worker that is killed under a thousand live streams: no client sees an error, no token is lost or told twice.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use phalanx_cluster_tests::check::measured;
use phalanx_cluster_tests::live_streams::{Load, kill_one_worker};

#[tokio::test]
async fn a_thousand_streams_lose_no_token_when_a_worker_is_killed() -> Result<()> {
    // Slow enough for a build that is not optimised.
    let load = Load { streams: 1000, workers: 4, tokens: 25, step_ms: 1000 };
    let outcome = kill_one_worker(load).await?;
    measured("streams moved", outcome.moved);
    measured("longest wait of their clients between two tokens", outcome.gaps.first());
    ensure!(outcome.moved >= 100.0, "only {} streams moved", outcome.moved);
    Ok(())
}
