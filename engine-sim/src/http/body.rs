//! Bodies of answers: whole, as fast as they are read, or token by token as the engine produces them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream::{self, Stream, StreamExt as _};
use http_body::{Body, Frame, SizeHint};

use super::frames::{Frames, Reason, Usage};
use crate::answer::Answer;
use crate::engine::{Open, Running};
use crate::faults::Ending;

/// The connection breaks off, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broken off on purpose")]
pub(crate) struct BrokenOff;

/// What is said, and how.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) frames: Arc<Frames>,
    pub(crate) answer: Answer,
    pub(crate) usage: Usage,
    pub(crate) reason: Reason,
    pub(crate) includes_usage: bool,
    pub(crate) ending: Ending,
}

/// The body of an answer.
pub(crate) enum AnswerBody {
    /// In one piece.
    Whole(Bytes),
    /// Token by token, without a wait.
    Instant(Instant),
    /// Token by token, as they are produced.
    Paced(Pin<Box<dyn Stream<Item = Result<Bytes, BrokenOff>> + Send>>),
}

/// How far an instant stream is.
#[derive(Debug)]
pub(crate) struct Instant {
    script: Script,
    next: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    First,
    Token(u32),
    End,
    /// What was said is written out, and then the connection breaks off.
    Break,
    Nothing,
}

/// A stream under way; what is held is released with it.
struct Paced {
    script: Script,
    running: Running,
    seen: u32,
    is_over: bool,
    _open: Open,
}

// === impl Script ===

impl Script {
    fn end(&self) -> Bytes {
        self.frames.end(self.reason, self.includes_usage.then_some(self.usage))
    }

    /// The answer in one piece.
    pub(crate) fn whole(&self) -> Bytes {
        self.frames.whole(self.answer, self.reason, self.usage)
    }

    /// Sends the answer as the engine produces it.
    pub(crate) fn paced(self, running: Running, open: Open) -> AnswerBody {
        let paced = Paced { script: self, running, seen: 0, is_over: false, _open: open };
        let frames = stream::unfold(paced, |mut paced| async {
            let next = paced.next().await?;
            Some((next, paced))
        });
        AnswerBody::Paced(frames.boxed())
    }

    /// Sends the answer at once.
    pub(crate) const fn instant(self) -> AnswerBody {
        AnswerBody::Instant(Instant { script: self, next: Part::First })
    }
}

// === impl Paced ===

impl Paced {
    async fn next(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        let Ending { die_after, stall_after } = self.script.ending;
        if self.is_over {
            return None;
        }
        if die_after == Some(self.seen) {
            self.is_over = true;
            // What was said before is heard before: hyper writes it out while it waits for more.
            tokio::task::yield_now().await;
            return Some(Err(BrokenOff));
        }
        if stall_after == Some(self.seen) {
            return std::future::pending().await;
        }
        let progress = self.running.more_than(self.seen).await;
        let limit = die_after.unwrap_or(u32::MAX).min(stall_after.unwrap_or(u32::MAX));
        let until = progress.produced.min(limit);
        let script = &mut self.script;
        script.usage.cached_tokens = progress.cached_tokens;
        // All there is in one piece: a reader that is late catches up.
        let mut bytes = BytesMut::new();
        if self.seen == 0 {
            bytes.put_slice(script.frames.first());
        }
        for index in self.seen..until {
            bytes.put_slice(script.frames.token(script.answer, index));
        }
        self.seen = until;
        if until == self.running.answer_tokens() {
            bytes.put_slice(&script.end());
            self.is_over = true;
        }
        Some(Ok(bytes.freeze()))
    }
}

// === impl Instant ===

impl Instant {
    fn next(&mut self, context: &Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        let script = &self.script;
        Poll::Ready(match self.next {
            Part::First => {
                self.next = Part::Token(0);
                Some(Ok(script.frames.first().clone()))
            }
            Part::Token(index) if script.ending.die_after == Some(index) => {
                self.next = Part::Break;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Nobody wakes it: the connection ends it.
            Part::Token(index) if script.ending.stall_after == Some(index) => return Poll::Pending,
            Part::Token(index) => {
                let is_last = index + 1 >= script.usage.completion_tokens;
                self.next = if is_last { Part::End } else { Part::Token(index + 1) };
                Some(Ok(script.frames.token(script.answer, index).clone()))
            }
            Part::End => {
                self.next = Part::Nothing;
                Some(Ok(script.end()))
            }
            Part::Break => Some(Err(BrokenOff)),
            Part::Nothing => None,
        })
    }
}

// === impl AnswerBody ===

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Self::Instant(instant) => instant.next(context),
            Self::Paced(frames) => frames.as_mut().poll_next(context),
        };
        next.map(|next| next.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Instant(instant) => instant.next == Part::Nothing,
            Self::Paced(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Instant(_) | Self::Paced(_) => SizeHint::default(),
        }
    }
}
