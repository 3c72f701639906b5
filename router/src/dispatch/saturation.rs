//! How many sequences an engine computes at once, learnt from its reports: beyond that, a request only waits there,
//! and waits better in the router, where it can still go elsewhere. Pure.

/// Beyond its bound an engine is sent this share more, so that it always has the next sequence at hand.
const AHEAD_SHARE: u64 = 8;

/// What an engine's reports say of its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Saturation {
    /// Sequences that ran while others waited; none while no reports showed any that waited.
    bound: Option<u32>,
    /// What ran at the latest report, if others waited.
    running_full: Option<u32>,
}

// === impl Saturation ===

impl Saturation {
    /// Takes in a report. Others must wait in two of them in a row: whoever has just arrived waits for the next step,
    /// full or not.
    pub(crate) fn report(&mut self, running: u32, waiting: u32) {
        let before = self.running_full.take();
        if waiting > 0 {
            self.running_full = Some(running);
            if let Some(before) = before {
                self.bound = Some(running.max(before).max(1));
            }
        } else if self.bound.is_some_and(|bound| running >= bound) {
            // As many run as did when others waited, and nobody waits: it can do more than was known.
            self.bound = None;
        }
    }

    /// As one number, to be kept where it is read without a lock.
    pub(crate) fn packed(self) -> u64 {
        let bound = self.bound.unwrap_or(0);
        let full = self.running_full.map_or(0, |running| running.saturating_add(1));
        u64::from(bound) << 32 | u64::from(full)
    }

    pub(crate) fn unpacked(packed: u64) -> Self {
        let [bound, full] = [packed >> 32, packed & u64::from(u32::MAX)]
            .map(|half| u32::try_from(half).unwrap_or(u32::MAX));
        Self { bound: (bound > 0).then_some(bound), running_full: full.checked_sub(1) }
    }

    /// Whether an engine with so many `sequences` in hand would let a further one wait.
    pub(crate) fn is_reached(self, sequences: u64) -> bool {
        self.bound.is_some_and(|bound| {
            let bound = u64::from(bound);
            sequences >= bound + (bound / AHEAD_SHARE).max(1)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_engine_is_full_once_others_waited_and_until_it_runs_more() {
        let mut saturation = Saturation::default();
        saturation.report(64, 0);
        assert!(!saturation.is_reached(1_000_000), "nobody ever waited");
        saturation.report(16, 3);
        assert!(!saturation.is_reached(1_000_000), "they may have just come");
        saturation.report(15, 3);
        assert!(!saturation.is_reached(17));
        assert!(saturation.is_reached(18));
        saturation.report(10, 0);
        assert!(saturation.is_reached(18), "fewer run, which says nothing of the bound");
        saturation.report(17, 0);
        assert!(!saturation.is_reached(1_000));
    }

    proptest! {
        /// An engine that computes `bound` at once is found out by its second report under load, and is always sent
        /// enough to be full.
        #[test]
        fn the_bound_is_learnt_and_never_starves_the_engine(bound in 1u32..1_000, steps in prop::collection::vec(0u32..3_000, 1..100)) {
            let mut saturation = Saturation::default();
            let mut waited = 0;
            for sequences in steps {
                let (running, waiting) = (sequences.min(bound), sequences.saturating_sub(bound));
                saturation.report(running, waiting);
                prop_assert_eq!(Saturation::unpacked(saturation.packed()), saturation);
                prop_assert!(!saturation.is_reached(u64::from(bound)));
                waited = if waiting > 0 { waited + 1 } else { 0 };
                if waited >= 2 {
                    prop_assert!(saturation.is_reached(u64::from(bound + bound / 8 + 1)));
                }
            }
        }
    }
}
