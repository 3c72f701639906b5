//! A simulated engine that runs: the pure core, a clock, and whoever waits for its sequences.
//!
//! ```text
//! submit ─► core ─► news ─► a watch channel per sequence ─► its stream
//!   ▲  a task wakes up when the core wants to ─┘                │
//!   └──────────────── abort ◄── dropped before its end ◄────────┘
//! ```
//! A sequence's channel holds how many tokens there are, not the tokens, so that a slow reader costs nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use phalanx_chassis::chunk_feed::{ChunkChange, ChunkFeed};
use phalanx_proto::id::ModelName;
use phalanx_proto::prefix::ModelKey;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::core::{Engine, Load, Overloaded, Pace, Phase, Progress, SequenceId, Totals, Work};
use crate::faults::{Fate, Faults, FaultsError, Fuse};

/// Aborts remembered, newest last: more than any test looks at, and a few KiB.
const ABORTS_KEPT_MAX: usize = 1024;

/// A running engine. Cheap to clone; it runs while [`SimEngine::run`] does.
#[derive(Clone, Debug)]
pub struct SimEngine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    origin: Instant,
    state: Mutex<State>,
    /// The core's next step may have changed.
    changed: Notify,
    /// Requests that are answered now, whether the core knows of them or not.
    open: watch::Sender<u64>,
    /// Requests answered without the core.
    instant: AtomicU64,
    /// The prefix cache, as routers know its chunks.
    chunks: ChunkFeed,
    key: ModelKey,
}

#[derive(Debug)]
struct State {
    core: Engine,
    listeners: HashMap<SequenceId, watch::Sender<Progress>>,
    fuse: Fuse,
    aborts: VecDeque<Abort>,
    failed: u64,
    refused_on_purpose: u64,
}

/// A sequence that its client gave up.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Abort {
    /// When the engine stopped working on it, in milliseconds since 1970: who knows when the client left can tell how
    /// long that took.
    pub at_unix_ms: f64,
    /// What was being done.
    pub phase: Phase,
}

/// What `GET /sim/stats` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Since the start.
    #[serde(flatten)]
    pub totals: Totals,
    /// Now.
    #[serde(flatten)]
    pub load: Load,
    /// Requests answered at once.
    pub instant: u64,
    /// Requests that are answered now.
    pub open: u64,
    /// Tokens in the prefix cache.
    pub cache_tokens: u64,
    /// Requests answered 500 on purpose.
    pub failed: u64,
    /// Requests answered 429 on purpose.
    pub refused_on_purpose: u64,
    /// The latest.
    pub aborts: Vec<Abort>,
}

/// A place among the open requests.
#[derive(Debug)]
pub struct Open(SimEngine);

/// A sequence under way. Dropped before its end, it is given up.
#[derive(Debug)]
pub struct Running {
    engine: SimEngine,
    id: SequenceId,
    progress: watch::Receiver<Progress>,
    answer_tokens: u32,
}

// === impl SimEngine ===

impl SimEngine {
    /// An engine of `model` that has nothing to do.
    pub fn new(pace: Pace, model: &ModelName) -> Self {
        let state = State {
            core: Engine::new(pace),
            listeners: HashMap::new(),
            fuse: Fuse::default(),
            aborts: VecDeque::new(),
            failed: 0,
            refused_on_purpose: 0,
        };
        Self(Arc::new(Shared {
            origin: Instant::now(),
            state: Mutex::new(state),
            changed: Notify::new(),
            open: watch::Sender::new(0),
            instant: AtomicU64::new(0),
            chunks: ChunkFeed::default(),
            key: ModelKey::new(model),
        }))
    }

    /// Takes its steps, for ever.
    pub async fn run(&self) {
        loop {
            let wake_at = {
                let mut state = self.0.state.lock();
                state.core.advance(self.now());
                self.tell(&mut state);
                state.core.wake_at()
            };
            let due = async {
                match wake_at {
                    Some(at) => sleep_until(self.0.origin + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.0.changed.notified() => {}
            }
        }
    }

    /// What happens to the next request.
    pub fn fate(&self) -> Fate {
        let mut state = self.0.state.lock();
        let fate = state.fuse.decide();
        match fate {
            Fate::Fail => state.failed += 1,
            Fate::Refuse => state.refused_on_purpose += 1,
            Fate::Serve(_) => {}
        }
        fate
    }

    /// Counts a request that is answered without the core.
    pub fn count_instant(&self) {
        self.0.instant.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request as open, for as long as the guard is held.
    pub fn open(&self) -> Open {
        self.0.open.send_modify(|open| *open += 1);
        Open(self.clone())
    }

    /// Resolves when no request is open.
    pub async fn idle(&self) {
        // The sender lives as long as `self` does.
        let _ = self.0.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Puts a sequence in the queue.
    ///
    /// # Errors
    /// When too many wait.
    pub fn submit(&self, work: Work) -> Result<Running, Overloaded> {
        let mut state = self.0.state.lock();
        let start = Progress { cached_tokens: 0, produced: work.resumed };
        let answer_tokens = work.answer_tokens;
        let id = state.core.submit(self.now(), work)?;
        let (sender, progress) = watch::channel(start);
        state.listeners.insert(id, sender);
        self.tell(&mut state);
        drop(state);
        self.0.changed.notify_one();
        Ok(Running { engine: self.clone(), id, progress, answer_tokens })
    }

    /// Sets the switches anew.
    ///
    /// # Errors
    /// When one of them is out of range.
    pub fn set_faults(&self, faults: Faults) -> Result<(), FaultsError> {
        faults.validate()?;
        let mut state = self.0.state.lock();
        state.core.slow_down(faults.slow);
        state.fuse.set(faults);
        Ok(())
    }

    /// The switches.
    pub fn faults(&self) -> Faults {
        self.0.state.lock().fuse.faults()
    }

    /// How much there is to do.
    pub fn load(&self) -> Load {
        self.0.state.lock().core.load()
    }

    /// Everything there is to tell.
    pub fn stats(&self) -> Stats {
        let state = self.0.state.lock();
        Stats {
            totals: state.core.totals(),
            load: state.core.load(),
            instant: self.0.instant.load(Ordering::Relaxed),
            open: *self.0.open.borrow(),
            cache_tokens: state.core.cache_tokens(),
            failed: state.failed,
            refused_on_purpose: state.refused_on_purpose,
            aborts: state.aborts.iter().copied().collect(),
        }
    }

    /// The prefix cache, for those who follow it.
    pub fn chunks(&self) -> &ChunkFeed {
        &self.0.chunks
    }

    /// Passes the core's news on. Who is not there any more needs none.
    fn tell(&self, state: &mut State) {
        for (id, progress) in state.core.take_news() {
            if let Some(listener) = state.listeners.get(&id) {
                listener.send_replace(progress);
            }
        }
        let changes = state.core.take_chunk_changes();
        if !changes.is_empty() {
            let key = self.0.key;
            // Under the core's lock, so that followers hear changes in their order.
            self.0.chunks.apply(changes.into_iter().map(|change| match change {
                ChunkChange::Tied(chunk) => ChunkChange::Tied(chunk.under(key)),
                ChunkChange::Untied(chunk) => ChunkChange::Untied(chunk.under(key)),
            }));
        }
    }

    fn abort(&self, id: SequenceId) {
        let mut state = self.0.state.lock();
        state.listeners.remove(&id);
        let Some(phase) = state.core.abort(id) else { return };
        if state.aborts.len() >= ABORTS_KEPT_MAX {
            state.aborts.pop_front();
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        state.aborts.push_back(Abort { at_unix_ms: since_1970.as_secs_f64() * 1e3, phase });
    }

    fn now(&self) -> Duration {
        self.0.origin.elapsed()
    }
}

// === impl Open ===

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.open.send_modify(|open| *open -= 1);
    }
}

// === impl Running ===

impl Running {
    /// Waits until there are more tokens than `seen`.
    pub async fn more_than(&mut self, seen: u32) -> Progress {
        let heard = self.progress.wait_for(|progress| progress.produced > seen).await;
        let heard = heard.ok().map(|progress| *progress);
        match heard {
            Some(progress) => progress,
            // The sender is only dropped with this.
            None => std::future::pending().await,
        }
    }

    /// Tokens of the whole answer.
    pub const fn answer_tokens(&self) -> u32 {
        self.answer_tokens
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.engine.abort(self.id);
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::prefix::PromptKind;

    use super::*;
    use crate::prompt::Canonical;

    fn engine(prefill_rate: f64) -> SimEngine {
        let pace = Pace {
            prefill_rate,
            decode_base: Duration::from_millis(1),
            decode_per_sequence: Duration::ZERO,
            step_tokens_max: 512,
            batch_max: 2,
            waiting_max: 1,
            cache_tokens: 4096,
            speed: 1.0,
        };
        SimEngine::new(pace, &ModelName::from("sim"))
    }

    fn work(answer_tokens: u32) -> Work {
        let prompt = Canonical::new(PromptKind::Text, "").prompt();
        Work { prompt, resumed: 0, answer_tokens }
    }

    #[tokio::test]
    async fn a_sequence_is_heard_to_its_end_and_nothing_is_left_of_it() {
        let engine = engine(1e6);
        let runner = engine.clone();
        let run = tokio::spawn(async move { runner.run().await });
        let mut running = engine.submit(work(3)).unwrap();
        assert_eq!(running.more_than(2).await.produced, 3);
        drop(running);
        assert_eq!(engine.load(), Load::default());
        assert_eq!((engine.stats().totals.finished, engine.stats().totals.aborted), (1, 0));
        assert!(engine.0.state.lock().listeners.is_empty());
        run.abort();
    }

    #[tokio::test]
    async fn a_dropped_sequence_is_aborted_at_once() {
        // Slow enough to be met at its prompt.
        let engine = engine(0.001);
        let one = engine.submit(work(1000)).unwrap();
        let two = engine.submit(work(1000)).unwrap();
        drop(one);
        drop(two);
        let stats = engine.stats();
        assert_eq!(stats.load, Load::default());
        let phases: Vec<Phase> = stats.aborts.iter().map(|abort| abort.phase).collect();
        assert_eq!(phases, [Phase::Prefill, Phase::Waiting]);
    }

    #[tokio::test]
    async fn an_engine_is_idle_when_its_last_request_is_over() {
        let engine = engine(1e6);
        let open = engine.open();
        assert_eq!(engine.stats().open, 1);
        drop(open);
        engine.idle().await;
    }
}
