//! Control nodes that are asked to end, one after the other, under a load of writes: nothing is lost or applied
//! twice, and nobody waits for an election.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::process::START_MAX;
use phalanx_cluster_tests::writers::{Load, Writers};

/// Ten clients that together write 50 commands a second.
const CLIENTS: u32 = 10;
const WRITES_PER_S: u32 = 50;
/// How many writes pass between two restarts: two seconds' worth.
const WRITES_BETWEEN: u64 = 100;
/// A node hands over and closes its files.
const EXIT_MAX: Duration = Duration::from_secs(20);

async fn end_in_order(group: &mut ControlGroup, node: usize) -> Result<()> {
    group.nodes[node].process.ask_to_end()?;
    let status = group.nodes[node].process.exit(EXIT_MAX).await?;
    ensure!(status.success(), "node {} ended with {status}", node + 1);
    Ok(())
}

async fn term_at(group: &ControlGroup, node: usize) -> Result<f64> {
    group.nodes[node].metrics.metrics().await?.sum("phalanx_raft_term")
}

#[tokio::test]
async fn a_leader_asked_to_end_makes_another_lead_before_it_is_gone() -> Result<()> {
    let mut group = ControlGroup::start(3).await?;
    let load = Load::per_second("hand-over", CLIENTS, WRITES_PER_S);
    let writers = Writers::start(&group.urls(), &load).await?;
    writers.acknowledge(WRITES_BETWEEN, START_MAX).await?;
    let leader = group.leader(0).await?.context("nobody leads")?;
    let term = term_at(&group, leader).await?;

    let asked = writers.now();
    end_in_order(&mut group, leader).await?;
    let (mut leaders, mut term_after) = (Vec::new(), term);
    for survivor in (0..3).filter(|node| *node != leader) {
        leaders.extend(group.leader(survivor).await?);
        term_after = term_at(&group, survivor).await?.max(term_after);
    }
    // One of them has just become it; the other may still have to hear of that.
    let led = leaders.iter().any(|now| *now != leader);
    ensure!(led, "node {} has ended, and still nobody else leads: {leaders:?}", leader + 1);
    ensure!(term_after == term + 1.0, "term {term} became {term_after}: more than one campaign");
    let took = writers.acknowledged_after(asked, START_MAX).await?;
    let summary = writers.end().await?;
    eprintln!("hand-over: the next write after {took:?}; {summary}");
    Ok(())
}

#[tokio::test]
async fn a_rolling_restart_under_writes_loses_no_command_and_applies_none_twice() -> Result<()> {
    let mut group = ControlGroup::start(3).await?;
    let before = group.constitution().await?;
    let load = Load::per_second("rolling", CLIENTS, WRITES_PER_S);
    let writers = Writers::start(&group.urls(), &load).await?;
    for node in 0..3 {
        writers.acknowledge(WRITES_BETWEEN, START_MAX).await?;
        end_in_order(&mut group, node).await?;
        group.restart(node).await?;
        group.leader_at(node, START_MAX).await?;
        group.caught_up(node, (node + 1) % 3, START_MAX).await?;
    }
    writers.acknowledge(WRITES_BETWEEN, START_MAX).await?;
    let summary = writers.end().await?;
    eprintln!("rolling restart: {summary}");
    ensure!(summary.writes > 3 * 100, "too few writes for a restart under load: {summary}");
    let after = group.constitution().await?;
    ensure!(after == before, "the group was {before:?} and is {after:?}");
    Ok(())
}
