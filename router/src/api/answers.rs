//! The streams of one request's prompts, merged, with choices numbered over all of them.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Delta, Event, Usage};

use super::openai::answer::Finish;
use crate::error::{Progress, RouterError};
use crate::stream::TokenStream;

/// One thing that happened, in terms of the request's own choices.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// A prompt was accepted; its choices follow from `first_choice` on.
    Started { first_choice: u32, prompt_token_ids: Vec<u32> },
    /// More of a choice.
    Delta(Delta),
    /// A choice ended.
    Finished { choice: u32, finish: Finish },
}

/// The merged stream. It ends after all prompts' usage is known, or after an error.
#[derive(Debug)]
pub(crate) struct Answers {
    streams: Vec<Option<TokenStream>>,
    choices_per_prompt: u32,
    usage: Usage,
    /// Which stream is asked first, so that none starves.
    turn: usize,
}

// === impl Answers ===

impl Answers {
    /// Merges `streams`, each of which has `choices_per_prompt` choices.
    pub(crate) fn new(streams: Vec<TokenStream>, choices_per_prompt: u32) -> Self {
        let streams = streams.into_iter().map(Some).collect();
        Self { streams, choices_per_prompt, usage: Usage::default(), turn: 0 }
    }

    /// Choices over all prompts.
    pub(crate) fn choices(&self) -> u32 {
        u32::try_from(self.streams.len()).unwrap_or(u32::MAX) * self.choices_per_prompt
    }

    /// Choices of each prompt.
    pub(crate) const fn choices_per_prompt(&self) -> u32 {
        self.choices_per_prompt
    }

    /// Tokens over all prompts, complete once the stream has ended well.
    pub(crate) const fn usage(&self) -> Usage {
        self.usage
    }

    fn poll_one(
        &mut self,
        prompt: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Answer, RouterError>>> {
        while let Some(stream) = &mut self.streams[prompt] {
            let event = match std::task::ready!(Pin::new(&mut *stream).poll_next(cx)) {
                None => {
                    self.streams[prompt] = None;
                    continue;
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(event)) => event,
            };
            match renumber(&mut self.usage, prompt, self.choices_per_prompt, event) {
                Ok(Some(answer)) => return Poll::Ready(Some(Ok(answer))),
                Ok(None) => {}
                Err(fault) => {
                    let worker = stream.placement().worker.clone();
                    let progress = Progress::Started;
                    let error = RouterError::Worker { worker, progress, fault };
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(None)
    }
}

/// Translates an event of stream `prompt`, each of which has `choices`; `usage` is kept for the end.
fn renumber(
    usage: &mut Usage,
    prompt: usize,
    choices: u32,
    event: Event,
) -> Result<Option<Answer>, Fault> {
    let first_choice = u32::try_from(prompt).unwrap_or(u32::MAX) * choices;
    let number = |choice: u32| {
        if choice < choices {
            return Ok(first_choice + choice);
        }
        Err(Fault::new(FaultCode::Internal, format!("sent choice {choice} of {choices}")))
    };
    Ok(match event {
        Event::Started { prompt_token_ids, .. } => {
            Some(Answer::Started { first_choice, prompt_token_ids })
        }
        Event::Delta(delta) => {
            Some(Answer::Delta(Delta { choice: number(delta.choice)?, ..delta }))
        }
        Event::Finished { choice, reason, stopped_by } => Some(Answer::Finished {
            choice: number(choice)?,
            finish: Finish { reason, stopped_by },
        }),
        Event::Usage(of_prompt) => {
            usage.prompt_tokens += of_prompt.prompt_tokens;
            usage.cached_tokens += of_prompt.cached_tokens;
            usage.completion_tokens += of_prompt.completion_tokens;
            None
        }
    })
}

impl Stream for Answers {
    type Item = Result<Answer, RouterError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let count = self.streams.len();
        let mut all_ended = true;
        for step in 0..count {
            let prompt = (self.turn + step) % count;
            match self.poll_one(prompt, cx) {
                Poll::Ready(Some(answer)) => {
                    self.turn = prompt + 1;
                    if answer.is_err() {
                        // The others' work is of no use any more.
                        self.streams.iter_mut().for_each(|stream| *stream = None);
                    }
                    return Poll::Ready(Some(answer));
                }
                Poll::Ready(None) => {}
                Poll::Pending => all_ended = false,
            }
        }
        if all_ended { Poll::Ready(None) } else { Poll::Pending }
    }
}
