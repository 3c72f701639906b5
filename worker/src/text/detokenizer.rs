//! Tokens to text, a token at a time, for one choice.

use std::sync::Arc;

use phalanx_proto::generate::Stopping;

use super::Text;
use super::stop::StopMatcher;
use super::vocabulary::Vocabulary;

/// Tokens of the prompt's end that a decode window starts with: enough context for the decoders that treat
/// a text's beginning in their own way (as vLLM does).
const WINDOW_PROMPT_TOKENS: usize = 5;
/// A character has at most four bytes, so at most four tokens can be the making of one. Text that ends in
/// U+FFFD after more tokens than that holds a true U+FFFD, or bytes that never were a character.
const CHARACTER_TOKENS_MAX: usize = 4;

/// The text side of one choice: detokenises, and watches for stop strings.
#[derive(Debug)]
pub struct ChoiceText {
    text: Arc<Text>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    stop_strings: Vec<String>,
    tokens: u32,
    min_tokens: u32,
}

/// What a token added to a choice's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// More text; whole characters only.
    pub text: String,
    /// The stop string that was met: the text ends before it, and the choice is over.
    pub stopped_by: Option<String>,
}

/// Bytes or tokens that are not text yet.
#[derive(Debug)]
enum Detokenizer {
    /// Text is the tokens' bytes: all that can be pending is the beginning of one character.
    Bytes(Vec<u8>),
    /// Text depends on a token's neighbours: the window `tokens` is decoded with and without its newest
    /// tokens, and the difference is new text.
    Window {
        tokens: Vec<u32>,
        /// How many tokens of the window are text already.
        read: usize,
    },
}

// === impl ChoiceText ===

impl ChoiceText {
    /// For a choice that continues `prompt` and stops as `stopping` says.
    pub fn new(text: Arc<Text>, prompt: &[u32], stopping: &Stopping) -> Self {
        Self {
            detokenizer: Detokenizer::new(text.vocabulary(), prompt),
            stops: StopMatcher::new(&stopping.strings),
            stop_strings: stopping.strings.clone(),
            tokens: 0,
            min_tokens: stopping.min_tokens,
            text,
        }
    }

    /// Takes the next token. Stop strings count only in text that comes after the first `min_tokens` tokens.
    pub fn push(&mut self, token: u32) -> Pushed {
        self.tokens += 1;
        let text = self.detokenizer.push(self.text.vocabulary(), token);
        if self.tokens <= self.min_tokens {
            return Pushed { text, stopped_by: None };
        }
        let matched = self.stops.push(&text);
        let stopped_by = matched.stop.and_then(|index| self.stop_strings.get(index).cloned());
        Pushed { text: matched.text, stopped_by }
    }

    /// The choice ended without a stop string: whatever was held back. A character that is still incomplete
    /// becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = self.detokenizer.finish(self.text.vocabulary());
        let mut text = self.stops.finish();
        text.push_str(&rest);
        text
    }
}

// === impl Detokenizer ===

impl Detokenizer {
    fn new(vocabulary: &Vocabulary, prompt: &[u32]) -> Self {
        if vocabulary.bytes_are_exact() {
            return Self::Bytes(Vec::new());
        }
        let tokens = prompt[prompt.len().saturating_sub(WINDOW_PROMPT_TOKENS)..].to_vec();
        Self::Window { read: tokens.len(), tokens }
    }

    fn push(&mut self, vocabulary: &Vocabulary, token: u32) -> String {
        if vocabulary.is_special(token) {
            return String::new();
        }
        match self {
            Self::Bytes(pending) => {
                pending.extend_from_slice(vocabulary.token_bytes(token));
                take_characters(pending)
            }
            Self::Window { tokens, read } => {
                tokens.push(token);
                let text = window_text(vocabulary, tokens, *read);
                let is_undecided = text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER);
                if is_undecided && tokens.len() - *read <= CHARACTER_TOKENS_MAX {
                    return String::new();
                }
                // The newest text's tokens become the context of the next.
                tokens.drain(..*read);
                *read = tokens.len();
                text
            }
        }
    }

    fn finish(&mut self, vocabulary: &Vocabulary) -> String {
        match self {
            Self::Bytes(pending) => String::from_utf8_lossy(&std::mem::take(pending)).into_owned(),
            Self::Window { tokens, read } => {
                let text = window_text(vocabulary, tokens, *read);
                *read = tokens.len();
                text
            }
        }
    }
}

/// What the tokens from `read` on add to the text of those before.
fn window_text(vocabulary: &Vocabulary, tokens: &[u32], read: usize) -> String {
    // Decoders fail on no token; if one ever does, the token has no text.
    let before = vocabulary.decode(&tokens[..read]).unwrap_or_default();
    let whole = vocabulary.decode(tokens).unwrap_or_default();
    whole.strip_prefix(before.as_str()).unwrap_or_default().to_owned()
}

/// Takes all that is decided: whole characters, and U+FFFD for bytes that cannot become one. What may still
/// become a character stays.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    while let Err(error) = std::str::from_utf8(&pending[taken..]) {
        let valid_end = taken + error.valid_up_to();
        text.push_str(&String::from_utf8_lossy(&pending[taken..valid_end]));
        taken = valid_end;
        let Some(invalid) = error.error_len() else {
            pending.drain(..taken);
            return text;
        };
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid;
    }
    text.push_str(&String::from_utf8_lossy(&pending[taken..]));
    pending.clear();
    text
}

#[cfg(test)]
mod tests;
