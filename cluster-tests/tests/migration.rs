//! A worker that is killed, stopped or drained under live streams costs their clients nothing: each answer is, to the
//! byte, what it is when nothing happens.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{chat, eventually, measured, worker_is_empty};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::{Cluster, Restartable};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

const STREAMS: usize = 36;
const TOKENS: u64 = 160;
/// Events that each stream has when the worker breaks: it is in the middle of its answer.
const BEGUN_EVENTS: usize = 6;
/// How soon nothing may be left of the requests.
const IDLE_WITHIN: Duration = Duration::from_secs(10);

/// What a client has of one answer in the end.
#[derive(Debug, PartialEq)]
struct Answer {
    /// Every piece of each choice: text, token ids, log probabilities, end.
    choices: BTreeMap<u64, Vec<Value>>,
    prompt_tokens: Value,
    completion_tokens: Value,
}

/// Greedy and seeded, one choice and several, with stops, penalties and log probabilities, streamed all of them.
fn request(index: usize) -> Value {
    let prompt = format!("Write paragraph {} about the router.", index / 3);
    let common = json!({
        "stream": true, "stream_options": {"include_usage": true}, "return_token_ids": true,
        "ignore_eos": true, "max_tokens": TOKENS,
    });
    let mut body = chat(&prompt, common);
    let own = match index % 6 {
        0 => json!({}),
        1 => json!({"temperature": 1.0, "seed": index}),
        2 => json!({"temperature": 0.8, "seed": index, "n": 2}),
        3 => json!({"logprobs": true, "top_logprobs": 2, "temperature": 0.7, "seed": index}),
        4 => json!({"frequency_penalty": 0.5, "repetition_penalty": 1.2, "min_tokens": 120}),
        _ => {
            json!({"temperature": 2.0, "seed": index, "stop": ["zq", "\n\n\n"], "ignore_eos": false})
        }
    };
    phalanx_cluster_tests::check::merge(&mut body, own);
    body
}

/// Reads an answer to its end, says when it has begun, and how long its client waited at most between two events.
async fn ask(
    client: Client,
    index: usize,
    begun: mpsc::Sender<()>,
) -> Result<(usize, Answer, Duration)> {
    let mut stream = client.stream("/v1/chat/completions", &request(index)).await?;
    let mut choices: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    let mut usage = Value::Null;
    let (mut events, mut latest, mut gap) = (0, Instant::now(), Duration::ZERO);
    while let Some(event) = stream.next().await? {
        events += 1;
        if events == BEGUN_EVENTS {
            begun.send(()).await?;
        }
        if events > BEGUN_EVENTS {
            gap = gap.max(latest.elapsed());
        }
        latest = Instant::now();
        for choice in event["choices"].as_array().context("no choices")? {
            let number = choice["index"].as_u64().context("no index")?;
            choices.entry(number).or_default().push(choice.clone());
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    let (prompt_tokens, completion_tokens) =
        (usage["prompt_tokens"].clone(), usage["completion_tokens"].clone());
    ensure!(completion_tokens.is_number(), "no usage: {usage}");
    Ok((index, Answer { choices, prompt_tokens, completion_tokens }, gap))
}

/// Asks everything at once, and does `then` when all answers have begun.
async fn ask_all(client: &Client, then: impl AsyncFnOnce() -> Result<()>) -> Result<Vec<Answer>> {
    let (begun, mut begins) = mpsc::channel(STREAMS);
    let mut asked = JoinSet::new();
    for index in 0..STREAMS {
        asked.spawn(ask(client.clone(), index, begun.clone()));
    }
    for _ in 0..STREAMS {
        begins.recv().await.context("a stream did not begin")?;
    }
    then().await?;
    let (mut answers, mut gaps) = (BTreeMap::new(), Vec::new());
    while let Some(outcome) = asked.join_next().await {
        let (index, answer, gap) = outcome??;
        answers.insert(index, answer);
        gaps.push(gap);
    }
    gaps.sort_unstable();
    measured("longest wait of a client between two events", gaps.last());
    Ok(answers.into_values().collect())
}

/// Has `breaks` break one of two workers under all streams.
async fn check(breaks: impl AsyncFnOnce(&mut Restartable) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::start(&["--drain-timeout-ms", "200"]).await?;
    let survivor = cluster.add_worker("worker-2").await?;
    let client = cluster.client.clone();
    let undisturbed = ask_all(&client, async || Ok(())).await?;
    let worker = &mut cluster.worker;
    let answers = ask_all(&client, async || breaks(worker).await).await?;
    for (index, (answer, expected)) in answers.iter().zip(&undisturbed).enumerate() {
        ensure!(answer == expected, "answer {index} is {answer:?}, undisturbed {expected:?}");
    }
    let moved = client.metrics().await?.sum("phalanx_migrations_total")?;
    measured("streams moved", moved);
    ensure!(moved >= 1.0, "no stream moved");
    eventually("nothing is in flight", IDLE_WITHIN, async || {
        let metrics = client.metrics().await?;
        let left = (
            metrics.sum("phalanx_inflight_requests")?,
            metrics.sum("phalanx_dispatched_requests")?,
        );
        ensure!(left == (0.0, 0.0), "in flight and dispatched are {left:?}");
        Ok(true)
    })
    .await?;
    worker_is_empty(&survivor.metrics).await
}

#[tokio::test]
async fn streams_of_a_killed_worker_go_on_to_the_byte() -> Result<()> {
    check(async |worker| worker.process.crash()).await
}

#[tokio::test]
async fn streams_of_a_stopped_worker_go_on_to_the_byte() -> Result<()> {
    check(async |worker| worker.process.pause()).await
}

#[tokio::test]
async fn streams_that_outlast_a_drain_go_on_to_the_byte() -> Result<()> {
    check(async |worker| worker.process.ask_to_end()).await
}
