//! A leader that stands still and goes on, as a virtual machine does: it never speaks for the group again
//! before it has heard who does.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_cluster_tests::check::measured;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::serving::Serving;
use phalanx_cluster_tests::writers::{Load, Writers};
use tokio::time::{Instant, sleep};

/// How soon another node must take writes. The promise is 5 s; the rest is for a machine that is busy.
const FAILOVER_MAX: Duration = Duration::from_secs(15);
/// How soon the node must follow once it goes on.
const BACK_MAX: Duration = Duration::from_secs(15);
/// Longer than a worker's lease, so that a leader that takes its own sleep for theirs would fence them.
const PAUSED: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_leader_that_slept_takes_no_write_for_its_own_and_follows() -> Result<()> {
    let group = ControlGroup::start(3).await?;
    let serving = Serving::start(&group).await?;
    let (leader, term) = group.agreed(&[0, 1, 2], FAILOVER_MAX).await?;
    let requests = serving.requests();
    let writers = Writers::start(&group.urls(), &Load::per_second("writer", 3, 15)).await?;
    // These know the leader alone: whatever it takes when it wakes must be there in the end.
    let url = [group.nodes[leader].url.clone()];
    let loyal = Writers::start(&url, &Load::per_second("loyal", 3, 15)).await?;

    let (moment, paused_at) = (writers.now(), Instant::now());
    group.nodes[leader].process.pause()?;
    let waited = writers.acknowledged_after(moment, FAILOVER_MAX).await?;
    measured("leader asleep, until a write sent then was taken", waited);
    let next = group.agreed(&group.others(leader), FAILOVER_MAX).await?;
    ensure!(next.0 != leader && next.1 > term, "{leader} leads in its sleep");
    sleep((paused_at + PAUSED).duration_since(Instant::now())).await;

    let woken = loyal.now();
    group.nodes[leader].process.go_on()?;
    measured("awake, until it passed a write on", loyal.acknowledged_after(woken, BACK_MAX).await?);
    let agreed = group.agreed(&[0, 1, 2], BACK_MAX).await?;
    ensure!(agreed == next, "{next:?} led, now it is {agreed:?}");
    measured("writes through the sleeper", loyal.end().await?);
    measured("writes through all", writers.end().await?);
    measured("requests served meanwhile", requests.end().await?);
    serving.workers_up(1.0).await
}
