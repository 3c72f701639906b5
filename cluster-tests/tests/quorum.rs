//! Control nodes that die: without one, writes go on; without two of three they are refused at once and lose
//! nothing, while the view is still shown and requests are served; and with them back, all is as before.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{eventually, measured};
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::serving::Serving;
use phalanx_cluster_tests::writers::{Load, Writers};
use phalanx_proto::change::{Change, WatchEvent};
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::{Lineage, ViewIndex};
use phalanx_proto::view::{MemberRole, Model};
use tokio::time::{Instant, timeout};

/// How soon another node must take writes. The promise is 5 s; the rest is for a machine that is busy.
const FAILOVER_MAX: Duration = Duration::from_secs(15);
/// How soon a write is refused while the last leader is not missed yet, and how soon from then on.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
const REFUSED_AT_ONCE: Duration = Duration::from_secs(2);
/// How soon a node shows what it has.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_lost_minority_stops_nothing_and_a_lost_majority_only_writes() -> Result<()> {
    let mut group = ControlGroup::start(3).await?;
    let serving = Serving::start(&group).await?;
    let before = group.constitution().await?;
    let requests = serving.requests();
    let writers = Writers::start(&group.urls(), &Load::per_second("writer", 3, 15)).await?;
    let (leader, _term) = group.agreed(&[0, 1, 2], FAILOVER_MAX).await?;
    let [survivor, other] = group.others(leader)[..] else { anyhow::bail!("three nodes") };

    let moment = writers.now();
    group.nodes[other].process.crash()?;
    let waited = writers.acknowledged_after(moment, FAILOVER_MAX).await?;
    measured("a follower dead, until a write sent then was taken", waited);

    group.nodes[leader].process.crash()?;
    let client = group.client(survivor)?;
    eventually("the survivor misses its group", REFUSED_WITHIN, async || {
        Ok(client.status().await?.leader == 0)
    })
    .await?;
    let asked = Instant::now();
    let model = Model { name: "refused".into(), revision: "r".into() };
    let put = timeout(REFUSED_WITHIN, client.submit("refused", 1, Change::PutModel(model))).await?;
    let fault = put.err().context("a write was taken without a quorum")?;
    measured("until a write was refused without a quorum", asked.elapsed());
    ensure!(fault.code == FaultCode::Unavailable && fault.retry_after.is_some(), "{fault:?}");
    ensure!(asked.elapsed() < REFUSED_AT_ONCE, "refused after {:?}", asked.elapsed());
    let mut watch = client.watch(Lineage(0), ViewIndex(0)).await?;
    let shown = timeout(SHOWN_WITHIN, watch.next()).await??;
    let Some(WatchEvent::Snapshot(view)) = shown else { anyhow::bail!("shown {shown:?}") };
    let workers = view.members.values().filter(|member| member.role == MemberRole::Worker).count();
    ensure!(workers == 1, "the view lost its worker: {view:?}");

    for node in [leader, other] {
        group.restart(node).await?;
    }
    let returned = writers.now();
    let waited = writers.acknowledged_after(returned, FAILOVER_MAX).await?;
    measured("the majority back, until a write sent then was taken", waited);
    group.agreed(&[0, 1, 2], FAILOVER_MAX).await?;
    measured("writes, the outage included", writers.end().await?);
    measured("requests served meanwhile", requests.end().await?);
    let after = group.constitution().await?;
    ensure!(after == before, "the group was {before:?} and is {after:?}");
    Ok(())
}
