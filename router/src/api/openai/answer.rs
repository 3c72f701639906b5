//! What chat and plain completions have in common on their way back.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use phalanx_proto::generate::{Delta, FinishReason, StoppedBy, TokenLogprob, Usage};

use super::json;

/// How one API lays out its choices.
pub(crate) trait Format {
    /// The object's name, whole.
    const OBJECT: &'static str;
    /// The object's name in a stream.
    const CHUNK_OBJECT: &'static str;
    /// What its ids begin with.
    const ID_PREFIX: &'static str;

    /// Writes the choice of a stream's first chunk, if the API has one.
    fn write_opening(&mut self, out: &mut BytesMut, index: u32) -> Opening;
    /// Writes the choice of a chunk with more text.
    fn write_delta(&mut self, out: &mut BytesMut, index: u32, delta: &Delta, ids: TokenIds);
    /// Writes the choice of a chunk that ends it.
    fn write_finish(&mut self, out: &mut BytesMut, index: u32, finish: &Finish);
    /// Writes a whole choice.
    fn write_choice(&mut self, out: &mut BytesMut, index: u32, choice: &Choice, ids: TokenIds);
}

/// Whether an API's streams begin with a chunk of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    Written,
    None,
}

/// Whether the client wants to see token ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenIds {
    Shown,
    Hidden,
}

/// Why and where a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finish {
    pub(crate) reason: FinishReason,
    pub(crate) stopped_by: Option<StoppedBy>,
}

/// A choice, collected.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    /// None when log probabilities were not asked for.
    pub(crate) logprobs: Option<Vec<TokenLogprob>>,
    pub(crate) finish: Option<Finish>,
}

/// What stands before the choices of an object or of each chunk.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    /// As the client spelt it.
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

// === impl Head ===

impl Head {
    /// The head of a new answer.
    pub(crate) fn new<F: Format>(model: &str, revision: Option<&str>) -> Self {
        // A clock before 1970 is broken; 0 says so.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let revision = revision.unwrap_or("unknown");
        let short: String = revision.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        Self {
            id: format!("{}{}", F::ID_PREFIX, uuid::Uuid::new_v4().simple()),
            created: now,
            model: model.to_owned(),
            fingerprint: format!("fp_{short}"),
        }
    }

    /// Appends `{"id":...` up to the fingerprint, the object left open.
    pub(crate) fn write(&self, out: &mut BytesMut, object: &str) {
        out.extend_from_slice(b"{\"id\":");
        json::string(out, &self.id);
        out.extend_from_slice(b",\"object\":");
        json::string(out, object);
        out.extend_from_slice(b",\"created\":");
        json::number(out, self.created);
        out.extend_from_slice(b",\"model\":");
        json::string(out, &self.model);
        out.extend_from_slice(b",\"system_fingerprint\":");
        json::string(out, &self.fingerprint);
    }
}

// === impl Finish ===

impl Finish {
    /// Appends `,"finish_reason":...,"stop_reason":...`.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        out.extend_from_slice(match self.reason {
            FinishReason::Stop => b",\"finish_reason\":\"stop\"".as_slice(),
            FinishReason::Length => b",\"finish_reason\":\"length\"",
        });
        out.extend_from_slice(b",\"stop_reason\":");
        match &self.stopped_by {
            Some(StoppedBy::Text(text)) => json::string(out, text),
            Some(StoppedBy::Token(id)) => json::number(out, *id),
            None => out.extend_from_slice(b"null"),
        }
    }
}

/// Appends the value of `usage`.
pub(crate) fn write_usage(out: &mut BytesMut, usage: &Usage) {
    let total = u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens);
    out.extend_from_slice(b"{\"prompt_tokens\":");
    json::number(out, usage.prompt_tokens);
    out.extend_from_slice(b",\"completion_tokens\":");
    json::number(out, usage.completion_tokens);
    out.extend_from_slice(b",\"total_tokens\":");
    json::number(out, total);
    out.extend_from_slice(b",\"prompt_tokens_details\":{\"cached_tokens\":");
    json::number(out, usage.cached_tokens);
    out.extend_from_slice(b",\"audio_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0,\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}}");
}

/// Appends `,"token_ids":[...]` if the client wants to see them.
pub(crate) fn write_token_ids(out: &mut BytesMut, ids: &[u32], shown: TokenIds) {
    if shown == TokenIds::Shown {
        out.extend_from_slice(b",\"token_ids\":");
        json::token_ids(out, ids);
    }
}
