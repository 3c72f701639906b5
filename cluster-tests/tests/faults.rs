//! What breaks is told at once and comes back by itself.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{chat, eventually, refusal, serves};
use phalanx_cluster_tests::cluster::Cluster;
use serde_json::json;
use tokio::time::{Instant, timeout};

/// How soon a request must be refused when nobody can serve it: a hang is worse than an error.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// How soon service must be back once a worker is.
const BACK_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_killed_worker_is_a_503_until_it_is_back() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    serves(&cluster.client).await?;
    cluster.worker.process.crash()?;
    let request = chat("Hello", json!({"max_tokens": 8}));
    for attempt in 0..5 {
        let asked = cluster.client.post("/v1/chat/completions", &request);
        let answer = timeout(REFUSED_WITHIN, asked)
            .await
            .with_context(|| format!("attempt {attempt} hangs without a worker"))??;
        refusal(&answer, 503, None)?;
        let after: u64 = answer.header("retry-after").context("no Retry-After")?.parse()?;
        ensure!(after >= 1, "Retry-After is {after}");
    }
    cluster.worker.restart().await?;
    let back = Instant::now();
    eventually("the cluster serves again", BACK_WITHIN, async || {
        serves(&cluster.client).await.map(|()| true)
    })
    .await?;
    ensure!(back.elapsed() <= BACK_WITHIN, "it took {:?}", back.elapsed());
    ensure!(cluster.router.is_running()?, "the router did not outlive the worker");
    ensure!(cluster.control.process.is_running()?, "control did not outlive the worker");
    Ok(())
}

#[tokio::test]
async fn a_stream_whose_worker_is_killed_ends_with_an_error_and_does_not_hang() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let request = chat("Hello", json!({"stream": true, "ignore_eos": true, "max_tokens": 1500}));
    let mut stream = cluster.client.stream("/v1/chat/completions", &request).await?;
    stream.next().await?.context("no first event")?;
    cluster.worker.process.crash()?;
    let rest = timeout(REFUSED_WITHIN, stream.rest()).await.context("the stream hangs")?;
    let error = rest.err().context("the stream ended as if it were whole")?;
    ensure!(error.to_string().contains("carries an error"), "no error event: {error:#}");
    Ok(())
}

#[tokio::test]
async fn serving_goes_on_while_control_is_gone_and_when_it_is_back() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    cluster.control.process.crash()?;
    // Longer than the registrations' time to live: nobody may be dropped for control's own absence.
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        serves(&cluster.client).await.context("while control is gone")?;
    }
    cluster.control.restart().await?;
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        serves(&cluster.client).await.context("after control came back")?;
    }
    Ok(())
}
