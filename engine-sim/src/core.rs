//! The simulated engine, pure: what happens and the time it happens at go in, progress of sequences comes out.
//!
//! ```text
//! submit ─► waiting (FIFO, bounded) ─► running (bounded) ─► step: a decode each, and one chunk of prefill
//!                │                          │                 │ after base + sequences × each + tokens ÷ rate
//!                └────────── abort ─────────┘                 └─► Progress
//! ```
//! Time is a duration since some start; a step that was due earlier than it is asked for ends when it was due, so that
//! a late driver does not slow the engine down.

use std::collections::VecDeque;
use std::time::Duration;

use phalanx_chassis::chunk_feed::ChunkChange;
use serde::Serialize;

use crate::cache::PrefixCache;
use crate::prompt::{CHUNK_TOKENS, Prompt};

/// How fast and how large an engine is.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    /// Tokens of prompts computed in a second.
    pub prefill_rate: f64,
    /// A step that decodes takes this long, and
    pub decode_base: Duration,
    /// this much longer for each sequence in it.
    pub decode_per_sequence: Duration,
    /// Tokens of prompts computed in one step at most.
    pub step_tokens_max: u32,
    /// Sequences in one step at most.
    pub batch_max: usize,
    /// Sequences that wait for a place at most.
    pub waiting_max: usize,
    /// Tokens of prompts kept for later ones.
    pub cache_tokens: u64,
    /// How much faster than all this the engine is.
    pub speed: f64,
}

/// A sequence, inside one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What a sequence has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Prompt tokens found in the cache; known with the first token.
    pub cached_tokens: u32,
    /// Tokens of the answer so far.
    pub produced: u32,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Sequences computed in each step.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// Prompt tokens that are not computed yet.
    pub prefill_backlog_tokens: u64,
    /// Tokens that running sequences hold.
    pub held_tokens: u64,
}

/// Everything that happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Sequences taken in.
    pub requests: u64,
    /// Sequences refused because too many wait.
    pub refused: u64,
    /// Sequences that came to their end.
    pub finished: u64,
    /// Sequences given up by their clients.
    pub aborted: u64,
    /// Tokens of the prompts of sequences that began to run.
    pub prompt_tokens: u64,
    /// Of these, found in the cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub generated_tokens: u64,
    /// Time spent in steps, in microseconds.
    pub busy_us: u64,
    /// The most sequences that ever shared a step.
    pub batch_peak: u32,
}

/// How far a sequence was when it was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not begun.
    Waiting,
    /// Its prompt is being computed.
    Prefill,
    /// Its answer is.
    Decode,
}

/// Too many sequences wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{waiting_max} requests wait already, the limit")]
pub struct Overloaded {
    waiting_max: usize,
}

/// What is to be computed.
#[derive(Clone, Debug)]
pub struct Work {
    /// The prompt.
    pub prompt: Prompt,
    /// Tokens of the answer that another engine produced already; they are computed as the prompt is.
    pub resumed: u32,
    /// Tokens of the whole answer, more than `resumed`.
    pub answer_tokens: u32,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    work: Work,
    cached: u32,
    /// Tokens before the first new one, cached or computed.
    prefilled: u32,
    produced: u32,
}

/// A step under way.
#[derive(Debug)]
struct Step {
    ends_at: Duration,
    takes: Duration,
    /// Sequences that decode in it.
    decodes: Vec<SequenceId>,
    /// Sequences whose prompts are computed in it, and how many tokens of each.
    prefills: Vec<(SequenceId, u32)>,
}

/// One engine.
#[derive(Debug)]
pub struct Engine {
    pace: Pace,
    /// How many times slower a fault makes it.
    slowness: f64,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    cache: PrefixCache,
    step: Option<Step>,
    news: Vec<(SequenceId, Progress)>,
    totals: Totals,
    next_id: u64,
}

// === impl Engine ===

impl Engine {
    /// An engine with an empty cache.
    pub fn new(pace: Pace) -> Self {
        Self {
            cache: PrefixCache::new(pace.cache_tokens),
            pace,
            slowness: 1.0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            step: None,
            news: Vec::new(),
            totals: Totals::default(),
            next_id: 0,
        }
    }

    /// Takes a sequence in.
    ///
    /// # Errors
    /// When too many wait.
    pub fn submit(&mut self, now: Duration, work: Work) -> Result<SequenceId, Overloaded> {
        self.advance(now);
        if self.waiting.len() >= self.pace.waiting_max {
            self.totals.refused += 1;
            return Err(Overloaded { waiting_max: self.pace.waiting_max });
        }
        self.next_id += 1;
        let id = SequenceId(self.next_id);
        self.totals.requests += 1;
        let produced = work.resumed;
        self.waiting.push_back(Sequence { id, work, cached: 0, prefilled: 0, produced });
        if self.step.is_none() {
            self.begin_step(now);
        }
        Ok(id)
    }

    /// Gives a sequence up; `None` when it is over already.
    pub fn abort(&mut self, id: SequenceId) -> Option<Phase> {
        let phase = if let Some(at) = self.waiting.iter().position(|one| one.id == id) {
            self.waiting.remove(at);
            Phase::Waiting
        } else {
            let at = self.running.iter().position(|one| one.id == id)?;
            let gone = self.running.remove(at);
            if gone.is_prefilled() { Phase::Decode } else { Phase::Prefill }
        };
        self.totals.aborted += 1;
        Some(phase)
    }

    /// Ends the steps that are due, and begins the next.
    pub fn advance(&mut self, now: Duration) {
        while let Some(step) = self.step.take_if(|step| step.ends_at <= now) {
            let ended_at = step.ends_at;
            self.end_step(&step);
            self.begin_step(ended_at);
        }
    }

    /// When there is something to do next, unless something happens before.
    pub fn wake_at(&self) -> Option<Duration> {
        self.step.as_ref().map(|step| step.ends_at)
    }

    /// What sequences have come to since this was asked last.
    pub fn take_news(&mut self) -> Vec<(SequenceId, Progress)> {
        std::mem::take(&mut self.news)
    }

    /// What came into and went from the prefix cache since this was asked last, in order.
    pub fn take_chunk_changes(&mut self) -> Vec<ChunkChange> {
        self.cache.take_changes()
    }

    /// Makes the steps that begin from now on this many times as long.
    pub const fn slow_down(&mut self, slowness: f64) {
        self.slowness = slowness;
    }

    /// How much there is to do.
    pub fn load(&self) -> Load {
        let count = |sequences: usize| u32::try_from(sequences).unwrap_or(u32::MAX);
        let all = self.running.iter().chain(&self.waiting);
        Load {
            running: count(self.running.len()),
            waiting: count(self.waiting.len()),
            prefill_backlog_tokens: all.map(|one| u64::from(one.left_to_prefill())).sum(),
            held_tokens: self.running.iter().map(Sequence::held_tokens).sum(),
        }
    }

    /// Everything that happened so far.
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// Tokens of prompts that are kept.
    pub fn cache_tokens(&self) -> u64 {
        self.cache.tokens()
    }

    fn begin_step(&mut self, at: Duration) {
        while self.running.len() < self.pace.batch_max
            && let Some(next) = self.waiting.pop_front()
        {
            self.admit(next);
        }
        let (mut decodes, mut prefills) = (Vec::new(), Vec::new());
        let mut budget = self.pace.step_tokens_max;
        for sequence in &self.running {
            if sequence.is_prefilled() {
                decodes.push(sequence.id);
            } else if budget > 0 {
                let tokens = sequence.left_to_prefill().min(budget);
                budget -= tokens;
                prefills.push((sequence.id, tokens));
            }
        }
        if decodes.is_empty() && prefills.is_empty() {
            return;
        }
        let computed = self.pace.step_tokens_max - budget;
        let batch = u32::try_from(decodes.len() + prefills.len()).unwrap_or(u32::MAX);
        self.totals.batch_peak = self.totals.batch_peak.max(batch);
        let takes = self.duration(decodes.len(), computed);
        self.step = Some(Step { ends_at: at + takes, takes, decodes, prefills });
    }

    fn admit(&mut self, mut sequence: Sequence) {
        let prompt = &sequence.work.prompt;
        let found = u32::try_from(self.cache.find(&prompt.chunks)).unwrap_or(u32::MAX);
        // At least one token is computed: the first of the answer comes out of it.
        sequence.cached = found.saturating_mul(CHUNK_TOKENS).min(prompt.tokens - 1);
        sequence.prefilled = sequence.cached;
        self.totals.prompt_tokens += u64::from(prompt.tokens);
        self.totals.cached_tokens += u64::from(sequence.cached);
        self.running.push(sequence);
    }

    fn duration(&self, decodes: usize, prefill_tokens: u32) -> Duration {
        let decodes = u32::try_from(decodes).unwrap_or(u32::MAX);
        let mut seconds = f64::from(prefill_tokens) / self.pace.prefill_rate;
        if decodes > 0 {
            seconds += self.pace.decode_base.as_secs_f64();
            seconds += self.pace.decode_per_sequence.as_secs_f64() * f64::from(decodes);
        }
        Duration::from_secs_f64(seconds * self.slowness / self.pace.speed)
    }

    fn end_step(&mut self, step: &Step) {
        self.totals.busy_us += u64::try_from(step.takes.as_micros()).unwrap_or(u64::MAX);
        for (id, tokens) in &step.prefills {
            let Some(sequence) = self.running.iter_mut().find(|one| one.id == *id) else {
                continue;
            };
            sequence.prefilled += tokens;
            if sequence.is_prefilled() {
                self.cache.keep(&sequence.work.prompt.chunks);
                self.news.push(sequence.produce());
                self.totals.generated_tokens += 1;
            }
        }
        for id in &step.decodes {
            let Some(sequence) = self.running.iter_mut().find(|one| one.id == *id) else {
                continue;
            };
            self.news.push(sequence.produce());
            self.totals.generated_tokens += 1;
        }
        let before = self.running.len();
        self.running.retain(|one| one.produced < one.work.answer_tokens);
        self.totals.finished += (before - self.running.len()) as u64;
    }
}

// === impl Sequence ===

impl Sequence {
    /// Tokens before the first new one.
    const fn context_tokens(&self) -> u32 {
        self.work.prompt.tokens.saturating_add(self.work.resumed)
    }

    const fn is_prefilled(&self) -> bool {
        self.prefilled >= self.context_tokens()
    }

    const fn left_to_prefill(&self) -> u32 {
        self.context_tokens().saturating_sub(self.prefilled)
    }

    fn held_tokens(&self) -> u64 {
        u64::from(self.prefilled) + u64::from(self.produced - self.work.resumed)
    }

    const fn produce(&mut self) -> (SequenceId, Progress) {
        self.produced += 1;
        (self.id, Progress { cached_tokens: self.cached, produced: self.produced })
    }
}

#[cfg(test)]
mod tests;
