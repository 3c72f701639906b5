//! A worker that is stopped, its connections open, is avoided within half a second and comes back by itself.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{chat, eventually};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::Cluster;
use serde_json::json;
use tokio::time::{sleep, timeout};

/// How soon a router must have noticed by itself, whatever control knows.
const NOTICED_WITHIN: Duration = Duration::from_millis(500);
/// Far less than a request waits at a worker that is stopped: its connection is given up after 8 s.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// How soon a worker must be used again: at its first report, and with a turn of its own.
const BACK_WITHIN: Duration = Duration::from_secs(10);
const REQUESTS: usize = 20;

/// Who answered a short request.
async fn ask(client: &Client) -> Result<String> {
    let request = chat("Hello", json!({"max_tokens": 2}));
    let answer = timeout(ANSWERED_WITHIN, client.post("/v1/chat/completions", &request)).await??;
    answer.good()?;
    Ok(answer.header("x-phalanx-worker").context("no x-phalanx-worker")?.to_owned())
}

#[tokio::test]
async fn a_stopped_worker_is_avoided_within_half_a_second_and_is_back_when_it_goes_on() -> Result<()>
{
    let cluster = Cluster::start(&[]).await?;
    let first = ask(&cluster.client).await?;
    let second = cluster.add_worker("worker-2").await?;
    cluster.worker.process.pause()?;
    sleep(NOTICED_WITHIN).await;
    for attempt in 0..REQUESTS {
        let worker = ask(&cluster.client).await.with_context(|| format!("attempt {attempt}"))?;
        ensure!(worker != first, "attempt {attempt} went to the stopped worker");
    }
    cluster.worker.process.go_on()?;
    eventually("the worker is used again", BACK_WITHIN, async || {
        Ok(ask(&cluster.client).await? == first)
    })
    .await?;
    drop(second);
    Ok(())
}
