//! What two prompts have in common, without tokenising them: chained hashes of a prompt's bytes.
//!
//! ```text
//! role "system", content "You are ..", role "user", ..      canonical bytes, in the template's order
//! |-- 512 bytes --|-- 512 bytes --|-- 512 bytes --|- rest   cut into chunks; a rest has no hash
//!       h0   ────────►   h1   ────────►   h2                each hash is seeded by the one before it
//! ```
//! So two prompts begin alike for as long as their hashes are equal. The router asks by them which engine
//! holds how much of a prompt; a worker ties them to its KV blocks. A collision costs a cache miss and
//! nothing else, as engines compare tokens.
//!
//! A field begins with two bytes that no UTF-8 text contains, so no two prompts have the same bytes. A length
//! in front of the text would do that too, and would set apart what only ends differently.

use std::io;

use serde::Serialize;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::generate::{Chat, Generate, Input, Message};
use crate::id::ModelName;

/// Bytes in a chunk: about 128 tokens of English, eight KV blocks. Smaller ones would find a little more and
/// cost every table of them that much more memory.
pub const CHUNK_BYTES: usize = 512;
/// No UTF-8 text contains it.
const FIELD_MARK: u8 = 0xFF;

/// All bytes of a prompt up to the end of one chunk, under its salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkHash(pub u64);

/// The chunks of one prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    /// One for each whole chunk, in order.
    pub hashes: Vec<ChunkHash>,
    /// The prompt's size, the rest after the last whole chunk included.
    pub bytes: u64,
}

/// Sets one model's chunks apart from another's. It is applied last, so that the hashes can be had before an
/// alias is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelKey(u64);

/// What kind of prompt the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptKind {
    /// Fields of messages.
    Chat = 1,
    /// The text itself.
    Text = 2,
    /// Token ids, four bytes each.
    Tokens = 3,
}

/// A field of a conversation, in the order in which templates commonly render them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of generate::Chat and generate::Message")]
pub enum Field {
    Tools = 1,
    TemplateKwargs = 2,
    Role = 3,
    Name = 4,
    ToolCallId = 5,
    Content = 6,
    ToolCalls = 7,
}

/// Hashes a prompt as its bytes go by; it never holds more of them than a chunk.
#[derive(Clone, Debug)]
pub struct ChunkHasher {
    chunks: Chunks,
    chain: u64,
    open: [u8; CHUNK_BYTES],
    filled: usize,
}

// === impl ChunkHash, ModelKey ===

impl ChunkHash {
    /// This chunk in the cache of the model of `key`.
    #[must_use]
    pub const fn under(self, key: ModelKey) -> Self {
        Self(self.0 ^ key.0)
    }
}

impl ModelKey {
    /// The key of `model`.
    pub fn new(model: &ModelName) -> Self {
        Self(xxh3_64(model.as_str().as_bytes()))
    }
}

// === impl Chunks ===

impl Chunks {
    /// The chunks of what `generate` continues; its model has no part in them.
    pub fn of(generate: &Generate) -> Self {
        Self::with_contents(generate).0
    }

    /// The same, and where the contents of a conversation's messages begin in its bytes.
    pub fn with_contents(generate: &Generate) -> (Self, Vec<u64>) {
        let salt = &generate.cache_salt;
        let mut contents = Vec::new();
        let chunks = match &generate.input {
            Input::Chat(chat) => {
                let mut hasher = ChunkHasher::new(PromptKind::Chat, salt);
                hasher.chat(chat, &mut contents);
                hasher.finish()
            }
            Input::Text(text) => {
                let mut hasher = ChunkHasher::new(PromptKind::Text, salt);
                hasher.bytes(text.as_bytes());
                hasher.finish()
            }
            Input::Tokens(ids) => {
                let mut hasher = ChunkHasher::new(PromptKind::Tokens, salt);
                for id in ids {
                    hasher.bytes(&id.to_le_bytes());
                }
                hasher.finish()
            }
        };
        (chunks, contents)
    }
}

// === impl ChunkHasher ===

impl ChunkHasher {
    /// A hasher for a prompt of `kind`, of those that share caches under `salt`.
    pub fn new(kind: PromptKind, salt: &str) -> Self {
        let chain = xxh3_64_with_seed(salt.as_bytes(), kind as u64);
        Self { chunks: Chunks::default(), chain, open: [0; CHUNK_BYTES], filled: 0 }
    }

    /// Appends what a template renders of `chat`; notes in `contents` where those of its messages begin.
    fn chat(&mut self, chat: &Chat, contents: &mut Vec<u64>) {
        if !chat.tools.is_empty() {
            self.json(Field::Tools, &chat.tools);
        }
        if !chat.template_kwargs.is_empty() {
            self.json(Field::TemplateKwargs, &chat.template_kwargs);
        }
        for message in &chat.messages {
            contents.push(self.message(message));
        }
    }

    fn message(&mut self, message: &Message) -> u64 {
        self.text(Field::Role, message.role.as_str());
        if let Some(name) = &message.name {
            self.text(Field::Name, name);
        }
        if let Some(id) = &message.tool_call_id {
            self.text(Field::ToolCallId, id);
        }
        self.text(Field::Content, &message.content);
        let content = self.chunks.bytes - message.content.len() as u64;
        if !message.tool_calls.is_empty() {
            self.json(Field::ToolCalls, &message.tool_calls);
        }
        content
    }

    /// Appends one field of a conversation.
    pub fn text(&mut self, field: Field, text: &str) {
        self.bytes(&[FIELD_MARK, field as u8]);
        self.bytes(text.as_bytes());
    }

    /// Appends one field of a conversation, as JSON.
    pub fn json<T>(&mut self, field: Field, value: &T)
    where
        T: Serialize + ?Sized,
    {
        self.bytes(&[FIELD_MARK, field as u8]);
        // What cannot be written (a map with keys that are no strings) ends early: it has no other chunks.
        let _ = serde_json::to_writer(self, value);
    }

    /// Appends `bytes` of a prompt that is no conversation.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.chunks.bytes += bytes.len() as u64;
        let mut rest = bytes;
        if self.filled > 0 {
            let taken = rest.len().min(CHUNK_BYTES - self.filled);
            self.open[self.filled..self.filled + taken].copy_from_slice(&rest[..taken]);
            self.filled += taken;
            rest = &rest[taken..];
            if self.filled < CHUNK_BYTES {
                return;
            }
            let whole = self.open;
            self.close(&whole);
            self.filled = 0;
        }
        let (whole, rest) = rest.as_chunks::<CHUNK_BYTES>();
        for chunk in whole {
            self.close(chunk);
        }
        self.open[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    fn close(&mut self, chunk: &[u8; CHUNK_BYTES]) {
        self.chain = xxh3_64_with_seed(chunk, self.chain);
        self.chunks.hashes.push(ChunkHash(self.chain));
    }

    /// The chunks of all that was appended.
    pub fn finish(self) -> Chunks {
        self.chunks
    }
}

impl io::Write for &mut ChunkHasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
