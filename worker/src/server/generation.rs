//! One request under way: its choices merged into one stream of events.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, SelectAll, Stream, StreamExt as _};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Event, Usage};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::admission::Admitted;
use super::choice::{self, ChoiceEvent, End};
use crate::engine::EngineHandle;
use crate::text::Text;

/// When a request must have ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    /// What the client asked for, for the message.
    pub(super) after: Duration,
}

/// A request under way. Nothing runs but when its stream is polled, so a slow client slows only itself, and
/// dropping the stream (the client is gone) drops every sequence at once.
pub(super) struct Generation {
    engine: EngineHandle,
    text: Arc<Text>,
    admitted: Admitted,
    choices: SelectAll<BoxStream<'static, Result<ChoiceEvent, Fault>>>,
    deadline: Option<Deadline>,
    usage: Usage,
    phase: Phase,
    /// An event that is due after the one just given.
    next: Option<Event>,
    _open: OwnedSemaphorePermit,
}

/// How far the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Only the first choice runs, its prompt not yet computed.
    Prompt,
    /// All choices run.
    Choices,
    /// The last event was given.
    Over,
}

impl Generation {
    /// Submits the first choice. The others follow once its prompt is computed, to find it in the prefix
    /// cache instead of computing it again.
    pub(super) fn start(
        engine: EngineHandle,
        text: Arc<Text>,
        admitted: Admitted,
        deadline: Option<Deadline>,
        open: OwnedSemaphorePermit,
    ) -> Result<Self, Fault> {
        let mut generation = Self {
            usage: Usage {
                prompt_tokens: u32::try_from(admitted.prompt.len()).unwrap_or(u32::MAX),
                ..Usage::default()
            },
            choices: SelectAll::new(),
            phase: Phase::Prompt,
            next: None,
            _open: open,
            engine,
            text,
            admitted,
            deadline,
        };
        generation.submit(0)?;
        Ok(generation)
    }

    /// Everything that the client hears; a fault is the last of it.
    pub(super) fn into_events(self) -> impl Stream<Item = Result<Event, Fault>> + Send {
        stream::unfold(self, |mut generation| async {
            if generation.phase == Phase::Over {
                return None;
            }
            let event = generation.next_event().await;
            if matches!(event, Err(_) | Ok(Event::Usage(_))) {
                generation.phase = Phase::Over;
                // Cancels what still runs now, not when the client has read the end.
                generation.choices.clear();
            }
            Some((event, generation))
        })
    }

    async fn next_event(&mut self) -> Result<Event, Fault> {
        if let Some(event) = self.next.take() {
            return Ok(event);
        }
        loop {
            let Some(event) = self.next_of_choices().await? else {
                return Ok(Event::Usage(self.usage));
            };
            if let Some(event) = self.apply(event)? {
                return Ok(event);
            }
        }
    }

    async fn next_of_choices(&mut self) -> Result<Option<ChoiceEvent>, Fault> {
        let Some(deadline) = self.deadline else {
            return self.choices.next().await.transpose();
        };
        match tokio::time::timeout_at(deadline.at, self.choices.next()).await {
            Ok(event) => event.transpose(),
            Err(_elapsed) => {
                let message = format!("the answer was not complete within {:?}", deadline.after);
                Err(Fault::new(FaultCode::DeadlineExceeded, message))
            }
        }
    }

    fn apply(&mut self, event: ChoiceEvent) -> Result<Option<Event>, Fault> {
        match event {
            ChoiceEvent::Started { cached_tokens } if self.phase == Phase::Prompt => {
                self.usage.cached_tokens = cached_tokens;
                let asked = self.admitted.generate.return_token_ids;
                Ok(Some(Event::Started {
                    prompt_tokens: self.usage.prompt_tokens,
                    cached_tokens,
                    prompt_token_ids: if asked {
                        self.admitted.prompt.to_vec()
                    } else {
                        Vec::new()
                    },
                }))
            }
            ChoiceEvent::Started { .. } => Ok(None),
            ChoiceEvent::Token { delta, end } => {
                if self.phase == Phase::Prompt {
                    self.phase = Phase::Choices;
                    for choice in 1..self.admitted.generate.choices {
                        self.submit(choice)?;
                    }
                }
                self.usage.completion_tokens += 1;
                self.next = end.map(|End { reason, stopped_by }| Event::Finished {
                    choice: delta.choice,
                    reason,
                    stopped_by,
                });
                Ok(Some(Event::Delta(delta)))
            }
        }
    }

    fn submit(&mut self, choice: u32) -> Result<(), Fault> {
        let sequence = self.engine.submit(self.admitted.sequence(choice))?;
        let events = choice::events(choice, sequence, &self.admitted, Arc::clone(&self.text));
        self.choices.push(events.boxed());
        Ok(())
    }
}
