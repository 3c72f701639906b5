//! The tokenizer of a model folder, and what each of its tokens stands for.

use std::path::Path;

use tokenizers::{DecoderWrapper, Tokenizer};

use super::TextError;

/// A tokenizer with the bytes of each token worked out once.
#[derive(Debug)]
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    entries: Vec<Entry>,
    bytes_are_exact: bool,
    /// The most bytes one token stands for; 0 when a normaliser may shorten text.
    token_bytes_max: usize,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    bytes: Box<[u8]>,
    is_special: bool,
}

/// How token strings spell bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's alphabet: one printable character per byte.
    ByteLevel,
    /// SentencePiece: `▁` for a space and `<0xNN>` for a byte.
    SentencePiece,
}

impl Vocabulary {
    pub(super) fn load(file: &Path) -> Result<Self, TextError> {
        let bytes = super::folder::read(file)?;
        let reason = |error: tokenizers::Error| TextError::Tokenizer {
            file: file.to_owned(),
            reason: error.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(reason)?;
        // A model's own truncation or padding would silently change prompts.
        tokenizer.with_padding(None).with_truncation(None).map_err(reason)?;
        Ok(Self::new(tokenizer))
    }

    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        let bytes_are_exact = tokenizer.get_decoder().is_some_and(is_byte_level);
        let spelling = if bytes_are_exact { Spelling::ByteLevel } else { Spelling::SentencePiece };
        let vocabulary = tokenizer.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        let mut entries = vec![Entry::default(); size];
        for (token, id) in vocabulary {
            entries[id as usize].bytes = spelling.bytes(&token).into();
        }
        for (id, added) in tokenizer.get_added_tokens_decoder() {
            if let Some(entry) = entries.get_mut(id as usize) {
                entry.is_special = added.special;
            }
        }
        let shortens = tokenizer.get_normalizer().is_some();
        let longest = entries.iter().map(|entry| entry.bytes.len()).max().unwrap_or(0);
        let token_bytes_max = if bytes_are_exact && !shortens { longest } else { 0 };
        Self { tokenizer, entries, bytes_are_exact, token_bytes_max }
    }

    /// One more than the largest id.
    pub(super) fn size(&self) -> usize {
        self.entries.len()
    }

    /// Whether text is exactly the tokens' bytes one after another.
    pub(super) const fn bytes_are_exact(&self) -> bool {
        self.bytes_are_exact
    }

    /// The fewest tokens that `text_bytes` bytes can come to, without looking at them.
    pub(super) fn tokens_min(&self, text_bytes: usize) -> usize {
        text_bytes.checked_div(self.token_bytes_max).unwrap_or(0)
    }

    pub(super) fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, tokenizers::Error> {
        // Offsets are of no use here, and finding them takes half of the time.
        Ok(self.tokenizer.encode_fast(text, add_special_tokens)?.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, tokenizers::Error> {
        self.tokenizer.decode(ids, true)
    }

    /// The bytes a token stands for; a special token's are its own spelling.
    pub(super) fn token_bytes(&self, id: u32) -> &[u8] {
        self.entries.get(id as usize).map_or(&[], |entry| &entry.bytes)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.entries.get(id as usize).is_some_and(|entry| entry.is_special)
    }

    /// The token as the tokenizer's files spell it.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => {
            matches!(sequence.get_decoders(), [DecoderWrapper::ByteLevel(_)])
        }
        _ => false,
    }
}

// === impl Spelling ===

impl Spelling {
    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            // A token that is not written in the alphabet (an added one) stands for itself.
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of_character).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::SentencePiece => {
                let byte = token
                    .strip_prefix("<0x")
                    .and_then(|rest| rest.strip_suffix('>'))
                    .filter(|digits| digits.len() == 2)
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok());
                byte.map_or_else(|| token.replace('\u{2581}', " ").into_bytes(), |byte| vec![byte])
            }
        }
    }
}

/// GPT-2's alphabet read backward: printable Latin-1 stands for itself, the other bytes for 256 and up.
fn byte_of_character(character: char) -> Option<u8> {
    const fn is_printable(byte: u8) -> bool {
        matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
    }
    match u32::from(character) {
        code @ 0..=255 => u8::try_from(code).ok().filter(|&byte| is_printable(byte)),
        code => (0..=u8::MAX).filter(|&byte| !is_printable(byte)).nth(code as usize - 256),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        for (character, byte) in
            [('!', 0x21), ('Ġ', 0x20), ('Ċ', 0x0A), ('Ā', 0), ('ÿ', 0xFF), ('Ń', 0xAD)]
        {
            assert_eq!(byte_of_character(character), Some(byte), "{character}");
        }
        assert_eq!(byte_of_character(' '), None);
        assert_eq!(byte_of_character('你'), None);
    }

    #[test]
    fn sentencepiece_tokens_spell_spaces_and_bytes() {
        assert_eq!(Spelling::SentencePiece.bytes("\u{2581}the"), b" the");
        assert_eq!(Spelling::SentencePiece.bytes("<0xF0>"), [0xF0]);
        assert_eq!(Spelling::SentencePiece.bytes("<0xZZ>"), b"<0xZZ>");
    }
}
