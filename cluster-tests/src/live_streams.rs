//! Many live streams over simulated native workers, one of which is killed: every token is known beforehand, so that
//! one that is lost or told twice shows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::check::{eventually, merge};
use crate::client::Client;
use crate::control_group::ControlGroup;
use crate::engines::{Engines, chat};
use crate::process::{Process, START_MAX};

const CHAT: &str = "/v1/chat/completions";
/// Streams that begin at once: more would only queue for this machine's cores.
const BEGIN_AT_ONCE: usize = 128;
/// How soon nothing may be left of the streams.
const IDLE_WITHIN: Duration = Duration::from_secs(20);

/// What the streams are.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many.
    pub streams: usize,
    /// Over how many workers.
    pub workers: usize,
    /// Tokens of each.
    pub tokens: u32,
    /// Milliseconds from token to token.
    pub step_ms: u32,
}

/// What became of them.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How long the client of each stream that was cut waited at most between two tokens, from the kill on.
    pub gaps: Vec<Duration>,
    /// How many went on at another worker.
    pub moved: f64,
}

/// One stream's end.
struct Heard {
    index: usize,
    text: String,
    tokens: u64,
    gap: Duration,
    worker: String,
}

/// Everything that runs.
struct Scene {
    client: Client,
    workers: Vec<Engines>,
    /// Says what each answer is.
    reference: Client,
    _reference: Engines,
    _router: Process,
    _control: ControlGroup,
    _folder: TempDir,
}

/// Kills one worker when all streams of `load` have begun, and reads them to their ends.
///
/// # Errors
/// When a stream fails, lacks a token or has one twice, or something is left of one.
pub async fn kill_one_worker(load: Load) -> Result<Outcome> {
    let mut scene = Scene::start(load).await?;
    let (begun, mut begins) = mpsc::channel(load.streams);
    let mut streams = JoinSet::new();
    for first in (0..load.streams).step_by(BEGIN_AT_ONCE) {
        let together = first..load.streams.min(first + BEGIN_AT_ONCE);
        for index in together.clone() {
            streams.spawn(listen(scene.client.clone(), index, load, begun.clone()));
        }
        for _ in together {
            begins.recv().await.context("a stream did not begin")?;
        }
    }
    let killed_at = Instant::now();
    scene.workers[0].process.crash()?;
    let mut heard = Vec::with_capacity(load.streams);
    while let Some(stream) = streams.join_next().await {
        heard.push(stream??);
    }
    ensure!(killed_at.elapsed() > Duration::from_millis(load.step_ms.into()), "all had ended");
    scene.check(&heard, load).await?;
    let moved = scene.client.metrics().await?.sum("phalanx_migrations_total")?;
    // Whose worker was killed waited longest; nobody else moved.
    let mut gaps: Vec<Duration> = heard.iter().map(|stream| stream.gap).collect();
    gaps.sort_unstable_by(|left, right| right.cmp(left));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    gaps.truncate(moved as usize);
    Ok(Outcome { gaps, moved })
}

fn prompt(index: usize) -> String {
    format!("Stream {index}")
}

/// Reads one stream to its end; says when it has begun.
async fn listen(
    client: Client,
    index: usize,
    load: Load,
    begun: mpsc::Sender<()>,
) -> Result<Heard> {
    let mut body = chat(&prompt(index), load.tokens);
    let streamed = serde_json::json!({"stream": true, "stream_options": {"include_usage": true}});
    merge(&mut body, streamed);
    let mut stream = client.stream(CHAT, &body).await?;
    let worker = stream.headers.get("x-phalanx-worker").and_then(|name| name.to_str().ok());
    let worker = worker.context("no x-phalanx-worker")?.to_owned();
    let mut heard = Heard { index, text: String::new(), tokens: 0, gap: Duration::ZERO, worker };
    let mut latest = None;
    while let Some(event) = stream.next().await.with_context(|| format!("stream {index}"))? {
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            heard.tokens = tokens;
        }
        let text = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        if text.is_empty() {
            continue;
        }
        heard.text.push_str(text);
        let now = Instant::now();
        match latest.replace(now) {
            None => begun.send(()).await?,
            Some(before) => heard.gap = heard.gap.max(now - before),
        }
    }
    Ok(heard)
}

impl Scene {
    async fn start(load: Load) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let control = ControlGroup::start(1).await?;
        let step_ms = load.step_ms.to_string();
        let urls = control.urls().join(",");
        let pace = ["--decode-base-ms", &step_ms, "--decode-per-seq-ms", "0"];
        let room = ["--prefill-rate", "1000000", "--batch-max", "2048"];
        let native = ["--native", "--control", &urls];
        let options = [&pace[..], &room, &native].concat();
        let mut workers = Vec::new();
        for worker in 0..load.workers {
            let name = format!("worker-{worker}");
            workers.push(Engines::start(folder.path(), &name, &options).await?);
        }
        let fast = ["--prefill-rate", "10000000", "--decode-base-ms", "0"];
        let engine = Engines::start(folder.path(), "reference", &fast).await?;
        let (router, url) = control.start_role(None, "router", &["router"]).await?;
        let client = Client::new(&url);
        eventually("the router reaches the workers", START_MAX, async || {
            let up = client.metrics().await?.sum("phalanx_workers_up")?;
            #[expect(clippy::cast_precision_loss, reason = "a small count")]
            let all = load.workers as f64;
            Ok(up == all)
        })
        .await?;
        let reference = Client::new(&engine.urls[0]);
        Ok(Self {
            client,
            workers,
            reference,
            _reference: engine,
            _router: router,
            _control: control,
            _folder: folder,
        })
    }

    async fn check(&self, heard: &[Heard], load: Load) -> Result<()> {
        ensure!(heard.len() == load.streams, "only {} streams ended", heard.len());
        for stream in heard {
            let request = chat(&prompt(stream.index), load.tokens);
            let answer = self.reference.post(CHAT, &request).await?.good()?;
            let expected = answer["choices"][0]["message"]["content"].as_str();
            ensure!(
                Some(stream.text.as_str()) == expected && stream.tokens == u64::from(load.tokens),
                "stream {} of worker {} has {} tokens, {:?}, not {expected:?}",
                stream.index,
                stream.worker,
                stream.tokens,
                stream.text
            );
        }
        eventually("nothing is in flight", IDLE_WITHIN, async || {
            let metrics = self.client.metrics().await?;
            let left = (
                metrics.sum("phalanx_inflight_requests")?,
                metrics.sum("phalanx_dispatched_requests")?,
            );
            ensure!(left == (0.0, 0.0), "in flight and dispatched are {left:?}");
            Ok(true)
        })
        .await?;
        for survivor in &self.workers[1..] {
            survivor.is_idle(0).await?;
        }
        Ok(())
    }
}
