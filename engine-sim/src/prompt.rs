//! A prompt as the simulated engine sees it: the hashes of its chunks, its length and a digest. No text.

use std::fmt;
use std::sync::Arc;

use phalanx_proto::generate::{Generate, Input};
use phalanx_proto::prefix::{CHUNK_BYTES, ChunkHash, ChunkHasher, Chunks, Field, PromptKind};
use xxhash_rust::xxh3::Xxh3;

use crate::answer::TOKEN_BYTES;

/// Tokens of a chunk.
pub const CHUNK_TOKENS: u32 = 128;
const _: () =
    assert!(CHUNK_TOKENS as usize * TOKEN_BYTES == CHUNK_BYTES, "a chunk is whole tokens");

/// A prompt, hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Of each full chunk and all before it.
    pub chunks: Arc<[ChunkHash]>,
    /// Of all that is said.
    pub digest: u64,
    /// At least 1.
    pub tokens: u32,
}

/// A prompt in the making, from requests that are no [`Generate`]; it comes out the same as from one.
pub struct Canonical {
    chunks: ChunkHasher,
    said: Said,
}

/// The digest of what is said, which takes the ends of prompts in too.
#[derive(Default)]
struct Said(Xxh3);

// === impl Prompt ===

impl Prompt {
    /// The prompt of a native request.
    pub fn of(generate: &Generate) -> Self {
        let mut said = Said::default();
        match &generate.input {
            Input::Chat(chat) => {
                for message in &chat.messages {
                    said.field(Field::Role, message.role.as_str());
                    said.field(Field::Content, &message.content);
                }
            }
            Input::Text(text) => said.text(text),
            Input::Tokens(ids) => said.tokens(ids),
        }
        Self::new(Chunks::of(generate), &said)
    }

    fn new(chunks: Chunks, said: &Said) -> Self {
        let tokens = chunks.bytes.div_ceil(TOKEN_BYTES as u64).max(1);
        Self {
            chunks: chunks.hashes.into(),
            digest: said.0.digest(),
            tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
        }
    }
}

// === impl Canonical ===

impl Canonical {
    /// Begins a prompt that shares nothing with those of other salts.
    pub fn new(kind: PromptKind, salt: &str) -> Self {
        Self { chunks: ChunkHasher::new(kind, salt), said: Said::default() }
    }

    /// Adds a turn of a conversation.
    pub fn message(&mut self, role: &str, content: &str) {
        for (field, text) in [(Field::Role, role), (Field::Content, content)] {
            self.chunks.text(field, text);
            self.said.field(field, text);
        }
    }

    /// Adds plain text.
    pub fn text(&mut self, text: &str) {
        self.chunks.bytes(text.as_bytes());
        self.said.text(text);
    }

    /// Adds tokens, as the bytes they are.
    pub fn tokens(&mut self, ids: &[u32]) {
        for id in ids {
            self.chunks.bytes(&id.to_le_bytes());
        }
        self.said.tokens(ids);
    }

    /// The prompt, hashed.
    pub fn prompt(self) -> Prompt {
        Prompt::new(self.chunks.finish(), &self.said)
    }
}

impl fmt::Debug for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canonical").field("chunks", &self.chunks).finish_non_exhaustive()
    }
}

// === impl Said ===

impl Said {
    fn field(&mut self, field: Field, text: &str) {
        // A byte that no text holds keeps fields apart.
        self.0.update(&[0xff, field as u8]);
        self.text(text);
    }

    fn text(&mut self, text: &str) {
        self.0.update(text.as_bytes());
    }

    fn tokens(&mut self, ids: &[u32]) {
        for id in ids {
            self.0.update(&id.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(text: &str) -> Prompt {
        let mut canonical = Canonical::new(PromptKind::Text, "");
        canonical.text(text);
        canonical.prompt()
    }

    #[test]
    fn prompts_share_the_chunks_before_their_first_difference() {
        let shared = "s".repeat(2 * CHUNK_BYTES);
        let one = prompt(&format!("{shared}{}", "a".repeat(CHUNK_BYTES)));
        let other = prompt(&format!("{shared}{}", "b".repeat(CHUNK_BYTES)));
        assert_eq!(one.chunks[..2], other.chunks[..2]);
        assert_ne!(one.chunks[2], other.chunks[2]);
        assert_ne!(one.digest, other.digest);
        assert_eq!(one.tokens, 3 * CHUNK_TOKENS);
    }

    #[test]
    fn prompts_that_end_differently_are_told_apart() {
        assert_ne!(prompt("one").digest, prompt("two").digest);
    }

    #[test]
    fn a_prompt_of_nothing_is_one_token() {
        assert_eq!(prompt("").tokens, 1);
        assert!(prompt("").chunks.is_empty());
    }
}
