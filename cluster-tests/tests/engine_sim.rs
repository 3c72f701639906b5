//! Simulated engines count exactly, say what can be checked, and fail only as they are told to.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use phalanx_cluster_tests::check::eventually;
use phalanx_cluster_tests::client::{Client, EventStream};
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::engines::{Engines, chat};
use serde_json::{Value, json};

/// How long engines may take to notice what their clients did, on a busy machine.
const NOTICED_MAX: Duration = Duration::from_secs(20);
/// Fast enough not to be waited for.
const FAST: [&str; 4] = ["--prefill-rate", "10000000", "--decode-base-ms", "0"];
/// Slow enough to be met at work.
const SLOW: [&str; 4] = ["--decode-base-ms", "50", "--prefill-rate", "100000"];
const CHAT: &str = "/v1/chat/completions";

fn streamed(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    body
}

/// Tokens of a stream until it ends or breaks, and whether it ended well.
async fn read(mut stream: EventStream) -> (Vec<String>, bool) {
    let mut tokens = Vec::new();
    loop {
        match stream.next().await {
            Ok(Some(event)) => {
                let text = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                tokens.extend((!text.is_empty()).then(|| text.to_owned()));
            }
            Ok(None) => return (tokens, true),
            Err(_) => return (tokens, false),
        }
    }
}

#[tokio::test]
async fn cached_tokens_are_counted_exactly() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let engines = Engines::start(folder.path(), "engines", &FAST).await?;
    let client = Client::new(&engines.urls[0]);
    let shared = "s".repeat(4096);
    let mut cached = Vec::new();
    for tail in ["", " and one", " and two"] {
        let answer = client.post(CHAT, &chat(&format!("{shared}{tail}"), 3)).await?.good()?;
        cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone());
        ensure!(answer["usage"]["completion_tokens"] == 3, "{answer}");
    }
    // Eight chunks of 512 bytes are shared, each 128 tokens.
    ensure!(cached == [0, 1024, 1024], "{cached:?}");
    let stats = engines.stats(0).await?;
    ensure!(stats["cached_tokens"] == 2048 && stats["finished"] == 3, "{stats}");
    ensure!(stats["generated_tokens"] == 9, "{stats}");
    let metrics = client.metrics().await?;
    ensure!(metrics.sum("vllm:prefix_cache_hits_total")? == 2048.0);
    ensure!(metrics.sum("vllm:num_requests_running")? == 0.0);
    engines.is_idle(0).await
}

#[tokio::test]
async fn every_way_to_ask_gives_the_same_tokens() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let engines = Engines::start(folder.path(), "engines", &FAST).await?;
    let control = ControlGroup::start(1).await?;
    let urls = control.urls().join(",");
    let native_options = ["--native", "--control", &urls];
    let native =
        Engines::start(folder.path(), "native", &[&FAST[..], &native_options].concat()).await?;
    let (_router, url) = control.start_role(None, "router", &["router"]).await?;
    let router = Client::new(&url);
    eventually("the router reaches the engine", NOTICED_MAX, async || {
        Ok(router.get("/health/ready").await?.status == 200)
    })
    .await?;

    let client = Client::new(&engines.urls[0]);
    let body = chat("What do you say?", 40);
    let whole = client.post(CHAT, &body).await?.good()?;
    let text = whole["choices"][0]["message"]["content"].as_str().context("no text")?.to_owned();
    ensure!(text.len() == 160, "a token has four bytes: {text}");
    let through_router = router.post(CHAT, &body).await?.good()?;
    ensure!(through_router["choices"][0]["message"]["content"] == text, "{through_router}");
    for client in [&client, &router] {
        let (tokens, good) = read(client.stream(CHAT, &streamed(body.clone())).await?).await;
        ensure!(good && tokens.concat() == text, "{tokens:?}");
    }
    ensure!(native.stats(0).await?["finished"] == 2);

    native.process.ask_to_end()?;
    let Engines { mut process, .. } = native;
    ensure!(process.exit(NOTICED_MAX).await?.success());
    Ok(())
}

#[tokio::test]
async fn routers_are_told_what_a_native_engine_holds() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let control = ControlGroup::start(1).await?;
    let urls = control.urls().join(",");
    let options = [&FAST[..], &["--engines", "2", "--native", "--control", &urls]].concat();
    let _engines = Engines::start(folder.path(), "native", &options).await?;
    let cached = async |client: &Client, conversation: usize, tail: &str| {
        let content = format!("{}{tail}", conversation.to_string().repeat(4096));
        let answer = client.post(CHAT, &chat(&content, 1)).await?.good()?;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().context("no count")
    };
    let (_first, url) = control.start_role(None, "router-1", &["router"]).await?;
    let first = Client::new(&url);
    eventually("both engines are up", NOTICED_MAX, async || {
        Ok(first.metrics().await?.sum("phalanx_workers_up")? == 2.0)
    })
    .await?;
    for conversation in 0..6 {
        ensure!(cached(&first, conversation, "").await? == 0);
    }
    // All that this one knows is what the engines tell.
    let (_second, url) = control.start_role(None, "router-2", &["router"]).await?;
    let second = Client::new(&url);
    eventually("the new router knows what both hold", NOTICED_MAX, async || {
        let known = second.get("/admin/workers").await?.good()?;
        let known = known["workers"].as_array().context("no workers")?;
        let chunks = known.iter().filter_map(|worker| worker["prefix_chunks"].as_u64());
        // 1024 tokens are 8 chunks.
        Ok(chunks.sum::<u64>() >= 6 * 8)
    })
    .await?;
    for conversation in 0..6 {
        let found = cached(&second, conversation, " and more").await?;
        ensure!(found == 1024, "{found} tokens of conversation {conversation} were found");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_in_every_phase() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = [&SLOW[..], &["--batch-max", "1"]].concat();
    let engines = Engines::start(folder.path(), "engines", &options).await?;
    let client = Client::new(&engines.urls[0]);
    let decoding = client.stream(CHAT, &streamed(chat("decoding", 100_000))).await?;
    let waiting = client.stream(CHAT, &streamed(chat("waiting", 100_000))).await?;
    let unary_client = client.clone();
    let unary = tokio::spawn(async move { unary_client.post(CHAT, &chat("unary", 1000)).await });
    eventually("one runs and two wait", NOTICED_MAX, async || {
        let stats = engines.stats(0).await?;
        Ok(stats["running"] == 1 && stats["waiting"] == 2 && stats["generated_tokens"] != 0)
    })
    .await?;
    drop(waiting);
    unary.abort();
    eventually("those who wait are noticed", NOTICED_MAX, async || {
        Ok(engines.stats(0).await?["aborted"] == 2)
    })
    .await?;
    drop(decoding);
    eventually("nothing is left", NOTICED_MAX, async || {
        engines.is_idle(0).await?;
        Ok(true)
    })
    .await?;
    let stats = engines.stats(0).await?;
    let aborts = stats["aborts"].as_array().context("no aborts")?;
    let phases: Vec<&Value> = aborts.iter().map(|abort| &abort["phase"]).collect();
    ensure!(phases == ["waiting", "waiting", "decode"], "{stats}");
    ensure!(aborts.iter().all(|abort| abort["at_unix_ms"].as_f64() > Some(1e12)), "{stats}");
    Ok(())
}

#[tokio::test]
async fn faults_happen_exactly_as_they_are_set() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = [&FAST[..], &["--faults", r#"{"fail_share": 0.5}"#, "--engines", "2"]].concat();
    let engines = Engines::start(folder.path(), "engines", &options).await?;
    let client = Client::new(&engines.urls[0]);
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(client.post(CHAT, &chat("once more", 2)).await?.status);
    }
    ensure!(statuses == [200, 500, 200, 500, 200, 500], "{statuses:?}");

    engines.set_faults(0, &json!({"refuse": true})).await?;
    let refused = client.post(CHAT, &chat("once more", 2)).await?;
    ensure!(refused.status == 429 && refused.header("retry-after") == Some("1"), "{refused:?}");

    engines.set_faults(0, &json!({"die_after": 3})).await?;
    let (tokens, good) = read(client.stream(CHAT, &streamed(chat("once more", 9))).await?).await;
    ensure!(tokens.len() == 3 && !good, "{tokens:?}");

    engines.set_faults(0, &json!({"stall_after": 2})).await?;
    let mut stalled = client.stream(CHAT, &streamed(chat("once more", 9))).await?;
    for _ in 0..2 {
        // The first event opens the stream; two tokens may come in one piece, but as two events.
        stalled.next().await?.context("a token is missing")?;
    }
    eventually("the stalled stream is open", NOTICED_MAX, async || {
        Ok(engines.stats(0).await?["open"] == 1)
    })
    .await?;
    drop(stalled);

    engines.set_faults(0, &json!({})).await?;
    let good = client.post(CHAT, &chat("once more", 2)).await?;
    ensure!(good.status == 200);
    let bad = engines.admins[0].post("/sim/faults", &json!({"fail_share": 2})).await?;
    ensure!(bad.status == 400, "{bad:?}");
    let stats = engines.stats(0).await?;
    ensure!(stats["failed"] == 3 && stats["refused_on_purpose"] == 1, "{stats}");
    // The switches are each engine's own; what was given at the start is every engine's.
    let other = engines.stats(1).await?;
    ensure!(other["failed"] == 0 && other["requests"] == 0, "{other}");
    Ok(())
}

#[tokio::test]
async fn a_full_engine_refuses_and_serves_what_it_took() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = [&SLOW[..], &["--batch-max", "1", "--waiting-max", "1"]].concat();
    let engines = Engines::start(folder.path(), "engines", &options).await?;
    let client = Client::new(&engines.urls[0]);
    let taken = ["first", "second"].map(|text| {
        let client = client.clone();
        tokio::spawn(async move { client.post(CHAT, &chat(text, 40)).await?.good() })
    });
    eventually("one runs and one waits", NOTICED_MAX, async || {
        let stats = engines.stats(0).await?;
        Ok(stats["running"] == 1 && stats["waiting"] == 1)
    })
    .await?;
    let refused = client.post(CHAT, &chat("third", 1)).await?;
    ensure!(refused.status == 503 && refused.header("retry-after") == Some("1"), "{refused:?}");
    for answer in try_join_all(taken).await? {
        ensure!(answer?["usage"]["completion_tokens"] == 40);
    }
    engines.is_idle(0).await
}

#[tokio::test]
async fn an_instant_engine_answers_and_counts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let engines = Engines::start(folder.path(), "engines", &["--instant"]).await?;
    let client = Client::new(&engines.urls[0]);
    let body = chat("at once", 5);
    let whole = client.post(CHAT, &body).await?.good()?;
    let text = whole["choices"][0]["message"]["content"].as_str().context("no text")?;
    ensure!(text.len() == 20 && whole["usage"]["completion_tokens"] == 5, "{whole}");
    let (tokens, good) = read(client.stream(CHAT, &streamed(body)).await?).await;
    ensure!(tokens.len() == 5 && good, "{tokens:?}");
    ensure!(client.get("/v1/models").await?.good()?["data"][0]["id"] == "sim");
    ensure!(engines.stats(0).await?["instant"] == 2);
    Ok(())
}
