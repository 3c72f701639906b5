//! Five control nodes: with two dead, the leader among them, writes go on; with three dead they are refused at once, as
//! unavailable and with a time to come back; and with one of these back, they pass.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{eventually, measured};
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::writers::{Load, Writers};
use phalanx_proto::change::Change;
use phalanx_proto::fault::FaultCode;
use phalanx_proto::view::Model;
use tokio::time::timeout;

/// How soon another node must take writes. The promise is 5 s; the rest is for a machine that is busy.
const FAILOVER_MAX: Duration = Duration::from_secs(15);
/// How soon a node notices that it hears too few, and refuses.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// Writes are refused by the node `at`, and probes are told.
async fn refuses(group: &ControlGroup, at: usize) -> Result<()> {
    let client = group.client(at)?;
    eventually("the node misses its group", REFUSED_WITHIN, async || {
        Ok(client.status().await?.leader == 0)
    })
    .await?;
    let model = Model { name: "refused".into(), revision: "r".into() };
    let put = client.submit("refused", 1, Change::PutModel(model));
    let fault = timeout(REFUSED_WITHIN, put).await?.err();
    let fault = fault.context("a write was taken without a quorum")?;
    ensure!(fault.code == FaultCode::Unavailable && fault.retry_after.is_some(), "{fault:?}");
    // Probes read a flag that follows the status.
    let metrics = &group.nodes[at].metrics;
    let is_unready = async || Ok(metrics.get("/health/ready").await?.status == 503);
    eventually("probes are told", REFUSED_WITHIN, is_unready).await
}

#[tokio::test]
async fn five_nodes_outlive_two_and_without_a_third_refuse_writes() -> Result<()> {
    let mut group = ControlGroup::start(5).await?;
    let all = [0, 1, 2, 3, 4];
    let writers = Writers::start(&group.urls(), &Load::per_second("writer", 3, 15)).await?;
    let before = group.constitution().await?;
    let (leader, term) = group.agreed(&all, FAILOVER_MAX).await?;
    let [follower, rest @ ..] = &group.others(leader)[..] else { anyhow::bail!("five nodes") };

    let moment = writers.now();
    for node in [leader, *follower] {
        group.nodes[node].process.crash()?;
    }
    let waited = writers.acknowledged_after(moment, FAILOVER_MAX).await?;
    measured("leader and follower of five dead, until a write sent then was taken", waited);
    let (second, later) = group.agreed(rest, FAILOVER_MAX).await?;
    ensure!(second != leader && later > term, "node {} leads in term {later}", second + 1);

    group.nodes[second].process.crash()?;
    for left in rest.iter().filter(|node| **node != second) {
        refuses(&group, *left).await?;
    }

    group.restart(second).await?;
    let returned = writers.now();
    let waited = writers.acknowledged_after(returned, FAILOVER_MAX).await?;
    measured("a third node back, until a write sent then was taken", waited);
    for node in [leader, *follower] {
        group.restart(node).await?;
    }
    group.agreed(&all, FAILOVER_MAX).await?;
    measured("writes, the outages included", writers.end().await?);
    let after = group.constitution().await?;
    ensure!(after == before, "the group was {before:?} and is {after:?}");
    Ok(())
}
