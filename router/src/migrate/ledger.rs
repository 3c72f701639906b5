//! What the client of one stream was told, as far as another worker must know to go on. Pure: events in, the events
//! to pass on out.

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{ChoiceProgress, Event, Usage};

/// Tokens kept of one stream, over all its choices: more than any context, 4 MiB of memory, and a request that goes
/// on with as many still fits a message. A stream that has more does not outlive its worker.
const TOKENS_KEPT_MAX: usize = 1 << 20;

/// The books of one stream.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    /// What the first worker said of the prompt: tokens, and how many of them were cached.
    prompt: Option<(u32, u32)>,
    choices: Vec<ChoiceProgress>,
    tokens: usize,
}

/// What is left to do of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Rest {
    /// Another worker can go on from here.
    Choices(Vec<ChoiceProgress>),
    /// Everything was told but this.
    Usage(Usage),
    /// More was told than is kept: nobody can go on.
    Forgotten,
}

// === impl Ledger ===

impl Ledger {
    /// The books of a stream of so many choices that nothing was told of.
    pub(crate) fn new(choices: u32) -> Self {
        let choices = vec![ChoiceProgress::default(); choices as usize];
        Self { prompt: None, choices, tokens: 0 }
    }

    /// Takes an event of whichever worker answers now; the event to pass on, if there is one.
    ///
    /// # Errors
    /// A worker that goes on read another prompt than the first one did: its answer would be to something else.
    pub(crate) fn pass(&mut self, event: Event) -> Result<Option<Event>, Fault> {
        match &event {
            Event::Started { prompt_tokens, cached_tokens, .. } => match self.prompt {
                None => self.prompt = Some((*prompt_tokens, *cached_tokens)),
                Some((known, _)) if known == *prompt_tokens => return Ok(None),
                Some((known, _)) => {
                    let message = format!("took {known} prompt tokens for {prompt_tokens}");
                    return Err(Fault::new(FaultCode::Internal, message));
                }
            },
            // A choice out of bounds is the reader's to refuse.
            Event::Delta(delta) => {
                if let Some(choice) = self.choices.get_mut(delta.choice as usize) {
                    self.tokens += delta.token_ids.len();
                    if self.tokens <= TOKENS_KEPT_MAX {
                        choice.token_ids.extend_from_slice(&delta.token_ids);
                    }
                }
            }
            Event::Finished { choice, .. } => {
                if let Some(choice) = self.choices.get_mut(*choice as usize) {
                    choice.is_finished = true;
                }
            }
            Event::Usage(usage) => {
                let (prompt_tokens, cached_tokens) = self.told_of_prompt();
                return Ok(Some(Event::Usage(Usage { prompt_tokens, cached_tokens, ..*usage })));
            }
        }
        Ok(Some(event))
    }

    /// What is left to do.
    pub(crate) fn rest(&self) -> Rest {
        if self.choices.iter().all(|choice| choice.is_finished) {
            let (prompt_tokens, cached_tokens) = self.told_of_prompt();
            let completion_tokens = u32::try_from(self.tokens).unwrap_or(u32::MAX);
            Rest::Usage(Usage { prompt_tokens, cached_tokens, completion_tokens })
        } else if self.tokens > TOKENS_KEPT_MAX {
            Rest::Forgotten
        } else {
            Rest::Choices(self.choices.clone())
        }
    }

    /// Whether the client has a token.
    pub(crate) const fn has_tokens(&self) -> bool {
        self.tokens > 0
    }

    /// How many tokens the client has.
    pub(crate) const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens of the prompt.
    pub(crate) fn prompt_tokens(&self) -> u32 {
        self.told_of_prompt().0
    }

    fn told_of_prompt(&self) -> (u32, u32) {
        self.prompt.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
