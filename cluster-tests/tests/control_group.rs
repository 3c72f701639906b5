//! Three control nodes: one may be killed at any time, and even without all of them serving goes on.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{eventually, serves};
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::process::START_MAX;
use phalanx_cluster_tests::serving::Serving;
use tokio::time::Instant;

/// How soon another node must lead once the leader is dead.
const FAILOVER_MAX: Duration = Duration::from_secs(5);
/// Longer than the registrations' time to live: nobody may be dropped for control's own absence.
const BEYOND_LEASES: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_killed_leader_fails_no_request_and_another_takes_writes_within_seconds() -> Result<()> {
    let mut group = ControlGroup::start(3).await?;
    let serving = Serving::start(&group).await?;
    let before = group.constitution().await?;
    let requests = serving.requests();
    let leader = group.leader(0).await?.context("nobody leads")?;
    group.nodes[leader].process.crash()?;
    let survivor = (leader + 1) % group.nodes.len();
    eventually("another node leads", FAILOVER_MAX, async || {
        Ok(group.leader(survivor).await?.is_some_and(|now| now != leader))
    })
    .await?;
    // A registration is a write. The new worker knows the dead node, too.
    let second = group.start_role(None, "worker-2", &["worker"]).await?;
    serving.workers_up(2.0).await?;
    ensure!(requests.end().await? > 0, "no request was served");
    let after = group.constitution().await?;
    ensure!(after == before, "the group was {before:?} and is {after:?}");

    group.restart(leader).await?;
    group.caught_up(leader, survivor, START_MAX).await?;
    drop(second);
    let restored = leader + 1;
    let answer = group.ask(&["transfer", &restored.to_string()])?;
    ensure!(answer["id"] == restored, "asked for {restored}, answered {answer}");
    let status = group.ask(&["status"])?;
    ensure!(status["leader"] == restored, "{restored} does not lead: {status}");
    Ok(())
}

#[tokio::test]
async fn serving_goes_on_without_any_control_node_and_their_return_drops_nobody() -> Result<()> {
    let mut group = ControlGroup::start(3).await?;
    let serving = Serving::start(&group).await?;
    let before = group.constitution().await?;
    let requests = serving.requests();
    for node in &mut group.nodes {
        node.process.crash()?;
    }
    let until = Instant::now() + BEYOND_LEASES;
    while Instant::now() < until {
        serves(&serving.client).await.context("while control is gone")?;
    }
    for node in 0..group.nodes.len() {
        group.restart(node).await?;
    }
    group.leader_at(0, START_MAX).await?;
    let until = Instant::now() + BEYOND_LEASES;
    while Instant::now() < until {
        serves(&serving.client).await.context("after control came back")?;
    }
    serving.workers_up(1.0).await?;
    let after = group.constitution().await?;
    ensure!(after == before, "the group was {before:?} and is {after:?}");
    ensure!(requests.end().await? > 0, "no request was served");
    Ok(())
}
