//! Choices of `chat.completion` and `chat.completion.chunk`.

use bytes::BytesMut;
use phalanx_proto::generate::{Delta, TokenLogprob, TokenScore};

use super::answer::{Choice, Finish, Format, Opening, TokenIds, write_token_ids};
use super::json;

/// The chat API's layout.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ChatFormat;

// === impl ChatFormat ===

impl Format for ChatFormat {
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";
    const ID_PREFIX: &'static str = "chatcmpl-";

    fn write_opening(&mut self, out: &mut BytesMut, index: u32) -> Opening {
        write_index(out, index);
        out.extend_from_slice(
            b",\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":null}",
        );
        Opening::Written
    }

    fn write_delta(&mut self, out: &mut BytesMut, index: u32, delta: &Delta, ids: TokenIds) {
        write_index(out, index);
        out.extend_from_slice(b",\"delta\":{\"content\":");
        json::string(out, &delta.text);
        out.extend_from_slice(b"},\"logprobs\":");
        let logprobs = delta.logprobs.as_slice();
        write_logprobs(out, (!logprobs.is_empty()).then_some(logprobs));
        out.extend_from_slice(b",\"finish_reason\":null");
        write_token_ids(out, &delta.token_ids, ids);
        out.extend_from_slice(b"}");
    }

    fn write_finish(&mut self, out: &mut BytesMut, index: u32, finish: &Finish) {
        write_index(out, index);
        out.extend_from_slice(b",\"delta\":{},\"logprobs\":null");
        finish.write(out);
        out.extend_from_slice(b"}");
    }

    fn write_choice(&mut self, out: &mut BytesMut, index: u32, choice: &Choice, ids: TokenIds) {
        write_index(out, index);
        out.extend_from_slice(b",\"message\":{\"role\":\"assistant\",\"content\":");
        json::string(out, &choice.text);
        out.extend_from_slice(b",\"refusal\":null},\"logprobs\":");
        write_logprobs(out, choice.logprobs.as_deref());
        if let Some(finish) = &choice.finish {
            finish.write(out);
        }
        write_token_ids(out, &choice.token_ids, ids);
        out.extend_from_slice(b"}");
    }
}

fn write_index(out: &mut BytesMut, index: u32) {
    out.extend_from_slice(b"{\"index\":");
    json::number(out, index);
}

fn write_logprobs(out: &mut BytesMut, logprobs: Option<&[TokenLogprob]>) {
    let Some(logprobs) = logprobs else {
        out.extend_from_slice(b"null");
        return;
    };
    out.extend_from_slice(b"{\"content\":");
    json::array(out, logprobs, |out, logprob| {
        write_score(out, &logprob.chosen);
        out.extend_from_slice(b",\"top_logprobs\":");
        json::array(out, &logprob.top, |out, score| {
            write_score(out, score);
            out.extend_from_slice(b"}");
        });
        out.extend_from_slice(b"}");
    });
    out.extend_from_slice(b",\"refusal\":null}");
}

/// The object is left open.
fn write_score(out: &mut BytesMut, score: &TokenScore) {
    out.extend_from_slice(b"{\"token\":");
    json::token(out, score);
    out.extend_from_slice(b",\"logprob\":");
    json::logprob(out, score.logprob);
    out.extend_from_slice(b",\"bytes\":");
    json::array(out, &score.token, |out, &byte| json::number(out, byte));
}
