//! What a request would cost on each engine, in seconds, and which engine to take. Pure.
//!
//! `cost = prefill outstanding and asked / prefill rate + (decode asked + share * decode outstanding) * step`,
//! with rates learnt per engine from what it did. What an engine did not show yet it is given from the fleet's
//! best, so that it is tried; engines whose costs differ by less than the prediction's own error take turns.

/// Weight of the newest sample: the last ten or so decide.
const LEARNING_SHARE: f64 = 0.2;
/// How much a further sequence lengthens everybody's decode step, as a share of a step of its own:
/// decode is bound by reading the weights, which a batch shares.
const DECODE_SHARE: f64 = 0.25;
/// Predictions are never trusted to better than this.
const ERROR_MIN: f64 = 0.2;
/// Nor are they worth nothing.
const ERROR_MAX: f64 = 1.0;
/// Shorter prompts are mostly a request's fixed cost, and say little of the rate.
const PREFILL_TOKENS_LEARNT_MIN: u32 = 64;
/// A small model on a CPU, for as long as no engine has reported anything.
const RATES_UNKNOWN: Rates =
    Rates { prefill_tokens_per_second: 1_000.0, step_seconds: 0.02, error: ERROR_MIN };

/// What a request asks of an engine, as predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Prompt tokens to compute.
    pub(crate) prefill_tokens: u64,
    /// Tokens to generate, over all choices.
    pub(crate) decode_tokens: u64,
}

/// How fast an engine is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rates {
    prefill_tokens_per_second: f64,
    step_seconds: f64,
    /// Mean relative error of what these rates predicted.
    error: f64,
}

/// One candidate: its work in progress and what is known of its speed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) outstanding: Work,
    pub(crate) estimate: Estimate,
}

/// What an engine's past says of its speed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    prefill_seconds_per_token: Option<Mean>,
    step_seconds: Option<Mean>,
}

/// An exponentially weighted mean and its mean relative deviation.
#[derive(Clone, Copy, Debug)]
struct Mean {
    value: f64,
    deviation: f64,
}

// === impl Estimate ===

impl Estimate {
    /// A prompt's `tokens` took `seconds` on an engine that had no other prompt to compute.
    pub(crate) fn observe_prefill(&mut self, tokens: u32, seconds: f64) {
        if tokens >= PREFILL_TOKENS_LEARNT_MIN {
            observe(&mut self.prefill_seconds_per_token, seconds / f64::from(tokens));
        }
    }

    /// A sequence waited `seconds` for its next token.
    pub(crate) fn observe_step(&mut self, seconds: f64) {
        observe(&mut self.step_seconds, seconds);
    }

    /// The rates, with what is not known yet taken from `fleet`.
    fn rates(&self, fleet: Rates) -> Rates {
        let error = |mean: Option<Mean>| mean.map_or(0.0, |mean| mean.deviation);
        Rates {
            prefill_tokens_per_second: self
                .prefill_seconds_per_token
                .map_or(fleet.prefill_tokens_per_second, |mean| 1.0 / mean.value),
            step_seconds: self.step_seconds.map_or(fleet.step_seconds, |mean| mean.value),
            error: error(self.prefill_seconds_per_token)
                .max(error(self.step_seconds))
                .clamp(ERROR_MIN, ERROR_MAX),
        }
    }
}

fn observe(mean: &mut Option<Mean>, sample: f64) {
    // A clock's resolution bounds what can be learnt; nothing takes no time at all.
    let sample = sample.max(1e-9);
    match mean {
        None => *mean = Some(Mean { value: sample, deviation: ERROR_MAX }),
        Some(mean) => {
            let deviation = (sample - mean.value).abs() / mean.value;
            mean.deviation += LEARNING_SHARE * (deviation.min(ERROR_MAX) - mean.deviation);
            mean.value += LEARNING_SHARE * (sample - mean.value);
        }
    }
}

// === impl Offer ===

impl Offer {
    fn seconds(&self, work: Work, rates: Rates) -> f64 {
        let prefill = self.outstanding.prefill_tokens.saturating_add(work.prefill_tokens);
        let decode = real(work.decode_tokens) + DECODE_SHARE * real(self.outstanding.decode_tokens);
        real(prefill) / rates.prefill_tokens_per_second + decode * rates.step_seconds
    }
}

/// The index of the offer to take; `rotation` (a counter) decides among those too close to tell apart.
pub(crate) fn choose(offers: &[Offer], work: Work, rotation: usize) -> Option<usize> {
    let fleet = best_rates(offers);
    let costs: Vec<(f64, Rates)> = offers
        .iter()
        .map(|offer| {
            let rates = offer.estimate.rates(fleet);
            (offer.seconds(work, rates), rates)
        })
        .collect();
    let (least, rates) =
        costs.iter().copied().min_by(|(left, _), (right, _)| left.total_cmp(right))?;
    let limit = least * (1.0 + rates.error);
    let near = || costs.iter().enumerate().filter(|(_, (cost, _))| *cost <= limit);
    let turn = rotation % near().count().max(1);
    near().nth(turn).map(|(index, _)| index)
}

/// The best of each rate that any engine has shown.
fn best_rates(offers: &[Offer]) -> Rates {
    let least = |mean: fn(&Estimate) -> Option<Mean>| {
        let known = offers.iter().filter_map(|offer| mean(&offer.estimate));
        known.map(|mean| mean.value).min_by(f64::total_cmp)
    };
    Rates {
        prefill_tokens_per_second: least(|estimate| estimate.prefill_seconds_per_token)
            .map_or(RATES_UNKNOWN.prefill_tokens_per_second, |seconds| 1.0 / seconds),
        step_seconds: least(|estimate| estimate.step_seconds).unwrap_or(RATES_UNKNOWN.step_seconds),
        ..RATES_UNKNOWN
    }
}

/// Token counts are far below 2^52, where the conversion would begin to round.
#[expect(clippy::cast_precision_loss, reason = "see the function's own doc")]
const fn real(tokens: u64) -> f64 {
    tokens as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WORK: Work = Work { prefill_tokens: 100, decode_tokens: 50 };

    fn offer(prefill_tokens: u64, decode_tokens: u64) -> Offer {
        Offer { outstanding: Work { prefill_tokens, decode_tokens }, estimate: Estimate::default() }
    }

    fn learnt(tokens_per_second: f64, step_seconds: f64) -> Estimate {
        let mut estimate = Estimate::default();
        for _ in 0..100 {
            estimate.observe_prefill(1_000, 1_000.0 / tokens_per_second);
            estimate.observe_step(step_seconds);
        }
        estimate
    }

    #[test]
    fn nobody_is_chosen_from_nothing() {
        assert_eq!(choose(&[], WORK, 0), None);
    }

    #[test]
    fn idle_equals_take_turns() {
        let offers = [offer(0, 0), offer(0, 0), offer(0, 0)];
        let chosen: Vec<_> = (0..6).filter_map(|turn| choose(&offers, WORK, turn)).collect();
        assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn the_busy_engine_is_spared_whatever_the_turn() {
        let offers = [offer(4_000, 2_000), offer(0, 0)];
        for turn in 0..4 {
            assert_eq!(choose(&offers, WORK, turn), Some(1));
        }
    }

    #[test]
    fn a_fast_busy_engine_beats_a_slow_idle_one() {
        let fast = Offer { estimate: learnt(50_000.0, 0.005), ..offer(1_000, 100) };
        let slow = Offer { estimate: learnt(500.0, 0.1), ..offer(0, 0) };
        assert_eq!(choose(&[slow, fast], WORK, 0), Some(1));
    }

    #[test]
    fn an_engine_that_never_served_is_tried() {
        let known = Offer { estimate: learnt(50_000.0, 0.001), ..offer(0, 0) };
        let fresh = offer(0, 0);
        let chosen: Vec<_> =
            (0..2).filter_map(|turn| choose(&[known, fresh], WORK, turn)).collect();
        assert_eq!(chosen, [0, 1]);
    }

    #[test]
    fn an_engine_that_saw_only_short_prompts_is_not_judged_by_them() {
        let known = Offer { estimate: learnt(50_000.0, 0.01), ..offer(0, 0) };
        let mut estimate = Estimate::default();
        estimate.observe_prefill(2, 0.01);
        estimate.observe_step(0.01);
        let short = Offer { estimate, ..offer(0, 0) };
        let long_prompt = Work { prefill_tokens: 4_000, decode_tokens: 4 };
        let chosen = |turn| choose(&[known, short], long_prompt, turn);
        assert_eq!((chosen(0), chosen(1)), (Some(0), Some(1)));
    }

    proptest! {
        #[test]
        fn the_choice_is_never_worse_than_the_best_by_more_than_the_error(
            engines in prop::collection::vec((0u64..100_000, 0u64..100_000, 1.0f64..1e5, 1e-4f64..1.0), 1..40),
            rotation in any::<usize>(),
        ) {
            let offers: Vec<_> = engines.iter()
                .map(|&(prefill, decode, rate, step)| Offer { estimate: learnt(rate, step), ..offer(prefill, decode) })
                .collect();
            let chosen = choose(&offers, WORK, rotation).unwrap();
            let cost = |offer: &Offer| offer.seconds(WORK, offer.estimate.rates(RATES_UNKNOWN));
            let least = offers.iter().map(cost).fold(f64::INFINITY, f64::min);
            prop_assert!(cost(&offers[chosen]) <= least * (1.0 + ERROR_MAX));
        }

        #[test]
        fn learning_ends_near_what_was_seen(step in 1e-4f64..10.0, start in 1e-4f64..10.0) {
            let mut estimate = Estimate::default();
            estimate.observe_step(start);
            for _ in 0..200 {
                estimate.observe_step(step);
            }
            let rates = estimate.rates(RATES_UNKNOWN);
            prop_assert!((rates.step_seconds - step).abs() <= step * 0.01);
            prop_assert!(rates.error <= ERROR_MIN + 1e-6);
        }

        #[test]
        fn more_outstanding_work_never_costs_less(prefill in 0u64..1 << 40, decode in 0u64..1 << 40, more in 1u64..1 << 20) {
            let rates = RATES_UNKNOWN;
            let base = offer(prefill, decode).seconds(WORK, rates);
            prop_assert!(offer(prefill + more, decode).seconds(WORK, rates) >= base);
            prop_assert!(offer(prefill, decode + more).seconds(WORK, rates) >= base);
        }
    }
}
