//! How long to wait before trying again: doubling, jittered, bounded.

use std::time::Duration;

/// The delays of one series of attempts. Pure: the jitter comes from the seed given.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    max: Duration,
    state: u64,
}

/// How far apart the states of one series of draws are.
const SPLIT_MIX_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The `nth` number between 0 and 1 that is drawn from `seed`: jitter for who keeps count of its draws itself.
pub fn jitter(seed: u64, nth: u32) -> f64 {
    share(seed.wrapping_add(SPLIT_MIX_STEP.wrapping_mul(u64::from(nth) + 1)))
}

/// SplitMix64 (Steele, Lea and Flood, 2014), as a share of its range.
fn share(state: u64) -> f64 {
    let mut mixed = state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    f64::from(u32::try_from(mixed >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

impl Backoff {
    /// Delays from `first`, doubling up to `max`; `seed` sets the jitter apart from other processes'.
    pub const fn new(first: Duration, max: Duration, seed: u64) -> Self {
        Self { next: first, first, max, state: seed }
    }

    /// The next delay: between half of the current step and all of it.
    pub fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        self.state = self.state.wrapping_add(SPLIT_MIX_STEP);
        let share = share(self.state);
        step.mul_f64(0.5 + share / 2.0)
    }

    /// Starts over after a success.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_bound_and_start_over() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, max, 7);
        for step in [100u64, 200, 400, 800, 1000, 1000] {
            let delay = backoff.delay();
            let step = Duration::from_millis(step);
            assert!(delay >= step / 2 && delay <= step, "{delay:?} is not within {step:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= first);
    }
}
