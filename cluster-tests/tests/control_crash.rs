//! A control node that is killed again and again while clients write: what it acknowledged is there, once.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::process::START_MAX;
use phalanx_cluster_tests::writers::{Load, Writers};

const KILLS: u64 = 25;
const CLIENTS: u32 = 4;

#[tokio::test]
async fn nothing_acknowledged_is_lost_or_applied_twice_in_25_kills() -> Result<()> {
    let mut group = ControlGroup::start(1).await?;
    let load = Load::closed_loop("crash", CLIENTS);
    let writers = Writers::start(&group.urls(), &load).await?;
    for kill in 0..KILLS {
        // Some lives are short and some are long, but each of them takes writes.
        writers.acknowledge(1 + kill % 5 * 20, START_MAX).await?;
        tokio::time::sleep(Duration::from_millis(kill * 7 % 50)).await;
        group.nodes[0].process.crash()?;
        group.restart(0).await?;
    }
    writers.acknowledge(u64::from(CLIENTS), START_MAX).await?;
    let summary = writers.end().await?;
    eprintln!("{KILLS} kills: {summary}");
    ensure!(summary.repeated > 0, "no write was under way when the node was killed: {summary}");
    Ok(())
}
