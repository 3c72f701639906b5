//! What must hold before a request reaches the engine, and the sequences it becomes.

use std::sync::Arc;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Generate, Stopping};
use phalanx_proto::id::ModelName;

use crate::engine::SequenceRequest;
use crate::engine::block_pool::ChunkEnd;
use crate::engine::sampling::choice_seed;
use crate::text::{Text, param_of};

/// What the worker serves, as far as requests are concerned.
#[derive(Clone, Debug)]
pub struct Served {
    /// The model's public name.
    pub name: ModelName,
    /// Longest prompt and output together, in tokens.
    pub context_tokens_max: u32,
    /// How many token ids the model has logits for.
    pub vocabulary: u32,
}

/// A request that fits the model, with its prompt in tokens.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    pub(super) generate: Generate,
    pub(super) prompt: Arc<[u32]>,
    max_tokens: u32,
    end_tokens: Arc<[u32]>,
    cache_salt: Arc<str>,
    chunks: Arc<[ChunkEnd]>,
}

impl Admitted {
    /// Checks `generate`, whose prompt came to `prompt` tokens, against the model.
    pub(super) fn new(
        generate: Generate,
        prompt: Vec<u32>,
        served: &Served,
        text: &Text,
    ) -> Result<Self, Fault> {
        served.check_ids(param_of(&generate.input), &prompt)?;
        let biased: Vec<u32> = generate.sampling.logit_bias.iter().map(|(id, _)| *id).collect();
        served.check_ids("logit_bias", &biased)?;
        served.check_ids("stop_token_ids", &generate.stopping.token_ids)?;
        let max_tokens = served.max_tokens(&generate, prompt.len())?;
        for choice in &generate.resume {
            served.check_ids("resume", &choice.token_ids)?;
            check_resumed(choice.token_ids.len(), max_tokens)?;
        }
        Ok(Self {
            end_tokens: end_tokens(&generate.stopping, text),
            cache_salt: generate.cache_salt.as_str().into(),
            chunks: Arc::default(),
            prompt: prompt.into(),
            max_tokens,
            generate,
        })
    }

    /// The same, with a prompt whose chunks end there.
    pub(super) fn in_chunks(self, chunks: Vec<ChunkEnd>) -> Self {
        Self { chunks: chunks.into(), ..self }
    }

    /// The tokens of one choice that were generated elsewhere.
    fn resumed(&self, choice: u32) -> &[u32] {
        let resumed = self.generate.resume.get(choice as usize);
        resumed.map_or(&[], |choice| &choice.token_ids)
    }

    /// The tokens of all choices that were generated elsewhere.
    pub(super) fn resumed_tokens(&self) -> u32 {
        let tokens: usize = self.generate.resume.iter().map(|choice| choice.token_ids.len()).sum();
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// The choices whose end was not told yet.
    pub(super) fn open_choices(&self) -> impl Iterator<Item = u32> {
        let resume = &self.generate.resume;
        (0..self.generate.choices)
            .filter(|&choice| !resume.get(choice as usize).is_some_and(|told| told.is_finished))
    }

    /// How many sequences the request comes to.
    pub(super) fn sequences(&self) -> u32 {
        let finished = self.generate.resume.iter().filter(|choice| choice.is_finished).count();
        self.generate.choices - u32::try_from(finished).unwrap_or(self.generate.choices)
    }

    /// The engine's part of one choice.
    pub(super) fn sequence(&self, choice: u32) -> SequenceRequest {
        let mut sampling = self.generate.sampling.clone();
        sampling.seed = choice_seed(sampling.seed, choice);
        SequenceRequest {
            prompt: Arc::clone(&self.prompt),
            generated: self.resumed(choice).into(),
            sampling,
            max_tokens: self.max_tokens,
            // A prompt near the context's end leaves less room than `min_tokens` may ask for.
            min_tokens: self.generate.stopping.min_tokens.min(self.max_tokens),
            end_tokens: Arc::clone(&self.end_tokens),
            top_logprobs: self.generate.top_logprobs,
            cache_salt: Arc::clone(&self.cache_salt),
            chunks: Arc::clone(&self.chunks),
        }
    }
}

// === impl Served ===

impl Served {
    pub(super) fn check_model(&self, name: &ModelName) -> Result<(), Fault> {
        if *name == self.name {
            return Ok(());
        }
        let message = format!("this worker serves model {}, not {name}", self.name);
        Err(Fault::new(FaultCode::ModelNotFound, message).with_param("model"))
    }

    fn check_ids(&self, param: &str, ids: &[u32]) -> Result<(), Fault> {
        match ids.iter().find(|&&id| id >= self.vocabulary) {
            None => Ok(()),
            Some(id) => {
                let limit = self.vocabulary;
                let message = format!("token id {id} is outside the vocabulary of {limit} tokens");
                Err(Fault::invalid(param, message))
            }
        }
    }

    /// How many tokens may be generated: what the request asks for, or all that the context leaves.
    fn max_tokens(&self, generate: &Generate, prompt_tokens: usize) -> Result<u32, Fault> {
        let context = self.context_tokens_max;
        let prompt = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
        let room = context.saturating_sub(prompt);
        if room == 0 {
            return Err(self.prompt_too_long(param_of(&generate.input), prompt));
        }
        match generate.stopping.max_tokens {
            Some(max_tokens) if max_tokens > room => {
                let message = format!(
                    "this model's context is {context} tokens, but {} were asked for: {prompt} of the \
                     prompt and {max_tokens} of the answer; at most {room} are left for the answer",
                    u64::from(prompt) + u64::from(max_tokens),
                );
                let fault = Fault::new(FaultCode::ContextLengthExceeded, message);
                Err(fault.with_param("max_tokens"))
            }
            max_tokens => Ok(max_tokens.unwrap_or(room)),
        }
    }

    fn prompt_too_long(&self, param: &str, tokens: u32) -> Fault {
        let message = format!(
            "this model's context is {} tokens, but the prompt alone has {tokens}; a prompt must leave \
             room for at least 1 token of the answer",
            self.context_tokens_max,
        );
        Fault::new(FaultCode::ContextLengthExceeded, message).with_param(param)
    }
}

fn check_resumed(tokens: usize, tokens_max: u32) -> Result<(), Fault> {
    if tokens <= tokens_max as usize {
        return Ok(());
    }
    let message = format!("an answer has at most {tokens_max} tokens here, resume holds {tokens}");
    Err(Fault::new(FaultCode::ContextLengthExceeded, message).with_param("resume"))
}

/// The model's own end tokens, unless told to go on past them, and the request's.
fn end_tokens(stopping: &Stopping, text: &Text) -> Arc<[u32]> {
    if stopping.token_ids.is_empty() && !stopping.ignore_eos {
        return Arc::clone(text.end_tokens());
    }
    let own: &[u32] = if stopping.ignore_eos { &[] } else { text.end_tokens() };
    let mut ids = own.to_vec();
    ids.extend(stopping.token_ids.iter().filter(|id| !own.contains(id)));
    ids.into()
}
