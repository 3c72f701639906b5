//! Every golden prompt gives its golden answer, whatever else the worker does at the time.
#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::chat;
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::Served;
use phalanx_cluster_tests::golden::{self, Golden};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Requests at once.
const AT_ONCE: usize = 32;

/// Asks for all golden answers, `AT_ONCE` at a time, every third one streamed and every fourth beside a
/// sampled request that shares the batch.
async fn check_all_at_once(client: &Client) -> Result<()> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (index, golden) in golden::all()?.into_iter().enumerate() {
        let place = Arc::clone(&places).acquire_owned().await?;
        let client = client.clone();
        tasks.spawn(async move {
            let _place = place;
            let outcome = check_one(&client, &golden, index).await;
            outcome.with_context(|| format!("golden answer {index}"))
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome??;
    }
    Ok(())
}

async fn check_one(client: &Client, golden: &Golden, index: usize) -> Result<()> {
    let noise = chat(
        "Write a paragraph about the router.",
        json!({
            "temperature": 1.5, "seed": index, "max_tokens": 40, "top_p": 0.9,
        }),
    );
    let beside = async {
        if index.is_multiple_of(4) {
            client.post("/v1/chat/completions", &noise).await?.good()?;
        }
        Ok(())
    };
    let asked = async {
        if index.is_multiple_of(3) {
            golden.check_streamed(client).await
        } else {
            golden.check(client).await
        }
    };
    tokio::try_join!(asked, beside)?;
    Ok(())
}

#[tokio::test]
async fn each_golden_prompt_alone_gives_its_golden_answer() -> Result<()> {
    let served = Served::start(&[]).await?;
    for (index, golden) in golden::all()?.iter().enumerate() {
        golden.check(&served.client).await.with_context(|| format!("golden answer {index}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn thirty_two_at_once_give_the_same_answers() -> Result<()> {
    let served = Served::start(&[]).await?;
    check_all_at_once(&served.client).await
}

#[tokio::test]
async fn prompts_met_in_small_chunks_give_the_same_answers() -> Result<()> {
    // Fewer tokens a step than any prompt has: all of them are met in several chunks.
    let served = Served::start(&["--step-tokens-max", "8"]).await?;
    check_all_at_once(&served.client).await
}

#[tokio::test]
async fn preempted_sequences_give_the_same_answers() -> Result<()> {
    // One golden conversation may need 21 blocks, so two long ones do not fit together.
    let served = Served::start(&["--kv-blocks", "24"]).await?;
    check_all_at_once(&served.client).await?;
    let preemptions = served.client.metrics().await?.sum("phalanx_worker_preemptions_total")?;
    ensure!(preemptions > 0.0, "the pool was large enough for all: nothing was preempted");
    Ok(())
}

#[tokio::test]
async fn log_probabilities_of_the_first_token_follow_the_golden_logits() -> Result<()> {
    let served = Served::start(&[]).await?;
    let goldens: Vec<Golden> =
        golden::all()?.into_iter().filter(|golden| !golden.first_step_top10.is_empty()).collect();
    ensure!(goldens.len() >= 5, "golden.json lost its logits");
    for golden in goldens {
        let mut request = golden.request();
        request["max_tokens"] = json!(1);
        request["logprobs"] = json!(true);
        request["top_logprobs"] = json!(10);
        let answer = served.client.post(golden.path(), &request).await?.good()?;
        let top = &answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"];
        let first = golden.first_step_top10[0].logit;
        for (place, score) in golden.first_step_top10.iter().enumerate() {
            let logprob = |place: usize| top[place]["logprob"].as_f64().context("no logprob");
            // The difference of two log probabilities is the difference of their logits.
            let (got, expected) = (logprob(place)? - logprob(0)?, score.logit - first);
            let allowed = 2e-3 * first.abs().max(score.logit.abs());
            ensure!((got - expected).abs() <= allowed, "place {place}: {got} is not {expected}");
        }
    }
    Ok(())
}
