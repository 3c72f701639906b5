//! What a request would cost on each engine, in seconds, and which engine to take. Pure.
//!
//! ```text
//! cost = wait     prompts ahead of it      * seconds per token
//!      + prefill  its tokens not cached    * seconds per token + what every prompt takes
//!      + decode   tokens of its answer     * a step of the batch that it joins, which weighs less
//!      + risk     what is cached, if it is * seconds per token, should it not be there
//! ```
//! What an engine did not show yet it is given from the fleet's best, so that it is tried. Costs that differ by less
//! than the prediction's own error count as equal: of these the engines with the least left to compute remain, and
//! of two of them, drawn by the request, the one with fewer sequences: what is left of the difference is noise, which
//! would send everything to whoever looked fastest last. So routers that know the same do not all go to one engine,
//! and a prefix is given up only for what outweighs it: a hot one gets copies because the sum says so.
//!
//! The constants were tuned on simulated engines.

use super::rates::{ERROR_MIN, Speed, real};

/// A small model on a CPU, for as long as no engine has shown anything.
const PREFILL_UNKNOWN: Speed = Speed { fixed: 0.0, each: 0.001, error: ERROR_MIN };
const STEP_UNKNOWN: Speed = Speed { fixed: 0.015, each: 0.005, error: ERROR_MIN };
/// How many times the mean error costs may differ by and count as equal. Less gives prefixes up for what is noise,
/// and every prefix computed again pushes others out of the caches; more lets queues grow.
const NEAR_ERRORS: f64 = 2.0;
/// What a second of the answer counts beside one before its first token. A client that reads along feels the wait
/// for the first token and little of what follows; and a batch that is larger now is not for the whole answer, as
/// sequences end and new ones go where fewer are.
const DECODE_WEIGHT: f64 = 0.1;
/// Sizes at which engines' speeds are compared.
const PROMPT_TYPICAL: f64 = 1000.0;
const BATCH_TYPICAL: f64 = 8.0;
/// Tokens an answer is expected to have for as long as no engine has given one.
pub(crate) const ANSWER_TOKENS_UNKNOWN: u64 = 128;
/// What is left to compute is known to no better than this: the rest of a prompt after its last chunk, and half
/// a chunk of the answer before.
const TOKENS_ALIKE: f64 = 192.0;

/// What a request asks of an engine, as predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Prompt tokens to compute.
    pub(crate) prefill_tokens: u64,
    /// Tokens to generate, over all choices.
    pub(crate) decode_tokens: u64,
}

/// One candidate: its work in progress, what it holds of the prompt and what is known of its speed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Offer {
    pub(crate) outstanding: Work,
    /// Sequences in progress.
    pub(crate) sequences: u64,
    /// Tokens of the prompt that are predicted to be in its cache.
    pub(crate) cached_tokens: u64,
    /// How far that is believed, up to 1.
    pub(crate) confidence: f64,
    pub(crate) prefill: Option<Speed>,
    pub(crate) step: Option<Speed>,
    /// What its answers come to.
    pub(crate) answer_tokens: Option<f64>,
}

/// The best speeds that any engine has shown.
#[derive(Clone, Copy, Debug)]
struct Fleet {
    prefill: Speed,
    step: Speed,
}

/// The parts of a cost, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Terms {
    pub(crate) wait: f64,
    pub(crate) prefill: f64,
    pub(crate) decode: f64,
    pub(crate) risk: f64,
    /// How far the sum may be off.
    pub(crate) error: f64,
    /// Prompt tokens left to compute, as far as is believed.
    pub(crate) uncached_tokens: f64,
    /// Sequences in progress there.
    pub(crate) sequences: u64,
}

/// The offer to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pick {
    pub(crate) index: usize,
    pub(crate) terms: Terms,
}

// === impl Terms ===

impl Terms {
    /// What is compared.
    pub(crate) fn seconds(&self) -> f64 {
        self.first_token() + DECODE_WEIGHT * self.decode
    }

    /// When the first token is due.
    pub(crate) fn first_token(&self) -> f64 {
        self.wait + self.prefill + self.risk
    }
}

// === impl Offer ===

impl Offer {
    /// What `work` costs there.
    fn terms(&self, work: Work, fleet: Fleet) -> Terms {
        let (prefill, step) =
            (self.prefill.unwrap_or(fleet.prefill), self.step.unwrap_or(fleet.step));
        // Something has to be computed: the logits of the last token.
        let cached = self.cached_tokens.min(work.prefill_tokens.saturating_sub(1));
        let uncached = real(work.prefill_tokens - cached);
        let doubted = real(cached) * (1.0 - self.confidence);
        let (wait, own) =
            (real(self.outstanding.prefill_tokens) * prefill.each, prefill.seconds(uncached));
        let batch = real(self.sequences + 1);
        let decode = real(work.decode_tokens) * step.seconds(batch);
        Terms {
            wait,
            prefill: own,
            decode,
            risk: doubted * prefill.each,
            error: prefill.error * (wait + own) + DECODE_WEIGHT * step.error * decode,
            uncached_tokens: uncached + doubted,
            sequences: self.sequences,
        }
    }
}

/// What an answer is expected to come to, in tokens.
pub(crate) fn answer_tokens(offers: &[Offer]) -> u64 {
    let known = || offers.iter().filter_map(|offer| offer.answer_tokens);
    let count = known().count();
    if count == 0 {
        return ANSWER_TOKENS_UNKNOWN;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a mean of counts")]
    let mean = (known().sum::<f64>() / real(count as u64)) as u64;
    mean.max(1)
}

/// What everything costs on each of `offers`.
pub(crate) fn price(offers: &[Offer], work: Work) -> Vec<Terms> {
    let fleet = Fleet::of(offers);
    offers.iter().map(|offer| offer.terms(work, fleet)).collect()
}

/// The one to take of what [`price`] found; `draw`, a number of the request's own, decides among equals.
pub(crate) fn choose(prices: &[Terms], draw: u64) -> Option<Pick> {
    let least = prices.iter().min_by(|left, right| left.seconds().total_cmp(&right.seconds()))?;
    let limit = least.seconds() + NEAR_ERRORS * least.error;
    let near = || prices.iter().enumerate().filter(|(_, terms)| terms.seconds() <= limit);
    let fewest = near().map(|(_, terms)| terms.uncached_tokens).fold(f64::INFINITY, f64::min);
    let alike = || near().filter(|(_, terms)| terms.uncached_tokens <= fewest + TOKENS_ALIKE);
    let count = alike().count().max(1) as u64;
    // Two different ones, unless there is but one.
    let first = draw % count;
    let second = (first + 1 + (draw >> 32) % (count - 1).max(1)) % count;
    let drawn = [first, second].map(|turn| alike().nth(usize::try_from(turn).unwrap_or(0)));
    let (index, terms) = drawn.into_iter().flatten().min_by(|(_, left), (_, right)| {
        let by_cost = || left.seconds().total_cmp(&right.seconds());
        left.sequences.cmp(&right.sequences).then_with(by_cost)
    })?;
    Some(Pick { index, terms: *terms })
}

// === impl Fleet ===

impl Fleet {
    fn of(offers: &[Offer]) -> Self {
        let fastest = |speed: fn(&Offer) -> Option<Speed>, size: f64, unknown: Speed| {
            let known = offers.iter().filter_map(speed);
            let by_time =
                |left: &Speed, right: &Speed| left.seconds(size).total_cmp(&right.seconds(size));
            known.min_by(by_time).unwrap_or(unknown)
        };
        Self {
            prefill: fastest(|offer| offer.prefill, PROMPT_TYPICAL, PREFILL_UNKNOWN),
            step: fastest(|offer| offer.step, BATCH_TYPICAL, STEP_UNKNOWN),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WORK: Work = Work { prefill_tokens: 2000, decode_tokens: 50 };
    const SPEED: Speed = Speed { fixed: 0.0, each: 0.0001, error: ERROR_MIN };
    const STEP: Speed = Speed { fixed: 0.01, each: 0.0003, error: ERROR_MIN };

    fn offer(prefill_tokens: u64, sequences: u64) -> Offer {
        let outstanding = Work { prefill_tokens, decode_tokens: sequences * 25 };
        let (prefill, step) = (Some(SPEED), Some(STEP));
        Offer { outstanding, sequences, prefill, step, confidence: 1.0, ..Offer::default() }
    }

    fn chosen(offers: &[Offer], draw: u64) -> Option<usize> {
        choose(&price(offers, WORK), draw).map(|pick| pick.index)
    }

    #[test]
    fn nobody_is_chosen_from_nothing() {
        assert_eq!(choose(&[], 0), None);
    }

    #[test]
    fn idle_equals_are_drawn_evenly() {
        let offers = [offer(0, 0); 4];
        let mut counts = [0; 4];
        for draw in 0..4000_u64 {
            let draw = draw.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            counts[chosen(&offers, draw).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn noise_in_what_was_learnt_does_not_send_everything_to_one_engine() {
        // A batch weighs nothing there, so that only the noise tells them apart.
        let steps = [1.0, 1.02, 0.98, 1.01].map(|fixed| Speed { fixed, each: 0.0, ..STEP });
        let mut offers = steps.map(|step| Offer { step: Some(step), ..offer(0, 0) });
        for request in 0..1000_u64 {
            let draw = request.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            offers[chosen(&offers, draw).unwrap()].sequences += 1;
        }
        let counts = offers.map(|offer| offer.sequences);
        assert!(counts.iter().all(|count| (200..=312).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_busy_engine_is_spared_whatever_is_drawn() {
        let offers = [offer(40_000, 20), offer(0, 0)];
        for draw in 0..4 {
            assert_eq!(chosen(&offers, draw), Some(1));
        }
    }

    #[test]
    fn a_fast_busy_engine_beats_a_slow_idle_one() {
        let slow = Offer {
            prefill: Some(Speed { each: 0.01, ..SPEED }),
            step: Some(Speed { fixed: 0.5, ..STEP }),
            ..offer(0, 0)
        };
        assert_eq!(chosen(&[slow, offer(1000, 4)], 0), Some(1));
    }

    #[test]
    fn an_engine_that_never_served_is_tried() {
        let fresh = Offer { prefill: None, step: None, ..offer(0, 0) };
        let counts = (0..100).filter_map(|draw| chosen(&[offer(0, 0), fresh], draw << 7 | draw));
        assert!(counts.clone().any(|index| index == 0) && counts.clone().any(|index| index == 1));
    }

    #[test]
    fn a_cached_prompt_goes_to_its_holder_until_waiting_there_costs_more() {
        let holder = |ahead| Offer { cached_tokens: 1900, ..offer(ahead, 2) };
        assert_eq!(chosen(&[offer(0, 0), holder(0), offer(0, 0)], 7), Some(1));
        assert_eq!(chosen(&[offer(0, 0), holder(1000), offer(0, 0)], 7), Some(1));
        assert_ne!(chosen(&[offer(0, 0), holder(4000), offer(0, 0)], 7), Some(1));
    }

    #[test]
    fn what_is_not_believed_is_worth_less() {
        let doubted = Offer { cached_tokens: 1900, confidence: 0.1, ..offer(1000, 2) };
        assert_eq!(chosen(&[offer(0, 0), doubted], 7), Some(0));
    }

    proptest! {
        #[test]
        fn the_choice_is_never_worse_than_the_best_by_more_than_the_error(
            engines in prop::collection::vec((0u64..100_000, 0u64..100, 0u64..2000, 0.0f64..=1.0), 1..40),
            draw in any::<u64>(),
        ) {
            let offers: Vec<_> = engines.iter()
                .map(|&(prefill, sequences, cached_tokens, confidence)|
                    Offer { cached_tokens, confidence, ..offer(prefill, sequences) })
                .collect();
            let prices = price(&offers, WORK);
            let pick = choose(&prices, draw).unwrap();
            let least = prices.iter().min_by(|l, r| l.seconds().total_cmp(&r.seconds())).unwrap();
            prop_assert!(pick.terms.seconds() <= least.seconds() + NEAR_ERRORS * least.error);
            prop_assert_eq!(pick.terms, prices[pick.index]);
        }

        #[test]
        fn more_work_never_costs_less_and_more_cached_never_more(
            prefill in 0u64..1 << 40, sequences in 0u64..1 << 20, more in 1u64..1 << 20, cached in 0u64..1999,
        ) {
            let fleet = Fleet { prefill: SPEED, step: STEP };
            let cost = |prefill, sequences, cached_tokens| {
                let offer = Offer { cached_tokens, ..offer(prefill, sequences) };
                offer.terms(WORK, fleet).seconds()
            };
            let base = cost(prefill, sequences, cached);
            prop_assert!(cost(prefill + more, sequences, cached) >= base);
            prop_assert!(cost(prefill, sequences + more, cached) >= base);
            prop_assert!(cost(prefill, sequences, cached + 1) <= base);
        }
    }
}
