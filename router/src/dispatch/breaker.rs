//! Whether an engine may be sent requests, judged by how its requests ended. Pure.
//!
//! ```text
//!         failures in a row, their share of the window, or slowness
//! Closed ───────────────────────────────────────────────────────────► Open (5 s, 10 s, .. 60 s)
//!    ▲                                                                  │ time is up
//!    └──── every probe was answered ──── HalfOpen, k probes ◄───────────┘
//!                                           └── a probe failed ──► Open, twice as long
//! ```
//! An outcome counts when a request has ended, not when it began to be answered: a stream that dies half-way is a
//! failure. What the client caused (its mistakes, its leaving) and an engine's own "too busy" are no verdict.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use phalanx_chassis::backoff::jitter;

/// Outcomes that are remembered at most. Beyond this many within the window, the newest say enough.
const SAMPLES_MAX: usize = 128;
/// Openings last up to this share longer, so that routers do not probe an engine all at once.
const JITTER_SHARE: f64 = 0.25;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BreakerPolicy {
    /// How long an outcome counts.
    pub(crate) window: Duration,
    /// Fewer outcomes than this say nothing about their shares.
    pub(crate) samples_min: u32,
    /// The share of failures that opens.
    pub(crate) failure_share: f64,
    /// So many failures in a row open, however few the outcomes.
    pub(crate) failures_in_a_row: u32,
    /// How long the first opening lasts; every further one lasts twice as long.
    pub(crate) open_first: Duration,
    pub(crate) open_max: Duration,
    /// Requests that are let through to find out whether the engine is well again.
    pub(crate) probes: u32,
}

/// How a request ended, as far as its engine is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    Failed,
    /// The client's mistake, its leaving, or an engine that said it was too busy.
    NoVerdict,
}

/// Leave to send one request. Its outcome is recorded with it, so that what was sent before an opening says nothing
/// about the engine after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Ordinary { opening: u32 },
    Probe { opening: u32 },
}

/// What operators see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

/// One engine's breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    policy: BreakerPolicy,
    seed: u64,
    phase: Phase,
    /// How often it opened.
    openings: u32,
    /// How many times the next opening's time is doubled.
    doublings: u32,
}

#[derive(Debug)]
enum Phase {
    Closed { since: Instant, outcomes: Outcomes },
    Open { until: Instant },
    HalfOpen { out: u32, answered: u32 },
}

/// The outcomes within the window.
#[derive(Debug, Default)]
struct Outcomes {
    samples: VecDeque<(Instant, bool)>,
    failures: u32,
    failures_in_a_row: u32,
}

// === impl BreakerState ===

impl BreakerState {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

// === impl Breaker ===

impl Breaker {
    /// A closed breaker; `seed` sets its jitter apart from other engines'.
    pub(crate) fn new(policy: BreakerPolicy, seed: u64, now: Instant) -> Self {
        let phase = Phase::Closed { since: now, outcomes: Outcomes::default() };
        Self { policy, seed, phase, openings: 0, doublings: 0 }
    }

    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        match &self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until } if now < *until => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether [`Breaker::admit`] would give a pass.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        match &self.phase {
            Phase::Closed { .. } => true,
            Phase::Open { until } => now >= *until,
            Phase::HalfOpen { out, answered } => out + answered < self.policy.probes,
        }
    }

    /// Leave to send a request now. Every pass must be handed back to [`Breaker::record`].
    pub(crate) fn admit(&mut self, now: Instant) -> Option<Pass> {
        if !self.admits(now) {
            return None;
        }
        let opening = self.openings;
        if let Phase::Open { .. } = self.phase {
            self.phase = Phase::HalfOpen { out: 0, answered: 0 };
        }
        if let Phase::HalfOpen { out, .. } = &mut self.phase {
            *out += 1;
            return Some(Pass::Probe { opening });
        }
        Some(Pass::Ordinary { opening })
    }

    /// A pass for when too many engines are out, and one has to be asked whatever its state.
    pub(crate) const fn admit_in_panic(&self) -> Pass {
        Pass::Ordinary { opening: self.openings }
    }

    /// Takes back `pass` with what became of its request; returns the state if this changed it.
    pub(crate) fn record(
        &mut self,
        pass: Pass,
        outcome: Outcome,
        now: Instant,
    ) -> Option<BreakerState> {
        let (Pass::Ordinary { opening } | Pass::Probe { opening }) = pass;
        if opening != self.openings {
            return None; // sent before the latest opening
        }
        match (&mut self.phase, pass) {
            (Phase::Closed { outcomes, .. }, Pass::Ordinary { .. }) => {
                if outcome != Outcome::NoVerdict {
                    outcomes.add(outcome == Outcome::Failed, now, self.policy.window);
                }
                outcomes.are_bad(&self.policy).then(|| self.open(now))
            }
            (Phase::HalfOpen { out, answered }, Pass::Probe { .. }) => {
                *out -= 1;
                match outcome {
                    Outcome::NoVerdict => None,
                    Outcome::Failed => Some(self.open(now)),
                    Outcome::Answered => {
                        *answered += 1;
                        (*answered >= self.policy.probes).then(|| self.close(now))
                    }
                }
            }
            // Sent in panic, or a probe that ended after the others had closed the breaker.
            _ => None,
        }
    }

    /// Opens a closed breaker for another reason than failures; whether it was closed.
    pub(crate) fn trip(&mut self, now: Instant) -> bool {
        let is_closed = matches!(self.phase, Phase::Closed { .. });
        if is_closed {
            self.open(now);
        }
        is_closed
    }

    fn open(&mut self, now: Instant) -> BreakerState {
        let BreakerPolicy { open_first, open_max, .. } = self.policy;
        if let Phase::Closed { since, .. } = self.phase {
            // Each time of health as long as the longest opening takes back one doubling: no engine opens more
            // often than once in that time, but for its first few.
            let calm = (now - since).as_nanos() / open_max.as_nanos().max(1);
            self.doublings = self.doublings.saturating_sub(u32::try_from(calm).unwrap_or(u32::MAX));
        }
        let step = open_first.saturating_mul(1 << self.doublings.min(30)).min(open_max);
        if step < open_max {
            self.doublings += 1;
        }
        let lasts = step.mul_f64(1.0 + JITTER_SHARE * jitter(self.seed, self.openings));
        self.openings = self.openings.wrapping_add(1);
        self.phase = Phase::Open { until: now + lasts };
        BreakerState::Open
    }

    fn close(&mut self, now: Instant) -> BreakerState {
        self.phase = Phase::Closed { since: now, outcomes: Outcomes::default() };
        BreakerState::Closed
    }
}

// === impl Outcomes ===

impl Outcomes {
    fn add(&mut self, is_failure: bool, now: Instant, window: Duration) {
        while let Some(&(at, was_failure)) = self.samples.front() {
            if self.samples.len() < SAMPLES_MAX && now.saturating_duration_since(at) <= window {
                break;
            }
            self.failures -= u32::from(was_failure);
            self.samples.pop_front();
        }
        self.samples.push_back((now, is_failure));
        self.failures += u32::from(is_failure);
        self.failures_in_a_row = if is_failure { self.failures_in_a_row + 1 } else { 0 };
    }

    fn are_bad(&self, policy: &BreakerPolicy) -> bool {
        let total = u32::try_from(self.samples.len()).unwrap_or(u32::MAX);
        let share = f64::from(self.failures) / f64::from(total.max(1));
        self.failures_in_a_row >= policy.failures_in_a_row
            || (total >= policy.samples_min && share >= policy.failure_share)
    }
}

#[cfg(test)]
mod tests;
