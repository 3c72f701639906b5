//! No quorum for a long time: requests are served all the while, even by a router that was started meanwhile and
//! found no control node at all. `PHALANX_SOAK_SECONDS` says how long; run it by itself for more than minutes.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{eventually, measured, serves};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::process::START_MAX;
use phalanx_cluster_tests::serving::Serving;
use tokio::time::{Instant, sleep};

/// How long there is no quorum, unless told otherwise.
const SOAK_SECONDS: u64 = 30;
/// How soon the group must be whole again.
const BACK_MAX: Duration = Duration::from_secs(30);
/// A view older than this is stale: control says something every second.
const FRESH_SECONDS: f64 = 5.0;
/// What a router may be too young by, from the loss to the moment at which it misses its bookmarks.
const SLACK_SECONDS: f64 = 15.0;

async fn staleness(router: &Client) -> Result<f64> {
    router.metrics().await?.sum("phalanx_control_staleness_seconds")
}

#[tokio::test]
async fn without_a_quorum_every_request_is_served_also_by_a_router_started_meanwhile() -> Result<()>
{
    let soak = std::env::var("PHALANX_SOAK_SECONDS").ok().map(|text| text.parse()).transpose()?;
    let half = Duration::from_secs(soak.unwrap_or(SOAK_SECONDS)) / 2;
    let mut group = ControlGroup::start(3).await?;
    let serving = Serving::start(&group).await?;
    let view_file = group.folder().join("view.json").display().to_string();
    let restartable = ["router", "--view-file", &view_file];
    let (mut other, address) = group.start_role(None, "router-2", &restartable).await?;
    let second = Client::new(&address);
    eventually("the second router serves", START_MAX, async || {
        serves(&second).await.map(|()| true)
    })
    .await?;
    eventually("its view is kept", START_MAX, async || Ok(std::fs::exists(&view_file)?)).await?;
    let requests = serving.requests();
    ensure!(staleness(&serving.client).await? < FRESH_SECONDS, "stale from the start");

    // A node that is left may answer, but knows of no quorum.
    let lost_at = Instant::now();
    for node in 1..=2 {
        group.nodes[node].process.crash()?;
    }
    sleep(half).await;
    let (age, lost) = (staleness(&serving.client).await?, lost_at.elapsed().as_secs_f64());
    measured("staleness that the router says, and since the quorum was lost", (age, lost));
    ensure!(age <= lost + FRESH_SECONDS && age >= lost - SLACK_SECONDS, "{age} s after {lost} s");
    serves(&second).await.context("the second router, with one node left")?;

    // And then none, so that the router has nothing but its file.
    group.nodes[0].process.crash()?;
    other.ask_to_end()?;
    other.exit(START_MAX).await?;
    let (_other, address) = group.start_role(None, "router-2", &restartable).await?;
    let second = Client::new(&address);
    eventually("the router that was started anew is ready", START_MAX, async || {
        Ok(second.get("/health/ready").await?.status == 200)
    })
    .await?;
    let rest = lost_at + half + half;
    let mut by_second = 0;
    while Instant::now() < rest {
        serves(&second).await.context("by the router that was started anew")?;
        by_second += 1;
    }
    measured("requests served by the router started without control", by_second);
    let (age, lost) = (staleness(&second).await?, lost_at.elapsed().as_secs_f64());
    measured("staleness that this router says, and since the quorum was lost", (age, lost));
    ensure!(age >= lost - SLACK_SECONDS, "it says {age} s, {lost} s after control was lost");

    for node in 0..3 {
        group.restart(node).await?;
    }
    let (_leader, _term) = group.agreed(&[0, 1, 2], BACK_MAX).await?;
    for router in [&serving.client, &second] {
        eventually("the view is fresh again", BACK_MAX, async || {
            Ok(staleness(router).await? < FRESH_SECONDS)
        })
        .await?;
        serves(router).await.context("after control came back")?;
    }
    serving.workers_up(1.0).await?;
    measured("requests served in all", requests.end().await?);
    Ok(())
}
