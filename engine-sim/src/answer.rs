//! What a simulated model says: four bytes of text to a token, and each token a pure function of the prompt,
//! the seed and its place. A client can therefore tell a lost, a repeated or a foreign token from the right one.

/// Bytes of text that make one token.
pub const TOKEN_BYTES: usize = 4;
/// How many words there are.
pub const WORDS: usize = 256;

/// Fills a last token of less than four bytes: a byte that no UTF-8 text holds.
const PADDING: u8 = 0xff;
/// Answers of requests that name no length have at least this many tokens, and at most as many more as there are
/// in `DEFAULT_SPREAD`: the middle of what chats ask for.
const DEFAULT_MIN: u32 = 16;
const DEFAULT_SPREAD: u64 = 113;

/// What an answer is a function of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of the prompt's canonical bytes.
    digest: u64,
    seed: u64,
}

// === impl Answer ===

impl Answer {
    /// The answer to a prompt.
    pub const fn new(digest: u64, seed: u64) -> Self {
        Self { digest, seed }
    }

    /// Which of the [`WORDS`] is token `index`.
    pub fn word(&self, index: u32) -> usize {
        let mixed = mix(self.digest ^ mix(self.seed ^ mix(u64::from(index))));
        usize::from(mixed.to_le_bytes()[0])
    }

    /// Tokens of the answer to a request that names no length.
    pub fn default_length(&self) -> u32 {
        let more = mix(self.digest.wrapping_add(self.seed)) % DEFAULT_SPREAD;
        DEFAULT_MIN + u32::try_from(more).unwrap_or_default()
    }

    /// Tokens `from..until` as text.
    pub fn text(&self, from: u32, until: u32) -> String {
        let mut text = String::new();
        for index in from..until {
            text.extend(word(self.word(index)).map(char::from));
        }
        text
    }
}

/// The text of a word: a space, two consonants and a vowel between them.
pub fn word(index: usize) -> [u8; TOKEN_BYTES] {
    const FIRST: &[u8; 16] = b"bcdfghjklmnprstv";
    const MIDDLE: &[u8; 4] = b"aeio";
    const LAST: &[u8; 4] = b"lnrt";
    [b' ', FIRST[index / 16 % 16], MIDDLE[index / 4 % 4], LAST[index % 4]]
}

/// The id of a token of these bytes.
pub const fn token_id(bytes: [u8; TOKEN_BYTES]) -> u32 {
    u32::from_be_bytes(bytes)
}

/// Text as token ids.
pub fn tokenize(text: &str) -> Vec<u32> {
    let id = |piece: &[u8]| {
        let mut bytes = [PADDING; TOKEN_BYTES];
        bytes[..piece.len()].copy_from_slice(piece);
        token_id(bytes)
    };
    text.as_bytes().chunks(TOKEN_BYTES).map(id).collect()
}

/// Token ids as text; what is no text is shown as U+FFFD.
pub fn detokenize(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_be_bytes()).filter(|&byte| byte != PADDING);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

/// splitmix64's finaliser: every bit of the input moves every bit of the output.
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_answer_is_a_function_of_prompt_seed_and_place() {
        let answer = Answer::new(7, 1);
        assert_eq!(answer.text(0, 40), answer.text(0, 25) + &answer.text(25, 40));
        assert_ne!(answer.text(0, 8), Answer::new(8, 1).text(0, 8));
        assert_ne!(answer.text(0, 8), Answer::new(7, 2).text(0, 8));
    }

    #[test]
    fn words_differ_and_are_one_token_each() {
        let words: BTreeSet<_> = (0..WORDS).map(word).collect();
        assert_eq!(words.len(), WORDS);
        let answer = Answer::new(3, 4);
        let ids: Vec<u32> = (0..20).map(|index| token_id(word(answer.word(index)))).collect();
        assert_eq!(tokenize(&answer.text(0, 20)), ids);
    }

    #[test]
    fn any_text_survives_its_tokens() {
        for text in ["", "a", "abcd", "abcde", "żółć 🦀 and more"] {
            assert_eq!(detokenize(&tokenize(text)), text);
            assert_eq!(tokenize(text).len(), text.len().div_ceil(TOKEN_BYTES));
        }
    }
}
