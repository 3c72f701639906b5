//! What was computed once is not computed again: a shared prefix is taken from the cache, and told.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::Served;
use phalanx_cluster_tests::golden;
use serde_json::{Value, json};

const PREFIX_TOKENS: usize = 1000;
const BLOCK_TOKENS: usize = 16;

/// A prefix of ordinary tokens, and then `tail`, which is another one's.
fn prompt(tail: &[u32]) -> Result<Vec<u32>> {
    let text: Vec<u32> = golden::all()?.into_iter().flat_map(|one| one.output_token_ids).collect();
    let prefix: Vec<u32> =
        text.into_iter().filter(|id| *id > 2).cycle().take(PREFIX_TOKENS).collect();
    Ok([&prefix, tail].concat())
}

async fn complete(client: &Client, prompt: &[u32]) -> Result<(u64, Value)> {
    let body = json!({"model": "demo-llm", "prompt": prompt, "max_tokens": 4, "temperature": 0,
        "return_token_ids": true});
    let answer = client.post("/v1/completions", &body).await?.good()?;
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .with_context(|| format!("no cached_tokens in {}", answer["usage"]))?;
    Ok((cached, answer["choices"][0]["token_ids"].clone()))
}

#[tokio::test]
async fn a_request_that_shares_a_thousand_tokens_skips_them() -> Result<()> {
    let served = Served::start(&[]).await?;
    let (first, second) = (prompt(&[300, 301, 302])?, prompt(&[400, 401])?);
    let (cold, _) = complete(&served.client, &first).await?;
    ensure!(cold == 0, "the first request found {cold} tokens in an empty cache");
    let (warm, with_cache) = complete(&served.client, &second).await?;
    let whole_blocks = u64::try_from(PREFIX_TOKENS / BLOCK_TOKENS * BLOCK_TOKENS)?;
    ensure!(warm == whole_blocks, "{warm} tokens were cached, expected {whole_blocks}");
    #[expect(clippy::cast_precision_loss, reason = "a few thousand tokens")]
    let told = served.client.metrics().await?.sum("phalanx_cached_tokens_total")? == warm as f64;
    ensure!(told, "phalanx_cached_tokens_total does not say {warm}");

    let uncached = Served::start(&["--prefix-cache", "off"]).await?;
    complete(&uncached.client, &first).await?;
    let (none, without_cache) = complete(&uncached.client, &second).await?;
    ensure!(none == 0, "a worker without a prefix cache took {none} tokens from it");
    ensure!(with_cache == without_cache, "{with_cache} with the cache, {without_cache} without");
    Ok(())
}
