//! The KV cache, and causal attention over it.
//!
//! A block of one layer and KV head is `[K transposed: element][token], V: [token][element]`, so a score of
//! 16 tokens is one vector, and so is a piece of the output. A row meets its blocks in absolute order, one
//! at a time, with an online softmax. Queries that share a KV head are tiled to share its loads; a query's
//! own arithmetic is the same in a tile of any size. Tokens beyond a row's position are never multiplied.

use super::elementwise::{Rotate, by_rows};
use super::memory::{Aligned, Disjoint};
use super::path::CpuPath;
use super::pool::Pool;
use super::simd::{self, Kernel, LANES, Lanes};
use super::tensor::Tensor;
use crate::backend::{AttentionShape, DeviceError, KvShape, RopeTable};
use crate::batch::{BLOCK_TOKENS, Batch, Span};

const _: () = assert!(BLOCK_TOKENS == LANES, "the scores of a block are one vector");

/// Queries that are worked on at once; the largest tile.
const TILE_QUERIES: usize = 8;

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
    let out = out.shape(qkv.rows(), shape.heads * shape.head_dim);
    out.fill(0.0);
    let out = &Disjoint::new(out);
    let group = shape.heads / shape.kv_heads;
    let mut tasks = Vec::new();
    for span in &batch.spans {
        for kv_head in 0..shape.kv_heads {
            for first in (0..span.rows.len() * group).step_by(TILE_QUERIES) {
                let last = (span.rows.len() * group).min(first + TILE_QUERIES);
                tasks.push((span, kv_head, first, last));
            }
        }
    }
    pool.run(tasks.len(), &|task| {
        let (span, kv_head, first, last) = tasks[task];
        let blocks = batch.table(span).iter();
        let offsets: Vec<usize> = blocks.map(|&block| kv.offset(layer, block, kv_head)).collect();
        let queries =
            Queries { qkv, kv: &kv.values, offsets: &offsets, shape, batch, span, kv_head };
        simd::run(path, Tiles { queries, first, last, out });
    });
}

/// The queries of one sequence that share a KV head: query i is of row `i / group`, head `i % group`.
struct Queries<'a> {
    qkv: &'a Tensor,
    kv: &'a [f32],
    /// Where the sequence's blocks begin, of this layer and head.
    offsets: &'a [usize],
    shape: AttentionShape,
    batch: &'a Batch,
    span: &'a Span,
    kv_head: usize,
}

/// Some queries.
struct Tiles<'a> {
    queries: Queries<'a>,
    first: usize,
    last: usize,
    out: &'a Disjoint<'a, f32>,
}

/// A query's way through its blocks.
struct Progress<'a, L> {
    query: &'a [f32],
    position: usize,
    max: f32,
    /// The sum of weights so far, by the token's place in its block.
    sum: L,
    out: &'a mut [f32],
}

// === impl Tiles ===

impl Kernel for Tiles<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut query = self.first;
        while L::WIDE && query + TILE_QUERIES <= self.last {
            self.tile::<L, TILE_QUERIES>(query);
            query += TILE_QUERIES;
        }
        while query + 4 <= self.last {
            self.tile::<L, 4>(query);
            query += 4;
        }
        while query < self.last {
            self.tile::<L, 1>(query);
            query += 1;
        }
    }
}

impl Tiles<'_> {
    #[inline(always)]
    fn tile<L: Lanes, const N: usize>(&self, first: usize) {
        let mut tile: [Progress<'_, L>; N] = std::array::from_fn(|index| self.start(first + index));
        let shared = tile.iter().map(|query| query.position + 1).min().unwrap_or(0) / BLOCK_TOKENS;
        for block in 0..shared {
            self.block::<L, N>(&mut tile, block, BLOCK_TOKENS);
        }
        for query in tile {
            let mut query = [query];
            let tokens = query[0].position + 1;
            for block in shared..tokens.div_ceil(BLOCK_TOKENS) {
                let visible = BLOCK_TOKENS.min(tokens - block * BLOCK_TOKENS);
                self.block::<L, 1>(&mut query, block, visible);
            }
            let [query] = query;
            let sum = query.sum.sum();
            for value in query.out {
                *value /= sum;
            }
        }
    }

    #[inline(always)]
    fn start<L: Lanes>(&self, index: usize) -> Progress<'_, L> {
        let Queries { qkv, shape, batch, span, kv_head, .. } = &self.queries;
        let group = shape.heads / shape.kv_heads;
        let row = span.rows.start + index / group;
        let column = (kv_head * group + index % group) * shape.head_dim;
        let width = shape.heads * shape.head_dim;
        Progress {
            query: &qkv.row(row)[column..][..shape.head_dim],
            position: batch.positions[row] as usize,
            max: f32::NEG_INFINITY,
            sum: L::splat(0.0),
            // SAFETY: each query belongs to one tile.
            out: unsafe { self.out.part(row * width + column, shape.head_dim) },
        }
    }

    /// Attends to the first `visible` tokens of a block.
    #[inline(always)]
    fn block<L: Lanes, const N: usize>(
        &self,
        tile: &mut [Progress<'_, L>; N],
        block: usize,
        visible: usize,
    ) {
        let head_dim = self.queries.shape.head_dim;
        let block = &self.queries.kv[self.queries.offsets[block]..][..2 * BLOCK_TOKENS * head_dim];
        let (k, v) = block.split_at(BLOCK_TOKENS * head_dim);
        let mut scores = [L::splat(0.0); N];
        for (element, k) in k.as_chunks::<LANES>().0.iter().enumerate() {
            let k = L::from_array(k);
            for index in 0..N {
                // SAFETY: a query has as many elements as the block.
                let value = unsafe { *tile[index].query.get_unchecked(element) };
                scores[index] = k.mul_add(L::splat(value), scores[index]);
            }
        }
        let mut weights = [[0.0; LANES]; N];
        let mut shrink = [0.0; LANES];
        let scale = L::splat(self.queries.shape.scale);
        for index in 0..N {
            let query = &mut tile[index];
            let masked = scores[index].mul(scale).first(visible, L::splat(f32::NEG_INFINITY));
            let largest = masked.largest();
            let max = if query.max > largest { query.max } else { largest };
            shrink[index] = query.max - max;
            query.max = max;
            scores[index] = masked.sub(L::splat(max)).exp().first(visible, L::splat(0.0));
            weights[index] = scores[index].to_array();
        }
        let shrink = L::from_array(&shrink).exp().to_array();
        for index in 0..N {
            let query = &mut tile[index];
            query.sum = query.sum.mul_add(L::splat(shrink[index]), scores[index]);
        }
        for column in (0..head_dim).step_by(LANES) {
            let mut sums = [L::splat(0.0); N];
            for index in 0..N {
                let sum = L::from_part(&tile[index].out[column..column + LANES]);
                sums[index] = sum.mul(L::splat(shrink[index]));
            }
            for token in 0..visible {
                let v = L::from_part(&v[token * head_dim + column..][..LANES]);
                for index in 0..N {
                    sums[index] = v.mul_add(L::splat(weights[index][token]), sums[index]);
                }
            }
            for index in 0..N {
                let sum = sums[index].to_array();
                tile[index].out[column..column + LANES].copy_from_slice(&sum);
            }
        }
    }
}

#[cfg(test)]
mod tests;
