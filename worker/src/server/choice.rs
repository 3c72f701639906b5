//! One choice: its tokens from the engine, turned into text, until something ends it.
//!
//! A choice that another worker began starts by taking the tokens it has again, text side only: what that held
//! back (half a character, what may become a stop string) is held back here too, and the rest is with the client.

use std::sync::Arc;

use futures::stream::{self, Stream};
use phalanx_kernels::sample::Logprobs;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Delta, FinishReason, StoppedBy, TokenLogprob, TokenScore};

use super::admission::Admitted;
use crate::engine::{EngineHandle, SequenceEvent, SequenceRequest, SequenceStream, TokenFinish};
use crate::text::{ChoiceText, Text};

/// What a choice tells of itself: `Started`, then `Tokens`, the last with `end`; or a fault.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ChoiceEvent {
    /// Its prompt is being computed.
    Started { cached_tokens: u32 },
    /// A token and what it added to the text.
    Token { delta: Delta, end: Option<End> },
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) reason: FinishReason,
    pub(super) stopped_by: Option<StoppedBy>,
}

/// A choice under way. Dropping it, as its end does, cancels its sequence.
#[derive(Debug)]
struct Choice {
    index: u32,
    sequence: SequenceStream,
    tokens: TokenText,
}

/// The pure part: a token in, a delta out.
#[derive(Debug)]
struct TokenText {
    text: Arc<Text>,
    choice: ChoiceText,
    /// Token ids that the client, not the model, wants to stop at.
    stop_tokens: Vec<u32>,
}

/// A choice before its sequence runs: new, or as far as it had come elsewhere.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) index: u32,
    /// Set when what was generated elsewhere is all of it: only its end was not told.
    pub(super) end: Option<End>,
    request: SequenceRequest,
    tokens: TokenText,
}

// === impl Beginning ===

impl Beginning {
    /// One choice of a request, whose text is made by `text`.
    pub(super) fn new(index: u32, admitted: &Admitted, text: Arc<Text>) -> Result<Self, Fault> {
        let stopping = &admitted.generate.stopping;
        let mut tokens = TokenText {
            choice: ChoiceText::new(Arc::clone(&text), &admitted.prompt, stopping),
            stop_tokens: stopping.token_ids.clone(),
            text,
        };
        let request = admitted.sequence(index);
        let end = tokens.replay(&request)?;
        Ok(Self { index, end, request, tokens })
    }

    /// Hands the choice to `engine`: its events, ending with the choice.
    pub(super) fn submit(
        self,
        engine: &EngineHandle,
    ) -> Result<impl Stream<Item = Result<ChoiceEvent, Fault>> + Send + use<>, Fault> {
        let Self { index, request, tokens, .. } = self;
        let choice = Choice { index, sequence: engine.submit(request)?, tokens };
        Ok(stream::unfold(Some(choice), |choice| async {
            let mut choice = choice?;
            let event = choice.next().await;
            let is_last = matches!(&event, Err(_) | Ok(ChoiceEvent::Token { end: Some(_), .. }));
            Some((event, (!is_last).then_some(choice)))
        }))
    }
}

// === impl Choice ===

impl Choice {
    async fn next(&mut self) -> Result<ChoiceEvent, Fault> {
        match self.sequence.next().await {
            Some(SequenceEvent::Started { cached_tokens }) => {
                Ok(ChoiceEvent::Started { cached_tokens })
            }
            Some(SequenceEvent::Token { id, logprobs, finish }) => {
                let (mut delta, end) = self.tokens.take(id, finish);
                delta.choice = self.index;
                delta.logprobs.extend(logprobs.map(|logprobs| self.tokens.scores(id, &logprobs)));
                Ok(ChoiceEvent::Token { delta, end })
            }
            Some(SequenceEvent::Failed(fault)) => Err(fault),
            None => Err(Fault::new(FaultCode::Unavailable, "the engine has stopped")),
        }
    }
}

// === impl TokenText ===

impl TokenText {
    /// Takes what was generated elsewhere, whose text the client has; how the choice ended, if that was all of it.
    fn replay(&mut self, request: &SequenceRequest) -> Result<Option<End>, Fault> {
        for (&id, count) in request.generated.iter().zip(1..) {
            let (_told, end) = self.take(id, request.finish_of(id, count));
            if end.is_none() {
                continue;
            }
            if count == request.generated.len() {
                return Ok(end);
            }
            let message = format!(
                "resume holds {} tokens of a choice that ends after {count}",
                request.generated.len()
            );
            return Err(Fault::invalid("resume", message));
        }
        Ok(None)
    }

    /// An end token is part of the tokens, as in vLLM and transformers, but gives no text.
    fn take(&mut self, id: u32, finish: Option<TokenFinish>) -> (Delta, Option<End>) {
        let mut delta = Delta { token_ids: vec![id], ..Delta::default() };
        if finish == Some(TokenFinish::EndToken) {
            delta.text = self.choice.finish();
            let stopped_by = self.stop_tokens.contains(&id).then_some(StoppedBy::Token(id));
            return (delta, Some(End { reason: FinishReason::Stop, stopped_by }));
        }
        let pushed = self.choice.push(id);
        delta.text = pushed.text;
        if let Some(stop) = pushed.stopped_by {
            let stopped_by = Some(StoppedBy::Text(stop));
            return (delta, Some(End { reason: FinishReason::Stop, stopped_by }));
        }
        if finish.is_none() {
            return (delta, None);
        }
        delta.text.push_str(&self.choice.finish());
        (delta, Some(End { reason: FinishReason::Length, stopped_by: None }))
    }

    fn scores(&self, id: u32, logprobs: &Logprobs) -> TokenLogprob {
        let score = |token_id: u32, logprob: f32| TokenScore {
            token_id,
            token: self.text.token_bytes(token_id),
            logprob,
        };
        TokenLogprob {
            chosen: score(id, logprobs.chosen),
            top: logprobs.top.iter().map(|&(id, logprob)| score(id, logprob)).collect(),
        }
    }
}
