//! Decides who runs in the next step. Pure: requests and drawn tokens in, plans out.
//!
//! There are no phases (after vLLM V1): a step gives each sequence some of its uncomputed tokens. A
//! decoding sequence has one; a long prompt is met in chunks beside it. When blocks run out, the youngest
//! sequence gives way and is computed anew later, from its own cached blocks where they survived.

use std::collections::VecDeque;
use std::time::Duration;

use phalanx_kernels::batch::BLOCK_TOKENS;
use phalanx_kernels::sample::{Logprobs, Sampled};
use phalanx_proto::fault::{Fault, FaultCode};

use super::block_pool::BlockPool;
use super::config::{EngineConfig, blocks_for};
use super::handle::{EngineLoad, SequenceRequest, TokenFinish};
use super::plan::StepPlan;
use super::sequence::{Running, SequenceId, Waiting};
use phalanx_chassis::chunk_feed::ChunkChange;

/// Share of the pool kept free when a sequence is admitted, so that those already running can grow a while
/// before somebody is preempted: one part in this many.
const WATERMARK: usize = 50;

/// What a step did to one sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// It drew a token.
    Drew {
        /// Which.
        token: u32,
        /// Its log probabilities, when asked for.
        logprobs: Option<Logprobs>,
        /// Set when it was the last; the sequence is gone.
        finish: Option<TokenFinish>,
    },
    /// Its logits cannot be drawn from; the sequence is gone.
    Numerical,
}

/// All sequences of one engine, and the blocks they share.
#[derive(Debug)]
pub struct Scheduler {
    pool: BlockPool,
    /// The oldest first.
    running: Vec<Running>,
    /// The next first.
    waiting: VecDeque<Waiting>,
    step_tokens_max: usize,
    running_max: usize,
    sequences_max: usize,
    steps: u64,
    preemptions: u64,
}

// === impl Scheduler ===

impl Scheduler {
    /// A scheduler over `blocks` KV blocks.
    pub fn new(config: &EngineConfig, blocks: u32) -> Self {
        Self {
            pool: BlockPool::new(blocks, config.prefix_caching()),
            running: Vec::new(),
            waiting: VecDeque::new(),
            step_tokens_max: config.step_tokens_max(),
            running_max: config.running_max(),
            sequences_max: config.sequences_max() as usize,
            steps: 0,
            preemptions: 0,
        }
    }

    /// Lets a sequence wait for its place.
    ///
    /// # Errors
    /// `Overloaded` when too many run or wait; `ContextLengthExceeded` when the pool could not hold it even alone.
    pub fn add(&mut self, id: SequenceId, request: SequenceRequest) -> Result<(), Fault> {
        let needed = blocks_for(request.prompt.len() + request.max_tokens as usize);
        if needed > self.pool.total() {
            let message = format!(
                "prompt and output need {needed} KV blocks, this worker has {}",
                self.pool.total()
            );
            return Err(Fault::new(FaultCode::ContextLengthExceeded, message));
        }
        if self.is_full() {
            let message =
                format!("{} sequences are running or waiting already", self.sequences_max);
            return Err(
                Fault::new(FaultCode::Overloaded, message).with_retry_after(Duration::from_secs(1))
            );
        }
        self.waiting.push_back(Waiting::new(id, request));
        Ok(())
    }

    /// Forgets a sequence wherever it is; its blocks are free at once. Unknown ids are nobody's.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(index) = self.running.iter().position(|running| running.sequence.id == id) {
            let running = self.running.remove(index);
            self.pool.release(running.table);
        } else if let Some(index) = self.waiting.iter().position(|waiting| waiting.id == id) {
            self.waiting.remove(index);
        }
    }

    /// Whether no further sequence is taken.
    pub fn is_full(&self) -> bool {
        self.running.len() + self.waiting.len() >= self.sequences_max
    }

    /// Whether nothing is left to compute.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Plans one step. Not empty unless [`Scheduler::is_idle`].
    pub fn step(&mut self) -> StepPlan {
        let mut plan = StepPlan::default();
        self.continue_running(&mut plan);
        if plan.preempted.is_empty() {
            self.admit_waiting(&mut plan);
        }
        self.check_blocks();
        plan
    }

    /// Takes note of what a planned step drew, one [`Sampled`] per planned draw. Who finished is gone.
    pub fn commit(&mut self, plan: &StepPlan, drawn: Vec<Sampled>) -> Vec<(SequenceId, Progress)> {
        assert_eq!(
            plan.draw_rows.len(),
            drawn.len(),
            "a step drew another number of tokens than planned"
        );
        self.steps += 1;
        let mut drawn = drawn.into_iter();
        let mut progress = Vec::with_capacity(plan.draw_rows.len());
        let mut shares = plan.shares.iter().peekable();
        let mut index = 0;
        while index < self.running.len() {
            let running = &mut self.running[index];
            let Some(share) = shares.next_if(|share| share.sequence == running.sequence.id) else {
                index += 1;
                continue;
            };
            // A chunk's end is tied once its whole block is computed.
            let tied = running.computed - running.computed % BLOCK_TOKENS;
            running.computed += share.tokens;
            let Waiting { tokens, request, .. } = &running.sequence;
            self.pool.cache_computed(&mut running.table, tokens, running.computed);
            self.pool.tie(&running.table, &request.chunks, tied, running.computed);
            let outcome = if share.draws { drawn.next() } else { None };
            let outcome = outcome.map(|sampled| settle(&mut running.sequence, sampled));
            let ended = !matches!(outcome, None | Some(Progress::Drew { finish: None, .. }));
            progress.extend(outcome.map(|outcome| (share.sequence, outcome)));
            if ended {
                let running = self.running.remove(index);
                self.pool.release(running.table);
            } else {
                index += 1;
            }
        }
        assert!(shares.next().is_none(), "a planned sequence is not running");
        progress
    }

    /// What is on hand.
    pub fn load(&self) -> EngineLoad {
        let waiting = self.waiting.iter().map(|waiting| waiting.tokens.len());
        let running = self.running.iter().map(Running::uncomputed).filter(|&tokens| tokens > 1);
        EngineLoad {
            running: count(self.running.len()),
            waiting: count(self.waiting.len()),
            prefill_backlog_tokens: waiting.chain(running).sum::<usize>() as u64,
            kv_blocks_free: count(self.pool.free()),
            kv_blocks_total: count(self.pool.total()),
            preemptions_total: self.preemptions,
            steps_total: self.steps,
        }
    }

    /// What became of the prefix cache's chunks since this was last called.
    pub fn take_chunk_changes(&mut self) -> Vec<ChunkChange> {
        self.pool.take_chunk_changes()
    }

    /// Each running sequence gets its next tokens: the oldest first, decodes before the budget for chunks.
    fn continue_running(&mut self, plan: &mut StepPlan) {
        let decoding = self.running.iter().filter(|running| running.uncomputed() == 1).count();
        let mut chunk_budget = self.step_tokens_max - decoding;
        let mut index = 0;
        while index < self.running.len() {
            let uncomputed = self.running[index].uncomputed();
            let tokens = if uncomputed == 1 { 1 } else { uncomputed.min(chunk_budget) };
            if tokens > 0 {
                if !self.make_room(index, tokens, plan) {
                    return; // the sequence itself was the youngest and gave way
                }
                if uncomputed > 1 {
                    chunk_budget -= tokens;
                }
                plan.add(&self.running[index], tokens);
            }
            index += 1;
        }
    }

    /// Grows the table of the sequence at `index`, preempting the youngest while blocks are short.
    fn make_room(&mut self, index: usize, tokens: usize, plan: &mut StepPlan) -> bool {
        loop {
            let running = &mut self.running[index];
            let end = running.computed + tokens;
            if self.pool.grow(&mut running.table, end).is_ok() {
                return true;
            }
            let youngest = self.running.len() - 1;
            plan.preempted.push(self.preempt_youngest());
            if youngest == index {
                return false;
            }
        }
    }

    /// Free and held blocks make the total: always checked when idle, where it costs nothing, and after every
    /// step in debug builds, where it costs a walk over all blocks.
    fn check_blocks(&self) {
        if self.running.is_empty() {
            assert_eq!(self.pool.free(), self.pool.total(), "a KV block leaked");
        } else if cfg!(debug_assertions) {
            self.pool.assert_conserved(self.running.iter().map(|running| &running.table));
        }
    }

    fn preempt_youngest(&mut self) -> SequenceId {
        let running = self.running.pop().expect("somebody runs, or no blocks would be missing");
        let id = running.sequence.id;
        tracing::debug!(
            sequence = id.0,
            tokens = running.sequence.tokens.len(),
            blocks = running.table.blocks().len(),
            "preempted: the KV cache is full"
        );
        self.pool.release(running.table);
        self.waiting.push_front(running.sequence);
        self.preemptions += 1;
        id
    }

    /// Lets waiting sequences in, in order, while the step, the batch and the pool have room for the whole prompt.
    fn admit_waiting(&mut self, plan: &mut StepPlan) {
        while plan.batch.rows() < self.step_tokens_max && self.running.len() < self.running_max {
            let Some(waiting) = self.waiting.pop_front() else { return };
            let salt = &waiting.request.cache_salt;
            let mut table = self.pool.match_prefix(&waiting.tokens, salt);
            let computed = table.blocks().len() * BLOCK_TOKENS;
            let needed = blocks_for(waiting.tokens.len()) - table.blocks().len();
            let reserve =
                if self.running.is_empty() { 0 } else { self.pool.total().div_ceil(WATERMARK) };
            let uncomputed = waiting.tokens.len() - computed;
            let tokens = uncomputed.min(self.step_tokens_max - plan.batch.rows());
            if needed + reserve > self.pool.free()
                || self.pool.grow(&mut table, waiting.tokens.len()).is_err()
            {
                self.pool.release(table);
                self.waiting.push_front(waiting);
                return;
            }
            // What is found may have been computed for a prompt that was put differently, or as an answer.
            self.pool.tie(&table, &waiting.request.chunks, 0, computed);
            let mut running = Running { sequence: waiting, table, computed };
            if !running.sequence.started {
                running.sequence.started = true;
                plan.started.push((running.sequence.id, computed));
            }
            plan.add(&running, tokens);
            self.running.push(running);
        }
    }
}

impl Drop for Scheduler {
    /// A scheduler may end with sequences running; their blocks still go home.
    fn drop(&mut self) {
        for running in self.running.drain(..) {
            self.pool.release(running.table);
        }
    }
}

fn settle(sequence: &mut Waiting, sampled: Sampled) -> Progress {
    match sampled {
        Sampled::Token { id, logprobs } => {
            Progress::Drew { token: id, logprobs, finish: sequence.push(id) }
        }
        Sampled::Numerical => Progress::Numerical,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
