//! Whether a foreign engine answers, what it serves and how much it has to do: asked again and again.
//!
//! ```text
//! down ── models or health answered ──► up ── port closed, a refusal, or no answer twice in a row ──► down
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use phalanx_chassis::backoff::Backoff;
use tokio::sync::watch;

use super::pool::ConnectError;
use super::{Foreign, report};
use crate::engine::Served;

/// How often an engine that is up is asked: its load changes with every request, and an answer costs it little.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long one answer may take. Engines answer on the thread that also prepares prompts, which takes seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers in a row that may be missing: one is a busy engine, two are a dead one.
const MISSED_MAX: u32 = 2;
/// An engine that comes back is found within this time.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Largest answer: metrics of an engine with many models take some 100 KB.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Probes between two looks for metrics at an engine that has none.
const METRICS_ABSENT_PROBES: u32 = 60;

/// Why an engine is not taken to be up.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("no answer within {} s", PROBE_TIMEOUT.as_secs())]
    Timeout,
    #[error("broke the connection: {0}")]
    Broken(#[from] hyper::Error),
    #[error("answered with more than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    #[error("answered {path} with status {status}")]
    Refused { path: &'static str, status: StatusCode },
    #[error("lists no models, and no model= was given for it")]
    NoModels,
}

/// Probes `engine` for as long as the router runs; `changed` is told when it serves something else.
pub(crate) async fn keep(engine: Arc<Foreign>, changed: watch::Sender<u64>) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX, engine.identity.id.0);
    let (mut missed, mut until_metrics, mut was_told) = (0, 0, false);
    loop {
        match probe(&engine, &changed).await {
            Ok(()) => {
                (missed, was_told) = (0, false);
                backoff.reset();
                until_metrics = match until_metrics {
                    0 if read_load(&engine).await => 0,
                    0 => METRICS_ABSENT_PROBES,
                    probes => probes - 1,
                };
                if !engine.is_up.swap(true, Ordering::Relaxed) {
                    tracing::info!(engine = %engine.identity, "engine is up");
                }
            }
            Err(error) => {
                missed += 1;
                let is_busy = matches!(error, ProbeError::Timeout) && missed < MISSED_MAX;
                let was_up = !is_busy && engine.is_up.swap(false, Ordering::Relaxed);
                if was_up || (!was_told && !is_busy) {
                    tracing::warn!(engine = %engine.identity, %error, "engine is down");
                    was_told = true;
                }
            }
        }
        engine.pool.sweep();
        let pause = if engine.is_up() { PROBE_EVERY } else { backoff.delay() };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // It was up a moment ago, so it is asked at once, but never in a busy loop.
            () = engine.suspected.notified() => tokio::time::sleep(BACKOFF_FIRST).await,
        }
    }
}

/// Asks for the models, or whether it is healthy if it cannot tell those.
async fn probe(engine: &Foreign, changed: &watch::Sender<u64>) -> Result<(), ProbeError> {
    let (status, body) = get(engine, "/v1/models").await?;
    if status.is_success()
        && let Some(listed) = report::models(&body)
        && !listed.is_empty()
    {
        note_models(engine, listed, changed);
        return Ok(());
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(ProbeError::Refused { path: "/v1/models", status });
    }
    let (status, _) = get(engine, "/health").await?;
    if !status.is_success() {
        return Err(ProbeError::Refused { path: "/health", status });
    }
    if engine.models().is_some() { Ok(()) } else { Err(ProbeError::NoModels) }
}

fn note_models(engine: &Foreign, listed: Vec<report::ListedModel>, changed: &watch::Sender<u64>) {
    let pinned = engine.config.model.as_deref();
    let mut models: Vec<Served> = (listed.into_iter())
        .filter(|model| pinned.is_none_or(|pinned| pinned == model.id))
        .map(|model| Served {
            name: model.id.into(),
            revision: None,
            context_tokens_max: model.max_model_len,
        })
        .collect();
    if models.is_empty() {
        return; // what it is pinned to goes by a name that it does not list
    }
    models.sort_by(|left, right| left.name.cmp(&right.name));
    models.dedup_by(|left, right| left.name == right.name);
    if engine.models().is_none_or(|known| *known != models) {
        engine.models.store(Some(Arc::new(models)));
        changed.send_modify(|count| *count += 1);
    }
}

/// Reads its load; false if it does not tell.
async fn read_load(engine: &Foreign) -> bool {
    let Ok((status, body)) = get(engine, "/metrics").await else { return false };
    let metrics = std::str::from_utf8(&body).ok().filter(|_| status.is_success());
    let Some(sequences) = metrics.and_then(report::sequences) else { return false };
    // Engines do not tell what they have to read.
    engine.books.report(sequences, 0);
    true
}

async fn get(engine: &Foreign, path: &'static str) -> Result<(StatusCode, Bytes), ProbeError> {
    tokio::time::timeout(PROBE_TIMEOUT, get_in_time(engine, path))
        .await
        .unwrap_or(Err(ProbeError::Timeout))
}

async fn get_in_time(engine: &Foreign, path: &str) -> Result<(StatusCode, Bytes), ProbeError> {
    let request = engine.request(Method::GET, path, Bytes::new());
    // A new connection, so that an engine that takes none is found.
    let mut connection = engine.pool.connect().await?;
    let (parts, mut body) = connection.send(request).await?.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(piece) =
        std::future::poll_fn(|cx| connection.poll_piece(&mut body, cx)).await.transpose()?
    {
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(ProbeError::TooLong);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok((parts.status, bytes.freeze()))
}
