//! What must hold, said once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::client::{Answer, Client};

/// Between two looks at something that is expected to come true.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The statuses that a request may be refused with, and the `error.type` that goes with each.
const TYPES: [(u16, &str); 7] = [
    (400, "invalid_request_error"),
    (404, "invalid_request_error"),
    (405, "invalid_request_error"),
    (413, "invalid_request_error"),
    (415, "invalid_request_error"),
    (429, "rate_limit_error"),
    (503, "server_error"),
];

/// Prints a figure that a test measured; runners show it when asked for the output.
#[expect(clippy::print_stderr, reason = "a figure belongs to the test's output")]
pub fn measured(what: &str, figure: impl std::fmt::Debug) {
    eprintln!("measured: {what}: {figure:?}");
}

/// Waits until `holds`; what it fails with counts as not yet.
///
/// # Errors
/// When it does not hold `within` that time; the last failure is its cause.
pub async fn eventually<F>(what: &str, within: Duration, holds: F) -> Result<()>
where
    F: AsyncFn() -> Result<bool>,
{
    let deadline = Instant::now() + within;
    loop {
        let seen = holds().await;
        match seen {
            Ok(true) => return Ok(()),
            Ok(false) | Err(_) if Instant::now() < deadline => sleep(LOOK_EVERY).await,
            Ok(false) => anyhow::bail!("not within {within:?}: {what}"),
            Err(error) => return Err(error.context(format!("not within {within:?}: {what}"))),
        }
    }
}

/// Checks that an answer is a refusal in OpenAI's envelope that names `param`.
///
/// # Errors
/// What is wrong with it.
pub fn refusal(answer: &Answer, status: u16, param: Option<&str>) -> Result<()> {
    let text = String::from_utf8_lossy(&answer.bytes);
    ensure!(answer.status == status, "answered {}, expected {status}: {text}", answer.status);
    let body = answer.json()?;
    let error = body.get("error").with_context(|| format!("no error in {text}"))?;
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(!message.is_empty(), "no message in {text}");
    for key in ["type", "param", "code"] {
        ensure!(error.get(key).is_some(), "no {key} in {text}");
    }
    let expected = TYPES.iter().find(|(of, _)| *of == status).map(|(_, name)| *name);
    ensure!(error["type"].as_str() == expected, "type is not {expected:?}: {text}");
    ensure!(error["param"].as_str() == param, "param is not {param:?}: {text}");
    Ok(())
}

/// Checks that the worker behind `metrics` holds no sequence and no block.
///
/// # Errors
/// When it still does after 10 seconds.
pub async fn worker_is_empty(metrics: &Client) -> Result<()> {
    eventually("the worker holds nothing", Duration::from_secs(10), async || {
        let now = metrics.metrics().await?;
        let held = (
            now.sum("phalanx_worker_running")?,
            now.sum("phalanx_worker_waiting")?,
            now.sum("phalanx_worker_kv_blocks_total")?
                - now.sum("phalanx_worker_kv_blocks_free")?,
        );
        ensure!(held == (0.0, 0.0, 0.0), "running, waiting and held blocks are {held:?}");
        Ok(true)
    })
    .await
}

/// A chat request for the demo model, greedy, with `fields` added.
pub fn chat(prompt: &str, fields: Value) -> Value {
    let mut body = json!({
        "model": "demo-llm",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
    });
    merge(&mut body, fields);
    body
}

/// Sets the fields of an object.
pub fn merge(body: &mut Value, fields: Value) {
    if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
        body.extend(fields);
    }
}

/// Checks that the demo model answers a question it knows.
///
/// # Errors
/// When it does not.
pub async fn serves(client: &Client) -> Result<()> {
    let request = chat("What is the capital of France?", json!({"max_tokens": 32}));
    let answer = client.post("/v1/chat/completions", &request).await?.good()?;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    ensure!(text == "The capital of France is Paris.", "answered {text:?}");
    Ok(())
}
