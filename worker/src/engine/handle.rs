//! How the rest of the worker talks to the engine thread: bounded mail in, one event stream per sequence out.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use super::block_pool::ChunkEnd;
use phalanx_chassis::chunk_feed::ChunkFeed;
use phalanx_kernels::sample::Logprobs;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::Sampling;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// One sequence to generate: tokens in, tokens out. Text is none of the engine's business.
#[derive(Clone, Debug)]
pub struct SequenceRequest {
    /// The prompt; never empty, shorter than the context.
    pub prompt: Arc<[u32]>,
    /// What was generated elsewhere already, fewer tokens than `max_tokens`: the sequence goes on after them, as
    /// if this engine had drawn them.
    pub generated: Arc<[u32]>,
    /// How tokens are drawn. The seed is the choice's own.
    pub sampling: Sampling,
    /// Most tokens to generate, at least 1 and those generated elsewhere included; prompt and output together
    /// fit the context.
    pub max_tokens: u32,
    /// End tokens are not drawn before this many tokens, wherever these were generated.
    pub min_tokens: u32,
    /// Drawing one of these ends the sequence.
    pub end_tokens: Arc<[u32]>,
    /// Report log probabilities and this many alternatives.
    pub top_logprobs: Option<u32>,
    /// Separates prefix caches.
    pub cache_salt: Arc<str>,
    /// Where the prompt's chunks end, in order.
    pub chunks: Arc<[ChunkEnd]>,
}

/// What the engine tells of a sequence: `Started` once, then `Token`s, the last with `finish`; or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum SequenceEvent {
    /// Its first step is planned.
    Started {
        /// Prompt tokens taken from the prefix cache.
        cached_tokens: u32,
    },
    /// A token was drawn.
    Token {
        /// Which.
        id: u32,
        /// Its log probabilities, when asked for.
        logprobs: Option<Logprobs>,
        /// Set on the last token.
        finish: Option<TokenFinish>,
    },
    /// The sequence cannot go on; nothing follows.
    Failed(Fault),
}

/// Why a sequence ended, as far as tokens tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFinish {
    /// The token is one of the end tokens (and still part of the output).
    EndToken,
    /// `max_tokens` were drawn.
    Length,
}

/// What the engine has on its hands, published after each step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Sequences in the running batch.
    pub running: u32,
    /// Sequences waiting to be admitted.
    pub waiting: u32,
    /// Prompt tokens not computed yet, over running and waiting sequences.
    pub prefill_backlog_tokens: u64,
    /// KV blocks that hold nothing a running sequence needs (cached prefixes count as free).
    pub kv_blocks_free: u32,
    /// All KV blocks.
    pub kv_blocks_total: u32,
    /// Sequences thrown back to waiting since the start.
    pub preemptions_total: u64,
    /// Steps run since the start.
    pub steps_total: u64,
}

/// Mail for the engine thread.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A new sequence and where its events go.
    Submit(SequenceRequest, mpsc::UnboundedSender<SequenceEvent>),
    /// Something may have been cancelled: look at the streams.
    Nudge,
    /// Leave the loop; whatever still runs fails with `Draining`.
    Stop,
}

/// The engine, from outside. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    mail: SyncSender<Mail>,
    load: watch::Receiver<EngineLoad>,
    chunks: Arc<ChunkFeed>,
    places: Arc<Semaphore>,
    places_max: u32,
}

/// Room in the engine's queue for some sequences, given back when dropped.
#[derive(Debug)]
pub struct Places(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The events of one sequence. Dropping it cancels the sequence; its KV blocks are free within a step.
#[derive(Debug)]
pub struct SequenceStream {
    events: mpsc::UnboundedReceiver<SequenceEvent>,
    mail: SyncSender<Mail>,
}

// === impl SequenceRequest ===

impl SequenceRequest {
    /// Whether `token` is the last, as the `count`-th one generated.
    pub(crate) fn finish_of(&self, token: u32, count: usize) -> Option<TokenFinish> {
        if self.end_tokens.contains(&token) {
            Some(TokenFinish::EndToken)
        } else if count >= self.max_tokens as usize {
            Some(TokenFinish::Length)
        } else {
            None
        }
    }
}

// === impl EngineHandle ===

impl EngineHandle {
    /// A handle to an engine that runs and keeps waiting up to `places_max` sequences.
    pub(crate) fn new(
        mail: SyncSender<Mail>,
        load: watch::Receiver<EngineLoad>,
        chunks: Arc<ChunkFeed>,
        places_max: u32,
    ) -> Self {
        Self {
            mail,
            load,
            chunks,
            places: Arc::new(Semaphore::new(places_max as usize)),
            places_max,
        }
    }

    /// Room for `sequences`, all or none, so that a request of several choices is refused before it begins or
    /// not at all.
    ///
    /// # Errors
    /// `Overloaded` while others have the room, `InvalidRequest` when there will never be that much.
    pub fn reserve(&self, sequences: u32) -> Result<Places, Fault> {
        if sequences > self.places_max {
            let message =
                format!("n must be at most {} at this worker, got {sequences}", self.places_max);
            return Err(Fault::invalid("n", message));
        }
        let places = Arc::clone(&self.places).try_acquire_many_owned(sequences);
        places.map(Places).map_err(|_taken| {
            let message = format!(
                "this worker runs or keeps waiting at most {} sequences, {} places are free",
                self.places_max,
                self.places.available_permits()
            );
            Fault::new(FaultCode::Overloaded, message).with_retry_after(Duration::from_secs(1))
        })
    }

    /// Hands a sequence to the engine.
    ///
    /// # Errors
    /// `Overloaded` when the mailbox is full, `Unavailable` when the engine is gone. A sequence the engine
    /// itself refuses (queue full, prompt larger than the KV pool) answers with [`SequenceEvent::Failed`].
    pub fn submit(&self, request: SequenceRequest) -> Result<SequenceStream, Fault> {
        // Unbounded in type, bounded in fact: a sequence sends at most `max_tokens` + 2 events.
        let (sender, events) = mpsc::unbounded_channel();
        match self.mail.try_send(Mail::Submit(request, sender)) {
            Ok(()) => Ok(SequenceStream { events, mail: self.mail.clone() }),
            Err(TrySendError::Full(_)) => {
                Err(Fault::new(FaultCode::Overloaded, "the engine's mailbox is full")
                    .with_retry_after(Duration::from_secs(1)))
            }
            Err(TrySendError::Disconnected(_)) => {
                Err(Fault::new(FaultCode::Unavailable, "the engine has stopped"))
            }
        }
    }

    /// The load after the latest step, and a way to wait for the next.
    pub fn load(&self) -> watch::Receiver<EngineLoad> {
        self.load.clone()
    }

    /// What its prefix cache holds.
    pub const fn chunks(&self) -> &Arc<ChunkFeed> {
        &self.chunks
    }

    /// Ends the engine thread after its current step.
    pub fn stop(&self) {
        // A full mailbox is emptied by the loop; a gone loop needs no stopping.
        let _ = self.mail.send(Mail::Stop);
    }
}

// === impl SequenceStream ===

impl SequenceStream {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<SequenceEvent> {
        self.events.recv().await
    }
}

impl Drop for SequenceStream {
    fn drop(&mut self) {
        self.events.close();
        // Wakes an idle engine; a busy one looks at its streams after each step anyway.
        let _ = self.mail.try_send(Mail::Nudge);
    }
}
