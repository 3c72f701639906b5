//! Work that was sent to an engine and is not done yet, taken back exactly by a guard. No clock, no I/O.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cost::Work;
use super::room::Room;

/// One engine's outstanding work, as this router sent it.
#[derive(Debug, Default)]
pub(crate) struct Credit {
    prefill_tokens: AtomicU64,
    decode_tokens: AtomicU64,
    requests: AtomicU64,
    /// Told when a request ends.
    room: Arc<Room>,
}

/// One request's share of an engine's [`Credit`]. What is left of it is taken back on drop.
#[derive(Debug)]
pub(crate) struct CreditGuard {
    credit: Arc<Credit>,
    left: Work,
}

// === impl Credit ===

impl Credit {
    /// Nothing outstanding; `room` is told when a request ends.
    pub(crate) fn new(room: Arc<Room>) -> Self {
        Self { room, ..Self::default() }
    }

    /// What is outstanding now.
    pub(crate) fn outstanding(&self) -> Work {
        Work {
            prefill_tokens: self.prefill_tokens.load(Ordering::Relaxed),
            decode_tokens: self.decode_tokens.load(Ordering::Relaxed),
        }
    }

    /// Requests that hold a guard.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

// === impl CreditGuard ===

impl CreditGuard {
    /// Adds `work` to `credit` at once, so that simultaneous requests see each other.
    pub(crate) fn take(credit: Arc<Credit>, work: Work) -> Self {
        credit.prefill_tokens.fetch_add(work.prefill_tokens, Ordering::Relaxed);
        credit.decode_tokens.fetch_add(work.decode_tokens, Ordering::Relaxed);
        credit.requests.fetch_add(1, Ordering::Relaxed);
        Self { credit, left: work }
    }

    /// The prompt is computed.
    pub(crate) fn prefill_done(&mut self) {
        let done = std::mem::take(&mut self.left.prefill_tokens);
        self.credit.prefill_tokens.fetch_sub(done, Ordering::Relaxed);
    }

    /// Some tokens are generated, perhaps more than were predicted.
    pub(crate) fn decoded(&mut self, tokens: u64) {
        let done = tokens.min(self.left.decode_tokens);
        self.left.decode_tokens -= done;
        self.credit.decode_tokens.fetch_sub(done, Ordering::Relaxed);
    }
}

impl Drop for CreditGuard {
    fn drop(&mut self) {
        self.prefill_done();
        self.decoded(u64::MAX);
        self.credit.requests.fetch_sub(1, Ordering::Relaxed);
        self.credit.room.freed();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Take(u32, u32),
        PrefillDone(usize),
        Decoded(usize, u32),
        Drop(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<u32>(), any::<u32>()).prop_map(|(prefill, decode)| Step::Take(prefill, decode)),
            any::<usize>().prop_map(Step::PrefillDone),
            (any::<usize>(), any::<u32>()).prop_map(|(who, tokens)| Step::Decoded(who, tokens)),
            any::<usize>().prop_map(Step::Drop),
        ]
    }

    proptest! {
        #[test]
        fn credit_is_the_sum_of_what_guards_hold_and_returns_to_zero(
            steps in prop::collection::vec(step(), 0..200)
        ) {
            let credit = Arc::new(Credit::default());
            let mut guards: Vec<CreditGuard> = Vec::new();
            for step in steps {
                let count = guards.len().max(1);
                match step {
                    Step::Take(prefill, decode) => guards.push(CreditGuard::take(
                        Arc::clone(&credit),
                        Work { prefill_tokens: prefill.into(), decode_tokens: decode.into() },
                    )),
                    Step::PrefillDone(who) => {
                        if let Some(guard) = guards.get_mut(who % count) {
                            guard.prefill_done();
                        }
                    }
                    Step::Decoded(who, tokens) => {
                        if let Some(guard) = guards.get_mut(who % count) {
                            guard.decoded(tokens.into());
                        }
                    }
                    Step::Drop(who) => {
                        if !guards.is_empty() {
                            drop(guards.swap_remove(who % count));
                        }
                    }
                }
                let sum = guards.iter().fold(Work::default(), |sum, guard| Work {
                    prefill_tokens: sum.prefill_tokens + guard.left.prefill_tokens,
                    decode_tokens: sum.decode_tokens + guard.left.decode_tokens,
                });
                prop_assert_eq!(credit.outstanding(), sum);
                prop_assert_eq!(credit.requests(), guards.len() as u64);
            }
            guards.clear();
            prop_assert_eq!(credit.outstanding(), Work::default());
            prop_assert_eq!(credit.requests(), 0);
        }
    }
}
