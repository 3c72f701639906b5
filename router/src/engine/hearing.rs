//! Whether a worker is heard, and gets on with its work. Workers report several times a second, so one that says
//! nothing is stopped, cut off or dead, whatever TCP believes; one that reports and does nothing of what it has in
//! hand hangs in a step. Pure: time comes in as [`WakingClock::tick`].
//!
//! ```text
//! well ── no report for SILENCE_MAX ──► silent ── one report ──► well
//!      ── no step for STUCK_MAX ──────► stuck ── one step ─────► well
//! ```
//! No new request goes to either, and what they have in hand goes on elsewhere.
//!
//! Silence is counted in time that this router was awake: one that was paused, or starved of its CPU, finds the
//! reports of that time unread, and must not take its own absence for theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use phalanx_proto::fault::{Fault, FaultCode};

/// How often the clock is moved: with the silence, a worker that stops is avoided within 450 ms.
pub(crate) const TICK_EVERY: Duration = Duration::from_millis(25);
/// What one tick counts for at most: a later one was delayed by this process itself.
const TICK_MAX: Duration = Duration::from_millis(50);
/// How long a worker may be silent: four reports in a row are missing. One that was lost is there again in less,
/// as TCP repeats it after some 200 ms.
const SILENCE_MAX: Duration = Duration::from_millis(400);

/// How long a worker with requests in hand may do nothing of them. A step of a large chunk may take seconds on a
/// CPU; to take a slow one for stuck costs work, but no answer.
const STUCK_MAX: Duration = Duration::from_secs(10);

/// What a worker's reports and events say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Well,
    /// Its reports stopped.
    Silent,
    /// It reports, and does nothing of what it has in hand.
    Stuck,
}

/// The time for which this process was awake, in microseconds.
#[derive(Debug, Default)]
pub(crate) struct WakingClock(AtomicU64);

/// When one worker was last heard, and last did something.
#[derive(Debug)]
pub(crate) struct Hearing {
    clock: Arc<WakingClock>,
    heard_us: AtomicU64,
    stepped_us: AtomicU64,
    is_stuck: AtomicBool,
}

// === impl Condition ===

impl Condition {
    /// Why a request does not wait for the worker any longer.
    pub(crate) fn fault(self) -> Fault {
        let message = match self {
            Self::Well => "was given up",
            Self::Silent => "fell silent",
            Self::Stuck => "does not compute any more",
        };
        Fault::new(FaultCode::Unavailable, message)
    }
}

// === impl WakingClock ===

impl WakingClock {
    /// Moves the clock, which was last moved `elapsed` ago.
    pub(crate) fn tick(&self, elapsed: Duration) {
        self.0.fetch_add(micros(elapsed.min(TICK_MAX)), Ordering::Relaxed);
    }

    fn now_us(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Hearing ===

impl Hearing {
    /// A worker that counts as heard now.
    pub(crate) fn new(clock: Arc<WakingClock>) -> Self {
        let now_us = clock.now_us();
        Self {
            clock,
            heard_us: AtomicU64::new(now_us),
            stepped_us: AtomicU64::new(now_us),
            is_stuck: AtomicBool::new(false),
        }
    }

    /// Takes a report.
    pub(crate) fn heard(&self) {
        self.heard_us.store(self.clock.now_us(), Ordering::Relaxed);
    }

    /// Takes a sign that the worker computes: an event of a stream, or a report of another load.
    pub(crate) fn stepped(&self) {
        self.stepped_us.store(self.clock.now_us(), Ordering::Relaxed);
        if self.is_stuck.load(Ordering::Relaxed) {
            self.is_stuck.store(false, Ordering::Relaxed);
        }
    }

    /// Takes its first request after a time without any: it had nothing to compute until now.
    pub(crate) fn begun(&self) {
        self.stepped_us.store(self.clock.now_us(), Ordering::Relaxed);
    }

    /// Whether the worker has been silent for too long.
    pub(crate) fn is_silent(&self) -> bool {
        self.since(&self.heard_us) >= micros(SILENCE_MAX)
    }

    /// Whether a step of it hangs, as [`Self::judge`] saw it last.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    /// What to make of the worker, which has requests in hand or none. Stuck is one until it computes again: that
    /// its requests went elsewhere is no sign of health.
    pub(crate) fn judge(&self, is_busy: bool) -> Condition {
        if is_busy && self.since(&self.stepped_us) >= micros(STUCK_MAX) {
            self.is_stuck.store(true, Ordering::Relaxed);
        }
        if self.is_silent() {
            Condition::Silent
        } else if self.is_stuck() {
            Condition::Stuck
        } else {
            Condition::Well
        }
    }

    fn since(&self, mark_us: &AtomicU64) -> u64 {
        self.clock.now_us().saturating_sub(mark_us.load(Ordering::Relaxed))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use phalanx_proto::REPORT_EVERY;

    use super::*;

    /// Ticks through `total` in steps of `every`.
    fn pass(clock: &WakingClock, total: Duration, every: Duration) {
        for _ in 0..total.as_millis() / every.as_millis() {
            clock.tick(every);
        }
    }

    fn worker() -> (Arc<WakingClock>, Hearing) {
        let clock = Arc::<WakingClock>::default();
        (Arc::clone(&clock), Hearing::new(clock))
    }

    #[test]
    fn a_worker_is_silent_after_the_bound_and_heard_again_at_its_first_report() {
        let (clock, worker) = worker();
        pass(&clock, SILENCE_MAX - TICK_EVERY, TICK_EVERY);
        assert!(!worker.is_silent());
        clock.tick(TICK_EVERY);
        assert!(worker.is_silent());
        worker.heard();
        assert!(!worker.is_silent());
    }

    #[test]
    fn a_worker_that_reports_as_promised_is_never_silent() {
        let (clock, worker) = worker();
        for _ in 0..100 {
            pass(&clock, REPORT_EVERY * 2, TICK_EVERY);
            assert!(!worker.is_silent());
            worker.heard();
        }
    }

    #[test]
    fn a_router_that_was_paused_does_not_blame_its_workers() {
        let (clock, worker) = worker();
        clock.tick(Duration::from_secs(60));
        assert!(!worker.is_silent());
        // One that went silent meanwhile is found as soon as any other.
        pass(&clock, SILENCE_MAX, TICK_EVERY);
        assert!(worker.is_silent());
    }

    #[test]
    fn a_busy_worker_that_does_nothing_is_stuck_until_it_computes() {
        let (clock, worker) = worker();
        let report_for = |total: Duration, is_busy: bool| {
            let mut condition = Condition::Well;
            for _ in 0..total.as_millis() / REPORT_EVERY.as_millis() {
                pass(&clock, REPORT_EVERY, TICK_EVERY);
                worker.heard();
                condition = worker.judge(is_busy);
            }
            condition
        };
        assert_eq!(report_for(STUCK_MAX * 2, false), Condition::Well, "it had nothing to do");
        worker.begun();
        assert_eq!(report_for(STUCK_MAX - REPORT_EVERY, true), Condition::Well);
        assert_eq!(report_for(REPORT_EVERY, true), Condition::Stuck);
        assert_eq!(report_for(STUCK_MAX, false), Condition::Stuck, "its requests went elsewhere");
        worker.begun();
        assert_eq!(report_for(REPORT_EVERY, true), Condition::Stuck, "and another one came");
        worker.stepped();
        assert_eq!(worker.judge(true), Condition::Well);
        pass(&clock, SILENCE_MAX, TICK_EVERY);
        assert_eq!(worker.judge(true), Condition::Silent);
    }

    #[test]
    fn a_stopped_worker_is_silent_within_half_a_second_of_its_last_report() {
        assert!(SILENCE_MAX + TICK_EVERY + TICK_MAX < Duration::from_millis(500));
    }
}
