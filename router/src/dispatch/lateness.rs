//! How late first events come, compared with what is usual for their engines: says when a request is so late that
//! a second engine is worth asking. Pure.

/// Buckets of ratios, each wider than the one before by [`BUCKET_RATIO`]; from 1/16 of what is usual to 200 times that.
const BUCKETS: usize = 44;
const BUCKET_RATIO: f64 = 1.2;
const RATIO_MIN: f64 = 1.0 / 16.0;
/// Of this share of requests the first event is not late.
const IN_TIME_SHARE: f64 = 0.95;
/// Fewer say nothing about one in twenty.
const SAMPLES_MIN: f64 = 50.0;
/// When so many are counted all counts are halved: what was long ago fades.
const SAMPLES_MAX: f64 = 2_000.0;

/// A histogram of times to the first event, as ratios to the usual time.
#[derive(Debug)]
pub(crate) struct Lateness {
    counts: [f64; BUCKETS],
    total: f64,
}

impl Default for Lateness {
    fn default() -> Self {
        Self { counts: [0.0; BUCKETS], total: 0.0 }
    }
}

// === impl Lateness ===

impl Lateness {
    /// A first event took `ratio` times as long as usual.
    pub(crate) fn observe(&mut self, ratio: f64) {
        if self.total >= SAMPLES_MAX {
            self.counts.iter_mut().for_each(|count| *count /= 2.0);
            self.total /= 2.0;
        }
        let mut bucket = 0;
        let mut bound = RATIO_MIN;
        while bucket + 1 < BUCKETS && ratio > bound {
            bucket += 1;
            bound *= BUCKET_RATIO;
        }
        self.counts[bucket] += 1.0;
        self.total += 1.0;
    }

    /// The ratio that nineteen of twenty stay below; none before enough were seen.
    pub(crate) fn late(&self) -> Option<f64> {
        if self.total < SAMPLES_MIN {
            return None;
        }
        let (mut seen, mut bound) = (0.0, RATIO_MIN);
        for count in &self.counts {
            seen += count;
            if seen >= IN_TIME_SHARE * self.total {
                break;
            }
            bound *= BUCKET_RATIO;
        }
        Some(bound)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_late_before_enough_was_seen() {
        let mut lateness = Lateness::default();
        for _ in 0..49 {
            lateness.observe(1.0);
        }
        assert_eq!(lateness.late(), None);
    }

    proptest! {
        #[test]
        fn the_bound_is_the_95th_percentile_within_a_bucket(ratios in prop::collection::vec(0.07f64..150.0, 50..1_500)) {
            let mut lateness = Lateness::default();
            for ratio in &ratios {
                lateness.observe(*ratio);
            }
            let mut sorted = ratios.clone();
            sorted.sort_by(f64::total_cmp);
            let at = (sorted.len() * 19).div_ceil(20) - 1;
            let late = lateness.late().unwrap();
            prop_assert!(late >= sorted[at] * 0.999 && late <= sorted[at] * BUCKET_RATIO * 1.001, "{late} for {}", sorted[at]);
        }
    }
}
