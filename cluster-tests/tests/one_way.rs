//! A leader that is heard but hears nobody, or hears everybody but is not heard: either way another one takes
//! writes within seconds.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::measured;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::network::{Host, Network};
use phalanx_cluster_tests::serving::Serving;
use phalanx_cluster_tests::writers::{Load, Writers};

/// How soon another node must take writes. A leader that is still heard has to fall silent first, so this is
/// more than for one that is dead.
const FAILOVER_MAX: Duration = Duration::from_secs(20);

/// Which way the leader's packets are dropped.
#[derive(Clone, Copy, Debug)]
enum Deaf {
    Leader,
    Others,
}

fn cut(network: &Network, leader: &Host, other: &Host, deaf: Deaf) -> Result<()> {
    match deaf {
        Deaf::Leader => network.cut_one_way(other, leader),
        Deaf::Others => network.cut_one_way(leader, other),
    }
}

#[tokio::test]
async fn a_leader_that_is_cut_off_one_way_is_followed_by_another() -> Result<()> {
    let Some(mut network) = Network::new()? else { return Ok(()) };
    let hosts = network.hosts(5)?;
    let group = ControlGroup::start_on(&hosts[..3]).await?;
    let serving = Serving::start_on(Some([&hosts[3], &hosts[4]]), &group).await?;
    let requests = serving.requests();
    for (name, deaf) in [("deaf-leader", Deaf::Leader), ("deaf-others", Deaf::Others)] {
        let (leader, term) = group.agreed(&[0, 1, 2], FAILOVER_MAX).await?;
        let writers = Writers::start(&group.urls(), &Load::per_second(name, 3, 15)).await?;
        let moment = writers.now();
        for other in group.others(leader) {
            cut(&network, &hosts[leader], &hosts[other], deaf)?;
        }
        let waited = writers.acknowledged_after(moment, FAILOVER_MAX).await.context(name)?;
        measured(&format!("{name}, until a write sent then was taken"), waited);
        let (next, next_term) = group.agreed(&group.others(leader), FAILOVER_MAX).await?;
        ensure!(next != leader && next_term > term, "{name}: {leader} leads in others' eyes");
        network.heal()?;
        let (_leader, settled) = group.agreed(&[0, 1, 2], FAILOVER_MAX).await.context(name)?;
        // A term or two for votes that split; one for each timeout would be dozens.
        ensure!(settled <= term + 4, "{name}: the term went from {term} to {settled}");
        measured(&format!("{name}, writes meanwhile"), writers.end().await?);
    }
    measured("requests served meanwhile", requests.end().await?);
    Ok(())
}
