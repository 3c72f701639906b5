//! A router without control, in front of engines that somebody else runs: here two `phalanx serve`, which speak
//! `OpenAI`'s API like any other.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{chat, eventually, serves, worker_is_empty};
use phalanx_cluster_tests::cluster::{Front, Served};
use serde_json::json;

/// Longer than the router waits before it asks an engine again how it is.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_router_with_engines_alone_serves_and_outlives_one_of_them() -> Result<()> {
    let (first, mut second) = tokio::try_join!(Served::start(&[]), Served::start(&[]))?;
    let front = Front::start(&[
        &format!("first={}", first.client.base()),
        &format!("second={}", second.client.base()),
    ])
    .await?;
    front.until_engines_up(2.0).await?;
    serves(&front.client).await?;

    // The answer is the engine's own, and either engine gives the same one.
    let request = chat("What is a KV cache?", json!({"max_tokens": 24, "temperature": 0}));
    let text = |answer: &serde_json::Value| answer["choices"][0]["message"]["content"].clone();
    let direct = text(&first.client.post("/v1/chat/completions", &request).await?.good()?);
    let mut asked = std::collections::BTreeSet::new();
    while asked.len() < 2 {
        let answer = front.client.post("/v1/chat/completions", &request).await?;
        ensure!(text(&answer.good()?) == direct, "{answer:?} is not {direct}");
        asked.insert(answer.header("x-phalanx-worker").context("nobody answered")?.to_owned());
    }

    // A client that leaves a stream leaves nothing behind it, here or there.
    let long = chat("Hello", json!({"stream": true, "max_tokens": 400, "ignore_eos": true}));
    for _ in 0..8 {
        let mut stream = front.client.stream("/v1/chat/completions", &long).await?;
        stream.next().await?.context("the stream ended at once")?;
    }
    worker_is_empty(&first.client).await?;
    worker_is_empty(&second.client).await?;
    eventually("nothing is in flight", SOON, async || {
        let metrics = front.client.metrics().await?;
        let left = metrics.sum("phalanx_inflight_requests")?
            + metrics.sum("phalanx_dispatched_requests")?;
        ensure!(left == 0.0, "{left} are in flight");
        Ok(true)
    })
    .await?;

    // No request fails when an engine dies: the first ones after it are tried elsewhere.
    second.process.crash()?;
    for _ in 0..20 {
        let answer = front.client.post("/v1/chat/completions", &request).await?;
        ensure!(text(&answer.good()?) == direct, "{answer:?} is not {direct}");
    }
    front.until_engines_up(1.0).await?;
    ensure!(front.client.get("/health/ready").await?.status == 200);
    Ok(())
}
