//! Whether a worker is heard. Workers report several times a second, so one that says nothing is stopped, cut
//! off or dead, whatever TCP believes. Pure: time comes in as [`WakingClock::tick`].
//!
//! ```text
//! heard ── no report for SILENCE_MAX ──► silent: no new request goes there ── one report ──► heard
//! ```
//! Silence is counted in time that this router was awake: one that was paused, or starved of its CPU, finds the
//! reports of that time unread, and must not take its own absence for theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the clock is moved: with the silence, a worker that stops is avoided within 450 ms.
pub(crate) const TICK_EVERY: Duration = Duration::from_millis(25);
/// What one tick counts for at most: a later one was delayed by this process itself.
const TICK_MAX: Duration = Duration::from_millis(50);
/// How long a worker may be silent: four reports in a row are missing. One that was lost is there again in less,
/// as TCP repeats it after some 200 ms.
const SILENCE_MAX: Duration = Duration::from_millis(400);

/// The time for which this process was awake, in microseconds.
#[derive(Debug, Default)]
pub(crate) struct WakingClock(AtomicU64);

/// When one worker was last heard.
#[derive(Debug)]
pub(crate) struct Hearing {
    clock: Arc<WakingClock>,
    heard_us: AtomicU64,
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
        let heard_us = AtomicU64::new(clock.now_us());
        Self { clock, heard_us }
    }

    /// Takes a report.
    pub(crate) fn heard(&self) {
        self.heard_us.store(self.clock.now_us(), Ordering::Relaxed);
    }

    /// Whether the worker has been silent for too long.
    pub(crate) fn is_silent(&self) -> bool {
        let heard_us = self.heard_us.load(Ordering::Relaxed);
        self.clock.now_us().saturating_sub(heard_us) >= micros(SILENCE_MAX)
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
    fn a_stopped_worker_is_silent_within_half_a_second_of_its_last_report() {
        assert!(SILENCE_MAX + TICK_EVERY + TICK_MAX < Duration::from_millis(500));
    }
}
