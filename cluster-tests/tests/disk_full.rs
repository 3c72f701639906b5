//! A control node whose disk is full: it ends, with a reason; the others go on; with room again it is back.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_cluster_tests::check::measured;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::network::or_skip;
use phalanx_cluster_tests::process::START_MAX;
use phalanx_cluster_tests::small_disk::SmallDisk;
use phalanx_cluster_tests::writers::{Load, Writers};

/// Room for the node's data, of which the log's file takes the most, and a little more.
const DISK_MIB: u32 = 8;
/// How soon a node whose writes fail must have ended.
const ENDED_WITHIN: Duration = Duration::from_secs(30);
/// How soon another node must take writes. The promise is 5 s; the rest is for a machine that is busy.
const FAILOVER_MAX: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_control_node_without_room_ends_with_a_reason_and_is_back_when_there_is_room()
-> Result<()> {
    let mut group = ControlGroup::start(3).await?;
    // The leader, for it is the node whose end is felt.
    let (full, _term) = group.agreed(&[0, 1, 2], FAILOVER_MAX).await?;
    group.nodes[full].process.crash()?;
    let data = group.folder().join(format!("control-{}", full + 1));
    let Some(disk) = or_skip(SmallDisk::mount_over(&data, DISK_MIB))? else { return Ok(()) };
    group.restart(full).await?;
    group.agreed(&[0, 1, 2], START_MAX).await?;
    let id = (full + 1).to_string();
    group.ask(&["transfer", &id])?;
    let writers = Writers::start(&group.urls(), &Load::per_second("writer", 3, 60)).await?;

    let moment = writers.now();
    disk.fill()?;
    let ended = group.nodes[full].process.exit(ENDED_WITHIN).await?;
    measured("disk full, until the node had ended", writers.now() - moment);
    ensure!(ended.code() == Some(1), "it ended with {ended}");
    let log = group.nodes[full].process.output()?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(last.contains("No space left on device"), "its last words are {last:?}");
    let waited = writers.acknowledged_after(writers.now(), FAILOVER_MAX).await?;
    measured("until a write sent then was taken", waited);

    disk.free()?;
    group.restart(full).await?;
    let [ahead, _other] = group.others(full)[..] else { anyhow::bail!("three nodes") };
    group.caught_up(full, ahead, START_MAX).await?;
    group.agreed(&[0, 1, 2], START_MAX).await?;
    measured("writes, the full disk included", writers.end().await?);
    drop(group);
    drop(disk);
    Ok(())
}
