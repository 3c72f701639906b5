//! A process that is asked to end finishes what it has, and only then ends, well.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::chat;
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::{Cluster, Served};
use phalanx_cluster_tests::process::Process;
use serde_json::json;
use tokio::task::JoinSet;

const STREAMS: usize = 8;
const TOKENS: u64 = 300;
/// Draining takes as long as the longest stream, and little more.
const EXIT_MAX: Duration = Duration::from_secs(60);

/// Begins streams, asks `process` to end while they run, and checks that each comes whole.
async fn check_drain(client: &Client, process: &mut Process) -> Result<()> {
    let mut running = JoinSet::new();
    let (begun, mut begins) = tokio::sync::mpsc::channel(STREAMS);
    for seed in 0..STREAMS {
        let (client, begun) = (client.clone(), begun.clone());
        running.spawn(async move {
            let request = chat(
                "Hello",
                json!({
                    "stream": true, "ignore_eos": true, "max_tokens": TOKENS, "seed": seed,
                    "temperature": 1, "stream_options": {"include_usage": true},
                }),
            );
            let mut stream = client.stream("/v1/chat/completions", &request).await?;
            stream.next().await?.context("no first event")?;
            begun.send(()).await?;
            stream.rest().await
        });
    }
    for _ in 0..STREAMS {
        begins.recv().await.context("a stream did not begin")?;
    }
    process.ask_to_end()?;
    while let Some(outcome) = running.join_next().await {
        let events = outcome?.context("a stream was cut")?;
        let usage = events.iter().rev().find(|event| event["usage"].is_object());
        let tokens = usage.context("no usage")?["usage"]["completion_tokens"].as_u64();
        ensure!(tokens == Some(TOKENS), "a stream ended after {tokens:?} of {TOKENS} tokens");
    }
    let status = process.exit(EXIT_MAX).await?;
    ensure!(status.success(), "ended with {status}");
    Ok(())
}

#[tokio::test]
async fn serve_finishes_its_streams_and_exits_with_0() -> Result<()> {
    let Served { mut process, client, .. } = Served::start(&[]).await?;
    check_drain(&client, &mut process).await
}

#[tokio::test]
async fn a_worker_finishes_its_streams_and_exits_with_0() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let client = cluster.client.clone();
    check_drain(&client, &mut cluster.worker.process).await
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_streams() -> Result<()> {
    let mut served = Served::start(&[]).await?;
    let request = chat("Hello", json!({"stream": true, "ignore_eos": true, "max_tokens": 1900}));
    let mut stream = served.client.stream("/v1/chat/completions", &request).await?;
    stream.next().await?.context("no first event")?;
    served.process.ask_to_end()?;
    served.process.ask_to_end()?;
    served.process.exit(Duration::from_secs(10)).await?;
    Ok(())
}
