//! What a client asks for, and one try to have it answered: what travels down the second stack.
//!
//! An [`Ask`] is read once and shared by all attempts; a [`Call`] is the ask with its deadline and its history. The
//! answer is a [`Reply`](crate::reply::Reply).

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use phalanx_proto::fault::Fault;
use phalanx_proto::generate::{ChoiceProgress, Generate, Input, Stopping};
use phalanx_proto::id::{MemberId, ModelName, Revision};
use phalanx_proto::prefix::Chunks;
use xxhash_rust::xxh3::xxh3_64;

use crate::dispatch::cost::{ANSWER_TOKENS_UNKNOWN, Work};
use crate::engine::Kinds;
use crate::engine::native::CallMetadata;
use crate::outline::Outline;
use crate::queue::fair::{Flow, Priority};

/// Longest model name looked up; served names are far shorter.
pub(crate) const MODEL_NAME_BYTES_MAX: usize = 256;
/// English text has about four bytes per token; a rough guess is enough to compare engines.
const BYTES_PER_TOKEN: u64 = 4;

/// One prompt to be answered, in each form that some kind of engine takes.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// As the client named it: perhaps an alias.
    pub(crate) model: ModelName,
    /// What it asks of an engine, as predicted.
    pub(crate) work: Work,
    /// How many answers it wants, and how many tokens each may have at the most.
    pub(crate) answers: (u64, u64),
    /// What its prompt may have in common with others.
    pub(crate) chunks: Chunks,
    /// For workers over gRPC, or what their client would be told.
    pub(crate) native: Result<Arc<Generate>, Fault>,
    /// For servers that speak OpenAI's API.
    pub(crate) http: Option<HttpForm>,
}

/// A request as its client sent it.
#[derive(Clone, Debug)]
pub(crate) struct HttpForm {
    /// The endpoint, from `/v1` on.
    pub(crate) path: &'static str,
    pub(crate) body: Bytes,
    /// The model that the body names, and where.
    pub(crate) model: ModelName,
    pub(crate) model_at: Range<usize>,
    /// Whether the answer is asked for event by event.
    pub(crate) is_streamed: bool,
}

const X_PRIORITY: HeaderName = HeaderName::from_static("x-priority");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The flow of those who show no credential: they share one.
const ANONYMOUS: u64 = 0;

/// Whom a request belongs to and how urgent it is, for when requests have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) flow: Flow,
    pub(crate) priority: Priority,
}

/// One ask on its way through the second stack.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) ask: Arc<Ask>,
    /// When the request had arrived in full.
    pub(crate) received: Instant,
    pub(crate) deadline: Instant,
    /// The whole time that the request was given; its deadline is the end of it.
    pub(crate) timeout: Duration,
    pub(crate) metadata: CallMetadata,
    /// Which part of an alias' traffic it belongs to, in every attempt.
    pub(crate) draw: u64,
    pub(crate) standing: Standing,
    /// Engines that failed this call already.
    pub(crate) excluded: Vec<MemberId>,
    /// What it goes on with, if another engine began to answer.
    pub(crate) resume: Option<Arc<Resume>>,
}

/// An answer that a native worker began, for another one to go on with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resume {
    /// Who answers: an alias is not resolved twice, and only the same revision goes on with the same tokens.
    pub(crate) model: ModelName,
    pub(crate) revision: Option<Revision>,
    /// What the client has of each choice.
    pub(crate) progress: Vec<ChoiceProgress>,
    /// How long the answer would have become at most: what the first worker's context left.
    pub(crate) tokens_max: u32,
}

// === impl Ask ===

impl Ask {
    /// What only native workers can answer.
    pub(crate) fn native(generate: Generate) -> Self {
        Self {
            model: generate.model.clone(),
            work: predicted_work(&generate),
            answers: answers_of(&generate),
            chunks: Chunks::of(&generate),
            native: Ok(Arc::new(generate)),
            http: None,
        }
    }

    /// What `outline` is of, for foreign engines; native workers take it as `native`, or not for the fault there.
    /// Engines of both kinds know a prompt by its native form, if it has one.
    pub(crate) fn http(form: HttpForm, outline: &Outline, native: Result<Generate, Fault>) -> Self {
        let answer = answer_tokens(outline.max_tokens) * outline.choices;
        let prefill = outline.input_bytes as u64 / BYTES_PER_TOKEN;
        let work = Work { prefill_tokens: prefill.max(1), decode_tokens: answer };
        Self {
            model: outline.model.clone(),
            work: native.as_ref().map_or(work, predicted_work),
            answers: (outline.choices, outline.max_tokens.unwrap_or(u64::MAX)),
            chunks: native.as_ref().map_or_else(|_| outline.chunks.clone(), Chunks::of),
            native: native.map(Arc::new),
            http: Some(form),
        }
    }

    /// The kinds of engines that it has a form for.
    pub(crate) const fn kinds(&self) -> Kinds {
        Kinds { native: self.native.is_ok(), foreign: self.http.is_some() }
    }
}

/// Tokens to expect of one choice.
fn answer_tokens(max_tokens: Option<u64>) -> u64 {
    max_tokens.map_or(ANSWER_TOKENS_UNKNOWN, |max| max.min(ANSWER_TOKENS_UNKNOWN))
}

fn answers_of(generate: &Generate) -> (u64, u64) {
    (generate.choices.into(), generate.stopping.max_tokens.map_or(u64::MAX, u64::from))
}

// === impl Call ===

impl Call {
    /// The kinds of engines that can take it. Only a native worker goes on with what another one began.
    pub(crate) fn kinds(&self) -> Kinds {
        if self.resume.is_some() { Kinds::NATIVE } else { self.ask.kinds() }
    }

    /// What is left of the work: a worker that goes on computes the tokens so far as it does the prompt.
    pub(crate) fn work(&self) -> Work {
        let Work { prefill_tokens, decode_tokens } = self.ask.work;
        let done = self.resume.as_ref().map_or(0, |resume| resume.tokens());
        Work {
            prefill_tokens: prefill_tokens + done,
            decode_tokens: decode_tokens.saturating_sub(done),
        }
    }
}

// === impl Resume ===

impl Resume {
    /// `generate`, as it is asked of the worker that goes on.
    pub(crate) fn of(&self, generate: &Generate) -> Generate {
        let tokens_max = generate.stopping.max_tokens.unwrap_or(self.tokens_max);
        let stopping = Stopping {
            max_tokens: Some(tokens_max),
            min_tokens: generate.stopping.min_tokens.min(tokens_max),
            ..generate.stopping.clone()
        };
        Generate { stopping, resume: self.progress.clone(), ..generate.clone() }
    }

    /// Tokens that the client has, of all choices.
    fn tokens(&self) -> u64 {
        self.progress.iter().map(|choice| choice.token_ids.len() as u64).sum()
    }
}

// === impl Standing ===

impl Standing {
    /// What the headers say. Until clients are known by their keys, all credentials weigh the same.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Fault> {
        let credential = headers.get(header::AUTHORIZATION).or_else(|| headers.get(&X_API_KEY));
        let key = credential.map_or(ANONYMOUS, |credential| xxh3_64(credential.as_bytes()));
        let priority = match headers.get(&X_PRIORITY) {
            None => Priority::Normal,
            Some(value) => (Priority::ALL.into_iter())
                .find(|priority| value.as_bytes() == priority.as_str().as_bytes())
                .ok_or_else(|| {
                    let message = format!("must be high, normal or low, got {value:?}");
                    Fault::invalid(X_PRIORITY.as_str(), message)
                })?,
        };
        Ok(Self { flow: Flow { key, weight: 1 }, priority })
    }
}

/// What the request asks of an engine, guessed from its size: the router never tokenises.
fn predicted_work(generate: &Generate) -> Work {
    let prefill_tokens = match &generate.input {
        Input::Chat(chat) => {
            let bytes: usize = chat.messages.iter().map(|message| message.content.len()).sum();
            bytes as u64 / BYTES_PER_TOKEN
        }
        Input::Text(text) => text.len() as u64 / BYTES_PER_TOKEN,
        Input::Tokens(ids) => ids.len() as u64,
    };
    let answer = answer_tokens(generate.stopping.max_tokens.map(u64::from));
    Work {
        prefill_tokens: prefill_tokens.max(1),
        decode_tokens: answer * u64::from(generate.choices),
    }
}
