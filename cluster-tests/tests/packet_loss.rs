//! A network between the control nodes that loses every tenth packet: writes are slow, and nothing else.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_cluster_tests::check::measured;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::network::{Host, Network};
use phalanx_cluster_tests::serving::Serving;
use phalanx_cluster_tests::writers::{Load, Writers};
use tokio::time::sleep;

/// Each way, so about a fifth of all calls meet it. The library gives a heartbeat 200 ms, which is as long as TCP
/// waits before it sends anything again: at 30 percent a leader is seldom sure of its quorum for two seconds.
const LOSS_PERCENT: u8 = 10;
/// How long it lasts.
const LOSS_FOR: Duration = Duration::from_secs(15);
/// How soon a write must be taken. At this loss a leader may be silent for longer than the others wait.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// Elections that such a network may cost in that time: one per longest election timeout would be seven.
const TERMS_MAX: u64 = 7;

#[tokio::test]
async fn a_network_that_loses_packets_slows_writes_and_stops_nothing() -> Result<()> {
    let Some(mut network) = Network::new()? else { return Ok(()) };
    let hosts = network.hosts(5)?;
    let group = ControlGroup::start_on(&hosts[..3]).await?;
    let serving = Serving::start_on(Some([&hosts[3], &hosts[4]]), &group).await?;
    let (_leader, term) = group.agreed(&[0, 1, 2], WRITE_MAX).await?;
    let requests = serving.requests();
    let writers = Writers::start(&group.urls(), &Load::per_second("writer", 3, 15)).await?;

    let control: Vec<&Host> = hosts[..3].iter().collect();
    network.lose(LOSS_PERCENT, &control)?;
    sleep(LOSS_FOR).await;
    let moment = writers.now();
    measured("a write under loss", writers.acknowledged_after(moment, WRITE_MAX).await?);
    let dropped: u64 = hosts[..3].iter().map(Host::dropped).sum::<Result<u64>>()?;
    ensure!(dropped > 50, "only {dropped} packets were lost");
    network.heal()?;

    let (_leader, settled) = group.agreed(&[0, 1, 2], WRITE_MAX).await?;
    measured("elections under loss", settled - term);
    ensure!(settled <= term + TERMS_MAX, "the term went from {term} to {settled}");
    measured("writes under loss", writers.end().await?);
    measured("requests served meanwhile", requests.end().await?);
    Ok(())
}
