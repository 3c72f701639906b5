//! What one step computes, as data.

use std::ops::Range;

/// Tokens in a KV block.
pub const BLOCK_TOKENS: usize = 16;

/// The rows of one forward pass: some tokens of each of several sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, one per row.
    pub tokens: Vec<u32>,
    /// Positions in their sequences, one per row.
    pub positions: Vec<u32>,
    /// Which rows belong to which sequence, in row order, without gaps.
    pub spans: Vec<Span>,
    /// The block tables of all sequences, one after the other: block ids.
    pub block_tables: Vec<u32>,
}

/// One sequence's share of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its rows, at least one; positions `start..start + rows.len()`.
    pub rows: Range<usize>,
    /// Tokens already in the KV cache: the position of the first row.
    pub start: usize,
    /// Its block table within [`Batch::block_tables`]: covers `start + rows.len()` tokens.
    pub table: Range<usize>,
}

impl Batch {
    /// Rows in the batch.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The block ids of `span`.
    pub fn table(&self, span: &Span) -> &[u32] {
        &self.block_tables[span.table.clone()]
    }
}
