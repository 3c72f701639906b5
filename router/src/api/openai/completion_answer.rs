//! Choices of `text_completion`, whole and streamed.

use bytes::BytesMut;
use phalanx_proto::generate::{Delta, TokenLogprob};

use super::answer::{Choice, Finish, Format, Opening, TokenIds, write_token_ids};
use super::json;

/// The plain completions API's layout. Remembers how far each choice's text got, for `text_offset`.
#[derive(Clone, Debug, Default)]
pub(crate) struct CompletionFormat {
    offsets: Vec<u64>,
}

// === impl CompletionFormat ===

impl CompletionFormat {
    fn offset(&mut self, index: u32) -> &mut u64 {
        let index = index as usize;
        if self.offsets.len() <= index {
            self.offsets.resize(index + 1, 0);
        }
        &mut self.offsets[index]
    }
}

impl Format for CompletionFormat {
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";
    const ID_PREFIX: &'static str = "cmpl-";

    fn write_opening(&mut self, _out: &mut BytesMut, _index: u32) -> Opening {
        Opening::None
    }

    fn write_delta(&mut self, out: &mut BytesMut, index: u32, delta: &Delta, ids: TokenIds) {
        write_text(out, index, &delta.text);
        let logprobs = delta.logprobs.as_slice();
        write_logprobs(out, (!logprobs.is_empty()).then_some(logprobs), self.offset(index));
        out.extend_from_slice(b",\"finish_reason\":null");
        write_token_ids(out, &delta.token_ids, ids);
        out.extend_from_slice(b"}");
    }

    fn write_finish(&mut self, out: &mut BytesMut, index: u32, finish: &Finish) {
        write_text(out, index, "");
        out.extend_from_slice(b"null");
        finish.write(out);
        out.extend_from_slice(b"}");
    }

    fn write_choice(&mut self, out: &mut BytesMut, index: u32, choice: &Choice, ids: TokenIds) {
        write_text(out, index, &choice.text);
        write_logprobs(out, choice.logprobs.as_deref(), self.offset(index));
        if let Some(finish) = &choice.finish {
            finish.write(out);
        }
        write_token_ids(out, &choice.token_ids, ids);
        out.extend_from_slice(b"}");
    }
}

fn write_text(out: &mut BytesMut, index: u32, text: &str) {
    out.extend_from_slice(b"{\"index\":");
    json::number(out, index);
    out.extend_from_slice(b",\"text\":");
    json::string(out, text);
    out.extend_from_slice(b",\"logprobs\":");
}

fn write_logprobs(out: &mut BytesMut, logprobs: Option<&[TokenLogprob]>, offset: &mut u64) {
    let Some(logprobs) = logprobs else {
        out.extend_from_slice(b"null");
        return;
    };
    out.extend_from_slice(b"{\"tokens\":");
    json::array(out, logprobs, |out, logprob| json::token(out, &logprob.chosen));
    out.extend_from_slice(b",\"token_logprobs\":");
    json::array(out, logprobs, |out, logprob| json::logprob(out, logprob.chosen.logprob));
    out.extend_from_slice(b",\"top_logprobs\":");
    json::array(out, logprobs, write_top);
    out.extend_from_slice(b",\"text_offset\":");
    json::array(out, logprobs, |out, logprob| {
        json::number(out, *offset);
        // Characters begin with every byte that does not continue one, so parts of characters add up.
        let begins = logprob.chosen.token.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
        *offset += begins as u64;
    });
    out.extend_from_slice(b"}");
}

/// The likeliest tokens, and the chosen one where it is not among them.
fn write_top(out: &mut BytesMut, logprob: &TokenLogprob) {
    let chosen = &logprob.chosen;
    let is_listed = logprob.top.iter().any(|score| score.token_id == chosen.token_id);
    let scores = (!is_listed).then_some(chosen).into_iter().chain(&logprob.top);
    out.extend_from_slice(b"{");
    for (index, score) in scores.enumerate() {
        if index > 0 {
            out.extend_from_slice(b",");
        }
        json::token(out, score);
        out.extend_from_slice(b":");
        json::logprob(out, score.logprob);
    }
    out.extend_from_slice(b"}");
}
