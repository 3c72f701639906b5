//! The KV cache, and causal attention over it.
//!
//! A block of one layer and KV head is `[K transposed: element][token], V: [token][element]`, so a score of
//! 16 tokens is one vector, and so is a piece of the output. How a row meets them is [`tile`]'s matter.

mod tile;

use self::tile::{Queries, TILE_QUERIES, Tiles};
use super::elementwise::{Rotate, by_rows};
use super::memory::{Aligned, Disjoint};
use super::path::CpuPath;
use super::pool::Pool;
use super::simd::{self, LANES};
use super::tensor::Tensor;
use crate::backend::{AttentionShape, DeviceError, KvShape, RopeTable};
use crate::batch::{BLOCK_TOKENS, Batch, Span};

const _: () = assert!(BLOCK_TOKENS == LANES, "the scores of a block are one vector");

/// Multiply-adds below which a task costs more to share than to do.
const TASK_WORK_MIN: usize = 128 * 1024;

/// The KV cache of all layers.
#[derive(Debug)]
pub struct Kv {
    shape: KvShape,
    values: Aligned<f32>,
}

// === impl Kv ===

impl Kv {
    pub(super) fn new(shape: KvShape) -> Result<Self, DeviceError> {
        let KvShape { layers, kv_heads, head_dim, blocks } = shape;
        if head_dim == 0 || !head_dim.is_multiple_of(LANES) {
            return Err(DeviceError::Shape {
                what: "KV cache",
                rows: kv_heads,
                cols: head_dim,
                expected: format!("a head size that is a multiple of {LANES}"),
            });
        }
        let length = [layers, kv_heads, blocks, 2 * BLOCK_TOKENS]
            .into_iter()
            .try_fold(head_dim, usize::checked_mul)
            .ok_or(DeviceError::OutOfMemory { bytes: usize::MAX })?;
        Ok(Self { shape, values: Aligned::zeroed(length)? })
    }

    /// Overwrites every element, so that tests see what leaks.
    #[cfg(test)]
    pub(super) fn fill(&mut self, value: f32) {
        self.values.fill(value);
    }

    /// Where the block of a layer and a head begins: K, then V as many elements on.
    fn offset(&self, layer: usize, block: u32, head: usize) -> usize {
        let KvShape { layers, kv_heads, head_dim, blocks } = self.shape;
        let block = block as usize;
        assert!(
            layer < layers && block < blocks,
            "layer {layer}, block {block} of {:?}",
            self.shape
        );
        ((layer * blocks + block) * kv_heads + head) * 2 * BLOCK_TOKENS * head_dim
    }

    fn check(&self, shape: AttentionShape, cols: usize) {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        assert_eq!((shape.kv_heads, shape.head_dim), (kv_heads, head_dim), "{:?}", self.shape);
        assert!(shape.heads.is_multiple_of(kv_heads), "{} heads over {kv_heads}", shape.heads);
        assert_eq!(cols, (shape.heads + 2 * kv_heads) * head_dim, "columns of q, k and v");
    }
}

/// Rotates q and k in place and writes k and v to the cache.
pub(super) fn rope_kv(
    (pool, path): (&Pool, CpuPath),
    qkv: &mut Tensor,
    rope: &RopeTable,
    (kv, layer): (&mut Kv, usize),
    (shape, batch): (AttentionShape, &Batch),
) {
    let (rows, cols) = (qkv.rows(), qkv.cols());
    kv.check(shape, cols);
    assert_eq!(rows, batch.rows(), "rows of the batch");
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let half = rope.half_dim;
    assert_eq!(half * 2, head_dim, "the rotary table's head size");
    let slots = slots(batch);
    let block_length = BLOCK_TOKENS * head_dim;
    let first_offsets: Vec<usize> =
        slots.iter().map(|&(block, _)| kv.offset(layer, block, 0)).collect();
    let cache = Disjoint::new(&mut kv.values);
    let values = Disjoint::new(qkv.values_mut());
    by_rows(pool, rows, cols, &|first, last| {
        for row in first..last {
            // SAFETY: each row is worked on by one task.
            let values = unsafe { values.part(row * cols, cols) };
            let angles = batch.positions[row] as usize * half..;
            let (cos, sin) = (&rope.cos[angles.clone()][..half], &rope.sin[angles][..half]);
            let (rotated, v) = values.split_at_mut((heads + kv_heads) * head_dim);
            for head in rotated.chunks_exact_mut(head_dim) {
                simd::run(path, Rotate { head, cos, sin });
            }
            let k = &rotated[heads * head_dim..];
            let token = slots[row].1;
            for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate()
            {
                let offset = first_offsets[row] + head * 2 * block_length;
                for (index, &k) in k.iter().enumerate() {
                    // SAFETY: each row has a token's place of its own.
                    let place = unsafe { cache.part(offset + index * BLOCK_TOKENS + token, 1) };
                    place[0] = k;
                }
                // SAFETY: each row has a token's place of its own.
                let place =
                    unsafe { cache.part(offset + block_length + token * head_dim, head_dim) };
                place.copy_from_slice(v);
            }
        }
    });
}

/// Each row's block and place within it.
fn slots(batch: &Batch) -> Vec<(u32, usize)> {
    let mut slots = Vec::with_capacity(batch.rows());
    for span in &batch.spans {
        assert_eq!(span.rows.start, slots.len(), "spans follow each other without gaps");
        let table = batch.table(span);
        for row in span.rows.clone() {
            let position = batch.positions[row] as usize;
            slots.push((table[position / BLOCK_TOKENS], position % BLOCK_TOKENS));
        }
    }
    assert_eq!(slots.len(), batch.rows(), "spans cover all rows");
    slots
}

/// Causal attention of each row over its sequence's cache.
pub(super) fn attention(
    (pool, path): (&Pool, CpuPath),
    qkv: &Tensor,
    (kv, layer): (&Kv, usize),
    (shape, batch): (AttentionShape, &Batch),
    out: &mut Tensor,
) {
    kv.check(shape, qkv.cols());
    assert_eq!(qkv.rows(), batch.rows(), "rows of the batch");
    let out = &Disjoint::new(out.shape(qkv.rows(), shape.heads * shape.head_dim));
    let shares = shares(shape, batch);
    // Few short sequences are sooner attended to than shared out.
    let mut tasks: Vec<&[Share<'_>]> = Vec::new();
    let (mut first, mut work) = (0, 0);
    for (index, share) in shares.iter().enumerate() {
        work += share.work;
        if work >= TASK_WORK_MIN || index + 1 == shares.len() {
            tasks.push(&shares[first..=index]);
            (first, work) = (index + 1, 0);
        }
    }
    pool.run(tasks.len(), &|task| {
        for &Share { span, kv_head, first, last, .. } in tasks[task] {
            let blocks = batch.table(span).iter();
            let offsets: Vec<usize> =
                blocks.map(|&block| kv.offset(layer, block, kv_head)).collect();
            let queries =
                Queries { qkv, kv: &kv.values, offsets: &offsets, shape, batch, span, kv_head };
            simd::run(path, Tiles { queries, first, last, out });
        }
    });
}

/// Some queries of one sequence and KV head, and roughly how much work they are.
struct Share<'a> {
    span: &'a Span,
    kv_head: usize,
    first: usize,
    last: usize,
    work: usize,
}

fn shares(shape: AttentionShape, batch: &Batch) -> Vec<Share<'_>> {
    let group = shape.heads / shape.kv_heads;
    let mut shares = Vec::new();
    for span in &batch.spans {
        let queries = span.rows.len() * group;
        for kv_head in 0..shape.kv_heads {
            for first in (0..queries).step_by(TILE_QUERIES) {
                let last = queries.min(first + TILE_QUERIES);
                let tokens = span.start + last.div_ceil(group);
                let work = (last - first) * tokens * shape.head_dim;
                shares.push(Share { span, kv_head, first, last, work });
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests;
