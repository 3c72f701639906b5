//! Server-sent events: each answer becomes one `data:` frame, written straight into the outgoing buffer.
//!
//! Everything that is ready goes out together, so that a fast stream costs few writes; nothing waits for more.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::{HeaderValue, header};

use super::answers::{Answer, Answers};
use super::openai::answer::{Format, Head, Opening, TokenIds, write_usage};
use super::openai::json;
use super::openai::parameters::StreamUsage;
use crate::error::RouterError;
use crate::record::RequestRecord;

/// Frames sent in one write; a client that reads slowly makes no buffer grow past this and one frame.
const WRITE_BYTES_MAX: usize = 16 << 10;

/// What a stream's frames have in common.
#[derive(Clone, Debug)]
pub(crate) struct Style {
    pub(crate) head: Head,
    pub(crate) usage: StreamUsage,
    pub(crate) ids: TokenIds,
}

/// The body of a streamed answer.
#[derive(Debug)]
pub(crate) struct SseStream<F> {
    answers: Answers,
    frames: Frames<F>,
    record: RequestRecord,
    ended: bool,
}

/// Writes frames.
#[derive(Debug)]
struct Frames<F> {
    format: F,
    ids: TokenIds,
    usage: StreamUsage,
    /// `data: {"id":...` up to the fingerprint, the same in every frame.
    prefix: Bytes,
    /// From the end of the choice on, the same in every frame but the last.
    suffix: &'static [u8],
    choices_per_prompt: u32,
    /// Prompts (by their first choice) whose token ids go into their next frame.
    prompts: Vec<(u32, Vec<u32>)>,
}

/// The response that carries `stream`.
pub(crate) fn respond<F>(stream: SseStream<F>) -> Response
where
    F: Format + Send + Unpin + 'static,
{
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Tells nginx in front of us not to hold tokens back.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(stream)).into_response()
}

// === impl SseStream ===

impl<F: Format> SseStream<F> {
    /// Frames for `answers`; an error inside the stream is noted in `record`.
    pub(crate) fn new(answers: Answers, format: F, style: Style, record: RequestRecord) -> Self {
        let Style { head, usage, ids } = style;
        let mut prefix = BytesMut::with_capacity(256);
        prefix.extend_from_slice(b"data: ");
        head.write(&mut prefix, F::CHUNK_OBJECT);
        let frames = Frames {
            format,
            ids,
            usage,
            prefix: prefix.freeze(),
            suffix: match usage {
                StreamUsage::Included => b"],\"usage\":null}\n\n",
                StreamUsage::Omitted => b"]}\n\n",
            },
            choices_per_prompt: answers.choices_per_prompt(),
            prompts: Vec::new(),
        };
        Self { answers, frames, record, ended: false }
    }

    fn write_end(&mut self, out: &mut BytesMut) {
        self.ended = true;
        if self.frames.usage == StreamUsage::Included {
            out.extend_from_slice(&self.frames.prefix);
            out.extend_from_slice(b",\"choices\":[],\"usage\":");
            write_usage(out, &self.answers.usage());
            out.extend_from_slice(b"}\n\n");
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn write_error(&mut self, out: &mut BytesMut, error: &RouterError) {
        self.ended = true;
        self.record.fail(error.clone());
        out.extend_from_slice(b"data: ");
        error.write_envelope(out);
        out.extend_from_slice(b"\n\n");
    }
}

impl<F> Stream for SseStream<F>
where
    F: Format + Unpin,
{
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let mut out = BytesMut::new();
        while !this.ended && out.len() < WRITE_BYTES_MAX {
            match Pin::new(&mut this.answers).poll_next(cx) {
                Poll::Ready(Some(Ok(answer))) => this.frames.write(&mut out, answer),
                Poll::Ready(Some(Err(error))) => this.write_error(&mut out, &error),
                Poll::Ready(None) => this.write_end(&mut out),
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Some(Ok(out.freeze())))
    }
}

// === impl Frames ===

impl<F: Format> Frames<F> {
    fn write(&mut self, out: &mut BytesMut, answer: Answer) {
        match answer {
            Answer::Started { first_choice, prompt_token_ids } => {
                if self.ids == TokenIds::Shown {
                    self.prompts.push((first_choice, prompt_token_ids));
                }
                for choice in first_choice..first_choice + self.choices_per_prompt {
                    if self.write_opening(out, choice) == Opening::None {
                        break;
                    }
                }
            }
            // Text that is held back (half a character, perhaps a stop string) comes with later tokens.
            Answer::Delta(delta)
                if delta.text.is_empty()
                    && delta.logprobs.is_empty()
                    && self.ids == TokenIds::Hidden => {}
            Answer::Delta(delta) => {
                self.begin(out, delta.choice);
                self.format.write_delta(out, delta.choice, &delta, self.ids);
                out.extend_from_slice(self.suffix);
            }
            Answer::Finished { choice, finish } => {
                self.begin(out, choice);
                self.format.write_finish(out, choice, &finish);
                out.extend_from_slice(self.suffix);
            }
        }
    }

    fn write_opening(&mut self, out: &mut BytesMut, choice: u32) -> Opening {
        let mut opening = BytesMut::new();
        let kind = self.format.write_opening(&mut opening, choice);
        if kind == Opening::Written {
            self.begin(out, choice);
            out.extend_from_slice(&opening);
            out.extend_from_slice(self.suffix);
        }
        kind
    }

    fn begin(&mut self, out: &mut BytesMut, choice: u32) {
        out.extend_from_slice(&self.prefix);
        if !self.prompts.is_empty() {
            let first_choice = choice - choice % self.choices_per_prompt;
            let prompt = self.prompts.iter().position(|(first, _)| *first == first_choice);
            if let Some(prompt) = prompt {
                out.extend_from_slice(b",\"prompt_token_ids\":");
                json::token_ids(out, &self.prompts.swap_remove(prompt).1);
            }
        }
        out.extend_from_slice(b",\"choices\":[");
    }
}
