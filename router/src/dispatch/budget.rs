//! How many further attempts requests may cost: a share of them, and a few a second for when there are hardly any.
//! Pure. Retries and hedges have one each.
//!
//! Without it, a fleet where half of all calls fail is sent half as much again, just when it can least bear it.

use std::time::{Duration, Instant};

/// What may be saved up: the share of so many requests, or the floor of one second if that is more. Enough for a burst of failures, as when
/// a worker dies with many requests in hand; little beside what comes in a minute.
const SAVED_REQUESTS_MAX: f64 = 1_000.0;

/// What attempts beyond the first are paid from.
#[derive(Debug)]
pub(crate) struct Budget {
    share: f64,
    floor_per_second: f64,
    saved: f64,
    updated: Instant,
}

// === impl Budget ===

impl Budget {
    /// `share` of an attempt per request, and `floor_per_second` whatever comes; the first second's at once.
    pub(crate) const fn new(share: f64, floor_per_second: f64, now: Instant) -> Self {
        Self { share, floor_per_second, saved: floor_per_second, updated: now }
    }

    /// A request came.
    pub(crate) fn earn(&mut self) {
        self.save(self.share);
    }

    /// Takes one attempt out, if there is one.
    pub(crate) fn spend(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.updated);
        self.updated = self.updated.max(now);
        self.save(self.floor_per_second * passed.min(Duration::from_secs(1)).as_secs_f64());
        let is_enough = self.saved >= 1.0;
        if is_enough {
            self.saved -= 1.0;
        }
        is_enough
    }

    fn save(&mut self, attempts: f64) {
        let saved_max = (self.share * SAVED_REQUESTS_MAX).max(self.floor_per_second);
        self.saved = (self.saved + attempts).min(saved_max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fifth_of_the_requests_and_ten_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(0.2, 10.0, start);
        let spent = |budget: &mut Budget, now| (0..1_000).filter(|_| budget.spend(now)).count();
        assert_eq!(spent(&mut budget, start), 10);
        assert_eq!(spent(&mut budget, start + Duration::from_millis(500)), 5);
        for _ in 0..100 {
            budget.earn();
        }
        assert!((19..=20).contains(&spent(&mut budget, start + Duration::from_millis(500))));
    }

    proptest! {
        /// Over any history: attempts <= share of requests + floor over the time, and the first second's.
        #[test]
        fn what_is_spent_was_earned(
            steps in prop::collection::vec((0u32..50, 0u64..5_000, 0u32..50), 1..200),
            share in 0.0f64..1.0,
            floor in 0.0f64..20.0,
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut budget = Budget::new(share, floor, start);
            let (mut requests, mut spent) = (0u32, 0u32);
            for (earned, ms, asked) in steps {
                for _ in 0..earned {
                    budget.earn();
                }
                requests += earned;
                now += Duration::from_millis(ms);
                spent += (0..asked).map(|_| u32::from(budget.spend(now))).sum::<u32>();
                let seconds = (now - start).as_secs_f64() + 1.0;
                prop_assert!(f64::from(spent) <= share * f64::from(requests) + floor * seconds + 1e-6);
            }
        }
    }
}
