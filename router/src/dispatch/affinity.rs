//! Which part of an alias' traffic a request belongs to: a number that its weights divide. Pure.

use phalanx_proto::id::ModelName;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The number for a request that names `alias`: the same for all requests with one `key`, so that a session
/// stays at the model that it began with; else `random`. Aliases divide one session's requests independently.
pub(crate) fn draw(alias: &ModelName, key: Option<&str>, random: u64) -> u64 {
    key.map_or(random, |key| xxh3_64_with_seed(key.as_bytes(), xxh3_64(alias.as_str().as_bytes())))
}

/// A number that has nothing in common with its neighbours' (SplitMix64's).
pub(crate) const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// The index that `draw` falls on when each weight has its share of all numbers; none when they weigh nothing.
/// A weight that grows takes draws from the others, and moves none between them.
pub(crate) fn by_weight(weights: &[u32], draw: u64) -> Option<usize> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    // A share of all 2^64 numbers, so that shares keep their place when the total changes.
    let mut ticket = (u128::from(draw) * u128::from(total)) >> 64;
    weights.iter().position(|weight| {
        let weight = u128::from(*weight);
        let is_drawn = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        is_drawn
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_session_stays_where_it_began_and_others_spread_by_weight() {
        let alias = ModelName::from("chat");
        assert_eq!(draw(&alias, Some("s"), 1), draw(&alias, Some("s"), 2));
        assert_eq!(draw(&alias, None, 7), 7);
        assert_ne!(draw(&alias, Some("s"), 0), draw(&ModelName::from("code"), Some("s"), 0));
        let mut counts = [0; 2];
        for session in 0..10_000 {
            let drawn = draw(&alias, Some(&session.to_string()), 0);
            counts[by_weight(&[95, 5], drawn).unwrap()] += 1;
        }
        assert!((400..600).contains(&counts[1]), "5 % of 10000 sessions are {counts:?}");
    }

    #[test]
    fn nothing_is_drawn_from_no_weight() {
        assert_eq!(by_weight(&[], 5), None);
        assert_eq!(by_weight(&[0, 0], u64::MAX), None);
        assert_eq!(by_weight(&[0, 1, 0], u64::MAX), Some(1));
        assert_eq!(by_weight(&[u32::MAX; 16], u64::MAX), Some(15));
    }

    proptest! {
        #[test]
        fn a_target_that_grows_loses_no_session(
            draws in prop::collection::vec(any::<u64>(), 1..100),
            before in 1u32..1000,
            more in 0u32..1000,
            other in 1u32..1000,
        ) {
            for draw in draws {
                if by_weight(&[before, other], draw) == Some(0) {
                    prop_assert_eq!(by_weight(&[before + more, other], draw), Some(0));
                }
            }
        }
    }
}
