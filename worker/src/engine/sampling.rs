//! Randomness without state: what is drawn at a position is a function of the seed and the position alone.
//!
//! A request that is preempted, recomputed or moved to another worker therefore goes on exactly as it
//! would have. The generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3", 2011).

/// A number in [0, 1) for the token at `position` of a sequence drawn with `seed`.
pub fn uniform(seed: u64, position: u64) -> f32 {
    let word = philox([low(position), high(position), 0, 0], [low(seed), high(seed)])[0];
    // 24 bits: every value is exact in an f32 and below 1.
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit the mantissa")]
    let value = (word >> 8) as f32;
    value / 16_777_216.0
}

/// The seed of one choice of a request; choice 0 keeps the request's own.
pub fn choice_seed(seed: u64, choice: u32) -> u64 {
    if choice == 0 {
        return seed;
    }
    let words = philox([choice, 0, 0, 1], [low(seed), high(seed)]);
    u64::from(words[0]) | u64::from(words[1]) << 32
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            high(second) ^ counter[1] ^ key[0],
            low(second),
            high(first) ^ counter[3] ^ key[1],
            low(first),
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is asked for")]
const fn low(word: u64) -> u32 {
    word as u32
}

const fn high(word: u64) -> u32 {
    low(word >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_published_answers() {
        // From the authors' own known-answer file (Random123, kat_vectors).
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn draws_are_spread_evenly() {
        let draws = 100_000;
        let mut tenths = [0u32; 10];
        for position in 0..draws {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 9")]
            let tenth = (uniform(42, position) * 10.0) as usize;
            tenths[tenth] += 1;
        }
        for count in tenths {
            assert!((9_500..10_500).contains(&count), "{tenths:?}");
        }
    }

    #[test]
    fn choices_draw_differently_and_the_first_as_the_request_says() {
        assert_eq!(choice_seed(42, 0), 42);
        let of = |seed| (0..128).map(move |choice| choice_seed(seed, choice));
        let seeds: std::collections::HashSet<u64> = (0..8).flat_map(of).collect();
        assert_eq!(seeds.len(), 8 * 128, "neighbouring seeds share no choice");
    }
}
