//! A control node that is cut off: the others go on within seconds, it knows that it knows nothing, and it
//! unseats nobody when it is back.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use phalanx_chassis::control_client::ControlClient;
use phalanx_cluster_tests::check::{eventually, measured};
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::network::Network;
use phalanx_cluster_tests::serving::Serving;
use phalanx_cluster_tests::writers::{Load, Writers};
use phalanx_proto::change::{Change, WatchEvent};
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::{Lineage, ViewIndex};
use phalanx_proto::view::{ClusterView, Model};
use tokio::time::{Instant, sleep, timeout};

/// How soon another node must take writes. The promise is 5 s; the rest is for a machine that is busy.
const FAILOVER_MAX: Duration = Duration::from_secs(15);
/// How soon a node that is back must agree with the others.
const BACK_MAX: Duration = Duration::from_secs(20);
/// How long a cut lasts: several election timeouts, and longer than a worker's lease.
const CUT_OFF: Duration = Duration::from_secs(10);
/// Several election timeouts, in which a node that is back could do harm.
const SETTLED: Duration = Duration::from_secs(5);
/// How soon a node must answer that it cannot answer.
const REFUSED_WITHIN: Duration = Duration::from_secs(6);

/// What a node shows of the cluster.
async fn view(client: &ControlClient) -> Result<ClusterView> {
    let mut stream = client.watch(Lineage(0), ViewIndex(0)).await?;
    match timeout(REFUSED_WITHIN, stream.next()).await?? {
        Some(WatchEvent::Snapshot(view)) => Ok(view),
        event => bail!("a watcher with nothing got {event:?}"),
    }
}

/// Checks that a node that is cut off says so, to writers and to members, and at once.
async fn refuses(client: &ControlClient) -> Result<()> {
    let model = Model { name: "never".into(), revision: "r".into() };
    let put = client.submit("cut-off", 1, Change::PutModel(model));
    let member = view(client).await?.members.into_values().next().context("no members")?;
    let beat = client.heartbeat(member.id, member.epoch);
    for answer in
        [timeout(REFUSED_WITHIN, put).await?.err(), timeout(REFUSED_WITHIN, beat).await?.err()]
    {
        let fault = answer.context("it was taken")?;
        ensure!(fault.code == FaultCode::Unavailable && fault.retry_after.is_some(), "{fault:?}");
    }
    Ok(())
}

#[tokio::test]
async fn when_the_leader_is_cut_off_the_others_go_on_and_it_follows_them_when_it_is_back()
-> Result<()> {
    let Some(mut network) = Network::new()? else { return Ok(()) };
    let hosts = network.hosts(5)?;
    let group = ControlGroup::start_on(&hosts[..3]).await?;
    let serving = Serving::start_on(Some([&hosts[3], &hosts[4]]), &group).await?;
    let (leader, term) = group.agreed(&[0, 1, 2], FAILOVER_MAX).await?;
    let others = group.others(leader);
    let member = view(&group.client(leader)?).await?.members;
    let requests = serving.requests();
    let writers = Writers::start(&group.urls(), &Load::per_second("writer", 3, 15)).await?;

    let (moment, cut_at) = (writers.now(), Instant::now());
    network.isolate(&hosts[leader])?;
    let waited = writers.acknowledged_after(moment, FAILOVER_MAX).await?;
    measured("leader cut off, until a write sent then was taken", waited);
    let (next, next_term) = group.agreed(&others, FAILOVER_MAX).await?;
    ensure!(next != leader && next_term > term, "{leader} leads in the eyes of others");
    let cut_off = group.client(leader)?;
    eventually("the old leader says that nobody leads", REFUSED_WITHIN, async || {
        Ok(cut_off.status().await?.leader == 0)
    })
    .await?;
    refuses(&cut_off).await?;
    sleep((cut_at + CUT_OFF).duration_since(Instant::now())).await;

    network.heal()?;
    let healed_at = Instant::now();
    let agreed = group.agreed(&[0, 1, 2], BACK_MAX).await?;
    measured("until the old leader followed", healed_at.elapsed());
    ensure!(agreed == (next, next_term), "{next} led in {next_term}, now it is {agreed:?}");
    sleep(SETTLED).await;
    ensure!(group.agreed(&[0, 1, 2], BACK_MAX).await? == agreed, "it did harm when it was back");
    measured("writes meanwhile", writers.end().await?);
    measured("requests served meanwhile", requests.end().await?);
    ensure!(
        view(&group.client(leader)?).await?.members == member,
        "a worker lost its registration"
    );
    Ok(())
}

#[tokio::test]
async fn a_follower_cut_off_for_long_asks_before_it_stands_and_so_unseats_nobody() -> Result<()> {
    let Some(mut network) = Network::new()? else { return Ok(()) };
    let hosts = network.hosts(3)?;
    let group = ControlGroup::start_on(&hosts).await?;
    let before = group.agreed(&[0, 1, 2], FAILOVER_MAX).await?;
    let follower = group.others(before.0)[0];
    let writers = Writers::start(&group.urls(), &Load::per_second("writer", 3, 15)).await?;

    network.isolate(&hosts[follower])?;
    sleep(CUT_OFF).await;
    let cut_off = group.client(follower)?.status().await?;
    ensure!((cut_off.leader, cut_off.term) == (0, before.1), "cut off, it says {cut_off:?}");
    network.heal()?;
    ensure!(group.agreed(&[0, 1, 2], BACK_MAX).await? == before, "it unseated the leader");
    sleep(SETTLED).await;
    ensure!(group.agreed(&[0, 1, 2], BACK_MAX).await? == before, "it unseated the leader later");
    let summary = writers.end().await?;
    measured("writes with a follower cut off", summary);
    Ok(())
}
