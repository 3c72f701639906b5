//! One request under way: its choices merged into one stream of events.

use std::collections::VecDeque;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Event, Usage};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::admission::Admitted;
use super::choice::{Beginning, ChoiceEvent, End};
use super::seat::OpenRequest;
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
    /// Choices that wait for the first one's prompt.
    waiting: Vec<Beginning>,
    /// Choices that have nothing left but to say so.
    ended: Vec<Event>,
    /// Events that are due before any other.
    due: VecDeque<Event>,
    _places: Places,
}

/// How far the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// At most one choice runs, its prompt not yet computed.
    Prompt,
    /// All choices run.
    Choices,
}

impl Generation {
    /// Submits the first of `choices`, which are all that were not finished elsewhere. The others follow once its
    /// prompt is computed, to find it in the prefix cache instead of computing it again.
    pub(super) fn start(
        open: OpenRequest,
        admitted: Admitted,
        deadline: Option<Deadline>,
        places: Places,
        choices: Vec<Beginning>,
    ) -> Result<Self, Fault> {
        let mut generation = Self {
            usage: Usage {
                prompt_tokens: u32::try_from(admitted.prompt.len()).unwrap_or(u32::MAX),
                cached_tokens: 0,
                completion_tokens: admitted.resumed_tokens(),
            },
            choices: SelectAll::new(),
            phase: Phase::Prompt,
            waiting: Vec::new(),
            ended: Vec::new(),
            due: VecDeque::new(),
            _places: places,
            open,
            admitted,
            deadline,
        };
        let mut to_run = Vec::new();
        for mut choice in choices {
            match choice.end.take() {
                Some(end) => generation.ended.push(end.told_of(choice.index)),
                None => to_run.push(choice),
            }
        }
        let mut to_run = to_run.into_iter();
        match to_run.next() {
            Some(first) => generation.submit(first)?,
            None => generation.tell_start(),
        }
        generation.waiting.extend(to_run);
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
        loop {
            if let Some(event) = self.due.pop_front() {
                return Ok(event);
            }
            let Some(event) = self.choices.next().await.transpose()? else {
                return Ok(Event::Usage(self.usage));
            };
            self.apply(event)?;
        }
    }

    fn apply(&mut self, event: ChoiceEvent) -> Result<(), Fault> {
        match event {
            ChoiceEvent::Started { cached_tokens } if self.phase == Phase::Prompt => {
                // What was generated elsewhere may be cached too; it is no part of the prompt.
                self.usage.cached_tokens = cached_tokens.min(self.usage.prompt_tokens);
                self.tell_start();
            }
            ChoiceEvent::Started { .. } => {}
            ChoiceEvent::Token { delta, end } => {
                if self.phase == Phase::Prompt {
                    self.phase = Phase::Choices;
                    for choice in std::mem::take(&mut self.waiting) {
                        self.submit(choice)?;
                    }
                }
                self.usage.completion_tokens += 1;
                let choice = delta.choice;
                self.due.push_back(Event::Delta(delta));
                self.due.extend(end.map(|end| end.told_of(choice)));
            }
        }
        Ok(())
    }

    fn tell_start(&mut self) {
        let asked = self.admitted.generate.return_token_ids;
        let prompt_token_ids = if asked { self.admitted.prompt.to_vec() } else { Vec::new() };
        let Usage { prompt_tokens, cached_tokens, .. } = self.usage;
        self.due.push_back(Event::Started { prompt_tokens, cached_tokens, prompt_token_ids });
        self.due.extend(self.ended.drain(..));
    }

    fn submit(&mut self, choice: Beginning) -> Result<(), Fault> {
        let events = choice.submit(&self.open.seated.engine)?;
        self.choices.push(events.boxed());
        Ok(())
    }
}

// === impl End ===

impl End {
    fn told_of(self, choice: u32) -> Event {
        let Self { reason, stopped_by } = self;
        Event::Finished { choice, reason, stopped_by }
    }
}

/// The fault of a request whose time is up, once it is; never without a deadline.
async fn overdue(deadline: Option<Deadline>) -> Fault {
    let Some(Deadline { at, after }) = deadline else { return std::future::pending().await };
    tokio::time::sleep_until(at).await;
    let message = format!("the answer was not complete within {after:?}");
    Fault::new(FaultCode::DeadlineExceeded, message)
}
