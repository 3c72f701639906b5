//! `phalanx bench`: load on a router or an engine, and how well it was borne.
//!
//! ```text
//! trace (seeded: who asks what when) ─► sessions ─► target (connections) ─► report (quantiles, rates)
//!   open loop: at the times they arrive              closed loop: one after the other, so many at once
//! ```
//! In an open loop a request's times count from when it was meant to be sent, so that a server that makes others wait
//! is seen to do so.

mod conversation;
mod report;
mod target;
mod trace;

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use phalanx_chassis::config::{Resolved, Setting};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::conversation::{Conversation, Terms};
use self::report::{Report, Targets};
use self::target::Target;
use self::trace::{Generator, Kind, Session, Sessions, Shape};
use crate::chat::first_model;
use crate::failure::{Failure, chain};
use crate::http_client::HttpClient;
use crate::{say, settings};

/// How long a load goes on when nobody says.
const DURATION: Duration = Duration::from_secs(10);
/// Sessions under way at once in an open loop, unless told otherwise: a server that far behind has lost.
const OPEN_SESSIONS_MAX: u64 = 8192;
/// Between two looks of the progress bar.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// A load under way.
#[derive(Debug)]
struct Load {
    target: Target,
    terms: Terms,
    limits: Limits,
    sessions: Mutex<Sessions>,
    report: Mutex<Report>,
    /// Requests that may still be sent.
    left: Mutex<u64>,
}

/// How much, and for how long.
#[derive(Clone, Copy, Debug)]
struct Limits {
    begins_at: Instant,
    /// Requests due before are sent, and not counted.
    counts_from: Instant,
    /// No request is sent from then on.
    ends_at: Option<Instant>,
    /// Sessions at once.
    concurrency: usize,
    is_open: bool,
}

/// Runs the load and prints what came of it.
///
/// # Errors
/// `Unreachable` when nobody is at the URL; `Failed` when not one request was answered.
pub(crate) async fn run(resolved: &Resolved) -> Result<(), Failure> {
    let url = resolved.text(&settings::BENCH_URL).unwrap_or_default();
    let sessions = sessions(resolved)?;
    let target = Target::new(url, milliseconds(resolved, &settings::BENCH_TIMEOUT));
    let unreachable =
        |error| Failure::Unreachable(format!("{url} cannot be reached: {}", chain(&error)));
    target.reach().await.map_err(unreachable)?;
    let model = match resolved.text(&settings::BENCH_MODEL_NAME) {
        Some(name) => name.to_owned(),
        None => first_model(&HttpClient::new(url)).await?,
    };
    let terms = Terms {
        model,
        stream: resolved.is_on(&settings::BENCH_STREAM),
        seed: resolved.integer(&settings::BENCH_SEED).unwrap_or_default(),
    };
    let load = Arc::new(Load {
        target,
        terms,
        limits: Limits::new(resolved),
        sessions: Mutex::new(sessions),
        report: Mutex::new(Report::new(targets(resolved))),
        left: Mutex::new(resolved.integer(&settings::BENCH_REQUESTS).unwrap_or(u64::MAX)),
    });
    let progress = tokio::spawn(Arc::clone(&load).progress());
    load.bear().await;
    progress.abort();
    let took = load.limits.counts_from.elapsed();
    let report = load.report.lock();
    say(&if resolved.is_on(&settings::BENCH_JSON) {
        let mut json = report.json(took);
        json["url"] = json!(url);
        json["shape"] = json!(resolved.text(&settings::BENCH_SHAPE));
        json["rate"] = json!(resolved.decimal(&settings::BENCH_RATE));
        json["concurrency"] = json!(load.limits.concurrency);
        json["seed"] = json!(load.terms.seed);
        format!("{json}\n")
    } else {
        report.table(took)
    });
    if report.good() == 0 {
        return Err(Failure::Failed(format!(
            "no request was answered, {} failed",
            report.failed()
        )));
    }
    Ok(())
}

fn sessions(resolved: &Resolved) -> Result<Sessions, Failure> {
    let kind = match resolved.text(&settings::BENCH_SHAPE) {
        Some("chat") => Kind::Chat,
        Some("bursty") => Kind::Bursty,
        Some("hot") => Kind::Hot,
        Some("trace") => {
            let path = resolved
                .text(&settings::BENCH_TRACE)
                .ok_or_else(|| Failure::usage("--shape trace needs --trace FILE"))?;
            let sessions = trace::read(path).map_err(|error| Failure::usage(chain(&error)))?;
            return Ok(Sessions::Read(sessions.into_iter()));
        }
        _ => Kind::Flat,
    };
    let size = |setting: &Setting| {
        usize::try_from(resolved.integer(setting).unwrap_or_default()).unwrap_or(usize::MAX)
    };
    let shape = Shape {
        kind,
        seed: resolved.integer(&settings::BENCH_SEED).unwrap_or_default(),
        rate: resolved.decimal(&settings::BENCH_RATE).filter(|rate| *rate > 0.0),
        prompt_bytes: size(&settings::BENCH_PROMPT_BYTES),
        prefixes: size(&settings::BENCH_PREFIXES),
        prefix_bytes: size(&settings::BENCH_PREFIX_BYTES),
        max_tokens: crate::worker::number(resolved, &settings::BENCH_MAX_TOKENS).unwrap_or(1),
    };
    Ok(Sessions::Drawn(Box::new(Generator::new(shape))))
}

fn targets(resolved: &Resolved) -> Targets {
    let target =
        |setting: &Setting| resolved.decimal(setting).map(|ms| Duration::from_secs_f64(ms / 1e3));
    Targets { ttft: target(&settings::BENCH_TTFT), tpot: target(&settings::BENCH_TPOT) }
}

fn milliseconds(resolved: &Resolved, setting: &Setting) -> Duration {
    Duration::from_millis(resolved.integer(setting).unwrap_or_default())
}

// === impl Limits ===

impl Limits {
    fn new(resolved: &Resolved) -> Self {
        let seconds = |setting: &Setting| {
            resolved.decimal(setting).and_then(|s| Duration::try_from_secs_f64(s).ok())
        };
        let begins_at = Instant::now();
        let counts_from = begins_at + seconds(&settings::BENCH_WARMUP).unwrap_or_default();
        let duration = seconds(&settings::BENCH_DURATION);
        let has_end = resolved.integer(&settings::BENCH_REQUESTS).is_some()
            || resolved.text(&settings::BENCH_TRACE).is_some();
        let duration = if has_end { duration } else { Some(duration.unwrap_or(DURATION)) };
        let is_trace = resolved.text(&settings::BENCH_SHAPE) == Some("trace");
        let is_open = is_trace || resolved.decimal(&settings::BENCH_RATE) > Some(0.0);
        let concurrency = resolved.integer(&settings::BENCH_CONCURRENCY);
        let concurrency = concurrency.unwrap_or(if is_open { OPEN_SESSIONS_MAX } else { 1 });
        Self {
            begins_at,
            counts_from,
            ends_at: duration.map(|duration| counts_from + duration),
            concurrency: usize::try_from(concurrency).unwrap_or(usize::MAX),
            is_open,
        }
    }

    fn are_over(&self, at: Instant) -> bool {
        self.ends_at.is_some_and(|end| at >= end)
    }
}

// === impl Load ===

impl Load {
    /// Until the last session is over.
    async fn bear(self: &Arc<Self>) {
        if self.limits.is_open {
            return self.bear_open().await;
        }
        let mut clients = JoinSet::new();
        for _ in 0..self.limits.concurrency {
            let load = Arc::clone(self);
            clients.spawn(async move {
                while let Some(session) = load.next_session() {
                    load.hold(&session, Instant::now()).await;
                }
            });
        }
        while clients.join_next().await.is_some() {}
    }

    async fn bear_open(self: &Arc<Self>) {
        let places = Arc::new(Semaphore::new(self.limits.concurrency.min(Semaphore::MAX_PERMITS)));
        let mut clients = JoinSet::new();
        while let Some(session) = self.next_session() {
            let due = self.limits.begins_at + session.arrives_at;
            if self.limits.are_over(due) {
                break;
            }
            sleep_until(due).await;
            // Those that are over make room for no more memory than there are sessions at once.
            while clients.try_join_next().is_some() {}
            // The semaphore is never closed. Who waits here is late, and `due` tells.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let load = Arc::clone(self);
            clients.spawn(async move {
                load.hold(&session, due).await;
                drop(place);
            });
        }
        while clients.join_next().await.is_some() {}
    }

    fn next_session(&self) -> Option<Session> {
        let is_over = *self.left.lock() == 0 || self.limits.are_over(Instant::now());
        if is_over { None } else { self.sessions.lock().next() }
    }

    /// Holds one conversation, its first turn due at `due`.
    async fn hold(&self, session: &Session, mut due: Instant) {
        let mut conversation = Conversation::new(session);
        for turn in &session.turns {
            if self.limits.is_open {
                due += turn.think;
                sleep_until(due).await;
            }
            if self.limits.are_over(due) || !self.take_one() {
                return;
            }
            conversation.say("user", &turn.text);
            let body = conversation.body(&self.terms, turn.max_tokens);
            let (sample, answer) = self.target.ask(body, due).await;
            if due >= self.limits.counts_from {
                self.report.lock().add(&sample);
            }
            let Some(answer) = answer else { return };
            conversation.say("assistant", &answer);
            due = Instant::now();
        }
    }

    /// Whether one more request may be sent.
    fn take_one(&self) -> bool {
        let mut left = self.left.lock();
        let is_left = *left > 0;
        *left = left.saturating_sub(1);
        is_left
    }

    /// Shows how far the load is, on a terminal.
    async fn progress(self: Arc<Self>) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let ends_at = self.limits.ends_at;
        let total = ends_at.map(|end| end.saturating_duration_since(self.limits.begins_at));
        let bar =
            total.map_or_else(ProgressBar::no_length, |total| ProgressBar::new(total.as_secs()));
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} s  {msg}") {
            bar.set_style(style);
        }
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            let (good, failed) = {
                let report = self.report.lock();
                (report.good(), report.failed())
            };
            bar.set_position(self.limits.begins_at.elapsed().as_secs());
            bar.set_message(format!("{good} good, {failed} failed"));
            let _ = std::io::stderr().flush();
        }
    }
}
