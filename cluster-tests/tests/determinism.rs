//! The same seed and parameters give the same text and probabilities, twice, alone and in a batch.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::chat;
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::Served;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const PROMPTS: [&str; 4] = [
    "What is a KV cache?",
    "Write a paragraph about the router.",
    "What is 7 plus 8?",
    "Tell me a story about a circuit breaker.",
];

fn request(index: usize) -> Value {
    chat(
        PROMPTS[index % PROMPTS.len()],
        json!({
            "temperature": 1.2, "top_p": 0.95, "top_k": 40, "seed": 1000 + index,
            "frequency_penalty": 0.3, "max_tokens": 48,
            "logprobs": true, "top_logprobs": 3, "return_token_ids": true,
        }),
    )
}

/// Everything that a seed decides: tokens, text and the digits of every probability.
async fn answer(client: &Client, index: usize) -> Result<Value> {
    let answer = client.post("/v1/chat/completions", &request(index)).await?.good()?;
    let choice = &answer["choices"][0];
    let ids = choice["token_ids"].as_array().context("no token_ids")?;
    ensure!(!ids.is_empty(), "no tokens in {answer}");
    Ok(json!([choice["message"], choice["token_ids"], choice["logprobs"], choice["finish_reason"]]))
}

#[tokio::test]
async fn a_seed_gives_the_same_answer_twice_and_in_a_batch() -> Result<()> {
    let served = Served::start(&["--prefix-cache", "on"]).await?;
    let mut alone = Vec::new();
    for index in 0..16 {
        alone.push(answer(&served.client, index).await?);
    }
    for (index, expected) in alone.iter().enumerate() {
        let again = answer(&served.client, index).await?;
        ensure!(again == *expected, "request {index}, again: {again}\nfirst: {expected}");
    }
    let mut batch = JoinSet::new();
    for index in 0..alone.len() {
        let client = served.client.clone();
        batch.spawn(async move { anyhow::Ok((index, answer(&client, index).await?)) });
    }
    while let Some(outcome) = batch.join_next().await {
        let (index, batched) = outcome??;
        let expected = &alone[index];
        ensure!(batched == *expected, "request {index}, batched: {batched}\nalone: {expected}");
    }
    Ok(())
}

#[tokio::test]
async fn different_seeds_give_different_answers() -> Result<()> {
    let served = Served::start(&[]).await?;
    let mut texts = std::collections::BTreeSet::new();
    for seed in 0..8 {
        let request = chat(PROMPTS[1], json!({"temperature": 2, "seed": seed, "max_tokens": 32}));
        let answer = served.client.post("/v1/chat/completions", &request).await?.good()?;
        texts.insert(answer["choices"][0]["message"]["content"].to_string());
    }
    ensure!(texts.len() >= 4, "eight seeds gave only {texts:?}");
    Ok(())
}
