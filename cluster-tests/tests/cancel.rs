//! Clients that go away take everything they held with them.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_cluster_tests::check::{chat, eventually, serves, worker_is_empty};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::Served;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

const REQUESTS: u64 = 1000;
const AT_ONCE: usize = 48;

/// Random numbers that are the same in every run (`SplitMix64`).
const fn random(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Sends a request that would run for long, and goes away at some moment: before the head of the answer,
/// after a few events, or between two of them.
async fn ask_and_leave(client: &Client, index: u64) {
    let random = random(index);
    let is_stream = random.is_multiple_of(3) || random.is_multiple_of(2);
    let request = chat(
        "Write a paragraph about the router.",
        json!({
            "stream": is_stream, "ignore_eos": true, "max_tokens": 400, "n": 1 + random % 3, "seed": index,
            "temperature": 1,
        }),
    );
    let moment = Duration::from_micros((random >> 16) % 200_000);
    // However it ends, the point is that nothing is left of it.
    let _ = timeout(moment, async {
        if !is_stream {
            return client.post("/v1/chat/completions", &request).await.map(|_| ());
        }
        let mut stream = client.stream("/v1/chat/completions", &request).await?;
        for _ in 0..random % 8 {
            stream.next().await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_thousand_cancelled_requests_leave_nothing_behind() -> Result<()> {
    let served = Served::start(&[]).await?;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for index in 0..REQUESTS {
        let place = Arc::clone(&places).acquire_owned().await?;
        let client = served.client.clone();
        tasks.spawn(async move {
            let _place = place;
            ask_and_leave(&client, index).await;
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome?;
    }
    worker_is_empty(&served.client).await?;
    eventually("no request is in flight", Duration::from_secs(10), async || {
        let in_flight = served.client.metrics().await?.sum("phalanx_inflight_requests")?;
        ensure!(in_flight == 0.0, "{in_flight} in flight");
        Ok(true)
    })
    .await?;
    serves(&served.client).await
}
