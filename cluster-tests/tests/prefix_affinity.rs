//! A prompt goes to the worker that holds its beginning, and every router knows which one that is.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::eventually;
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::Cluster;
use serde_json::json;

/// How soon a router that just came up knows both workers and what they hold.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);
/// Conversations whose beginnings have nothing in common.
const CONVERSATIONS: usize = 6;

/// Who answered, and how much of the prompt it had.
#[derive(Debug)]
struct Answered {
    worker: String,
    prompt_tokens: u64,
    cached_tokens: u64,
}

/// Asks `question` in the conversation of that number, which begins with some thousand bytes.
async fn ask(client: &Client, conversation: usize, question: &str) -> Result<Answered> {
    let rules: String =
        (0..80).map(|rule| format!("Rule {conversation}-{rule}: be kind. ")).collect();
    let body = json!({"model": "demo-llm", "max_tokens": 2, "temperature": 0, "messages": [
        {"role": "system", "content": rules}, {"role": "user", "content": question}]});
    let answer = client.post("/v1/chat/completions", &body).await?;
    let usage = &answer.good()?["usage"];
    let worker = answer.header("x-phalanx-worker").context("no x-phalanx-worker")?.to_owned();
    let prompt_tokens = usage["prompt_tokens"].as_u64().context("no prompt_tokens")?;
    let cached_tokens = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    let cached_tokens = cached_tokens.context("no cached_tokens")?;
    Ok(Answered { worker, prompt_tokens, cached_tokens })
}

#[tokio::test]
async fn a_router_that_never_saw_a_prompt_sends_it_to_the_worker_that_holds_it() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let _second = cluster.add_worker("worker-2").await?;
    let mut holders = Vec::new();
    for conversation in 0..CONVERSATIONS {
        let cold = ask(&cluster.client, conversation, "Hello?").await?;
        ensure!(cold.cached_tokens * 2 < cold.prompt_tokens, "already known: {cold:?}");
        holders.push(cold.worker);
    }
    // All it knows of these prompts is what the workers tell.
    let (_router, client) = cluster.add_router("router-2").await?;
    eventually("the new router knows what both workers hold", KNOWN_WITHIN, async || {
        let known = client.get("/admin/workers").await?.good()?;
        let known = known["workers"].as_array().context("no workers")?;
        let told = |holder: &String| {
            let of_holder = known.iter().find(|worker| worker["id"] == holder.as_str());
            of_holder.is_some_and(|worker| worker["prefix_chunks"].as_u64() > Some(0))
        };
        Ok(known.iter().filter(|worker| worker["up"] == true).count() == 2
            && holders.iter().all(told))
    })
    .await?;
    let bytes = client.metrics().await?.sum("phalanx_prefix_index_bytes")?;
    ensure!(bytes > 0.0, "an index of {bytes} bytes");
    for (conversation, holder) in holders.iter().enumerate() {
        let warm = ask(&client, conversation, "And how are you?").await?;
        ensure!(warm.worker == *holder, "worker {holder} holds it: {warm:?}");
        ensure!(warm.cached_tokens * 2 > warm.prompt_tokens, "computed again: {warm:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_killed_worker_held_is_looked_for_no_more() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let first = ask(&cluster.client, 0, "Hello?").await?;
    let _second = cluster.add_worker("worker-2").await?;
    let again = ask(&cluster.client, 0, "Still there?").await?;
    ensure!(again.worker == first.worker && again.cached_tokens > 0, "not kept: {again:?}");
    cluster.worker.process.crash()?;
    cluster.until_workers_up(1.0).await?;
    let moved = ask(&cluster.client, 0, "Anybody?").await?;
    ensure!(moved.worker != first.worker && moved.cached_tokens == 0, "from the dead: {moved:?}");
    cluster.worker.restart().await?;
    cluster.until_workers_up(2.0).await?;
    // The worker that came back has an empty cache, and nobody believes otherwise.
    let kept = ask(&cluster.client, 0, "Who is it?").await?;
    ensure!(kept.worker == moved.worker && kept.cached_tokens > 0, "not kept: {kept:?}");
    Ok(())
}
