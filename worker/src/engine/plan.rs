//! A step as data: what every rank computes, and what the scheduler needs to commit it.

use std::fmt;

use phalanx_kernels::batch::{Batch, Span};
use phalanx_kernels::sample::SampleRow;

use super::sequence::{Running, SequenceId};

/// One step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// The rows to compute.
    pub batch: Batch,
    /// The rows after which a token is drawn, one per sequence that reached the end of its tokens.
    pub draw_rows: Vec<usize>,
    /// How each is drawn.
    pub draws: Vec<SampleRow>,
    /// Who computes how much, in row order.
    pub shares: Vec<Share>,
    /// Sequences whose first step this is, and how many prompt tokens the cache gave them.
    pub started: Vec<(SequenceId, usize)>,
    /// Sequences that gave way, and will be computed anew.
    pub preempted: Vec<SequenceId>,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Who.
    pub sequence: SequenceId,
    /// How many of its uncomputed tokens.
    pub tokens: usize,
    /// Whether that is all of them, so that a token is drawn.
    pub draws: bool,
}

// === impl StepPlan ===

impl StepPlan {
    /// Gives `running` the next `tokens` of its uncomputed tokens in this step. Its table has room for them.
    pub(super) fn add(&mut self, running: &Running, tokens: usize) {
        let (start, end) = (running.computed, running.computed + tokens);
        let first_row = self.batch.rows();
        self.batch.tokens.extend_from_slice(&running.sequence.tokens[start..end]);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "positions are below the context length"
        )]
        self.batch.positions.extend((start..end).map(|position| position as u32));
        let first_block = self.batch.block_tables.len();
        self.batch.block_tables.extend(running.table.blocks().iter().map(|block| block.0));
        self.batch.spans.push(Span {
            rows: first_row..self.batch.rows(),
            start,
            table: first_block..self.batch.block_tables.len(),
        });
        let draws = end == running.sequence.tokens.len();
        if draws {
            self.draw_rows.push(self.batch.rows() - 1);
            self.draws.push(running.sequence.draw());
        }
        self.shares.push(Share { sequence: running.sequence.id, tokens, draws });
    }
}

impl fmt::Display for StepPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.preempted.is_empty() {
            write!(f, "preempt")?;
            for id in &self.preempted {
                write!(f, " {}", id.0)?;
            }
            write!(f, "; ")?;
        }
        write!(f, "run")?;
        for share in &self.shares {
            write!(f, " {}:{}", share.sequence.0, share.tokens)?;
        }
        Ok(())
    }
}
