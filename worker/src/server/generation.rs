//! One request under way: its choices merged into one stream of events.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Event, Usage};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::admission::Admitted;
use super::choice::{self, ChoiceEvent, End};
use super::seat::{OpenRequest, Seated};
use crate::engine::Places;

/// When a request must have ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    /// What the client asked for, for the message.
    pub(super) after: Duration,
}

/// Events made ahead of a client that reads slowly; the engine's own channel holds what comes after.
const EVENTS_AHEAD_MAX: usize = 64;

/// A request under way. Dropping it cancels every sequence.
pub(super) struct Generation {
    open: OpenRequest,
    admitted: Admitted,
    choices: SelectAll<BoxStream<'static, Result<ChoiceEvent, Fault>>>,
    deadline: Option<Deadline>,
    usage: Usage,
    phase: Phase,
    /// An event that is due after the one just given.
    next: Option<Event>,
    _places: Places,
}

/// How far the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Only the first choice runs, its prompt not yet computed.
    Prompt,
    /// All choices run.
    Choices,
}

impl Generation {
    /// Submits the first choice. The others follow once its prompt is computed, to find it in the prefix
    /// cache instead of computing it again.
    pub(super) fn start(
        open: OpenRequest,
        admitted: Admitted,
        deadline: Option<Deadline>,
        places: Places,
    ) -> Result<Self, Fault> {
        let mut generation = Self {
            usage: Usage {
                prompt_tokens: u32::try_from(admitted.prompt.len()).unwrap_or(u32::MAX),
                ..Usage::default()
            },
            choices: SelectAll::new(),
            phase: Phase::Prompt,
            next: None,
            _places: places,
            open,
            admitted,
            deadline,
        };
        generation.submit(0)?;
        Ok(generation)
    }

    /// Runs the request in a task of its own, and gives what the client is to hear; a fault is the last of it.
    /// A client that goes away ends the task at once, and one that does not read cannot keep it past its
    /// deadline.
    pub(super) fn spawn(mut self) -> ReceiverStream<Result<Event, Fault>> {
        let (sender, events) = mpsc::channel(EVENTS_AHEAD_MAX + 1);
        // The one place more is for a fault: a stream that is cut must not look complete.
        let last_word = sender.clone().try_reserve_owned();
        tokio::spawn(async move {
            let deadline = self.deadline;
            let outcome = tokio::select! {
                biased;
                () = sender.closed() => return,
                fault = overdue(deadline) => Err(fault),
                outcome = self.forward(&sender) => outcome,
            };
            if let (Err(fault), Ok(last_word)) = (outcome, last_word) {
                last_word.send(Err(fault));
            }
        });
        ReceiverStream::new(events)
    }

    async fn forward(&mut self, sender: &mpsc::Sender<Result<Event, Fault>>) -> Result<(), Fault> {
        loop {
            let event = self.next_event().await?;
            let is_last = matches!(event, Event::Usage(_));
            if sender.send(Ok(event)).await.is_err() || is_last {
                return Ok(());
            }
        }
    }

    async fn next_event(&mut self) -> Result<Event, Fault> {
        if let Some(event) = self.next.take() {
            return Ok(event);
        }
        loop {
            let Some(event) = self.choices.next().await.transpose()? else {
                return Ok(Event::Usage(self.usage));
            };
            if let Some(event) = self.apply(event)? {
                return Ok(event);
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
        let Seated { engine, text, .. } = self.open.seated.as_ref();
        let sequence = engine.submit(self.admitted.sequence(choice))?;
        let events = choice::events(choice, sequence, &self.admitted, Arc::clone(text));
        self.choices.push(events.boxed());
        Ok(())
    }
}

/// The fault of a request whose time is up, once it is; never without a deadline.
async fn overdue(deadline: Option<Deadline>) -> Fault {
    let Some(Deadline { at, after }) = deadline else { return std::future::pending().await };
    tokio::time::sleep_until(at).await;
    let message = format!("the answer was not complete within {after:?}");
    Fault::new(FaultCode::DeadlineExceeded, message)
}
