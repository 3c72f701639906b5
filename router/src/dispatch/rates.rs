//! How fast an engine is, learnt from what it did. Pure.
//!
//! Both of its speeds are lines, fitted to what was seen lately:
//!
//! ```text
//! time to the first token = fixed + tokens ahead and its own * seconds per token
//! time of a decode step   = base  + sequences in it          * seconds per sequence
//! ```

use std::sync::atomic::{AtomicU32, Ordering};

/// Weight of the newest sample: the last fifty or so decide. A line needs more of them than a mean.
const LEARNING_SHARE: f64 = 0.04;
/// How much samples must differ in size, beside their mean, before their slope is their own and not the
/// presumed one.
const SPREAD_MIN: f64 = 0.2;
/// What share of a first sample's time is presumed to grow with its size. Prefill is arithmetic, and all of it
/// does; a decode step reads the weights once for the whole batch.
const PREFILL_SHARE: f64 = 1.0;
const STEP_SHARE: f64 = 0.25;
/// Shorter prompts are mostly a request's fixed cost, and say little of the rate.
const PREFILL_TOKENS_LEARNT_MIN: f64 = 64.0;
/// Predictions are never trusted to better than this.
pub(crate) const ERROR_MIN: f64 = 0.05;
/// Nor are they worth nothing.
const ERROR_MAX: f64 = 1.0;
/// A clock's resolution bounds what can be learnt; nothing takes no time at all.
pub(crate) const SECONDS_MIN: f64 = 1e-9;

/// A line: seconds for something of a size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Speed {
    pub(crate) fixed: f64,
    pub(crate) each: f64,
    /// Mean relative error of what this predicted.
    pub(crate) error: f64,
}

/// What an engine's past says of its speed, and of the answers it gives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    prefill: Option<Line>,
    step: Option<Line>,
    answer_tokens: Option<f64>,
}

/// A line through samples, the newest of which weigh most.
#[derive(Clone, Copy, Debug)]
struct Line {
    size: f64,
    seconds: f64,
    variance: f64,
    covariance: f64,
    error: f64,
    /// The share of a sample's time that is presumed to grow with its size.
    share: f64,
}

/// Rates as dispatch reads them, for thousands of engines at once: without a lock. Parts of two updates may be
/// read together, which is no worse than either.
#[derive(Debug, Default)]
pub(crate) struct SharedRates {
    prefill: SharedSpeed,
    step: SharedSpeed,
    answer_tokens: SharedNumber,
}

#[derive(Debug, Default)]
struct SharedSpeed {
    fixed: SharedNumber,
    each: SharedNumber,
    error: SharedNumber,
}

/// The bits of an `f32`; not a number where nothing was learnt.
#[derive(Debug)]
struct SharedNumber(AtomicU32);

// === impl Estimate ===

impl Estimate {
    /// A prompt's first token took `seconds`, with `tokens` to compute before it, its own and those of others.
    pub(crate) fn observe_prefill(&mut self, tokens: u64, seconds: f64) {
        let tokens = real(tokens);
        if tokens >= PREFILL_TOKENS_LEARNT_MIN {
            observe(&mut self.prefill, PREFILL_SHARE, tokens, seconds);
        }
    }

    /// One of `sequences` sequences waited `seconds` for its next token.
    pub(crate) fn observe_step(&mut self, sequences: u64, seconds: f64) {
        observe(&mut self.step, STEP_SHARE, real(sequences.max(1)), seconds);
    }

    /// An answer came to its end after `tokens`.
    pub(crate) fn observe_answer(&mut self, tokens: u64) {
        let before = self.answer_tokens.unwrap_or(real(tokens));
        self.answer_tokens = Some(before + LEARNING_SHARE * (real(tokens) - before));
    }

    pub(crate) const fn answer_tokens(&self) -> Option<f64> {
        self.answer_tokens
    }

    pub(crate) fn prefill(&self) -> Option<Speed> {
        self.prefill.map(|line| line.speed())
    }

    pub(crate) fn step(&self) -> Option<Speed> {
        self.step.map(|line| line.speed())
    }
}

fn observe(line: &mut Option<Line>, share: f64, size: f64, seconds: f64) {
    let seconds = seconds.max(SECONDS_MIN);
    match line {
        None => {
            let (variance, covariance, error) = (0.0, 0.0, ERROR_MAX);
            *line = Some(Line { size, seconds, variance, covariance, error, share });
        }
        Some(line) => line.observe(size, seconds),
    }
}

// === impl Line ===

impl Line {
    fn observe(&mut self, size: f64, seconds: f64) {
        let predicted = self.speed().seconds(size).max(SECONDS_MIN);
        let error = ((seconds - predicted).abs() / predicted).min(ERROR_MAX);
        self.error += LEARNING_SHARE * (error - self.error);
        let (to_size, to_seconds) = (size - self.size, seconds - self.seconds);
        self.size += LEARNING_SHARE * to_size;
        self.seconds += LEARNING_SHARE * to_seconds;
        let kept = 1.0 - LEARNING_SHARE;
        self.variance = kept * (self.variance + LEARNING_SHARE * to_size * to_size);
        self.covariance = kept * (self.covariance + LEARNING_SHARE * to_size * to_seconds);
    }

    fn speed(&self) -> Speed {
        let steepest = self.seconds / self.size;
        let presumed_weight = (SPREAD_MIN * self.size).powi(2);
        let slope = (self.covariance + presumed_weight * self.share * steepest)
            / (self.variance + presumed_weight);
        // Neither does more work take less time, nor does no work take less than none.
        let each = slope.clamp(0.0, steepest);
        let fixed = self.seconds - each * self.size;
        Speed { fixed, each, error: self.error.clamp(ERROR_MIN, ERROR_MAX) }
    }
}

// === impl Speed ===

impl Speed {
    pub(crate) fn seconds(&self, size: f64) -> f64 {
        self.each.mul_add(size, self.fixed)
    }
}

// === impl SharedRates ===

impl SharedRates {
    pub(crate) fn publish(&self, estimate: &Estimate) {
        self.prefill.publish(estimate.prefill());
        self.step.publish(estimate.step());
        if let Some(tokens) = estimate.answer_tokens() {
            self.answer_tokens.store(tokens);
        }
    }

    pub(crate) fn prefill(&self) -> Option<Speed> {
        self.prefill.load()
    }

    pub(crate) fn step(&self) -> Option<Speed> {
        self.step.load()
    }

    pub(crate) fn answer_tokens(&self) -> Option<f64> {
        self.answer_tokens.load()
    }
}

impl SharedSpeed {
    fn publish(&self, speed: Option<Speed>) {
        if let Some(Speed { fixed, each, error }) = speed {
            self.fixed.store(fixed);
            self.each.store(each);
            self.error.store(error);
        }
    }

    fn load(&self) -> Option<Speed> {
        let (fixed, each, error) = (self.fixed.load()?, self.each.load()?, self.error.load()?);
        Some(Speed { fixed, each, error })
    }
}

impl Default for SharedNumber {
    fn default() -> Self {
        Self(AtomicU32::new(f32::NAN.to_bits()))
    }
}

impl SharedNumber {
    fn store(&self, value: f64) {
        #[expect(clippy::cast_possible_truncation, reason = "an estimate needs no more precision")]
        self.0.store((value as f32).to_bits(), Ordering::Relaxed);
    }

    fn load(&self) -> Option<f64> {
        let value = f32::from_bits(self.0.load(Ordering::Relaxed));
        (!value.is_nan()).then_some(value.into())
    }
}

/// Token counts are far below 2^52, where the conversion would begin to round.
#[expect(clippy::cast_precision_loss, reason = "see the function's own doc")]
pub(crate) const fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_line_is_learnt_from_samples_of_different_sizes(fixed in 1e-4f64..0.1, each in 1e-5f64..0.01) {
            let mut estimate = Estimate::default();
            for sample in 0..1000_u64 {
                let sequences = 1 + (sample * 7) % 40;
                estimate.observe_step(sequences, each.mul_add(real(sequences), fixed));
            }
            let speed = estimate.step().unwrap();
            let mean = each.mul_add(20.0, fixed);
            for sequences in [1.0, 20.0, 40.0] {
                let (expected, got) = (each.mul_add(sequences, fixed), speed.seconds(sequences));
                prop_assert!((got - expected).abs() <= 0.15 * mean, "{sequences}: {got} for {expected}");
            }
        }

        #[test]
        fn learning_ends_near_what_was_seen(step in 1e-4f64..10.0, start in 1e-4f64..10.0) {
            let mut estimate = Estimate::default();
            estimate.observe_step(4, start);
            for _ in 0..500 {
                estimate.observe_step(4, step);
            }
            let speed = estimate.step().unwrap();
            prop_assert!((speed.seconds(4.0) - step).abs() <= step * 0.01);
            prop_assert!(speed.error <= ERROR_MIN + 1e-6);
        }

        #[test]
        fn time_never_falls_with_work_and_is_never_negative(
            samples in prop::collection::vec((64u64..100_000, 0.0f64..100.0), 1..100)
        ) {
            let mut estimate = Estimate::default();
            for (tokens, seconds) in samples {
                estimate.observe_prefill(tokens, seconds);
            }
            let speed = estimate.prefill().unwrap();
            prop_assert!(speed.each >= 0.0 && speed.seconds(0.0) >= -1e-9, "{speed:?}");
        }
    }

    #[test]
    fn short_prompts_say_nothing_of_the_rate() {
        let mut estimate = Estimate::default();
        estimate.observe_prefill(2, 0.01);
        assert_eq!(estimate.prefill(), None);
    }

    #[test]
    fn what_is_published_is_read() {
        let shared = SharedRates::default();
        assert_eq!((shared.prefill(), shared.step()), (None, None));
        let mut estimate = Estimate::default();
        estimate.observe_prefill(1000, 0.5);
        shared.publish(&estimate);
        assert!((shared.prefill().unwrap().seconds(2000.0) - 1.0).abs() < 1e-6);
        assert_eq!(shared.step(), None);
    }
}
