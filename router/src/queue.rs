//! Where requests wait while every engine that could take them is full: the router's only queue.
//!
//! ```text
//! assign ── an engine has room, nobody waits ──────────────────────────────► its engine
//!    └── all are full ──► FairQueue of the model ── room is freed ── assign ──► its engine
//!                           └── full, or too late for the deadline: refused at once
//! ```
//! Engines are sent hardly more than they compute at once, so that a request waits where it can still go to any of
//! them, and where who waits is fair. Order is kept: who comes while others wait for the same model waits behind them.
//! A request that leaves (its client, its deadline) gives its place up by a guard.

pub(crate) mod drain_rate;
pub(crate) mod fair;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phalanx_proto::id::ModelName;
use tokio::sync::oneshot;

use self::drain_rate::DrainRate;
use self::fair::{FairQueue, Place, Pushed};
use crate::ask::Call;
use crate::dispatch::room::Room;
use crate::dispatch::{Assignment, Dispatch};
use crate::error::RouterError;
use crate::metrics::{RefusalLabels, RouterMetrics};

/// While requests wait, engines are looked at so often even if none of them gave a sign: one that asked for a pause
/// is over it, or another one joined.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Clients are asked to come back within these bounds, whatever the rate was lately.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The requests that wait, by model.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    room: Arc<Room>,
    /// As many as there are names of models; one is kept for its rate when nobody waits in it.
    lines: Arc<Mutex<HashMap<ModelName, Line>>>,
    /// Most requests that wait for one model.
    waiting_max: usize,
    metrics: RouterMetrics,
}

#[derive(Debug)]
struct Line {
    queue: FairQueue<Waiter>,
    rate: DrainRate,
}

/// A request that waits for an engine.
#[derive(Debug)]
struct Waiter {
    call: Call,
    tell: oneshot::Sender<Result<Assignment, RouterError>>,
}

/// A place in the queue, given up on drop.
struct Stay<'a> {
    queue: &'a Queue,
    model: &'a ModelName,
    place: Place,
}

// === impl Queue ===

impl Queue {
    /// A queue for `waiting_max` requests per model, which hears of `room`.
    pub(crate) fn new(room: Arc<Room>, waiting_max: usize, metrics: RouterMetrics) -> Self {
        Self { room, lines: Arc::default(), waiting_max, metrics }
    }

    /// Whether requests for `model` wait.
    pub(crate) fn has_line(&self, model: &ModelName) -> bool {
        self.room.waiting() > 0
            && self.lines.lock().get(model).is_some_and(|line| !line.queue.is_empty())
    }

    /// Waits until it is the turn of `call`, whose first event usually takes `usual`.
    ///
    /// # Errors
    /// Why it is not to wait, or why no engine can take it when its turn has come.
    pub(crate) async fn wait(
        &self,
        call: &Call,
        usual: Option<Duration>,
    ) -> Result<Assignment, RouterError> {
        let entered = Instant::now();
        let (tell, told) = oneshot::channel();
        let place = self.enter(call, usual, tell)?;
        let _stay = Stay { queue: self, model: &call.ask.model, place };
        let assignment = told.await.unwrap_or(Err(RouterError::Draining));
        self.metrics.queue_wait.observe(entered.elapsed().as_secs_f64());
        assignment
    }

    fn enter(
        &self,
        call: &Call,
        usual: Option<Duration>,
        tell: oneshot::Sender<Result<Assignment, RouterError>>,
    ) -> Result<Place, RouterError> {
        let now = Instant::now();
        let (standing, work) = (call.standing, call.ask.work);
        let cost = work.prefill_tokens.saturating_add(work.decode_tokens);
        let mut lines = self.lines.lock();
        let line = lines.entry(call.ask.model.clone()).or_insert_with(|| Line {
            queue: FairQueue::new(self.waiting_max),
            rate: DrainRate::default(),
        });
        let ahead = line.queue.ahead(standing.priority, standing.flow);
        let left = call.deadline.saturating_duration_since(now);
        let wait = line.rate.time_for(ahead + 1, now).unwrap_or_default();
        let predicted = wait.saturating_add(usual.unwrap_or_default());
        if predicted > left {
            self.count_refusal("deadline");
            return Err(RouterError::DeadlineUnreachable { predicted, left });
        }
        let retry_after = line.rate.time_for(line.queue.len(), now).unwrap_or_default();
        let full = RouterError::QueueFull {
            waiting_max: self.waiting_max,
            retry_after: retry_after.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX),
        };
        let waiter = Waiter { call: call.clone(), tell };
        let (place, displaced) =
            match line.queue.push(standing.priority, standing.flow, cost, waiter) {
                Pushed::Waits(place) => (place, None),
                Pushed::InPlaceOf(place, displaced) => (place, Some(displaced)),
                Pushed::Full(_) => {
                    self.count_refusal("full");
                    return Err(full);
                }
            };
        self.count_waiting(&lines);
        drop(lines);
        self.room.freed();
        if let Some(displaced) = displaced {
            self.count_refusal("displaced");
            // Gone already: its client left in this moment.
            let _ = displaced.tell.send(Err(full));
        }
        Ok(place)
    }

    /// Starts the requests whose turn it is, as far as engines have room.
    fn start_all(&self, dispatch: &Dispatch) {
        let mut started = Vec::new();
        let mut lines = self.lines.lock();
        for line in lines.values_mut() {
            while let Some(waiter) = line.queue.peek() {
                let assignment = match dispatch.assign(&waiter.call) {
                    Err(RouterError::Saturated { .. }) => break,
                    assignment => assignment,
                };
                line.rate.started(Instant::now());
                started.extend(line.queue.pop().map(|waiter| (waiter, assignment)));
            }
        }
        self.count_waiting(&lines);
        drop(lines);
        for (waiter, assignment) in started {
            // Who is gone gives the assignment back, and its room to the next.
            let _ = waiter.tell.send(assignment);
        }
    }

    fn count_waiting(&self, lines: &HashMap<ModelName, Line>) {
        let waiting = lines.values().map(|line| line.queue.len()).sum();
        self.metrics.queue_depth.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.room.set_waiting(waiting);
    }

    fn count_refusal(&self, reason: &'static str) {
        self.metrics.queue_refusals.get_or_create(&RefusalLabels { reason }).inc();
    }
}

/// Starts requests that wait, for as long as the router runs.
pub(crate) async fn serve(dispatch: Dispatch) {
    let queue = dispatch.queue().clone();
    loop {
        if queue.room.waiting() == 0 {
            queue.room.until_freed().await;
        } else {
            // Either way it is time to look.
            let _ = tokio::time::timeout(LOOK_EVERY, queue.room.until_freed()).await;
        }
        queue.start_all(&dispatch);
    }
}

// === impl Stay ===

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        let mut lines = self.queue.lines.lock();
        let waiter = lines.get_mut(self.model).and_then(|line| line.queue.remove(self.place));
        if waiter.is_some() {
            self.queue.count_waiting(&lines);
        }
        drop(lines);
    }
}
