//! With two workers, both work.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::chat;
use phalanx_cluster_tests::cluster::Served;
use serde_json::json;
use tokio::task::JoinSet;

#[tokio::test]
async fn requests_go_to_both_workers() -> Result<()> {
    let served = Served::start(&["--workers", "2"]).await?;
    let mut tasks = JoinSet::new();
    for seed in 0..40 {
        let client = served.client.clone();
        tasks.spawn(async move {
            let request =
                chat("Hello", json!({"max_tokens": 32, "seed": seed, "ignore_eos": true}));
            let answer = client.post("/v1/chat/completions", &request).await?;
            answer.good()?;
            let worker = answer.header("x-phalanx-worker").context("no x-phalanx-worker")?;
            anyhow::Ok(worker.to_owned())
        });
    }
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    while let Some(worker) = tasks.join_next().await {
        *counts.entry(worker??).or_default() += 1;
    }
    ensure!(counts.len() == 2, "requests went to {counts:?}");
    ensure!(counts.values().all(|count| *count >= 8), "one worker had almost nothing: {counts:?}");
    Ok(())
}
