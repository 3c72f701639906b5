//! How fast a queue is emptied, from when its latest items were started. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Starts that the rate is taken from: some seconds' worth where it matters.
const STARTS_MAX: usize = 64;
/// Older starts are from another load.
const AGE_MAX: Duration = Duration::from_secs(60);

/// The latest starts.
#[derive(Debug, Default)]
pub(crate) struct DrainRate(VecDeque<Instant>);

// === impl DrainRate ===

impl DrainRate {
    /// An item was started.
    pub(crate) fn started(&mut self, now: Instant) {
        if self.0.len() == STARTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// How long `items` would take to start; none before anything is known.
    pub(crate) fn time_for(&self, items: usize, now: Instant) -> Option<Duration> {
        let is_new = |at: &&Instant| now.saturating_duration_since(**at) <= AGE_MAX;
        let first = self.0.iter().find(is_new)?;
        let intervals = self.0.iter().filter(is_new).count() - 1;
        if intervals == 0 {
            return None;
        }
        // To `now` rather than to the last start: a queue that stands still is not fast.
        let passed = now.saturating_duration_since(*first).as_secs_f64();
        let items = f64::from(u32::try_from(items).unwrap_or(u32::MAX));
        let intervals = f64::from(u32::try_from(intervals).unwrap_or(u32::MAX));
        Duration::try_from_secs_f64(passed / intervals * items).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_follows_the_rate_and_grows_while_nothing_starts() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut rate = DrainRate::default();
        assert_eq!(rate.time_for(10, start), None);
        rate.started(start);
        assert_eq!(rate.time_for(10, ms(5)), None, "one start is no rate");
        for n in 1..=200 {
            rate.started(ms(n * 10));
        }
        assert_eq!(rate.time_for(10, ms(2_000)), Some(Duration::from_millis(100)));
        let stalled = rate.time_for(10, ms(8_300)).unwrap();
        assert!(stalled > Duration::from_secs(1), "{stalled:?}");
        assert_eq!(rate.time_for(10, ms(80_000)), None);
    }
}
