//! A worker that joins or leaves is known to every router within a second.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::measured;
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::process::START_MAX;
use phalanx_proto::change::{Change, Registration};
use phalanx_proto::view::{Capacity, MemberRole, ServedModel};
use tokio::time::{Instant, sleep};

/// The promise is 1 s; the rest is for a machine that is busy.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// How often a worker joins and leaves.
const TIMES: u64 = 20;
/// Between two looks at a router: short against what is measured.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A worker that is nothing but its registration.
fn registration(number: u64) -> Registration {
    Registration {
        instance: format!("probe-{number}"),
        role: MemberRole::Worker,
        // Port 9 (discard) is closed on any machine that this runs on.
        address: "http://127.0.0.1:9".to_owned(),
        zone: String::new(),
        models: vec![ServedModel {
            name: format!("probe-{number}").as_str().into(),
            revision: "r".into(),
            context_tokens_max: 2048,
            kv_tokens_max: 4096,
        }],
        capacity: Capacity::default(),
    }
}

/// Waits until every router knows a worker for the model, or none does; gives the time that the last one took.
async fn known(
    routers: &[Client],
    model: &str,
    expected: bool,
    within: Duration,
) -> Result<Duration> {
    let begun = Instant::now();
    let path = format!("/v1/models/{model}");
    for router in routers {
        loop {
            let answer = router.get(&path).await?;
            // The name outlives the worker; the length is that of a worker that serves it.
            let known = answer.status == 200 && answer.json()?["max_model_len"].is_number();
            if known == expected {
                break;
            }
            let late = begun.elapsed();
            let router = router.base();
            ensure!(late < within, "{router} has {model} {known} after {late:?}");
            sleep(LOOK_EVERY).await;
        }
    }
    Ok(begun.elapsed())
}

fn report(what: &str, mut times: Vec<Duration>) -> Result<()> {
    times.sort_unstable();
    let (p50, max) = (times[times.len() / 2], times.last().context("nothing was measured")?);
    measured(&format!("{what}, p50 and max of {}", times.len()), (p50, max));
    Ok(())
}

#[tokio::test]
async fn a_worker_that_joins_or_leaves_is_known_to_every_router_at_once() -> Result<()> {
    let group = ControlGroup::start(3).await?;
    group.agreed(&[0, 1, 2], START_MAX).await?;
    let mut routers = Vec::new();
    let mut processes = Vec::new();
    for number in 1..=3 {
        let name = format!("router-{number}");
        let (process, address) = group.start_role(None, &name, &["router"]).await?;
        processes.push(process);
        routers.push(Client::new(&address));
    }
    let client = group.client(1)?;
    let (mut joins, mut leaves) = (Vec::new(), Vec::new());
    // The first join finds the routers still looking for a node that knows its cluster.
    for number in 0..=TIMES {
        let within = if number == 0 { START_MAX } else { KNOWN_WITHIN };
        let registration = registration(number);
        let (instance, model) = (registration.instance.clone(), format!("probe-{number}"));
        let registered = client.register(registration).await?;
        joins.push(known(&routers, &model, true, within).await?);
        let (member_id, epoch) = (registered.member_id, registered.epoch);
        client.submit(&instance, 1, Change::Deregister { member_id, epoch }).await?;
        leaves.push(known(&routers, &model, false, KNOWN_WITHIN).await?);
    }
    joins.remove(0);
    report("a join known to 3 routers", joins)?;
    report("a leave known to 3 routers", leaves)
}
