//! What is known of one engine's health: its breaker and its pace, behind their locks, and the guard that reports how
//! each request went.
//!
//! ```text
//! assigned ──► Trial ── event ──► pace                      ejected for slowness ◄── compare (twice a second)
//!                └── answered | failed | dropped ──► breaker
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phalanx_proto::fault::{Fault, FaultCode};

use super::breaker::{Breaker, BreakerPolicy, BreakerState, Outcome, Pass};
use super::pace::{Pace, Ticket, Typical, Usual, WorkClass};
use crate::config::RouterConfig;
use crate::engine::Identity;

/// A request that ends at its deadline speaks against its engine only if that was silent for so long: a client that
/// gives no time must not have engines ejected.
const SILENCE_BLAMED_MIN: Duration = Duration::from_secs(1);
/// And for so many times the usual time to a first event, where that is known: long prompts take long.
const SILENCE_BLAMED_RATIO: f64 = 3.0;

/// How long an engine is spared that says it is busy, and not for how long.
const PAUSE_DEFAULT: Duration = Duration::from_millis(500);
/// And at the most, whatever it says: it may have room sooner, and only asking tells.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// When engines are ejected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HealthPolicy {
    pub(crate) breaker: BreakerPolicy,
    /// How many times slower than its peers an engine must be to be ejected; none: it never is.
    pub(crate) slow_ratio: Option<f64>,
}

/// One engine's health.
#[derive(Debug)]
pub(crate) struct Health {
    engine: Identity,
    policy: HealthPolicy,
    breaker: Mutex<Breaker>,
    /// What dispatch reads of the breaker for each request, of thousands of engines.
    is_closed: AtomicBool,
    /// Until when it asked to be spared.
    pause: Mutex<Option<Instant>>,
    is_paused: AtomicBool,
    /// One for each model it serves.
    paces: Box<[Mutex<Pace>]>,
}

/// One request at one engine, until it is dropped. Says nothing of the engine unless told how the request went.
#[derive(Debug)]
pub(crate) struct Trial {
    health: Arc<Health>,
    pass: Pass,
    model: usize,
    /// None of an answer that comes in one piece: what that takes says nothing of a first event.
    class: Option<WorkClass>,
    ticket: Option<Ticket>,
    /// When the engine was last heard in this request.
    heard: Instant,
    deadline: Instant,
    is_slow: bool,
    outcome: Option<Outcome>,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        RouterConfig::default().health()
    }
}

// === impl Health ===

impl Health {
    /// An engine with `models` models that nothing is known of yet.
    pub(crate) fn new(engine: Identity, models: usize, policy: HealthPolicy) -> Self {
        let breaker = Breaker::new(policy.breaker, engine.id.0, Instant::now());
        Self {
            engine,
            policy,
            breaker: Mutex::new(breaker),
            is_closed: AtomicBool::new(true),
            pause: Mutex::default(),
            is_paused: AtomicBool::new(false),
            paces: (0..models).map(|_| Mutex::default()).collect(),
        }
    }

    /// Whether a request may be sent to it.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        self.is_closed.load(Ordering::Relaxed) || self.breaker.lock().admits(now)
    }

    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        self.breaker.lock().state(now)
    }

    /// What a first event usually takes for such work, of the model with this index.
    pub(crate) fn usual(&self, model: usize, class: WorkClass) -> Option<Duration> {
        self.paces.get(model)?.lock().usual(class)
    }

    /// What its first events take, of the model with this index.
    pub(crate) fn typical(&self, model: usize) -> Typical {
        self.paces.get(model).map_or_else(Typical::default, |pace| pace.lock().typical())
    }

    /// Compares it with what is `usual` among its peers; whether it is so slow that it is to be ejected.
    pub(crate) fn is_slow(&self, model: usize, usual: Usual, now: Instant) -> bool {
        let Some(pace) = self.paces.get(model) else { return false };
        let ratio = self.policy.slow_ratio.unwrap_or(f64::INFINITY);
        let slowness = pace.lock().compare(usual, ratio, now);
        slowness.is_some_and(|slowness| slowness > ratio)
    }

    /// Ejects it for being slow, for as long as failures would; whether it was not out already.
    pub(crate) fn eject(&self, now: Instant) -> bool {
        let mut breaker = self.breaker.lock();
        let is_new = breaker.trip(now);
        if is_new {
            self.is_closed.store(false, Ordering::Relaxed);
            drop(breaker);
            self.paces.iter().for_each(|pace| pace.lock().forget_recent());
            tracing::warn!(worker = %self.engine, "worker is far slower than its peers, ejected");
        }
        is_new
    }

    /// Whether it said that it is busy, and when to come back.
    pub(crate) fn asked_for_pause(&self, now: Instant) -> bool {
        if !self.is_paused.load(Ordering::Relaxed) {
            return false;
        }
        let mut pause = self.pause.lock();
        *pause = pause.filter(|until| now < *until);
        self.is_paused.store(pause.is_some(), Ordering::Relaxed);
        pause.is_some()
    }

    fn pause(&self, asked: Option<Duration>, now: Instant) {
        let mut pause = self.pause.lock();
        *pause = Some(now + asked.unwrap_or(PAUSE_DEFAULT).min(PAUSE_MAX));
        self.is_paused.store(true, Ordering::Relaxed);
    }

    fn record(&self, pass: Pass, outcome: Outcome, now: Instant) {
        let mut breaker = self.breaker.lock();
        let changed = breaker.record(pass, outcome, now);
        if let Some(state) = changed {
            self.is_closed.store(state == BreakerState::Closed, Ordering::Relaxed);
        }
        drop(breaker);
        match changed {
            Some(BreakerState::Open) => {
                tracing::warn!(worker = %self.engine, "too many requests failed, worker is ejected");
            }
            Some(_) => tracing::info!(worker = %self.engine, "worker is taken back"),
            None => {}
        }
    }
}

// === impl Trial ===

impl Trial {
    /// Begins to send a request for the model with index `model`; none if the engine admits no more now. In `panic`
    /// it is sent whatever the engine's state.
    pub(crate) fn begin(
        health: &Arc<Health>,
        model: usize,
        class: Option<WorkClass>,
        deadline: Instant,
        admission: Admission,
    ) -> Option<Self> {
        let now = Instant::now();
        let pass = {
            let mut breaker = health.breaker.lock();
            match admission {
                Admission::Healthy => breaker.admit(now)?,
                Admission::Panic => breaker.admit(now).unwrap_or_else(|| breaker.admit_in_panic()),
            }
        };
        let pace = health.paces.get(model);
        let ticket = pace.zip(class).map(|(pace, class)| pace.lock().sent(class, now));
        Some(Self {
            health: Arc::clone(health),
            pass,
            model,
            class,
            ticket,
            heard: now,
            deadline,
            is_slow: false,
            outcome: None,
        })
    }

    /// What a first event usually takes for such work; none before that is known.
    pub(crate) fn usual(&self) -> Option<Duration> {
        self.health.usual(self.model, self.class?)
    }

    /// The engine sent something at `now`.
    pub(crate) fn event(&mut self, now: Instant) {
        self.heard = now;
        let Some(ticket) = self.ticket.take() else { return };
        let Some(pace) = self.health.paces.get(self.model) else { return };
        let ratio = pace.lock().answered(ticket, now);
        let slow_ratio = self.health.policy.slow_ratio.unwrap_or(f64::INFINITY);
        self.is_slow = ratio.is_some_and(|ratio| ratio > slow_ratio);
    }

    /// The request was answered to its end.
    pub(crate) fn answered(&mut self) {
        // A probe of an engine that is still slow says that it is not well again.
        let is_still_ill = self.is_slow && matches!(self.pass, Pass::Probe { .. });
        self.outcome = Some(if is_still_ill { Outcome::Failed } else { Outcome::Answered });
    }

    /// The engine did not answer to the end.
    pub(crate) fn failed(&mut self, fault: &Fault) {
        if fault.code == FaultCode::Overloaded {
            self.health.pause(fault.retry_after, Instant::now());
        }
        self.outcome = match fault.code {
            // The transport cuts a call at its deadline, and reports that like a broken connection.
            _ if Instant::now() >= self.deadline => None,
            FaultCode::Unavailable | FaultCode::Internal | FaultCode::Numerical => {
                Some(Outcome::Failed)
            }
            // Whether the engine is to blame is judged at the end, as for every deadline.
            FaultCode::DeadlineExceeded => None,
            // The request is wrong, the engine is busy or leaving, or the client is gone.
            FaultCode::InvalidRequest
            | FaultCode::ContextLengthExceeded
            | FaultCode::ModelNotFound
            | FaultCode::StaleEpoch
            | FaultCode::Overloaded
            | FaultCode::Draining
            | FaultCode::Cancelled => Some(Outcome::NoVerdict),
        };
    }

    /// How a request went that nobody judged: given up by its client, or ended by its deadline.
    fn unjudged(&self, now: Instant) -> Outcome {
        if now < self.deadline {
            return Outcome::NoVerdict;
        }
        let blamed = self.usual().map_or(SILENCE_BLAMED_MIN, |usual| {
            usual.mul_f64(SILENCE_BLAMED_RATIO).max(SILENCE_BLAMED_MIN)
        });
        let is_silent = now.saturating_duration_since(self.heard) >= blamed;
        if is_silent { Outcome::Failed } else { Outcome::NoVerdict }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let now = Instant::now();
        let outcome = self.outcome.unwrap_or_else(|| self.unjudged(now));
        if let (Some(ticket), Some(pace)) = (self.ticket, self.health.paces.get(self.model)) {
            pace.lock().given_up(ticket, now);
        }
        self.health.record(self.pass, outcome, now);
    }
}

/// How engines were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Only those that are well, and such as are probed.
    Healthy,
    /// Any, as too many are out.
    Panic,
}
