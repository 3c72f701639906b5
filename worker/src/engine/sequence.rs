//! One sequence: its tokens, how far they are computed, and what it still wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phalanx_kernels::sample::{Penalties, SampleRow};

use super::block_pool::BlockTable;
use super::handle::{SequenceRequest, TokenFinish};
use super::sampling::uniform;

/// Names a sequence within one engine. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// A sequence that waits: it holds no blocks, and nothing of it is computed.
#[derive(Debug)]
pub struct Waiting {
    pub(super) id: SequenceId,
    pub(super) request: SequenceRequest,
    /// Prompt and generated tokens: a preempted sequence comes back with what it had drawn, and one that another
    /// worker began comes with what was drawn there.
    pub(super) tokens: Vec<u32>,
    /// Whether its start was told: a preempted sequence starts once.
    pub(super) started: bool,
    repeats: Option<Repeats>,
}

/// A sequence with a place in the batch.
#[derive(Debug)]
pub struct Running {
    pub(super) sequence: Waiting,
    pub(super) table: BlockTable,
    /// Tokens whose keys and values are in the cache; below `tokens.len()`.
    pub(super) computed: usize,
}

/// What penalties need to know, kept only when one is on.
#[derive(Debug)]
struct Repeats {
    generated: BTreeMap<u32, u32>,
    prompt: Vec<u32>,
}

// === impl Waiting ===

impl Waiting {
    /// A sequence that was not seen before.
    pub fn new(id: SequenceId, request: SequenceRequest) -> Self {
        let sampling = &request.sampling;
        let repeats = (sampling.presence_penalty != 0.0
            || sampling.frequency_penalty != 0.0
            || sampling.repetition_penalty != 1.0)
            .then(|| Repeats {
                generated: BTreeMap::new(),
                prompt: if sampling.repetition_penalty == 1.0 {
                    Vec::new()
                } else {
                    let distinct: BTreeSet<u32> = request.prompt.iter().copied().collect();
                    distinct.into_iter().collect()
                },
            });
        let (tokens, generated) = (request.prompt.to_vec(), Arc::clone(&request.generated));
        let mut sequence = Self { id, request, tokens, started: false, repeats };
        for &token in generated.iter() {
            sequence.append(token);
        }
        sequence
    }

    /// Tokens drawn so far, here or elsewhere.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// How the token after the last one is drawn.
    pub fn draw(&self) -> SampleRow {
        let sampling = &self.request.sampling;
        let banned = if self.generated() < self.request.min_tokens as usize {
            self.request.end_tokens.to_vec()
        } else {
            Vec::new()
        };
        SampleRow {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            uniform: uniform(sampling.seed, self.tokens.len() as u64),
            bias: sampling.logit_bias.clone(),
            banned,
            penalties: self.repeats.as_ref().map(|repeats| Penalties {
                presence: sampling.presence_penalty,
                frequency: sampling.frequency_penalty,
                repetition: sampling.repetition_penalty,
                generated: repeats.generated.iter().map(|(id, count)| (*id, *count)).collect(),
                prompt: repeats.prompt.clone(),
            }),
            top_logprobs: self.request.top_logprobs,
        }
    }

    /// Appends a drawn token; says whether it was the last.
    pub fn push(&mut self, token: u32) -> Option<TokenFinish> {
        self.append(token);
        self.request.finish_of(token, self.generated())
    }

    fn append(&mut self, token: u32) {
        self.tokens.push(token);
        if let Some(repeats) = &mut self.repeats {
            *repeats.generated.entry(token).or_insert(0) += 1;
        }
    }
}

// === impl Running ===

impl Running {
    /// Tokens still to be computed, at least one. One: it decodes. More: it prefills.
    pub fn uncomputed(&self) -> usize {
        self.sequence.tokens.len() - self.computed
    }
}
